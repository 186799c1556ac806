"""Augmentation does what it says, worked by hand, and belongs to the sample, not to the batch."""

import numpy as np
import pytest
import torch

from jobs.data.augment import augment, crop, flip, rotate
from jobs.spec.data import Augmentation

IMAGE = torch.tensor([[[[1, 2, 3], [4, 5, 6], [7, 8, 9]]]], dtype=torch.uint8)
ALL = [
    Augmentation.model_validate(step)
    for step in ({"random_crop": {"padding": 2}}, {"horizontal_flip": {"p": 0.5}}, {"rotate": {"degrees": 30}})
]


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ((0.0, 0.0), [[0, 0, 0], [0, 1, 2], [0, 4, 5]]),
        ((0.5, 0.5), [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
        ((0.99, 0.4), [[4, 5, 6], [7, 8, 9], [0, 0, 0]]),
        ((0.4, 0.99), [[2, 3, 0], [5, 6, 0], [8, 9, 0]]),
    ],
)
def test_crop(place: tuple[float, float], expected: list[list[int]]) -> None:
    assert crop(IMAGE, np.array([place]), padding=1)[0, 0].tolist() == expected


def test_crop_keeps_channels_together() -> None:
    two = torch.cat([IMAGE, IMAGE + 10], dim=1)
    cropped = crop(two, np.array([[0.99, 0.99]]), padding=1)[0]
    assert cropped[0].tolist() == [[5, 6, 0], [8, 9, 0], [0, 0, 0]]
    assert cropped[1].tolist() == [[15, 16, 0], [18, 19, 0], [0, 0, 0]]


def test_flip_mirrors_the_chosen_ones() -> None:
    flipped = flip(torch.cat([IMAGE, IMAGE]), np.array([True, False]))
    assert flipped[0, 0].tolist() == [[3, 2, 1], [6, 5, 4], [9, 8, 7]]
    assert flipped[1, 0].tolist() == IMAGE[0, 0].tolist()


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [
        (0.0, [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
        (90.0, [[3, 6, 9], [2, 5, 8], [1, 4, 7]]),
        (-90.0, [[7, 4, 1], [8, 5, 2], [9, 6, 3]]),
        (180.0, [[9, 8, 7], [6, 5, 4], [3, 2, 1]]),
    ],
)
def test_rotation_by_right_angles(degrees: float, expected: list[list[float]]) -> None:
    assert np.allclose(rotate(IMAGE, np.array([degrees]))[0, 0], expected, atol=1e-5)


def test_rotation_by_45_degrees_interpolates() -> None:
    """The corner comes from sqrt(2) pixels straight above the centre: 0.586 of pixel 2, the rest from outside."""
    turned = rotate(IMAGE, np.array([-45.0]))[0, 0]
    assert turned[1, 1] == pytest.approx(5)
    assert turned[0, 2] == pytest.approx(2 * (2 - 2**0.5), abs=1e-5)
    # The pixel above the centre comes from 0.707 up, 0.707 left: between 1, 2, 4 and 5.
    near, far = 0.5**0.5, 1 - 0.5**0.5
    assert turned[0, 1] == pytest.approx(1 * near**2 + (2 + 4) * near * far + 5 * far**2, abs=1e-5)


@pytest.mark.parametrize(("degrees", "place"), [(0.0, (1, 4)), (90.0, (0, 3)), (180.0, (1, 2)), (-90.0, (2, 3))])
def test_rotation_keeps_distances_in_wide_images(degrees: float, place: tuple[int, int]) -> None:
    """A pixel right of the centre of a 3 x 7 image goes round it."""
    wide = torch.zeros(1, 1, 3, 7)
    wide[0, 0, 1, 4] = 1
    expected = torch.zeros(3, 7)
    expected[place] = 1
    assert torch.allclose(rotate(wide, np.array([degrees]))[0, 0], expected, atol=1e-5)


def test_zeros_come_in_from_outside() -> None:
    bright = torch.full((1, 1, 9, 9), 100.0)
    turned = rotate(bright, np.array([45.0]))[0, 0]
    assert turned[0, 0] == 0
    assert turned[4, 4] == pytest.approx(100)


@pytest.mark.parametrize("steps", [ALL[:1], ALL[1:2], ALL[2:], ALL], ids=["crop", "flip", "rotate", "all"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_sample_is_changed_the_same_in_any_batch(steps: list[Augmentation], dtype: type) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (33, 3, 12, 9)).astype(dtype)
    ids, epochs = np.arange(100, 133), np.arange(33) // 20
    together = augment(pixels, steps, seed=5, epochs=epochs, ids=ids)
    assert not np.array_equal(together, pixels)
    for rows in (slice(0, 1), slice(7, 8), slice(3, 19), slice(32, 33)):
        apart = augment(pixels[rows].copy(), steps, seed=5, epochs=epochs[rows], ids=ids[rows])
        assert np.array_equal(apart, together[rows])


def test_changes_differ_by_epoch_and_seed() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 1, 12, 9), np.uint8)
    ids = np.arange(8)
    results = [
        augment(pixels, ALL, seed=seed, epochs=np.full(8, epoch), ids=ids).tobytes()
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len(set(results)) == 4


def test_two_steps_of_one_kind_draw_their_own_numbers() -> None:
    """Were the draws shared, two flips would always cancel."""
    pixels = np.arange(3, dtype=np.uint8).reshape(1, 1, 1, 3).repeat(200, axis=0)
    twice = augment(pixels, [ALL[1], ALL[1]], seed=0, epochs=np.zeros(200, np.int64), ids=np.arange(200))
    assert 60 < (twice[:, 0, 0, 0] == 2).sum() < 140


def test_crop_and_flip_keep_bytes() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 1, 5, 5), np.uint8)
    assert augment(pixels, ALL[:2], seed=0, epochs=np.zeros(4, np.int64), ids=np.arange(4)).dtype == np.uint8
