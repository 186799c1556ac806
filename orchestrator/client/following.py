"""Where a reader of a job's log stands, across broken streams and across attempts. Pure."""

import codecs
from dataclasses import dataclass, field
from typing import Any

from orchestrator.client.shapes import Job

_UTF8 = codecs.getincrementaldecoder("utf-8")
PAUSE_S = 0.5
BROKEN_STREAMS = 20
"""So many streams in a row that break off before they bring anything are a service that does not answer."""
ATTEMPT_HEADER = "Thresher-Attempt"


@dataclass
class LogPosition:
    """The next byte to ask for: of which attempt, and how far into its log.

    Each attempt has a log of its own. A log only ever grows, so that whoever comes back asks for the rest of it.
    """

    attempt: int = 1
    offset: int = 0
    last_look: bool = False
    """The attempt had ended before this request: what it answers is all that there will ever be."""
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    def params(self, follow: bool) -> dict[str, Any]:
        return {"attempt": self.attempt, "offset": self.offset, "follow": follow and not self.last_look}

    def took(self, chunk: bytes) -> str:
        """Books bytes that arrived; a character that is cut in two is given with its second half."""
        self.offset += len(chunk)
        return self._decoder.decode(chunk)

    def go_on(self, job: Job, *, clean: bool, follow: bool) -> bool:
        """Whether there is more to ask for, now that a stream has ended and the job is in this state.

        Args:
            clean: the stream came to its end, instead of breaking off.
        """
        if not clean:
            return True
        newest = job.attempt.number if job.attempt is not None else 0
        if follow and newest <= self.attempt and not job.ended:
            return True
        if follow and not self.last_look:
            # It ended since it was last read, or while: what it wrote at the very end is still to be read.
            self.last_look = True
            return True
        if newest > self.attempt:
            self.attempt, self.offset, self.last_look = self.attempt + 1, 0, False
            self._decoder.reset()
            return True
        return False
