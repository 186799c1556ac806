"""A global batch is the same however it is divided, and whatever its samples were before."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_sources import MakeData, OpenDataset

from jobs.data import Dataset, TrainingBatches
from jobs.errors import DataError
from jobs.spec.data import Data

AUGMENT = [{"random_crop": {"padding": 2}}, "horizontal_flip", {"rotate": {"degrees": 20}}]


@pytest.fixture
def data(idx_folder: Path, make_data: MakeData) -> Data:
    return make_data("idx", idx_folder, data={"augment": AUGMENT})


@pytest.fixture
def dataset(data: Data, open_dataset: OpenDataset) -> Dataset:
    return open_dataset(data)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch_size=st.integers(1, 50),
    degree=st.integers(1, 5),
    parts=st.integers(1, 4),
    step=st.integers(0, 50),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_parts_make_up_the_global_batch(
    dataset: Dataset, data: Data, batch_size: int, degree: int, parts: int, step: int, seed: int
) -> None:
    batches = TrainingBatches(dataset, data, batch_size, seed)
    x, y, ids = batches.share(step)
    shares = [batches.share(step, rank, degree, part, parts) for rank in range(degree) for part in range(parts)]
    assert torch.equal(torch.cat([share[0] for share in shares]), x)
    assert torch.equal(torch.cat([share[1] for share in shares]), y)
    assert np.array_equal(np.concatenate([share[2] for share in shares]), ids)
    assert np.array_equal(batches.order.batch(step)[0], ids)
    assert np.array_equal(batches.targets(step), y.numpy())


def test_equal_parts_where_the_batch_divides(dataset: Dataset, data: Data) -> None:
    batches = TrainingBatches(dataset, data, batch_size=24, seed=0)
    sizes = [len(batches.share(3, rank, 3, part, 4)[2]) for rank in range(3) for part in range(4)]
    assert sizes == [2] * 12


def test_without_augmentation_samples_are_encoded_as_they_are(
    dataset: Dataset, idx_folder: Path, make_data: MakeData
) -> None:
    batches = TrainingBatches(dataset, make_data("idx", idx_folder), batch_size=16, seed=1)
    x, y, ids = batches.share(5)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert np.array_equal(x.numpy(), dataset.encoded("train", ids, dataset.encoding("standardize")))
    assert np.array_equal(y.numpy(), dataset.targets("train")[ids])


def test_augmentation_changes_pixels_before_they_are_normalized(dataset: Dataset, data: Data) -> None:
    """What a crop or a rotation brings in is black, not the mean."""
    batches = TrainingBatches(dataset, data, batch_size=36, seed=0)
    x, _, ids = batches.share(0)
    plain = dataset.encoded("train", ids, batches.encoding)
    assert not np.array_equal(x.numpy(), plain)
    black = batches.encoding.encode(np.zeros((1, 1, 6, 5), np.uint8))
    assert x.numpy().min() == pytest.approx(black.min(), abs=1e-6)


def test_a_sample_looks_the_same_under_another_batch_size(dataset: Dataset, data: Data) -> None:
    """Within an epoch, augmentation belongs to (seed, epoch, id)."""
    small, large = (TrainingBatches(dataset, data, size, seed=9) for size in (4, 36))
    x, _, ids = large.share(0)
    for step in range(9):
        part, _, part_ids = small.share(step)
        assert np.array_equal(part_ids, ids[4 * step : 4 * step + 4])
        assert torch.equal(part, x[4 * step : 4 * step + 4])


def test_each_epoch_changes_a_sample_anew(dataset: Dataset, data: Data) -> None:
    batches = TrainingBatches(dataset, data, batch_size=36, seed=0)
    first, _, first_ids = batches.share(0)
    second, _, second_ids = batches.share(1)
    sample = first_ids[0]
    assert not torch.equal(first[0], second[list(second_ids).index(sample)])


def test_each_seed_changes_a_sample_in_its_own_way(dataset: Dataset, data: Data) -> None:
    first, second = (TrainingBatches(dataset, data, batch_size=36, seed=seed).share(0) for seed in (0, 1))
    changed = [
        not torch.equal(first[0][list(first[2]).index(i)], second[0][list(second[2]).index(i)]) for i in range(36)
    ]
    assert sum(changed) > 30


def test_table_rows(csv_file: Path, make_data: MakeData, open_dataset: OpenDataset) -> None:
    data = make_data("csv", csv_file, data={"target": "age", "normalize": "unit"}, ignore=["label"])
    batches = TrainingBatches(open_dataset(data, "mse"), data, batch_size=10, seed=0)
    x, y, _ = batches.share(0, 1, 2)
    assert x.shape == (5, *batches.encoding.input_shape)
    assert (x.dtype, y.dtype) == (torch.float32, torch.float32)


def test_batches_can_be_written_to(dataset: Dataset, data: Data) -> None:
    """Nothing leads back into the memory map."""
    batches = TrainingBatches(dataset, data, batch_size=8, seed=0)
    x, y, _ = batches.share(0)
    before = x.clone()
    x.zero_()
    y.zero_()
    again, _, _ = batches.share(0)
    assert torch.equal(again, before)


@pytest.mark.parametrize("place", [(2, 2, 0, 1), (-1, 2, 0, 1), (0, 1, 3, 3)])
def test_a_place_outside_of_the_layout(dataset: Dataset, data: Data, place: Any) -> None:
    with pytest.raises(ValueError, match=r"piece -?\d of \d"):
        TrainingBatches(dataset, data, 8, 0).share(0, *place)


def test_augmentation_that_does_not_fit_the_samples(make_data: MakeData, open_dataset: OpenDataset) -> None:
    data = make_data("builtin", name="diabetes")
    dataset = open_dataset(data, "mse")
    with pytest.raises(DataError, match="augmentation is for images"):
        TrainingBatches(dataset, make_data("builtin", name="diabetes", data={"augment": ["horizontal_flip"]}), 8, 0)
