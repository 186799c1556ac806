"""Random changes to training images. Each is a function of (seed, epoch, sample id), never of the batch."""

from collections.abc import Sequence

import numpy as np
import torch

from jobs.data.order import Ids
from jobs.data.randomness import uniforms
from jobs.data.raw import Array
from jobs.spec.data import Augmentation, HorizontalFlip, RandomCrop, Rotate


def augment(pixels: Array, steps: Sequence[Augmentation], *, seed: int, epochs: Ids, ids: Ids) -> Array:
    """Applies the steps in order to raw pixels (samples, channels, height, width).

    Returns the same shape; bytes stay bytes, except after a rotation, which gives float32.
    """
    images = torch.from_numpy(pixels)
    for stream, augmentation in enumerate(steps):
        match augmentation.step:
            case RandomCrop(padding=padding):
                images = crop(images, uniforms(seed, epochs, ids, stream, 2), padding)
            case HorizontalFlip(p=p):
                images = flip(images, uniforms(seed, epochs, ids, stream, 1)[:, 0] < p)
            case Rotate(degrees=degrees):
                turns = 2.0 * uniforms(seed, epochs, ids, stream, 1)[:, 0] - 1.0
                images = rotate(images, turns * degrees)
    return images.numpy()


def crop(images: torch.Tensor, places: Array, padding: int) -> torch.Tensor:
    """Pads with zeros on every side, then cuts the original size out.

    `places` (samples, 2) in [0, 1) choose the top and left edge among the 2·padding + 1 possible ones.
    """
    samples, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    top, left = torch.from_numpy((places * (2 * padding + 1)).astype(np.int64)).T
    rows = top[:, None] + torch.arange(height)
    columns = left[:, None] + torch.arange(width)
    pixels = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    index = pixels.view(samples, 1, height * width).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, index).view(images.shape)


def flip(images: torch.Tensor, chosen: Array) -> torch.Tensor:
    """Mirrors the `chosen` (samples,) images left to right."""
    return torch.where(torch.from_numpy(chosen)[:, None, None, None], images.flip(3), images)


def rotate(images: torch.Tensor, degrees: Array) -> torch.Tensor:
    """Turns each image counter-clockwise about its centre, bilinear, zeros coming in from outside: float32.

    The sampling grid is written out instead of taken from affine_grid, whose matrix product may round otherwise
    in a batch of another size.
    """
    _, _, height, width = images.shape
    angles = np.deg2rad(degrees)
    cos, sin = (torch.from_numpy(f(angles).astype(np.float32))[:, None, None] for f in (np.cos, np.sin))
    y = torch.arange(height)[:, None] - (height - 1) / 2
    x = torch.arange(width) - (width - 1) / 2
    # Where each pixel comes from, in pixels from the centre, then in grid_sample's units of half an image.
    grid = torch.stack(((cos * x - sin * y) * (2 / width), (sin * x + cos * y) * (2 / height)), dim=3)
    return torch.nn.functional.grid_sample(images.float(), grid, "bilinear", "zeros", align_corners=False)
