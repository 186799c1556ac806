"""Losses of language models: sums over the tokens that count, however the batch is divided."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from jobs.measure.outputs import IGNORED, condense
from jobs.spec.train import Train
from jobs.train.losses import Loss, distillation

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
LOGITS = torch.from_numpy(2.0 * RNG.standard_normal((12, 7, 20)))
TAUGHT = torch.from_numpy(2.0 * RNG.standard_normal((12, 7, 20)))
TOKENS = np.where(np.arange(7) < RNG.integers(0, 8, size=(12, 1)), RNG.integers(20, size=(12, 7)), IGNORED)
TARGETS = torch.from_numpy(TOKENS)
LANGUAGE = Loss(Train(), None, CPU)
SMOOTHED = Loss(Train(label_smoothing=0.1), None, CPU)

cuts = st.lists(st.integers(0, 12), max_size=5).map(lambda inner: list(pairwise([0, *sorted(inner), 12])))


def distance(outputs: torch.Tensor, taught: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return distillation(outputs, taught, targets, task="language_model", temperature=2.0)


def test_the_mean_over_tokens_is_torchs_own() -> None:
    for loss, smoothing in ((LANGUAGE, 0.0), (SMOOTHED, 0.1)):
        expected = functional.cross_entropy(
            LOGITS.transpose(1, 2), TARGETS, ignore_index=IGNORED, label_smoothing=smoothing
        )
        assert loss(LOGITS, TARGETS).item() / loss.weight(TOKENS) == pytest.approx(expected.item(), rel=1e-6)
    assert LANGUAGE.weight(TOKENS) == (TOKENS != IGNORED).sum()


@settings(max_examples=25, deadline=None)
@given(cuts)
def test_the_parts_of_a_batch_add_up_to_it(bounds: list[tuple[int, int]]) -> None:
    for loss in (LANGUAGE, SMOOTHED):
        parts = [loss(LOGITS[a:b], TARGETS[a:b]).item() for a, b in bounds]
        assert sum(parts) == pytest.approx(loss(LOGITS, TARGETS).item(), rel=1e-5)
    assert sum(LANGUAGE.weight(TOKENS[a:b]) for a, b in bounds) == LANGUAGE.weight(TOKENS)
    parts = [distance(LOGITS[a:b], TAUGHT[a:b], TARGETS[a:b]).item() for a, b in bounds]
    assert sum(parts) == pytest.approx(distance(LOGITS, TAUGHT, TARGETS).item(), rel=1e-5)


def test_padding_neither_counts_nor_learns() -> None:
    outputs = LOGITS.clone().requires_grad_()
    (SMOOTHED(outputs, TARGETS) + distance(outputs, TAUGHT, TARGETS)).backward()
    gradient = outputs.grad
    assert gradient is not None
    moved = gradient.abs().sum(-1) > 0
    assert torch.equal(moved, TARGETS != IGNORED)
    wild = torch.where((TARGETS == IGNORED)[..., None], 100.0 * LOGITS, LOGITS)
    assert LANGUAGE(wild, TARGETS).item() == LANGUAGE(LOGITS, TARGETS).item()


def test_a_part_of_padding_alone_is_a_zero_that_can_be_differentiated() -> None:
    outputs = LOGITS[:2].clone().requires_grad_()
    nothing = torch.full((2, 7), IGNORED)
    total = LANGUAGE(outputs, nothing) + distance(outputs, TAUGHT[:2], nothing)
    total.backward()
    assert total.item() == 0.0
    assert torch.count_nonzero(outputs.grad) == 0


def test_distillation_is_the_divergence_of_the_softened_tokens() -> None:
    counted = TARGETS != IGNORED
    teacher = torch.softmax(TAUGHT[counted] / 2.0, -1)
    expected = 4.0 * (teacher * (teacher.log() - torch.log_softmax(LOGITS[counted] / 2.0, -1))).sum()
    assert distance(LOGITS, TAUGHT, TARGETS).item() == pytest.approx(expected.item(), rel=1e-5)
    assert distance(LOGITS, LOGITS, TARGETS).item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    ("train", "outputs", "targets"),
    [
        (Train(), LOGITS.numpy(), TOKENS),
        (Train(label_smoothing=0.1), LOGITS[:, 0].numpy(), np.arange(12)),
        (Train(class_weights=tuple(range(1, 21))), LOGITS[:, 0].numpy(), np.arange(12)),
        (Train(loss="mse"), LOGITS[:, 0, :1].numpy(), np.arange(12).astype(np.float32)),
    ],
    ids=["tokens", "smoothed", "weighted", "values"],
)
def test_the_mean_over_a_split_is_that_of_its_condensed_outputs(
    train: Train, outputs: np.ndarray, targets: np.ndarray
) -> None:
    loss = Loss(train, None, CPU)
    expected = loss(torch.from_numpy(outputs), torch.from_numpy(targets)).item() / loss.weight(targets)
    assert loss.from_condensed(condense(outputs, targets), targets) == pytest.approx(expected, rel=1e-6)
