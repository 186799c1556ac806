"""The loop and the engine in one process: the same losses whatever the ZeRO stage, the accumulation, or a break."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from jobs.context import LocalContext
from jobs.data import TrainingBatches
from jobs.errors import SpecError, TrainingDiverged
from jobs.models.build import build
from jobs.requests import Recipe, TrainRequest
from jobs.spec import JobSpec
from jobs.spec.compress import Distill
from jobs.storage import read_json
from jobs.train import work
from tests.jobs.train.conftest import StoppingContext, document

SGD = {"train.optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}}
ADAMW = {"train.optimizer": {"name": "adamw", "lr": 1e-2}}


def plain_torch_losses(digits, optimizer_of) -> list[float]:
    """The same training written by hand, without any of our loop, losses or engine."""
    spec = JobSpec.parse(document())
    module = build(spec.model, digits.info.signature, seed=0)
    optimizer = optimizer_of(module.parameters())
    batches = TrainingBatches(digits, spec.data, 32, 0)
    losses = []
    for step in range(24):
        x, y, _ = batches.share(step, 0, 1, 0, 1)
        loss = functional.cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("values", "by_hand"),
    [
        (SGD, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)),
        (ADAMW, lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=1e-2)),
    ],
    ids=["sgd", "adamw"],
)
def test_losses_are_those_of_plain_torch(train, digits, values, by_hand):
    expected = plain_torch_losses(digits, by_hand)
    assert expected[-1] < 0.8 * expected[0]
    np.testing.assert_allclose(train(values).history.losses, expected, rtol=1e-4)


@pytest.mark.parametrize("values", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_zero_stages_give_the_same_losses_and_weights(train, values, zero_stage):
    plain, zero = train(values), train(values, zero_stage=zero_stage)
    np.testing.assert_allclose(zero.history.losses, plain.history.losses, rtol=1e-4)
    for (name, a), (_, b) in zip(plain.module.named_parameters(), zero.module.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=name)


def test_accumulation_changes_nothing(train):
    values = {**SGD, "train.gradient_clip": 0.5}
    whole, parts = train(values), train(values, micro_batch=8)
    np.testing.assert_allclose(parts.history.losses, whole.history.losses, rtol=1e-4)


def test_class_weights_are_normalised_over_the_whole_batch(train):
    values = {**SGD, "train.class_weights": [5.0, *[1.0] * 9], "train.label_smoothing": 0.1}
    whole, parts = train(values), train(values, micro_batch=8)
    np.testing.assert_allclose(parts.history.losses, whole.history.losses, rtol=1e-4)
    assert not np.allclose(whole.history.losses, train(SGD).history.losses, rtol=1e-2)


def test_batch_normalization_and_dropout_do_not_see_the_micro_batch(train):
    # Under Adam rounding alone moves weights whose gradient is next to nothing by a whole step.
    values = {**SGD, "model.args": {"batch_norm": True, "norm_group": 8, "dropout": 0.3, "activation": "gelu"}}
    whole, parts = train(values), train(values, micro_batch=8)
    np.testing.assert_allclose(parts.history.losses, whole.history.losses, rtol=1e-4)
    for key, value in whole.module.state_dict().items():
        torch.testing.assert_close(parts.module.state_dict()[key], value, rtol=1e-3, atol=1e-4, msg=key)


def test_a_micro_batch_that_splits_a_normalization_group_is_refused(train):
    with pytest.raises(SpecError, match="norm_group"):
        train({"model.args.batch_norm": True}, micro_batch=8)


def test_a_seed_gives_the_same_losses_again_dropout_included(train):
    values = {"model.args.dropout": 0.5, "model.args.batch_norm": True}
    first, second, other = train(values), train(values), train({**values, "train.seed": 1})
    assert first.history.losses == second.history.losses
    assert first.history.losses != other.history.losses


@pytest.mark.parametrize("values", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_broken_off_training_goes_on_as_if_nothing_had_been(train, values, zero_stage, tmp_path: Path):
    values = {
        **values,
        "train.checkpoint.every_steps": 10,
        "train.schedule": "cosine",
        "model.args.dropout": 0.3,
        "model.args.batch_norm": True,
    }
    whole = train(values, zero_stage=zero_stage)
    broken = train(values, zero_stage=zero_stage, checkpoints=tmp_path, context=StoppingContext(after=1))
    assert broken.module is None
    assert broken.steps == 20
    resumed = train(values, zero_stage=zero_stage, checkpoints=tmp_path)
    assert resumed.steps == 24
    np.testing.assert_allclose(resumed.history.losses, whole.history.losses, rtol=1e-4)
    for key, value in whole.module.state_dict().items():
        torch.testing.assert_close(resumed.module.state_dict()[key], value, rtol=1e-3, atol=1e-4, msg=key)


def test_a_checkpoint_is_taken_up_under_another_zero_stage(train, tmp_path: Path):
    values = {**ADAMW, "train.checkpoint.every_steps": 10}
    whole = train(values)
    train(values, zero_stage=3, checkpoints=tmp_path, context=StoppingContext(after=1))
    resumed = train(values, zero_stage=1, checkpoints=tmp_path)
    np.testing.assert_allclose(resumed.history.losses, whole.history.losses, rtol=1e-4)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(train, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    values = {**SGD, "train.checkpoint.every_steps": 10}
    train(values, checkpoints=tmp_path, context=StoppingContext(after=1))
    newest = tmp_path / "step-00000020" / "shard-00000.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    context = StoppingContext()
    resumed = train(values, checkpoints=tmp_path, context=context)
    assert {"event": "resumed", "label": "train", "step": 10, "epochs": []} in context.reports
    assert "damaged" in caplog.text
    np.testing.assert_allclose(resumed.history.losses, train(values).history.losses, rtol=1e-4)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model.args.linear_widths": [24]}, "of another model: param"),
        ({"model.args.batch_norm": True}, "of another model"),
        ({"train.seed": 1}, "another seed"),
        ({"train.batch_size": 64}, "another batch size"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(train, tmp_path: Path, values, reason):
    base = {**SGD, "train.checkpoint.every_steps": 10}
    train(base, checkpoints=tmp_path, context=StoppingContext(after=1))
    with pytest.raises(SpecError, match=reason):
        train({**base, **values}, checkpoints=tmp_path)


def test_a_checkpoint_of_other_data_is_refused(train, tmp_path: Path):
    values = {**SGD, "train.checkpoint.every_steps": 10}
    train(values, checkpoints=tmp_path, context=StoppingContext(after=1))
    document = tmp_path / "step-00000020" / "state.json"
    document.write_text(document.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    with pytest.raises(SpecError, match="with other data"):
        train(values, checkpoints=tmp_path)


def test_only_the_newest_checkpoints_are_kept(train, tmp_path: Path):
    train({"train.checkpoint": {"every_steps": 4, "keep": 2}}, checkpoints=tmp_path)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000016", "step-00000020"]


def test_bf16_trains_and_gives_back_fp32_weights(train):
    result = train({**ADAMW, "train.precision": "bf16", "model.args.batch_norm": True}, zero_stage=1)
    assert result.history.losses[-1] < result.history.losses[0]
    assert {p.dtype for p in result.module.parameters()} == {torch.float32}


def test_divergence_is_an_error_that_names_the_step(train):
    with pytest.raises(TrainingDiverged, match=r"step"):
        train({"train.optimizer": {"name": "sgd", "lr": 100.0, "weight_decay": 10.0}, "train.steps": 60})


def test_a_batch_that_does_not_divide_is_refused(train):
    with pytest.raises(SpecError, match="micro_batch"):
        train(micro_batch=7)


def test_distillation_pulls_the_outputs_towards_the_teacher(train, digits):
    teacher = train({**ADAMW, "train.steps": 120}).module
    values = {**SGD, "train.steps": 80}
    student_alone = train(values).module
    taught = train(values, teacher=teacher, distill=Distill(weight=1.0, temperature=1.0)).module
    x = torch.from_numpy(
        digits.encoded("validation", np.arange(digits.num_samples("validation")), digits.encoding("standardize"))
    )
    with torch.no_grad():
        target = functional.log_softmax(teacher(x), dim=1)

        def distance(module: nn.Module) -> float:
            return functional.kl_div(
                functional.log_softmax(module(x), dim=1), target, log_target=True, reduction="batchmean"
            ).item()

        assert distance(taught) < distance(student_alone)


def test_history_has_a_validation_row_for_each_epoch(train):
    result = train({"train.steps": None, "train.epochs": 2})
    rows = [row for row in result.history.epochs if row["split"] == "validation"]
    assert [row["step"] for row in rows] == [44, 89]
    assert len(result.history.losses) == 89
    assert all(0.0 <= row["metric"] <= 1.0 for row in rows)
    assert result.history.epochs[2]["loss"] == pytest.approx(np.mean(result.history.losses[44:89]))


@pytest.mark.parametrize("values", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_a_training_in_segments_is_the_training_in_one(digits, tmp_path, values):
    """Each segment goes on from a copy of what the one before left; the schedule is that of the whole."""
    spec = JobSpec.parse(document()).replace({**values, "train.schedule": "cosine", "train.gradient_clip": 1.0})
    recipe = Recipe(spec.train, spec.data, spec.metric)

    def segment(name: str, start: str | None, until_step: int | None) -> dict[str, Any]:
        (tmp_path / name).mkdir()
        return work.train(
            LocalContext(),
            TrainRequest(
                model=spec.model.model_dump(mode="json"),
                recipe=recipe,
                dataset=digits.folder,
                folder=tmp_path / name,
                until_step=until_step,
                start=tmp_path / start / "checkpoint" if start else None,
            ),
        )

    segment("whole", None, None)
    first, second, last = segment("a", None, 7), segment("b", "a", 16), segment("c", "b", 24)
    assert [part["stopped"] for part in (first, second, last)] == [False] * 3
    assert [part["steps"] for part in (first, second, last)] == [7, 16, 24]
    for name, step in (("a", 7), ("b", 16)):
        assert [path.name for path in (tmp_path / name / "checkpoint").iterdir()] == [f"step-{step:08d}"]
        assert not (tmp_path / name / "model").exists()
    whole, parts = (read_json(tmp_path / name / "history.json") for name in ("whole", "c"))
    np.testing.assert_allclose(parts["losses"], whole["losses"], rtol=1e-5)
    assert [row["metric"] for row in parts["epochs"]] == [row["metric"] for row in whole["epochs"]]


def test_a_segment_may_go_on_with_other_values(digits, tmp_path):
    losses = []
    for name, values in (("same", SGD), ("other", SGD | {"train.optimizer.lr": 1e-6})):
        for part, until, given in (("a", 12, SGD), ("b", 24, values)):
            spec = JobSpec.parse(document()).replace(given)
            folder = tmp_path / f"{name}-{part}"
            folder.mkdir()
            request = TrainRequest(
                model=spec.model.model_dump(mode="json"),
                recipe=Recipe(spec.train, spec.data, spec.metric),
                dataset=digits.folder,
                folder=folder,
                until_step=until,
                start=tmp_path / f"{name}-a" / "checkpoint" if part == "b" else None,
            )
            work.train(LocalContext(), request)
        losses.append(read_json(folder / "history.json")["losses"])
    np.testing.assert_allclose(losses[0][:13], losses[1][:13], rtol=1e-5)
    assert not np.allclose(losses[0][14:], losses[1][14:], rtol=1e-2)
