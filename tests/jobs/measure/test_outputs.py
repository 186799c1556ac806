import numpy as np
import pytest
import torch
from torch.nn import functional

from jobs.measure import IGNORED, condense

RNG = np.random.default_rng(0)
LOGITS = (4.0 * RNG.standard_normal((6, 9, 40))).astype(np.float32)
TARGETS = np.where(RNG.random((6, 9)) < 0.3, IGNORED, RNG.integers(40, size=(6, 9)))


def test_the_three_columns_are_what_torch_says() -> None:
    losses = functional.cross_entropy(
        torch.from_numpy(LOGITS).double().flatten(0, 1), torch.from_numpy(TARGETS).flatten(), reduction="none"
    )
    found = condense(LOGITS, TARGETS)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found[:, 0], losses.reshape(6, 9).sum(1), rtol=1e-6)
    np.testing.assert_array_equal(found[:, 1], (LOGITS.argmax(-1) == TARGETS).sum(1))
    np.testing.assert_array_equal(found[:, 2], (TARGETS != IGNORED).sum(1))


def test_parts_of_a_split_condense_to_the_same_rows() -> None:
    parts = [condense(LOGITS[rows], TARGETS[rows]) for rows in (slice(0, 1), slice(1, 6))]
    np.testing.assert_array_equal(np.concatenate(parts), condense(LOGITS, TARGETS))


def test_certain_and_wild_logits_neither_overflow_nor_vanish() -> None:
    logits = np.array([[[5000.0, -5000.0, 0.0], [0.0, 0.0, 0.0]]], dtype=np.float32)
    (row,) = condense(logits, np.array([[1, 2]]))
    assert row.tolist() == pytest.approx([10_000.0 + np.log(3.0), 0.0, 2.0])  # of equal logits the first counts


def test_logits_that_are_not_finite_leave_a_likelihood_that_is_not() -> None:
    broken = LOGITS.copy()
    broken[2, np.flatnonzero(TARGETS[2] != IGNORED)[0], 7] = np.nan
    broken[4, np.flatnonzero(TARGETS[4] == IGNORED)[0]] = np.inf  # counts nowhere
    assert np.flatnonzero(~np.isfinite(condense(broken, TARGETS)[:, 0])).tolist() == [2]


def test_a_sample_without_targets_is_three_zeros() -> None:
    assert condense(LOGITS[:1], np.full((1, 9), IGNORED)).tolist() == [[0.0, 0.0, 0.0]]
    assert condense(LOGITS[:0], TARGETS[:0]).shape == (0, 3)


def test_outputs_of_other_tasks_stay_as_they_are() -> None:
    outputs = RNG.standard_normal((5, 3))
    assert condense(outputs, np.zeros(5)) is outputs


@pytest.mark.parametrize("shape", [(5,), (6, 8), (6, 9, 1)])
def test_targets_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not go with targets"):
        condense(LOGITS, np.zeros(shape, dtype=np.int64))
