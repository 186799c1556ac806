from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jobs.errors import ArtifactError
from jobs.measure import condense, largest_difference, load_proto, open_session, predict, predict_condensed
from jobs.measure.session import predictions


def test_batches_make_no_difference(mlp_file: Path) -> None:
    x = np.random.default_rng(0).standard_normal((10, 8)).astype(np.float32)
    whole = predict(mlp_file, x)
    assert whole.shape == (10, 3)
    np.testing.assert_allclose(predict(mlp_file, x, batch_size=3), whole, atol=1e-6)
    assert predict(mlp_file, x[:0]).shape == (0, 3)


def test_the_threads_asked_for_are_the_threads_used(mlp_file: Path) -> None:
    options = open_session(mlp_file, num_threads=2).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)


@pytest.mark.parametrize("damage", ["missing", "empty", "noise", "truncated"])
def test_a_damaged_file_is_refused_by_name(mlp_file: Path, damage: str) -> None:
    content = {"empty": b"", "noise": b"no model" * 9, "truncated": mlp_file.read_bytes()[:-100]}
    if damage == "missing":
        mlp_file.unlink()
    else:
        mlp_file.write_bytes(content[damage])
    with pytest.raises(ArtifactError, match=r"mlp\.onnx"):
        open_session(mlp_file)
    if damage != "empty":  # an empty file is an empty message to the parser
        with pytest.raises(ArtifactError, match="missing or damaged"):
            load_proto(mlp_file)


def test_samples_of_another_shape_are_refused(mlp_file: Path) -> None:
    with pytest.raises(ArtifactError, match=r"does not take samples of shape \(9,\)"):
        predict(mlp_file, np.zeros((2, 9), dtype=np.float32))


def test_tokens_go_in_as_integers(language_file: Path, texts: tuple[np.ndarray, np.ndarray]) -> None:
    x, _ = texts
    outputs = predict(language_file, x)
    assert outputs.shape == (64, 12, 64)
    np.testing.assert_array_equal(predict(language_file, x.astype(np.int32)), outputs)
    np.testing.assert_allclose(predict(language_file, x[:, :5]), outputs[:, :5], atol=1e-4)  # steps are free
    with pytest.raises(ArtifactError, match="takes integers"):
        predict(language_file, x.astype(np.float32))
    with pytest.raises(ArtifactError, match=r"does not take samples of shape \(12,\)"):
        predict(language_file, x + 64)  # no such token


def test_what_is_kept_of_logits_is_condensed_batch_by_batch(
    language_file: Path, texts: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, targets = texts
    whole = condense(predict(language_file, x), targets)
    monkeypatch.setattr("jobs.measure.session._BATCH_BYTES", 20 * 12 * 64 * 4)
    assert [len(outputs) for outputs in predictions(language_file, x)] == [20, 20, 20, 4]
    np.testing.assert_allclose(predict_condensed(language_file, x, targets), whole, rtol=1e-5)


def test_the_largest_difference_of_two_files(tmp_path: Path, write_mlp: Callable[..., Path]) -> None:
    one, other = (write_mlp(tmp_path / f"{gain}.onnx", [gain * np.eye(3)]) for gain in (1.0, 1.5))
    x = np.array([[1.0, 2.0, -4.0], [0.0, 3.0, 1.0]], dtype=np.float32)
    assert largest_difference(one, other, x) == 2.0
    assert largest_difference(one, one, x) == 0.0
