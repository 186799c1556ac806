"""The state of the cluster, as it was seen last."""

from collections import Counter

from fastapi import APIRouter

from orchestrator.client import shapes
from orchestrator.service.here import Here, Viewer, refusals
from orchestrator.service.views import units

router = APIRouter(tags=["cluster"])


@router.get("/cluster", responses=refusals())
def cluster(here: Here, who: Viewer) -> shapes.ClusterState:
    """Nodes with their resources, and how many of the caller's jobs have not ended. Seconds old at most."""
    nodes, detail = here.seen.look()
    live = Counter(job.state.value for job in here.store.live_jobs() if who.sees(job.project))
    return shapes.ClusterState(
        reachable=nodes is not None,
        identity=here.store.cluster_identity(),
        nodes=tuple(
            shapes.ClusterNode(name=node.name, total=units(node.total), taken=units(node.taken)) for node in nodes or ()
        ),
        jobs=dict(live),
        detail=detail,
    )
