"""What Ray says of attempts, within one pass."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from jobs.errors import ClusterUnreachable, JobFailed, SpecError
from orchestrator.controller.evidence import Seen

_SEVERAL = 2


class RayState(Protocol):
    @property
    def status(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def ray_job(self) -> str | None: ...


class States(Protocol):
    """What is asked of `cluster.submit.RayJobs`."""

    def status(self, submission_id: str) -> RayState: ...
    def states(self) -> Mapping[str, RayState]: ...


@dataclass(frozen=True)
class Sight:
    """`ray_job` is Ray's id of the attempt's driver, once that has connected."""

    seen: Seen
    message: str = ""
    ray_job: str | None = None


def look(jobs: States, wanted: Collection[str]) -> dict[str, Sight]:
    """Each of the submissions: with one request for all where there are several.

    An id that is missing in the list is asked for by itself: that it is unknown must be an answer about it. Where the
    list is not answered at all, nobody is asked again: each request may wait as long as the first one did.
    """
    listed: Mapping[str, RayState] = {}
    if len(wanted) >= _SEVERAL:
        try:
            listed = jobs.states()
        except ClusterUnreachable as error:
            return dict.fromkeys(wanted, Sight("unreachable", str(error)))
        except JobFailed:
            pass  # one job that cannot be listed must not hide the others
    sights = {name: _sight(listed[name]) for name in wanted if name in listed}
    missing = [name for name in wanted if name not in listed]
    for number, name in enumerate(missing):
        try:
            sights[name] = _sight(jobs.status(name))
        except SpecError:
            sights[name] = Sight("unknown")
        except JobFailed as error:  # an answer that says nothing of the job
            sights[name] = Sight("unreachable", str(error))
        except ClusterUnreachable as error:
            return sights | dict.fromkeys(missing[number:], Sight("unreachable", str(error)))
    return sights


def _sight(state: RayState) -> Sight:
    if state.status in ("STOPPED", "SUCCEEDED", "FAILED"):
        return Sight("ended", state.message, state.ray_job)
    return Sight("running" if state.status == "RUNNING" else "pending", state.message, state.ray_job)
