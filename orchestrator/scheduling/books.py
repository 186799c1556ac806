"""A snapshot as arrays: columns are resource names, rows are nodes or projects, all in the order of their names."""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from orchestrator.scheduling.ledger import Ask
from orchestrator.scheduling.placing import Amounts, Bundle, capacities
from orchestrator.scheduling.quota import Needs, Quotas
from orchestrator.scheduling.records import Demand, Job, Project, Resources, Snapshot
from orchestrator.scheduling.releases import Places


class Books:
    """What does not change from pass to pass: nodes, projects, what can be asked for."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.now_ms = snapshot.now_ms
        self.soon_ms = snapshot.now_ms + max(1, snapshot.policy.grace_ms)
        """When a gang is gone that is told to leave now."""
        self.nodes = sorted(snapshot.nodes, key=lambda node: node.name)
        self.node_of = {node.name: index for index, node in enumerate(self.nodes)}
        named = {project.name: project for project in snapshot.projects}
        used = {gang.job.project for gang in snapshot.gangs} | {one.job.project for one in snapshot.pending}
        projects = sorted(
            [*named.values(), *(Project(name) for name in used - named.keys())], key=lambda project: project.name
        )
        self.project_of = {project.name: index for index, project in enumerate(projects)}
        self.names = self._resource_names(projects)
        self.column_of = {name: index for index, name in enumerate(self.names)}
        self._bundles: dict[tuple[tuple[str, int], ...], Bundle | None] = {}
        self._asks: dict[tuple[str, int, tuple[tuple[str, int], ...]], tuple[int, int, Bundle, int, Needs]] = {}
        self._idle_room: dict[tuple[bytes, bool], int] = {}
        self._most: dict[int, list[int]] = {}
        self._unwanted: dict[bytes, NDArray[np.int64]] = {}
        self.quotas = Quotas(projects, self.names)
        self.totals = self._table([node.total for node in self.nodes])
        self.idle = self.totals - self._table([node.taken for node in self.nodes])
        """What the queue may use of each node."""
        self.cluster: list[int] = self.totals.sum(axis=0).tolist()
        self.largest = np.concatenate([self.totals, self._table([node.total for node in snapshot.growth])])
        """All nodes that there are or could be."""

    def _resource_names(self, projects: list[Project]) -> list[str]:
        names: set[str] = set()
        for node in (*self.nodes, *self.snapshot.growth):
            names.update(node.total)
        for project in projects:
            names.update(project.quota.nominal if project.quota else ())
        for bundle in {gang.job.demand.bundle for gang in self.snapshot.gangs}:
            names.update(name for name, _ in bundle)
        return sorted(names)

    def no_usage(self) -> Amounts:
        return np.zeros((len(self.project_of), len(self.names)), np.int64)

    def _table(self, amounts: list[Resources]) -> Amounts:
        rows = [[one.get(name, 0) for name in self.names] for one in amounts]
        return np.array(rows, np.int64).reshape(len(amounts), len(self.names))

    def bundle(self, demand: Demand) -> Bundle | None:
        """None when it asks for a resource that is nowhere."""
        if demand.bundle not in self._bundles:
            if all(name in self.column_of for name, _ in demand.bundle):
                columns = np.array([self.column_of[name] for name, _ in demand.bundle], np.int64)
                amounts = np.array([amount for _, amount in demand.bundle], np.int64)
                self._bundles[demand.bundle] = Bundle(columns, amounts, self._table([dict(demand.bundle)])[0])
            else:
                self._bundles[demand.bundle] = None
        return self._bundles[demand.bundle]

    def ask(self, job: Job) -> Ask | None:
        """None when it asks for a resource that is nowhere."""
        demand, bundle = job.demand, self.bundle(job.demand)
        if bundle is None:
            return None
        key = (job.project, demand.workers, demand.bundle)
        if key not in self._asks:
            self._asks[key] = len(self._asks), self.project_of[job.project], bundle, demand.workers, self.needs(demand)
        return Ask(*self._asks[key], job.limit_ms)

    def needs(self, demand: Demand) -> Needs:
        """Of all its workers together."""
        return tuple((self.column_of[name], demand.workers * amount) for name, amount in demand.bundle)

    def idle_room(self, bundle: Bundle, ever: bool) -> int:
        """How many such bundles the idle cluster holds: now, or `ever`."""
        key = (bundle.key, ever)
        if key not in self._idle_room:
            self._idle_room[key] = int(capacities(bundle, self.largest if ever else self.totals).sum())
        return self._idle_room[key]

    def most(self, project: int) -> list[int]:
        """The most that the project could ever use, were all others idle."""
        if project not in self._most:
            self._most[project] = self.quotas.available(project, self.no_usage())
        return self._most[project]

    def unwanted(self, bundle: Bundle) -> NDArray[np.int64]:
        """Kinds of resources that a node has and the bundle does not ask for."""
        key = bundle.kinds
        if key not in self._unwanted:
            self._unwanted[key] = ((self.totals > 0) & (bundle.vector == 0)).sum(axis=1)
        return self._unwanted[key]

    def placement(self, places: Places) -> tuple[str, ...]:
        """The node of each bundle; bundles of a node are neighbours, so neighbouring ranks are."""
        return tuple(self.nodes[node].name for node, count in places for _ in range(count))

    def places(self, placement: tuple[str, ...]) -> Places | None:
        """None when a node is not there."""
        counts = Counter(placement)
        if not counts.keys() <= self.node_of.keys():
            return None
        return [(self.node_of[name], count) for name, count in counts.items()]
