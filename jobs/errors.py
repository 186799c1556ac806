"""Every error that Thresher raises on purpose.

    ThresherError
    ├── SpecError            the spec or the arguments are wrong             exit code 2
    ├── DataError            a data source cannot be read as promised       exit code 2
    ├── JobFailed            the work was started and did not succeed       exit code 1
    │   ├── TrainingDiverged a loss became NaN or infinite
    │   ├── WorkerLost       a worker process died or went silent
    │   ├── OutOfMemory      a worker asked for more memory than there is
    │   ├── QuantizationFailed  a scheme does not suit the model
    │   ├── FactorizationFailed  no layer gets cheaper by a low rank
    │   ├── ArtifactError    a model file is damaged or does not match
    │   ├── BudgetUnmet      `compress.budget.required` and nothing fits
    │   └── StorageError     the disk is full, or a write failed
    ├── ClusterUnreachable   no Ray cluster answers at the address          exit code 3
    └── Interrupted          stopped by the user; the run can be resumed    exit code 130

All of them survive pickling, so that they cross process borders unchanged.
"""

from dataclasses import dataclass
from typing import Any, Self


class ThresherError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line ends with."""

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a spec.

    Attributes:
        path: where, as a dotted path into the spec (`train.optimizer.lr`); empty for the document itself.
        message: what is wrong, in words.
        value: what stands there.
        allowed: what may stand there.
        nearest: for a misspelling, the closest known name.
    """

    path: str
    message: str
    value: Any = None
    allowed: str | None = None
    nearest: str | None = None

    def __str__(self) -> str:
        text = f"{self.path}: {self.message}" if self.path else self.message
        if self.value is not None:
            shown = repr(self.value)
            text += f" (got {shown if len(shown) <= 80 else shown[:77] + '...'})"
        if self.allowed:
            text += f"; allowed: {self.allowed}"
        if self.nearest:
            text += f"; did you mean {self.nearest!r}?"
        return text


class SpecError(ThresherError):
    """The spec or the arguments are wrong. Carries every problem found, not just the first."""

    exit_code = 2

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(problems)
        self.problems = problems

    @classmethod
    def at(
        cls,
        path: str,
        message: str,
        value: Any = None,
        allowed: str | None = None,
        nearest: str | None = None,
    ) -> Self:
        return cls([Problem(path, message, value, allowed, nearest)])

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class DataError(SpecError):
    """A data source is missing, damaged, or not what the spec says."""


class JobFailed(ThresherError):
    """The work was started and did not succeed."""


class TrainingDiverged(JobFailed):
    """A training loss became NaN or infinite."""


class WorkerLost(JobFailed):
    """A worker process died or went silent."""


class OutOfMemory(JobFailed):
    """A worker asked for more memory than there is; it lives."""


class QuantizationFailed(JobFailed):
    """A quantization scheme found nothing to quantize, or gave a file that does not work."""


class FactorizationFailed(JobFailed):
    """No layer of a model would need fewer multiplications with a low rank."""


class ArtifactError(JobFailed):
    """A model file is missing, damaged, or does not match its card."""


class BudgetUnmet(JobFailed):
    """`compress.budget.required` is set and no artifact fits the budget."""


class StorageError(JobFailed):
    """Writing to the run's storage failed, most often because the disk is full."""


class ClusterUnreachable(ThresherError):
    """No Ray cluster answers at the given address."""

    exit_code = 3


class Interrupted(ThresherError):
    """Stopped by the user or by a signal; the run can be resumed."""

    exit_code = 130


_REFUSALS = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was refused: Python's own, torch's of a device, torch's of the CPU."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(words in str(error).lower() for words in _REFUSALS)
