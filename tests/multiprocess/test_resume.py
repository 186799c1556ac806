"""Saved under one layout, taken up under another: the losses go on, and each sample comes once an epoch."""

from pathlib import Path

import numpy as np
import pytest

from jobs.context import LocalContext
from jobs.layout import ParallelLayout
from jobs.storage import read_json
from jobs.train.work import train
from tests.multiprocess.cells import ONE, RESUMED, TOLERANCE, Cell, dataset_of, name, request_of, spec_of
from tests.multiprocess.ranks import Ranks
from tests.multiprocess.works import Until

CHECKPOINT = {"train.checkpoint.every_steps": 10, "train.schedule": "cosine", "train.gradient_clip": 0.5}
# A ring: each layout saves for the next one, so that each writes and reads.
RING = list(zip(RESUMED, [*RESUMED[1:], RESUMED[0]], strict=True))
ACROSS = [
    (ParallelLayout(data=2, zero_stage=3), ParallelLayout(data=2, tensor=2, pipeline=2, zero_stage=1)),
    (ParallelLayout(tensor=2), ParallelLayout(data=2, zero_stage=2)),
    (ParallelLayout(data=2, tensor=2, pipeline=2), ParallelLayout(data=2, tensor=2, zero_stage=3)),
]


@pytest.mark.parametrize(("optimizer", "pairs"), [("sgd", RING[::2] + ACROSS[:1]), ("adamw", RING[1::2] + ACROSS[1:])])
def test_a_run_goes_on_in_any_other_layout(
    ranks: Ranks, data_folder: Path, tmp_path: Path, optimizer: str, pairs: list[tuple[ParallelLayout, ParallelLayout]]
) -> None:
    spec = spec_of("transformer", optimizer, data_folder, **CHECKPOINT)
    dataset = dataset_of(spec, data_folder)
    one = Cell(ranks, spec, ONE, data_folder, tmp_path / "one")
    for number, (saving, resuming) in enumerate(pairs):
        folder = tmp_path / str(number)
        ranks.run(
            "tests.multiprocess.works:train_until",
            Until(request_of(spec, saving, dataset, folder), step=10),
            saving.size,
        )
        assert not (folder / "history.json").exists()
        resumed = Cell(ranks, spec, resuming, data_folder, folder)
        losses, parameters = resumed.away_from(one)
        assert len(resumed.losses) == len(one.losses)
        assert losses < TOLERANCE, f"{name(saving)} → {name(resuming)}: losses {losses:.1e} away"
        assert parameters < TOLERANCE, f"{name(saving)} → {name(resuming)}: parameters {parameters:.1e} away"


def test_each_sample_comes_once_an_epoch_across_a_change_of_layout(
    ranks: Ranks, data_folder: Path, tmp_path: Path
) -> None:
    spec = spec_of("mlp", "sgd", data_folder, **CHECKPOINT, **{"train.steps": 40})
    dataset = dataset_of(spec, data_folder)
    first, second = ParallelLayout(data=4, zero_stage=2), ParallelLayout(data=2, tensor=2, pipeline=2)
    until = Until(request_of(spec, first, dataset, tmp_path), step=20)
    before = ranks.run("tests.multiprocess.works:train_until", until, first.size)
    request = request_of(spec, second, dataset, tmp_path)
    after = ranks.run("tests.multiprocess.works:train_recorded", request, second.size)
    # Taking up a checkpoint makes the optimizer's states by a step of rate 0 on the samples of the first batch.
    seen = [ids for rank in before for step, ids in rank if step < 20]
    seen += [ids for rank in after for step, ids in rank if step >= 20]
    ids = np.concatenate([np.array(part) for part in seen])
    num_samples = read_json(dataset / "dataset.json")["info"]["num_samples"]["train"]
    epochs, rest = divmod(40 * 64, num_samples)
    counts = np.bincount(ids, minlength=num_samples)
    assert set(counts.tolist()) <= {epochs, epochs + 1}
    assert (counts == epochs + 1).sum() == rest


def test_one_process_takes_up_what_eight_have_left_without_any_group(
    ranks: Ranks, data_folder: Path, tmp_path: Path
) -> None:
    spec = spec_of("lenet", "adamw", data_folder, **CHECKPOINT)
    dataset = dataset_of(spec, data_folder)
    eight = ParallelLayout(data=2, tensor=2, pipeline=2, zero_stage=1)
    until = Until(request_of(spec, eight, dataset, tmp_path), step=10)
    ranks.run("tests.multiprocess.works:train_until", until, eight.size)
    shards = sorted(path.name for path in (tmp_path / "checkpoints" / "step-00000010").glob("*.safetensors"))
    assert len(shards) == 8  # written in parallel
    context = LocalContext()
    train(context, request_of(spec, ONE, dataset, tmp_path))
    assert context.reports[0]["event"] == "resumed"
    assert context.reports[0]["step"] == 10
