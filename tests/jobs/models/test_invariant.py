"""Layers that look at the batch: against stock ones, and against themselves under another division of the batch."""

import numpy as np
import pytest
import torch
from torch import nn

from jobs.data.randomness import GOLDEN, Purpose, hash_words, mix
from jobs.models.invariant import GroupedBatchNorm1d, GroupedBatchNorm2d, SampleDropout

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("ours", "stock", "shape"),
    [(GroupedBatchNorm1d, nn.BatchNorm1d, (8, 3)), (GroupedBatchNorm2d, nn.BatchNorm2d, (8, 3, 5, 4))],
)
def test_one_group_is_stock_batch_normalization(ours, stock, shape):
    torch.manual_seed(0)
    grouped, plain = ours(3, group=8), stock(3)
    for _ in range(3):
        x = torch.randn(shape) * 2 + 1
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        weight = torch.randn(shape)
        (grouped(a) * weight).sum().backward()
        (plain(b) * weight).sum().backward()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(grouped.weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-5)
        grouped.commit(grouped.take_pending())
    torch.testing.assert_close(grouped.running_mean, plain.running_mean)
    torch.testing.assert_close(grouped.running_var, plain.running_var, rtol=1e-4, atol=1e-5)
    x = torch.randn(shape)
    torch.testing.assert_close(grouped.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-5)
    assert grouped.num_batches_tracked == 3


def test_each_group_is_normalized_on_its_own():
    layer = GroupedBatchNorm1d(2, group=4)
    x = torch.randn(12, 2)
    whole = layer(x)
    parts = torch.cat([layer(x[i : i + 4]) for i in (0, 4, 8)])
    torch.testing.assert_close(whole, parts)
    assert not torch.allclose(whole, nn.BatchNorm1d(2)(x), atol=1e-3)
    with pytest.raises(ValueError, match="multiple"):
        layer(x[:6])


def test_statistics_are_the_mean_over_the_groups_however_they_came():
    x = torch.randn(16, 2)
    one, two = GroupedBatchNorm1d(2, group=4), GroupedBatchNorm1d(2, group=4)
    one(x)
    two(x[:8])
    two(x[8:])
    torch.testing.assert_close(one.take_pending(), two.take_pending())


def test_a_dropout_mask_belongs_to_the_sample():
    layer = SampleDropout(0.4, layer=3)
    ids = np.arange(100, 108)
    x = torch.ones(8, 3, 5)
    layer.begin(7, 11, ids, CPU)
    whole = layer(x)
    layer.begin(7, 11, ids[[5, 2]], CPU)
    torch.testing.assert_close(layer(x[:2]), whole[[5, 2]])
    layer.begin(7, 12, ids, CPU)
    assert not torch.equal(layer(x), whole)
    layer.begin(8, 11, ids, CPU)
    assert not torch.equal(layer(x), whole)
    other = SampleDropout(0.4, layer=4)
    other.begin(7, 11, ids, CPU)
    assert not torch.equal(other(x), whole)


def test_the_mask_is_the_documented_hash():
    layer = SampleDropout(0.4, layer=3)
    layer.begin(7, 11, np.array([42]), CPU)
    kept = (layer(torch.ones(1, 50)) > 0).numpy()[0]
    key = hash_words(7, Purpose.DROPOUT, 3, 11, 42)
    words = mix(key + np.arange(1, 51, dtype=np.uint64) * GOLDEN)
    expected = (words >> np.uint64(40)).astype(np.float64) * 2.0**-24 >= 0.4
    np.testing.assert_array_equal(kept, expected)


def test_dropout_keeps_the_expectation_and_the_share():
    layer = SampleDropout(0.3, layer=0)
    layer.begin(0, 0, np.arange(2000), CPU)
    y = layer(torch.ones(2000, 50))
    assert (y == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert y.mean().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(layer.eval()(torch.ones(2, 2)), torch.ones(2, 2))


def test_dropout_in_bf16_stays_bf16():
    layer = SampleDropout(0.3, layer=0)
    layer.begin(0, 0, np.arange(4), CPU)
    assert layer(torch.ones(4, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(("shape", "channels"), [((6, 5, 4), 0), ((6,), 0), ((3, 6), 1)])
def test_the_masks_of_divided_channels_are_parts_of_the_whole_mask(shape, channels):
    """Images by their channels, sequences and vectors by their features."""
    ids = np.arange(4)
    whole = SampleDropout(0.4, layer=3)
    whole.begin(7, 11, ids, CPU)
    expected = whole(torch.ones(4, *shape))
    parts = []
    for index, x in enumerate(torch.ones(4, *shape).chunk(3, dim=1 + channels)):
        part = SampleDropout(0.4, layer=3)
        part.shard = (index, 3)
        part.begin(7, 11, ids, CPU)
        parts.append(part(x))
    assert torch.equal(torch.cat(parts, dim=1 + channels), expected)


def test_a_mask_does_not_depend_on_how_many_steps_the_batch_has():
    layer = SampleDropout(0.4, layer=3)
    layer.begin(7, 11, np.arange(4), CPU)
    assert torch.equal(layer(torch.ones(4, 9, 3))[:, :5], layer(torch.ones(4, 5, 3)))
