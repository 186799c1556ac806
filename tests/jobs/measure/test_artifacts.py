from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jobs.errors import ArtifactError
from jobs.measure import macs, measure, predict
from jobs.records import Measurement

WriteMlp = Callable[[Path, list[np.ndarray]], Path]


def measured(files: dict[str, Path], x: np.ndarray, targets: np.ndarray) -> dict[str, Measurement]:
    return measure(
        files,
        dense="dense",
        x=x,
        targets=targets,
        metric="accuracy",
        split="validation",
        classes=("a", "b", "c"),
        parity=dict.fromkeys(files, 0.0),
        macs=dict.fromkeys(files, 24),
        latency_s=0.02,
    )


@pytest.fixture
def problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples, labels, and the weights (8, 3) of a linear model that is always right."""
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((8, 3)), rng.standard_normal((400, 8)).astype(np.float32)
    return x, (x @ weight).argmax(axis=1), weight


def test_measurements_of_several_files(
    tmp_path: Path, problem: tuple[np.ndarray, np.ndarray, np.ndarray], write_mlp: WriteMlp
) -> None:
    x, targets, weight = problem
    blurred = weight + 0.5 * np.random.default_rng(1).standard_normal(weight.shape)
    files = {
        "dense": write_mlp(tmp_path / "dense.onnx", [weight]),
        "worse": write_mlp(tmp_path / "worse.onnx", [blurred]),
    }
    found = measured(files, x, targets)
    dense, worse = found["dense"], found["worse"]
    assert dense.metric.value == 1.0
    assert dense.metric_delta is None
    assert worse.metric_delta is not None
    assert worse.metric_delta.value == pytest.approx(worse.metric.value - 1.0)
    assert worse.metric_delta.ci95[1] < 0.0
    assert (dense.params, dense.bytes) == (24, files["dense"].stat().st_size)
    assert set(dense.latency_ms) == {"batch_1", "batch_64"}
    assert sum(map(sum, worse.details["confusion"])) == 400
    assert Measurement.from_json(worse.to_json()) == worse


def test_all_but_the_latency_repeats(
    tmp_path: Path, problem: tuple[np.ndarray, np.ndarray, np.ndarray], write_mlp: WriteMlp
) -> None:
    x, targets, weight = problem
    files = {
        "dense": write_mlp(tmp_path / "d.onnx", [weight]),
        "half": write_mlp(tmp_path / "h.onnx", [weight.round()]),
    }
    first, second = (
        {name: m.model_copy(update={"latency_ms": {}}) for name, m in measured(files, x, targets).items()}
        for _ in range(2)
    )
    assert first == second


def test_outputs_that_are_not_finite_are_refused(
    tmp_path: Path, problem: tuple[np.ndarray, np.ndarray, np.ndarray], write_mlp: WriteMlp
) -> None:
    x, targets, weight = problem
    files = {"dense": write_mlp(tmp_path / "dense.onnx", [weight * np.inf])}
    with pytest.raises(ArtifactError, match=r"dense\.onnx: the outputs of 400 of 400 samples are not finite"):
        measured(files, x, targets)


def test_a_language_model_is_measured_by_its_tokens(language_file: Path, texts: tuple[np.ndarray, np.ndarray]) -> None:
    x, targets = texts
    found = measure(
        {"dense": language_file},
        dense="dense",
        x=x,
        targets=targets,
        metric="perplexity",
        split="validation",
        classes=(),
        parity={"dense": 0.0},
        macs={"dense": macs(language_file, x[:1])},
        latency_s=0.02,
    )["dense"]
    logits = predict(language_file, x).astype(np.float64)
    likelihoods = np.take_along_axis(logits, np.maximum(targets, 0)[..., None], -1)[..., 0] - np.log(
        np.exp(logits).sum(-1)
    )
    counted = targets != -100
    assert found.metric.value == pytest.approx(np.exp(-likelihoods[counted].mean()), rel=1e-5)
    assert found.metric.n == 64
    assert found.details["tokens"] == counted.sum()
    assert found.macs == 3 * 12 * 32 * 32 + 2 * 12 * 12 * 32 + 12 * 32 * 64


def test_a_metric_that_saturation_changes_is_reported_twice(
    tmp_path: Path,
    problem: tuple[np.ndarray, np.ndarray, np.ndarray],
    write_mlp: WriteMlp,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This host may add up exactly, so the session that does is played: one sample in four comes out otherwise."""
    from jobs.compress import quantize_onnx
    from jobs.measure import artifacts

    x, targets, weight = problem
    files = {"dense": write_mlp(tmp_path / "dense.onnx", [weight]), "int8": tmp_path / "int8.onnx"}
    quantize_onnx(files["dense"], files["int8"], "int8_static", x[:100])
    real = artifacts.predict_condensed

    def played(*arguments: object, exact: bool = False, **options: object) -> np.ndarray:
        outputs = real(*arguments, exact=exact, **options)  # type: ignore[arg-type]
        return np.concatenate([-outputs[:100], outputs[100:]]) if exact else outputs

    monkeypatch.setattr(artifacts, "predict_condensed", played)
    monkeypatch.setattr(artifacts, "flags", lambda: ("avx2",))
    found = measured(files, x, targets)
    assert found["dense"].metric_exact is None
    exact = found["int8"].metric_exact
    assert exact is not None
    assert exact.value < found["int8"].metric.value - 0.1
    monkeypatch.setattr(artifacts, "flags", lambda: ("avx2", "avx512_vnni"))
    assert measured(files, x, targets)["int8"].metric_exact is None


def test_an_exact_session_gives_what_the_file_means(
    tmp_path: Path, problem: tuple[np.ndarray, np.ndarray, np.ndarray], write_mlp: WriteMlp
) -> None:
    from jobs.compress import quantize_onnx
    from jobs.measure import predict_condensed

    x, targets, weight = problem
    write_mlp(tmp_path / "dense.onnx", [weight])
    quantize_onnx(tmp_path / "dense.onnx", tmp_path / "q.onnx", "int8_static", x[:100])
    exact = predict_condensed(tmp_path / "q.onnx", x, targets, exact=True)
    np.testing.assert_allclose(exact, predict(tmp_path / "q.onnx", x), atol=1e-5)  # 7 bits saturate nowhere
