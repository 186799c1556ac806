"""What the store raises.

ThresherError
├── StoreUnavailable  the database is away, or too busy: try again                   exit code 3
├── StoreUnusable     the database is damaged, or of a newer Thresher                   exit code 2
├── NotFound          no such job, project, token, model                             exit code 2
├── Conflict          the state that it is in does not allow this                    exit code 2
└── LeaseLost         somebody else is the leader: what was written changed nothing  exit code 1
"""

from jobs.errors import ThresherError


class StoreUnavailable(ThresherError):
    """The database does not answer, or not in time. Every method of the store may be called again after it."""

    exit_code = 3


class StoreUnusable(ThresherError):
    """The database is no store, is damaged, or was written by a newer version."""

    exit_code = 2


class NotFound(ThresherError):
    """There is nothing by that name."""

    exit_code = 2


class Conflict(ThresherError):
    """Not in this state.

    Args:
        state: what the job, attempt or other thing is in now.
    """

    exit_code = 2

    def __init__(self, message: str, state: str | None = None) -> None:
        super().__init__(message, state)
        self.message = message
        self.state = state

    def __str__(self) -> str:
        return self.message


class LeaseLost(ThresherError):
    """The lease has passed to somebody else, or was given back; nothing was written."""
