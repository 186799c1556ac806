"""A gang that goes from one layout to another computes what a gang computes that has never seen another one."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.gang import Gang
from cluster.workers import run_work
from jobs.context import WorkRef
from jobs.layout import ParallelLayout
from jobs.models.build import load_model
from jobs.storage import read_json
from tests.multiprocess.cells import dataset_of, name, request_of, spec_of

TENSOR, ZERO, PIPELINE = ParallelLayout(tensor=2), ParallelLayout(data=2, zero_stage=3), ParallelLayout(pipeline=2)
Trained = tuple[list[float], dict[str, torch.Tensor]]


def trained(folder: Path, *layouts: ParallelLayout) -> list[Trained]:
    """The losses and the whole parameters of a training in each layout, one after the other in one new gang."""
    spec = spec_of("mlp", "adamw", folder)  # with dropout and batch normalization
    dataset = dataset_of(spec, folder)
    found = []
    with Gang(2, warm_up=WorkRef("jobs.train.mesh:warm_up")) as gang:
        for number, layout in enumerate(layouts):
            request = request_of(spec, layout, dataset, folder / str(number))
            run_work(gang, WorkRef("jobs.train.work:train"), request)
            losses = read_json(request.folder / "history.json")["losses"]
            found.append((losses, dict(load_model(request.folder / "model").named_parameters())))
    return found


@pytest.mark.usefixtures("local_ray")
def test_each_layout_gives_what_it_gives_in_a_fresh_gang(tmp_path: Path):
    first, *changed = trained(tmp_path / "changing", TENSOR, ZERO, PIPELINE, TENSOR)
    fresh = [*trained(tmp_path / "zero", ZERO), *trained(tmp_path / "pipeline", PIPELINE), first]
    for layout, (losses, parameters), (fresh_losses, fresh_parameters) in zip(
        [ZERO, PIPELINE, TENSOR], changed, fresh, strict=True
    ):
        assert losses[-1] < 0.9 * losses[0]
        np.testing.assert_array_equal(losses, fresh_losses, err_msg=name(layout))
        assert parameters.keys() == fresh_parameters.keys()
        unequal = [key for key, value in parameters.items() if not torch.equal(value, fresh_parameters[key])]
        assert not unequal, name(layout)
