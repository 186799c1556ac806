"""Models over steps: what padding, order and later steps must not change; and arguments that don't fit."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from small_models import FAMILIES, LANGUAGE, OVER_STEPS, SEQUENCE, TOKENS, made, samples

from jobs.errors import SpecError
from jobs.models.registry import blocks_of
from jobs.models.sequences import padded
from jobs.spec.load import model_section

LENGTHS = [9, 4, 1, 6]


@pytest.mark.parametrize("family", OVER_STEPS)
def test_padding_changes_no_sample(family: str) -> None:
    _, signature = FAMILIES[family]
    x, module = samples(signature, LENGTHS), made(family)
    with torch.no_grad():
        together = module(x)
        for sample, output, length in zip(x, together, LENGTHS, strict=True):
            alone = module(sample[None, :length])[0]
            real = output[:length] if signature.per_step else output
            torch.testing.assert_close(alone, real, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("family", OVER_STEPS)
def test_the_order_of_a_batch_does_not_matter(family: str) -> None:
    x, module = samples(FAMILIES[family][1], LENGTHS), made(family)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        torch.testing.assert_close(module(x[order]), module(x)[order], rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("family", ["lstm of language", "transformer of language"])
def test_a_language_model_does_not_look_ahead(family: str) -> None:
    x, module = samples(LANGUAGE, [9, 9]), made(family)
    changed = x.clone()
    changed[:, 5] = x[:, 5] % 20 + 1
    with torch.no_grad():
        before, after = module(x), module(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=0.0, atol=1e-6)
    assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-4)


def test_an_encoder_looks_both_ways() -> None:
    x, module = samples(TOKENS, [9, 9]), made("transformer of tokens")
    # The last step alone would tell of the others only if it saw them, and so would the first.
    states = module[0](x)
    for layer in list(module)[1:-1]:
        states = layer(states)
    changed = x.clone()
    changed[:, 8] = x[:, 8] % 20 + 1
    after = module[0](changed)
    for layer in list(module)[1:-1]:
        after = layer(after)
    assert not torch.allclose(states[0][:, 0], after[0][:, 0], atol=1e-6)


@pytest.mark.parametrize("family", OVER_STEPS)
def test_a_sample_without_steps_is_finite(family: str) -> None:
    with torch.no_grad():
        assert torch.isfinite(made(family)(samples(FAMILIES[family][1], [0, 3]))).all()


def test_the_end_of_a_sample_is_what_is_pooled() -> None:
    """`last` and `mean` of an LSTM agree for one step, and differ for more."""
    last, mean = (
        blocks_of(model_section({"name": "lstm", "args": {"pool": pool}}), SEQUENCE) for pool in ("last", "mean")
    )
    assert type(last[-1].layers[0]).__name__ == "LastStep"
    assert type(mean[-1].layers[0]).__name__ == "MeanSteps"


def test_tables_are_padded_to_whole_eights() -> None:
    assert [padded(count) for count in (1, 8, 9)] == [8, 8, 16]
    assert made("lstm of tokens").get_parameter("embedding.1.weight").shape == (24, 5)


@pytest.mark.parametrize(
    ("name", "args", "signature", "path", "words"),
    [
        ("transformer", {"max_length": 8}, TOKENS, "model.args.max_length", "9 steps.*at least 9"),
        ("lstm", {"embedding": 8}, SEQUENCE, "model.args.embedding", "no tokens"),
    ],
)
def test_arguments_that_do_not_fit_the_data_are_refused(
    name: str, args: dict[str, Any], signature: Any, path: str, words: str
) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        blocks_of(model_section({"name": name, "args": args}), signature)
    assert caught.value.problems[0].path == path


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("transformer", {"width": 10, "heads": 4}, "4 heads do not divide the width 10"),
        ("transformer", {"layers": 0}, "greater than or equal to 1"),
        ("lstm", {"pool": "max"}, "'last' or 'mean'"),
        ("recommender", {"embedding": 0}, "greater than or equal to 1"),
        ("huggingface", {}, "either a path or a config"),
        ("huggingface", {"path": "here", "config": {"model_type": "bert"}}, "either a path or a config"),
        ("huggingface", {"config": {"hidden_size": 8}}, "names no model_type"),
    ],
)
def test_bad_arguments_are_refused(name: str, args: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        model_section({"name": name, "args": args})
