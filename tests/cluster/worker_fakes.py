"""Fakes with verbs: a test says what happens to the workers, and looks at what the driver makes of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cluster.member import Pulse
from jobs.errors import WorkerLost


class FakeSession:
    """A session that plays a script, one step a call of `next`: a list of reports, an error, or Result."""

    def __init__(self, script: list[Any]) -> None:
        self._script = list(script)
        self.stopped_with: float | None = None
        self.asked_to_stop = False

    def next(self, timeout_s: float) -> list[dict[str, Any]]:
        if isinstance(self._script[0], Result):
            return []
        step = self._script.pop(0)
        if isinstance(step, BaseException):
            raise step
        return step

    def done(self) -> bool:
        return isinstance(self._script[0], Result)

    def result(self, timeout_s: float) -> Any:
        return self._script[0].value

    def ask_stop(self) -> None:
        self.asked_to_stop = True

    def stop(self, grace_s: float) -> None:
        self.stopped_with = grace_s


@dataclass(frozen=True)
class Result:
    value: Any


@dataclass
class FakeGroup:
    """A worker group whose works go as scripted, one script a start."""

    scripts: list[list[Any]]
    size: int = 2
    events: list[str] = field(default_factory=list)
    sessions: list[FakeSession] = field(default_factory=list)
    rebuild_fails_with: WorkerLost | None = None
    grows_to: int | None = None
    """Room for so many workers; taken by the next rebuild."""

    def start(self, work: Any, request: Any) -> FakeSession:
        self.events.append("start")
        self.sessions.append(FakeSession(self.scripts.pop(0)))
        return self.sessions[-1]

    def rebuild(self) -> None:
        self.events.append("rebuild")
        if self.rebuild_fails_with is not None:
            error, self.rebuild_fails_with = self.rebuild_fails_with, None
            raise error
        self.size = self.grows_to or self.size

    def can_grow(self) -> bool:
        return self.grows_to is not None and self.grows_to > self.size

    def stop(self) -> None:
        self.events.append("stop")


class FakeAnswer:
    """What Ray calls an object reference: empty until somebody answers."""

    def __init__(self) -> None:
        self.ready = False
        self.value: Any = None


class FakeMember:
    """A member as its handle shows it; the verbs say what becomes of the process behind it."""

    def __init__(self) -> None:
        self.answers: dict[str, FakeAnswer] = {}
        self.silent = False
        self.pulse = Pulse(0, 0.0)
        self.stop_requests: list[int] = []

    def finish(self, result: Any = None) -> None:
        self._answer("run", result)
        self._answer("take_reports", ([], True))

    def fail(self, error: BaseException) -> None:
        self._answer("run", error)
        self._answer("take_reports", ([], True))

    def report(self, *measurements: dict[str, Any]) -> None:
        self._answer("take_reports", (list(measurements), False))

    def die(self, error: BaseException) -> None:
        for name in list(self.answers):
            self._answer(name, error)

    def _answer(self, name: str, value: Any) -> None:
        answer = self.answers.setdefault(name, FakeAnswer())
        answer.ready, answer.value = True, value

    def _asked(self, name: str) -> FakeAnswer:
        answer = self.answers.get(name)
        if answer is None or (answer.ready and name != "run"):
            # Something that was answered before it was asked is handed out once.
            fresh = self.answers.pop(name, None) or FakeAnswer()
            self.answers[name] = FakeAnswer() if fresh.ready else fresh
            answer = fresh
        if name == "ping" and not self.silent:
            answer.ready, answer.value = True, self.pulse
        return answer

    @property
    def run(self) -> "FakeMethod":
        return FakeMethod(lambda *_: self._asked("run"))

    @property
    def ping(self) -> "FakeMethod":
        return FakeMethod(lambda *_: self._asked("ping"))

    @property
    def take_reports(self) -> "FakeMethod":
        return FakeMethod(lambda *_: self._asked("take_reports"))

    @property
    def request_stop(self) -> "FakeMethod":
        return FakeMethod(self.stop_requests.append)


@dataclass(frozen=True)
class FakeMethod:
    remote: Callable[..., Any]


class FakeRay:
    """ray.wait and ray.get over fake answers; time passes only while there is nothing to do."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wait(
        self, answers: list[FakeAnswer], *, num_returns: int = 1, timeout: float
    ) -> tuple[list[FakeAnswer], list[FakeAnswer]]:
        ready = [answer for answer in answers if answer.ready]
        if not ready:
            self.now += max(timeout, 0.001)
        return ready[:num_returns], []

    def get(self, answer: FakeAnswer) -> Any:
        if isinstance(answer.value, BaseException):
            raise answer.value
        return answer.value
