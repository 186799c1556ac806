"""What the tests let gangs do. Workers import this module, as they would a user's."""

import os
import signal
import sys
import time

from jobs.context import WorkRef
from jobs.errors import ArtifactError, DataError, TrainingDiverged
from jobs.exchange import Exchange


class Unknown(Exception):
    """An exception that pickle cannot rebuild."""

    def __init__(self, first, second):
        super().__init__(first)


def describe(context, request):
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    seat = {name: os.environ[name] for name in names}
    threads = os.environ["OMP_NUM_THREADS"], context.num_threads
    return {"seat": seat, "threads": threads, "pid": os.getpid(), "request": request, "torch": "torch" in sys.modules}


def count(context, request):
    """Reports 0, 1, 2, … until asked to stop."""
    step = 0
    while not context.stop_requested():
        context.report({"step": step, "sent_at": time.time()})
        step += 1
        time.sleep(0.05)
    return step


def report_burst(context, number):
    for step in range(number):
        context.report({"step": step})
    return number


def remember(context, request):
    """A warm-up that leaves a trace in its process."""
    os.environ["WARMED_UP"] = f"{context.rank} of {context.size}"


def recall(context, request):
    return os.environ["WARMED_UP"]


def noop(context, request):
    return request


def sleep(context, seconds):
    time.sleep(seconds)


def sign(context, folder):
    """Every rank leaves its process id."""
    with open(os.path.join(folder, str(context.rank)), "w", encoding="utf-8") as file:
        file.write(str(os.getpid()))
    return context.size


def count_until_told(context, folder):
    """Goes on until it is told to end: by a file, or early. Tells how many there were, and how it ended."""
    while not os.path.exists(os.path.join(folder, "end")):
        if context.stop_requested():
            return {"stopped": True, "size": context.size}
        context.report({"size": context.size})
        time.sleep(0.05)
    return {"stopped": False, "size": context.size}


def stall(context, process):
    """Rank 1, which is `process`, makes no progress any more; the others wait until it has gone."""
    for _ in range(2 if context.rank == 1 else 3):
        context.beat()
    if context.rank == 1:
        time.sleep(600)
    while is_running(process):
        time.sleep(0.1)


def is_running(process):
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def exit_at(context, request):
    """Rank `rank` dies at once; the others see it as a broken connection does, or not at all."""
    if context.rank == request["rank"]:
        context.report({"last": "words"})
        time.sleep(0.2)
        os._exit(3)
    if request["echo"]:
        time.sleep(0.1)
        raise RuntimeError("connection closed by peer")
    time.sleep(60)


def wait_in_a_row(context, request):
    """The last rank dies; each of the others waits for what the next one is to send."""
    import torch
    from deepspeed import comm

    if context.rank == context.size - 1:
        os._exit(3)
    comm.recv(torch.zeros(1), context.rank + 1)


def exit_once(context, marker):
    """Dies at the first attempt, and succeeds at the next."""
    if context.rank == 1 and not os.path.exists(marker):
        with open(marker, "w", encoding="utf-8"):
            pass
        os._exit(1)
    return os.path.exists(marker)


class _Doomed:
    """A context whose process dies at its so-many-th beat, unless it has died before."""

    def __init__(self, context, marker, beats):
        self._context, self._marker, self._left = context, marker, beats

    def __getattr__(self, name):
        return getattr(self._context, name)

    def beat(self):
        self._context.beat()
        self._left -= 1
        if self._left == 0 and not os.path.exists(self._marker):
            with open(self._marker, "w", encoding="utf-8"):
                pass
            os.kill(os.getpid(), signal.SIGKILL)


def train_and_die_once(context, request):
    """A training in the midst of which the process of rank 1 is killed; the next attempt is left alone."""
    training, marker, beats = request
    doomed = _Doomed(context, marker, beats) if context.rank == 1 else context
    return WorkRef("jobs.train.work:train")(doomed, training)


def freeze(context, request):
    """The process of rank 1 stops answering anything, but does not die."""
    if context.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(600)


def diverge(context, request):
    context.report({"loss": 1.0})
    raise TrainingDiverged(f"the loss became NaN at step {request}")


def bad_data(context, request):
    raise DataError.at("data.source.path", "no such file", request, nearest="digits.csv")


def stumble(context, request):
    raise Unknown("odd", "pair")


def fail_to_warm_up(context, request):
    if context.rank == 1:
        raise TrainingDiverged("cold")


def die_warming_up(context, request):
    if context.rank == 1:
        os._exit(1)


def share_or_fail(context, folder):
    """Rank 0 waits for the share of rank 1, which finds a damaged file."""
    meeting = Exchange(folder, context.size)
    if context.rank == 1:
        raise ArtifactError("the file is damaged")
    meeting.give(context.rank, {})
    meeting.wait(context, own_s=0.0)
