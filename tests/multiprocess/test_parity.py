"""Other layouts against one process: the same losses, the same weights. `make parity` runs every cell there is."""

from pathlib import Path

import pytest

from jobs.layout import ParallelLayout
from tests.multiprocess.cells import ONE, TOLERANCE, Cell, name, spec_of
from tests.multiprocess.ranks import Ranks

# Each model meets each axis, and each axis each ZeRO stage; the optimizers take turns.
DATA_2 = [ParallelLayout(data=2, zero_stage=stage) for stage in range(4)]
DATA_4 = [ParallelLayout(data=4, zero_stage=stage) for stage in range(4)]
TENSOR = [ParallelLayout(tensor=2, zero_stage=stage) for stage in range(4)]
DATA_TENSOR = [ParallelLayout(data=2, tensor=2, zero_stage=stage) for stage in range(4)]
PIPELINE = [ParallelLayout(pipeline=2, zero_stage=stage) for stage in range(2)]
ALL_THREE = [ParallelLayout(data=2, tensor=2, pipeline=2, zero_stage=stage) for stage in range(2)]
SUBSET: dict[str, list[ParallelLayout]] = {
    "lenet": [DATA_2[0], DATA_4[3], TENSOR[1], DATA_TENSOR[2], PIPELINE[1]],
    "resnet": [DATA_2[3], DATA_4[1], TENSOR[0], DATA_TENSOR[3], PIPELINE[0]],
    "mlp": [DATA_2[2], DATA_4[0], TENSOR[3], DATA_TENSOR[1], PIPELINE[1], ALL_THREE[0]],
    "lstm": [DATA_2[1], DATA_4[2], DATA_2[3], PIPELINE[0], PIPELINE[1]],
    "transformer": [DATA_2[0], DATA_4[3], TENSOR[2], DATA_TENSOR[0], PIPELINE[1], ALL_THREE[1]],
    "recommender": [DATA_2[1], DATA_4[2], TENSOR[0], DATA_TENSOR[3], PIPELINE[0]],
}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("model", SUBSET)
def test_every_layout_gives_what_one_process_gives(
    ranks: Ranks, data_folder: Path, tmp_path: Path, model: str, optimizer: str
) -> None:
    spec = spec_of(model, optimizer, data_folder)
    one = Cell(ranks, spec, ONE, data_folder, tmp_path / "one")
    assert one.losses[-1] < 0.8 * one.losses[0]  # so that nothing hides behind a tiny step
    chosen = SUBSET[model][("sgd", "adamw").index(optimizer) :: 2]
    for number, layout in enumerate(chosen):
        cell = Cell(ranks, spec, layout, data_folder, tmp_path / str(number))
        losses, parameters = cell.away_from(one)
        assert losses < TOLERANCE, f"{model} in {name(layout)}: losses {losses:.1e} away"
        assert parameters < TOLERANCE, f"{model} in {name(layout)}: parameters {parameters:.1e} away"
        assert cell.metric == pytest.approx(one.metric, rel=1e-3)


def test_a_model_of_the_users_own_can_be_a_pipeline(ranks: Ranks, data_folder: Path, tmp_path: Path) -> None:
    own = {"model": {"name": "tests.multiprocess.own:network", "args": {"width": 48}}, "data.normalize": "unit"}
    spec = spec_of("mlp", "sgd", data_folder).replace(own)
    one = Cell(ranks, spec, ONE, data_folder, tmp_path / "one")
    two = Cell(ranks, spec, ParallelLayout(data=2, pipeline=2, zero_stage=1), data_folder, tmp_path / "two")
    assert max(two.away_from(one)) < TOLERANCE


def test_a_hugging_face_model_trains_data_parallel(ranks: Ranks, data_folder: Path, tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "n_layer": 1, "n_embd": 32, "n_head": 2}
    config |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    own = {"model": {"name": "huggingface", "args": {"config": config}}}
    spec = spec_of("transformer", "sgd", data_folder).replace(own)
    one = Cell(ranks, spec, ONE, data_folder, tmp_path / "one")
    two = Cell(ranks, spec, DATA_2[3], data_folder, tmp_path / "two")
    assert one.losses[-1] < 0.9 * one.losses[0]
    assert max(two.away_from(one)) < TOLERANCE
