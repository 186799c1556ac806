"""What becomes zero and what is shared are the same on every rank, and the same as on one."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from jobs import data
from jobs.data import Dataset
from jobs.layout import ParallelLayout
from jobs.models.build import build, save_model
from jobs.requests import Recipe, ShareRequest
from jobs.spec import JobSpec
from tests.multiprocess.ranks import Ranks

SPEC = JobSpec.parse(
    {
        "name": "small",
        "data": {"source": {"kind": "builtin", "name": "digits"}},
        "model": {"name": "lenet", "args": {"conv_widths": [4], "linear_widths": [16], "activation": "tanh"}},
        "train": {"steps": 1, "batch_size": 64},
        "compress": {
            "pack": {"sparsity": 0.8, "codebook_bits": 3, "recover": {"epochs": 1}, "finetune": {"epochs": 1}}
        },
    }
)


@pytest.mark.parametrize("layout", [ParallelLayout(data=2), ParallelLayout(data=2, zero_stage=2)], ids=["0", "2"])
def test_two_ranks_share_as_one_does(layout: ParallelLayout, ranks: Ranks, tmp_path: Path) -> None:
    folder = tmp_path / data.fingerprint(SPEC.data, SPEC.train.loss)
    data.prepare(SPEC.data, SPEC.train.loss, folder)
    info = Dataset.open(folder).info
    recipe = {"model": SPEC.model.model_dump(mode="json"), "signature": info.signature.to_json()}
    save_model(build(SPEC.model, info.signature, seed=0), recipe, tmp_path / "dense")
    assert SPEC.compress.pack is not None

    def share(name: str, of: ParallelLayout) -> list[dict[str, Any]]:
        training = Recipe(SPEC.train, SPEC.data, SPEC.metric, layout=of)
        request = ShareRequest(SPEC.compress.pack, tmp_path / "dense", training, folder, tmp_path / name)  # type: ignore[arg-type]
        return ranks.run("jobs.compress.packing:share", request, of.size)

    first, second = share("two", layout)
    (alone,) = share("one", ParallelLayout())
    assert first["centroids"] == second["centroids"]
    assert first["metric"] == second["metric"]
    assert first["nonzero_weights"] == second["nonzero_weights"] == alone["nonzero_weights"]
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("two", "one"))
    for name in ours:
        # A score within rounding of the threshold may fall on either side.
        assert int(((ours[name] == 0) != (theirs[name] == 0)).sum()) <= 2, name
