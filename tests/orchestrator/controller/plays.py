"""Ray as the controller sees it, played: with verbs for what can happen to it."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from cluster.observe import Holding
from jobs.errors import ClusterUnreachable, SpecError
from orchestrator.scheduling import Node


class Killed(BaseException):
    """The controller's process ends here."""


@dataclass
class State:
    status: str
    message: str = ""
    ray_job: str | None = None


@dataclass
class PlayedRay:
    runs: Path
    session: int = 1
    away: bool = False
    lose_replies: int = 0
    die_after_submit: bool = False
    jobs: dict[str, State] = field(default_factory=dict)
    submitted: list[str] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)
    entrypoints: dict[str, str] = field(default_factory=dict)
    others: list[Holding] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)

    def submit(self, entrypoint, submission_id, working_dir, env):
        self._answer()
        if submission_id in self.jobs:
            return submission_id  # RayJobs adopts
        job = submission_id.rpartition("-")[0]
        alive = [name for name in self.running() if name.rpartition("-")[0] == job]
        assert not alive, f"{submission_id} is submitted while {alive} live"
        assert env["THRESHER_ATTEMPT"] == submission_id
        assert set(json.loads(env["THRESHER_PLACEMENT"])) <= {"n1", "n2"}
        assert (working_dir / "thresher-job.yaml").is_file()
        self.jobs[submission_id] = State("RUNNING", ray_job=f"{len(self.submitted) + 1:02}000000")
        self.submitted.append(submission_id)
        self.entrypoints[submission_id] = entrypoint
        if self.die_after_submit:
            self.die_after_submit = False
            raise Killed
        if self.lose_replies:
            self.lose_replies -= 1
            raise ClusterUnreachable("the reply was lost")
        return submission_id

    def states(self):
        self.asked["states"] += 1
        self._answer()
        return dict(self.jobs)

    def status(self, submission_id):
        self.asked["status"] += 1
        self._answer()
        if submission_id not in self.jobs:
            raise SpecError.at("JOB", "no such job", submission_id)
        return self.jobs[submission_id]

    def ask_stop(self, submission_id):
        self._answer()
        self.stops.append(submission_id)

    def nodes(self):
        self._answer()
        return (Node("n1", {"CPU": 1000}), Node("n2", {"CPU": 1000}))

    def holdings(self):
        self._answer()
        return self.others

    def identity(self):
        self._answer()
        return f"session-{self.session}"

    def _answer(self):
        if self.away:
            raise ClusterUnreachable("nobody answers")

    # --- what can happen ---------------------------------------------------------------------------------------

    def running(self) -> list[str]:
        return [name for name, state in self.jobs.items() if state.status == "RUNNING"]

    def end(self, submission_id: str, status: str = "FAILED", message: str = "") -> None:
        self.jobs[submission_id] = State(status, message, self.jobs[submission_id].ray_job)

    def restart_head(self) -> None:
        self.jobs.clear()
        self.session += 1

    def write(self, run_id: str, *events: dict) -> None:
        folder = self.runs / run_id
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "events.jsonl").open("a") as file:
            file.writelines(json.dumps(event) + "\n" for event in events)
