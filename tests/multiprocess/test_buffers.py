"""What ranks keep beside parameters, such as the statistics of stock batch normalization: one set, of all the ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.context import Context
from jobs.data import Dataset
from jobs.layout import ParallelLayout
from jobs.measure.metrics import evaluate
from jobs.models.build import load_model
from jobs.storage import read_json
from jobs.train.buffers import agree_on_buffers
from jobs.train.mesh import Mesh, warm_up
from tests.multiprocess.cells import Cell, dataset_of, spec_of
from tests.multiprocess.own import normalizing
from tests.multiprocess.ranks import Ranks

TWO = ParallelLayout(data=2, zero_stage=1)
OWN: dict[str, Any] = {
    "model": {"name": "tests.multiprocess.own:normalizing", "args": {}},
    "metric": "log_loss",
    "train.steps": 8,
}


def agreed(context: Context, layout: ParallelLayout) -> dict[str, torch.Tensor]:
    """A work: buffers that tell the ranks apart, made one."""
    warm_up(context)
    mesh = Mesh(layout, context.rank)
    module = normalizing((1, 8, 8), 10)
    norm, paced = module.get_submodule("0.1"), module.get_submodule("0.3")
    norm.get_buffer("running_mean").fill_(1.0 + context.rank)
    norm.get_buffer("running_var").fill_(0.1)
    paced.get_buffer("highest").fill_(5.0 - context.rank)
    agree_on_buffers(module, mesh, others=False)
    kept = float(paced.get_buffer("highest"))
    agree_on_buffers(module, mesh, others=True)
    mesh.close()
    return {"kept": torch.tensor(kept), **dict(module.named_buffers())}


def test_running_statistics_are_averaged_and_other_buffers_are_the_first_ranks(ranks: Ranks) -> None:
    for rank, found in enumerate(ranks.run("tests.multiprocess.test_buffers:agreed", TWO, 2)):
        assert found["kept"] == 5.0 - rank
        assert torch.equal(found["0.1.running_mean"], torch.full((8,), 1.5))
        assert torch.equal(found["0.1.running_var"], torch.full((8,), 0.1))  # equal ones keep their values to the bit
        assert found["0.3.highest"] == 5.0


def test_the_file_is_the_model_that_was_evaluated(ranks: Ranks, data_folder: Path, tmp_path: Path) -> None:
    spec = spec_of("mlp", "sgd", data_folder).replace(OWN)
    trained = Cell(ranks, spec, TWO, data_folder, tmp_path / "whole")
    dataset = Dataset.open(dataset_of(spec, data_folder))
    model = load_model(tmp_path / "whole" / "model").eval()
    with torch.no_grad():
        ids = np.arange(dataset.num_samples("validation"))
        outputs = model(torch.from_numpy(dataset.encoded("validation", ids, dataset.encoding(spec.data.normalize))))
    value = evaluate("log_loss", outputs.numpy(), dataset.targets("validation"))
    assert trained.metric == pytest.approx(value, abs=1e-5)
    # The ranks' statistics are linear in what they saw, so agreeing more often, as at checkpoints, changes nothing.
    often = spec.replace({"train.checkpoint.every_steps": 2})
    again = Cell(ranks, often, TWO, data_folder, tmp_path / "often")
    assert again.metric == pytest.approx(trained.metric, abs=1e-5)
    assert read_json(tmp_path / "often" / "history.json")["checkpoint_s"] > 0.0
