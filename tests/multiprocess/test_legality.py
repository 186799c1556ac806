"""The legality table against the installed DeepSpeed: what it allows trains, and as one process does."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from jobs.layout import ParallelLayout, Setting, refusal
from tests.multiprocess.cells import ONE, Cell, dataset_of, name, request_of, spec_of
from tests.multiprocess.ranks import Ranks

ALL = [
    ParallelLayout(data=2, tensor=tensor, pipeline=pipeline, zero_stage=stage, offload=offload)
    for pipeline, tensor, stage, offload in product((1, 2), (1, 2), range(4), ("none", "cpu"))
]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 2e-2)])
def test_what_the_table_allows_trains(
    ranks: Ranks, data_folder: Path, tmp_path: Path, precision: str, tolerance: float
) -> None:
    spec = spec_of("mlp", "adamw", data_folder, **{"train.precision": precision, "train.steps": 4})
    legal = [layout for layout in ALL if refusal(layout, Setting(precision=precision)) is None]
    first = ONE if precision == "fp32" else ParallelLayout(zero_stage=1)
    one = Cell(ranks, spec, first, data_folder, tmp_path / "one")
    for number, layout in enumerate(legal):
        cell = Cell(ranks, spec, layout, data_folder, tmp_path / str(number))
        np.testing.assert_allclose(cell.losses, one.losses, rtol=tolerance, err_msg=name(layout))
    refused = [layout for layout in ALL if layout not in legal]
    assert all(
        (layout.zero_stage == 0 and (precision == "bf16" or layout.offload != "none"))
        or (layout.pipeline > 1 and layout.zero_stage > 1)
        for layout in refused
    )


def test_a_pipeline_with_zero_2_is_refused_by_deepspeed_too(ranks: Ranks, data_folder: Path, tmp_path: Path) -> None:
    spec = spec_of("mlp", "sgd", data_folder)
    layout = ParallelLayout(pipeline=2, zero_stage=2)
    request = request_of(spec, layout, dataset_of(spec, data_folder), tmp_path)
    with pytest.raises(AssertionError, match="incompatible with pipeline parallelism"):
        ranks.run("jobs.train.work:train", request, layout.size)
