"""The cluster in the queue's terms."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from cluster.observe import Dashboard, Holding
from orchestrator.scheduling import Node, milli
from orchestrator.scheduling.records import Resources


class RayCluster:
    """Nodes and identity of the cluster behind a dashboard. All raise ClusterUnreachable."""

    def __init__(self, dashboard: Dashboard) -> None:
        self._dashboard = dashboard

    def nodes(self) -> tuple[Node, ...]:
        """What each node has; nothing is taken."""
        return tuple(Node(name, milli(amounts)) for name, amounts in sorted(self._dashboard.nodes().items()))

    def holdings(self) -> list[Holding]:
        return self._dashboard.holdings()

    def identity(self) -> str:
        return self._dashboard.identity()


@dataclass(frozen=True)
class AsQueued:
    """The nodes, with what others hold there as the queue saw it last."""

    cluster: RayCluster
    taken: Callable[[], Mapping[str, Resources]]

    def nodes(self) -> tuple[Node, ...]:
        """Raises ClusterUnreachable."""
        taken = self.taken()
        return tuple(replace(node, taken=taken.get(node.name, {})) for node in self.cluster.nodes())
