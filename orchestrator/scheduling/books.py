"""A snapshot as arrays: columns are resource names, rows are nodes or projects, all in the order of their names."""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from orchestrator.scheduling.ledger import NEVER, Ask, Holding, Ledger, Places
from orchestrator.scheduling.placing import Amounts, Bundle, capacities
from orchestrator.scheduling.quota import Needs, Quotas
from orchestrator.scheduling.records import Demand, Gang, Job, Node, Project, Resources, Snapshot


class Books:
    """What does not change within a pass, and the ledger that does.

    Args:
        holdings: what gangs hold, by job: kept from one pass to the next, in which nodes and projects are the same.
    """

    def __init__(self, snapshot: Snapshot, holdings: dict[str, Holding] | None = None) -> None:
        self.snapshot = snapshot
        self._holdings = {} if holdings is None else holdings
        self.now_ms = snapshot.now_ms
        self.soon_ms = snapshot.now_ms + max(1, snapshot.policy.grace_ms)
        """When a gang is gone that is told to leave now."""
        self.nodes = sorted(snapshot.nodes, key=lambda node: node.name)
        self.node_of = {node.name: index for index, node in enumerate(self.nodes)}
        gangs = sorted(snapshot.gangs, key=lambda gang: gang.job.id)
        named = {project.name: project for project in snapshot.projects}
        used = {gang.job.project for gang in gangs} | {pending.job.project for pending in snapshot.pending}
        projects = sorted(
            [*named.values(), *(Project(name) for name in used - named.keys())], key=lambda project: project.name
        )
        self.project_of = {project.name: index for index, project in enumerate(projects)}
        self.names = self._resource_names(projects, gangs)
        self.column_of = {name: index for index, name in enumerate(self.names)}
        self._bundles: dict[tuple[tuple[str, int], ...], Bundle | None] = {}
        self._idle_room: dict[tuple[bytes, bool], int] = {}
        self._most: dict[int, list[int]] = {}
        self._shares: dict[int, int] = {}
        self._unwanted: dict[bytes, NDArray[np.int64]] = {}
        self.quotas = Quotas(projects, self.names)
        self.totals = self.table(self.nodes)
        self.cluster: list[int] = self.totals.sum(axis=0).tolist()
        self.largest = np.concatenate([self.totals, self.table(snapshot.growth)])
        """All nodes that there are or could be."""
        self._open(gangs)

    def _resource_names(self, projects: list[Project], gangs: list[Gang]) -> list[str]:
        names: set[str] = set()
        for node in (*self.nodes, *self.snapshot.growth):
            names.update(node.total)
        for project in projects:
            names.update(project.quota.nominal if project.quota else ())
        for gang in gangs:
            names.update(name for name, _ in gang.job.demand.bundle)
        return sorted(names)

    def _open(self, gangs: list[Gang]) -> None:
        taken = np.array([self.vector(node.taken) for node in self.nodes], np.int64).reshape(self.totals.shape)
        usage = np.zeros((len(self.project_of), len(self.names)), np.int64)
        self.staying: list[list[int]] = usage.tolist()
        """Use by project of the gangs that were not told to leave, and of those that start in this pass."""
        self.gangs: list[tuple[Gang, Holding, int]] = []
        """With what they hold and when they are expected to end."""
        self.ledger = Ledger(self.quotas, self.now_ms, self.totals - taken, usage)
        for gang in gangs:
            holding, end_ms = self._holdings.get(gang.job.id), self._end(gang)
            if holding is None:
                holding = self._holdings[gang.job.id] = self._holding(gang)
            self.gangs.append((gang, holding, end_ms))
            self.ledger.release_at(holding, end_ms)
            if gang.leaving_since_ms is None:
                self.stays(holding.project, self.needs(gang))
        self.ledger.now.take_all([holding for _, holding, _ in self.gangs])

    def needs(self, gang: Gang) -> Needs:
        demand = gang.job.demand
        return tuple((self.column_of[name], demand.workers * amount) for name, amount in demand.bundle)

    def _holding(self, gang: Gang) -> Holding:
        bundle = self.bundle(gang.job.demand)
        if bundle is None:
            raise ValueError(f"job {gang.job.id} holds what nothing has: {gang.job.demand}")
        counts = Counter(gang.placement)
        # A node that no longer answers is not in the snapshot; the quota stays charged until the gang is gone.
        places: Places = sorted((self.node_of[name], n) for name, n in counts.items() if name in self.node_of)
        return Holding.of(self.project_of[gang.job.project], bundle, gang.job.demand.workers, places)

    def _end(self, gang: Gang) -> int:
        grace_ms = self.soon_ms - self.now_ms
        end_ms = NEVER if gang.job.limit_ms is None else gang.started_ms + gang.job.limit_ms
        late_ms = end_ms + grace_ms
        if gang.leaving_since_ms is not None:
            late_ms = gang.leaving_since_ms + grace_ms
            end_ms = min(end_ms, late_ms) if end_ms > self.now_ms else late_ms
        # What should have gone long ago cannot be relied on: it may be on a node that does not answer.
        return NEVER if late_ms <= self.now_ms else max(end_ms, self.now_ms + 1)

    def vector(self, amounts: Resources) -> Amounts:
        return np.array([amounts.get(name, 0) for name in self.names], np.int64)

    def table(self, nodes: tuple[Node, ...] | list[Node]) -> Amounts:
        rows = [[node.total.get(name, 0) for name in self.names] for node in nodes]
        return np.array(rows, np.int64).reshape(len(nodes), len(self.names))

    def bundle(self, demand: Demand) -> Bundle | None:
        """None when it asks for a resource that is nowhere."""
        if demand.bundle not in self._bundles:
            if all(name in self.column_of for name, _ in demand.bundle):
                columns = np.array([self.column_of[name] for name, _ in demand.bundle], np.int64)
                amounts = np.array([amount for _, amount in demand.bundle], np.int64)
                self._bundles[demand.bundle] = Bundle(columns, amounts, self.vector(dict(demand.bundle)))
            else:
                self._bundles[demand.bundle] = None
        return self._bundles[demand.bundle]

    def ask(self, job: Job) -> Ask | None:
        """None when it asks for a resource that is nowhere."""
        bundle = self.bundle(job.demand)
        if bundle is None:
            return None
        workers = job.demand.workers
        needs = tuple((self.column_of[name], workers * amount) for name, amount in job.demand.bundle)
        return Ask(self.project_of[job.project], bundle, workers, needs, job.limit_ms)

    def idle_room(self, bundle: Bundle, ever: bool) -> int:
        """How many such bundles the idle cluster holds: now, or `ever`."""
        key = (bundle.key, ever)
        if key not in self._idle_room:
            self._idle_room[key] = int(capacities(bundle, self.largest if ever else self.totals).sum())
        return self._idle_room[key]

    def most(self, project: int) -> list[int]:
        """The most that the project could ever use, were all others idle."""
        if project not in self._most:
            self._most[project] = self.quotas.available(project, np.zeros_like(self.ledger.now.usage))
        return self._most[project]

    def share(self, project: int) -> int:
        """The project's borrowed share of the cluster, from what stays and starts."""
        if project not in self._shares:
            self._shares[project] = self.quotas.share(project, self.staying[project], self.cluster)
        return self._shares[project]

    def stays(self, project: int, needs: Needs, sign: int = 1) -> None:
        """A gang starts, or (sign −1) is told to leave."""
        for column, need in needs:
            self.staying[project][column] += sign * need
        self._shares.pop(project, None)

    def room_now(self, ask: Ask) -> int:
        """How many of its workers would fit this moment, were nothing promised."""
        return int(capacities(ask.bundle, self.ledger.now.free).sum())

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
