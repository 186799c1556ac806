"""A signal while Tune runs: its trials are stopped, so that none goes on working where the connection to Ray stays.

Tune cleans up after an exception, and not after a KeyboardInterrupt; its own handler is for SIGINT alone, and ends the
process at the second.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray import tune

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption(tune.Stopper):
    """Tune's rule for when to stop: a trial when `ended` says so, all of them after a signal.

    The first signal is noted, and raised as a KeyboardInterrupt once Tune has ended; a second one at once.
    """

    def __init__(self, ended: Callable[[str, dict[str, Any]], bool]) -> None:
        self.ended, self.noted = ended, False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self.ended(trial_id, result)

    def stop_all(self) -> bool:
        return self.noted

    @contextmanager
    def listening(self) -> Iterator[None]:
        """In another thread than the main one there are no signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.noted:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: object) -> None:
        if self.noted:
            raise KeyboardInterrupt
        self.noted = True
