"""The global order is a function of (seed, k), covers each epoch once, and never changes between versions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.data import GlobalOrder
from jobs.data.randomness import GOLDEN, hash_words, mix, uniforms

PINNED_UNIFORMS = [[0.3934068918987922, 0.2757609864365047], [0.30761190862575416, 0.4231793055480799]]
PINNED_IDS = [9, 2, 5, 6, 9, 0, 8, 3]

quick = settings(deadline=None, max_examples=50)
sizes = st.integers(1, 300)
seeds = st.integers(0, 2**32 - 1)


def test_mix_is_splitmix64() -> None:
    """First outputs of the reference implementation (https://prng.di.unimi.it/splitmix64.c) from state 0."""
    states = np.arange(1, 4, dtype=np.uint64) * GOLDEN
    assert [hex(word) for word in mix(states)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


def test_uniforms_are_pinned() -> None:
    """A change here changes every augmented run: it would need a new schema version."""
    assert uniforms(7, [0, 1], [3, 3], 2, 2).tolist() == PINNED_UNIFORMS


def test_order_is_pinned() -> None:
    """A change here breaks every resume: it would need a new schema version."""
    ids, epochs = GlobalOrder(10, 8, seed=3).batch(1)
    assert ids.tolist() == PINNED_IDS
    assert epochs.tolist() == [0, 0, 1, 1, 1, 1, 1, 1]


@quick
@given(num_samples=sizes, seed=seeds, epoch=st.integers(0, 10**6))
def test_every_epoch_is_a_permutation(num_samples: int, seed: int, epoch: int) -> None:
    ids, epochs = GlobalOrder(num_samples, num_samples, seed).batch(epoch)
    assert np.array_equal(np.sort(ids), np.arange(num_samples))
    assert (epochs == epoch).all()


@quick
@given(num_samples=sizes, batch_size=st.integers(1, 300), seed=seeds, epochs=st.integers(1, 4))
def test_batches_cover_each_sample_once_an_epoch(num_samples: int, batch_size: int, seed: int, epochs: int) -> None:
    order = GlobalOrder(num_samples, batch_size, seed)
    steps = order.num_steps(epochs)
    assert 0 <= epochs * num_samples - steps * batch_size < batch_size
    batches = [order.batch(step) for step in range(steps)]
    ids = np.concatenate([np.empty(0, np.int64), *(batch[0] for batch in batches)])
    of_epoch = np.concatenate([np.empty(0, np.int64), *(batch[1] for batch in batches)])
    for epoch in range(epochs - 1):  # the last one may have a remainder that is dropped
        if (epoch + 1) * num_samples <= len(ids):
            assert np.array_equal(np.sort(ids[of_epoch == epoch]), np.arange(num_samples))
    assert len(set(zip(ids.tolist(), of_epoch.tolist(), strict=True))) == len(ids)


@quick
@given(num_samples=sizes, batch_size=st.integers(1, 50), seed=seeds, step=st.integers(0, 10**9))
def test_a_slice_is_part_of_its_batch(num_samples: int, batch_size: int, seed: int, step: int) -> None:
    order = GlobalOrder(num_samples, batch_size, seed)
    whole, _ = order.batch(step)
    middle = batch_size // 2
    first, _ = order.slice(step * batch_size, step * batch_size + middle)
    second, _ = order.slice(step * batch_size + middle, (step + 1) * batch_size)
    assert np.array_equal(np.concatenate([first, second]), whole)


def test_epochs_and_seeds_give_other_orders() -> None:
    orders = [tuple(GlobalOrder(100, 100, seed).batch(epoch)[0]) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == 16


def test_every_place_sees_every_sample_about_equally_often() -> None:
    """Chi-square of sample by place over 4,000 epochs; 99 degrees of freedom a place, so 10 places far below 2x."""
    num_samples, epochs = 100, 4000
    ids, _ = GlobalOrder(num_samples, num_samples * epochs, seed=1).batch(0)
    by_epoch = ids.reshape(epochs, num_samples)
    for place in range(0, num_samples, 10):
        counts = np.bincount(by_epoch[:, place], minlength=num_samples)
        assert np.square(counts - 40).sum() / 40 < 170


def test_neighbours_in_the_source_are_not_neighbours_in_an_epoch() -> None:
    ids, _ = GlobalOrder(10_000, 10_000, seed=0).batch(0)
    assert np.sum(np.diff(ids) == 1) < 10  # one is expected
    assert abs(np.corrcoef(ids, np.arange(10_000))[0, 1]) < 0.05


def test_counts_of_steps_and_epochs() -> None:
    order = GlobalOrder(num_samples=10, batch_size=4, seed=0)
    assert [order.num_steps(epochs) for epochs in (1, 2, 3)] == [2, 5, 7]
    assert order.epoch_of(5) == 2.0


def test_a_batch_may_be_larger_than_the_data_set() -> None:
    ids, epochs = GlobalOrder(num_samples=3, batch_size=7, seed=0).batch(0)
    assert epochs.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert sorted(ids[:3]) == sorted(ids[3:6]) == [0, 1, 2]


@pytest.mark.parametrize(("num_samples", "batch_size"), [(0, 1), (1, 0)])
def test_an_empty_order_is_refused(num_samples: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match="needs samples"):
        GlobalOrder(num_samples, batch_size, 0)


@quick
@given(ids=st.lists(st.integers(0, 2**40), min_size=1, max_size=20), seed=seeds, stream=st.integers(0, 9))
def test_uniforms_belong_to_the_sample(ids: list[int], seed: int, stream: int) -> None:
    together = uniforms(seed, [5] * len(ids), ids, stream, 3)
    assert ((together >= 0) & (together < 1)).all()
    for row, sample in zip(together, ids, strict=True):
        assert np.array_equal(uniforms(seed, [5], [sample], stream, 3)[0], row)


def test_uniforms_differ_by_seed_epoch_id_and_stream() -> None:
    draws = [uniforms(*args, 1)[0, 0] for args in [(0, [0], [0], 0), (1, [0], [0], 0), (0, [1], [0], 0)]]
    draws += [uniforms(0, [0], [1], 0, 1)[0, 0], uniforms(0, [0], [0], 1, 1)[0, 0]]
    assert len(set(draws)) == 5


def test_uniforms_are_uniform() -> None:
    draws = uniforms(0, np.zeros(20_000, np.int64), np.arange(20_000), 0, 2)
    assert np.allclose(draws.mean(axis=0), 0.5, atol=0.01)
    assert np.allclose(draws.var(axis=0), 1 / 12, atol=0.002)
    assert abs(np.corrcoef(draws.T)[0, 1]) < 0.03


def test_words_are_told_apart_by_place() -> None:
    assert hash_words(1, 2)[0] != hash_words(2, 1)[0]
