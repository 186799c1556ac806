"""What becomes of a trial that fails: a cause of its own kind for each way to fail."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.member import Member, Seat
from jobs.errors import JobFailed, OutOfMemory, SpecError, TrainingDiverged, WorkerLost, ran_out_of_memory
from jobs.records import Trial
from orchestrator.searching.seat import oom_kills
from orchestrator.searching.trials import TrialTask, count_causes, failed_trial, failure_cause, lost_to_memory


def failed(cause: str) -> Trial:
    return failed_trial(TrialTask(0, "train", {}), cause, seconds=1.0)


def no_memory(context: Any, request: Any) -> None:
    raise MemoryError


def too_large_a_tensor(context: Any, request: Any) -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def out_of_device_memory(context: Any, request: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def plain_fault(context: Any, request: Any) -> None:
    raise RuntimeError("shapes do not match")


@pytest.mark.parametrize("work", [no_memory, too_large_a_tensor, out_of_device_memory])
def test_refused_memory_arrives_as_what_it_is(work: Any):
    member = Member(1)
    with pytest.raises(OutOfMemory) as caught:
        member._perform(work, Seat(member, 1, 0, 1, 1), None)
    assert failure_cause(caught.value).startswith("out of memory: worker 0: ")


def test_other_faults_are_not_taken_for_want_of_memory():
    member = Member(1)
    with pytest.raises(JobFailed) as caught:
        member._perform(plain_fault, Seat(member, 1, 0, 1, 1), None)
    assert type(caught.value) is JobFailed
    assert not ran_out_of_memory(ValueError("out of memory"))


def test_each_way_to_fail_has_its_own_kind():
    errors = {
        TrainingDiverged("the loss is nan"): "diverged",
        OutOfMemory("worker 0: MemoryError"): "out of memory",
        WorkerLost("worker 1 was lost: out of memory: Ray killed it"): "out of memory",
        WorkerLost("worker 1 was lost: the process is gone"): "worker lost",
        SpecError.at("model.args.width", "not divisible"): "illegal together",
        JobFailed("worker 0: KeyError"): "JobFailed",
    }
    assert [failure_cause(error).partition(":")[0] for error in errors] == list(errors.values())


def test_causes_are_counted_by_kind():
    causes = ["diverged: nan within step 3", "out of memory: a", "diverged: inf within step 9", "no bytes was measured"]
    counted = count_causes([failed(cause) for cause in causes])
    assert counted == "2 × diverged: nan within step 3; 1 × out of memory: a; 1 × no bytes was measured"


def test_causes_that_differ_in_a_figure_count_together():
    causes = [f"stopped by the scheduler after {epochs} epochs" for epochs in (3, 1, 9)]
    assert count_causes([failed(cause) for cause in causes]) == "3 × stopped by the scheduler after 3 epochs"


def test_a_worker_lost_while_the_kernel_killed_for_memory():
    lost = failed("worker lost: worker 0 is gone")
    assert lost_to_memory(lost, 0) == lost
    assert lost_to_memory(failed("diverged: nan"), 2).cause == "diverged: nan"
    cause = lost_to_memory(lost, 1).cause
    assert cause.startswith("out of memory: the kernel killed 1 process")
    assert cause.endswith(lost.cause)


@pytest.mark.skipif(not Path("/proc/vmstat").exists(), reason="Linux alone counts them")
def test_the_kernels_count_is_read():
    assert oom_kills() >= 0
