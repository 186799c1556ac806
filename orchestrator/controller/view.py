"""The cluster in the queue's terms."""

from cluster.observe import Dashboard
from orchestrator.scheduling import Node, milli


class RayCluster:
    """Nodes and identity of the cluster behind a dashboard. Both raise ClusterUnreachable."""

    def __init__(self, dashboard: Dashboard) -> None:
        self._dashboard = dashboard

    def nodes(self) -> tuple[Node, ...]:
        return tuple(Node(name, milli(amounts)) for name, amounts in sorted(self._dashboard.nodes().items()))

    def identity(self) -> str:
        return self._dashboard.identity()
