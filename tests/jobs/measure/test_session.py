from pathlib import Path

import numpy as np
import pytest

from jobs.errors import ArtifactError
from jobs.measure import load_proto, open_session, predict


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
