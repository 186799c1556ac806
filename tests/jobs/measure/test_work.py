"""The stages measure and test over several workers: the same figures as one worker's, to the bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic

from jobs import data
from jobs.context import LocalContext
from jobs.data import Dataset
from jobs.measure import predict
from jobs.measure.session import ModelFile
from jobs.measure.work import measure, score
from jobs.requests import CandidateFile, MeasureRequest, ScoreRequest
from jobs.spec.data import Data

ROWS, FEATURES = 2400, 6


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared table, of whose rows 1,200 are for validation: five batches."""
    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, FEATURES)).astype(np.float32)
    np.savez(folder / "rows.npz", x=x, y=(x @ rng.standard_normal((FEATURES, 3))).argmax(axis=1))
    source = {"kind": "npz", "path": str(folder / "rows.npz")}
    document = {"source": source, "normalize": "none", "split": {"validation": 0.5, "test": 0.2, "calibration": 16}}
    data.prepare(Data.model_validate(document), "cross_entropy", folder / "prepared")
    return folder / "prepared"


@pytest.fixture
def files(write_mlp: Callable[[Path, list[np.ndarray]], Path], tmp_path: Path) -> dict[str, Path]:
    rng = np.random.default_rng(1)
    dense = write_mlp(tmp_path / "dense.onnx", [rng.standard_normal((FEATURES, 16)), rng.standard_normal((16, 3))])
    quantize_dynamic(dense, tmp_path / "int8.onnx", weight_type=QuantType.QUInt8)
    return {"dense": dense, "int8": tmp_path / "int8.onnx"}


def together(work: Any, request: Any, size: int) -> Any:
    """Rank 0 is the last, so that it finds all shares."""
    for rank in range(size - 1, 0, -1):
        assert work(LocalContext(rank=rank, size=size), request) is None
    return work(LocalContext(size=size), request)


def test_shares_are_whole_batches(files: dict[str, Path], table: Path) -> None:
    dataset = Dataset.open(table)
    x = dataset.encoded("validation", np.arange(dataset.num_samples("validation")), dataset.encoding("none"))
    assert len(x) == 1200
    for file in files.values():
        model = ModelFile(file)
        parts = [model.share(x[:1], len(x), index, 3) for index in range(3)]
        assert parts == [range(256), range(256, 768), range(768, 1200)]
        shares = [np.concatenate(list(model.predictions(x[part.start : part.stop]))) for part in parts]
        assert (np.concatenate(shares) == predict(file, x)).all()
    # Dynamic quantization takes its scale from the batch: elsewhere the batches would not be the same.
    assert (predict(files["int8"], x[:100]) != predict(files["int8"], x)[:100]).any()


@pytest.mark.parametrize("size", [2, 7])  # seven workers, five batches
def test_several_workers_measure_what_one_does(files: dict[str, Path], table: Path, size: int, tmp_path: Path) -> None:
    candidates = tuple(CandidateFile(name, file, files["dense"], 0.0) for name, file in files.items())
    (tmp_path / "model.thpack").write_bytes(b"pack" * 100)
    candidates += (CandidateFile("packed", files["dense"], files["dense"], 0.0, archive=tmp_path / "model.thpack"),)

    def measured(size: int) -> Any:
        shares = tmp_path / f"of-{size}"
        found = together(
            measure,
            MeasureRequest(candidates, "dense", table, "none", "accuracy", "validation", 0.02, shares),
            size,
        )
        assert all(each["latency_ms"].pop("batch_1")["p50"] > 0 for each in found.values())
        return {name: {k: v for k, v in each.items() if k != "latency_ms"} for name, each in found.items()}

    one = measured(1)
    assert measured(size) == one
    assert one["packed"]["bytes"] == 400 > one["packed"]["bytes_zstd"]
    same = {"metric", "params", "macs"}
    assert {key: one["packed"][key] for key in same} == {key: one["dense"][key] for key in same}
    assert not (tmp_path / "of-1").exists()
    scored = [
        together(score, ScoreRequest(files, table, "none", "log_loss", "test", tmp_path / f"test-{n}"), n)
        for n in (1, size)
    ]
    assert scored[0] == scored[1]
