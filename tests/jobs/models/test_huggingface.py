"""Models of Hugging Face's transformers: from a configuration, from a folder, to disk and back, to ONNX."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import CODES, LANGUAGE, TOKENS, samples
from torch import nn

from jobs.compress.masks import apply_masks, check_zeros, magnitude_masks
from jobs.errors import SpecError
from jobs.models.build import build, load_model, save_model
from jobs.models.inspection import summarize_module
from jobs.models.pretrained import digest_folder, located
from jobs.models.registry import prunable
from jobs.records import Signature
from jobs.spec.model import HuggingFaceArgs, HuggingFaceModel

BERT = {
    "model_type": "bert",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
GPT2 = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2}


def configured(config: dict[str, Any]) -> HuggingFaceModel:
    return HuggingFaceModel(name="huggingface", args=HuggingFaceArgs(config=config))


def in_folder(folder: Path) -> HuggingFaceModel:
    return HuggingFaceModel(name="huggingface", args=HuggingFaceArgs(path=str(folder)))


def made(model: HuggingFaceModel, signature: Signature, seed: int = 0) -> nn.Module:
    return build(model, signature, seed=seed).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model for 30 codes, as transformers itself writes it."""
    place = tmp_path_factory.mktemp("pretrained")
    language = LANGUAGE.model_copy(update={"num_codes": (30,), "outputs": 30})
    made(configured(GPT2), language, seed=5).model.save_pretrained(place)
    return place


@pytest.mark.parametrize(("config", "signature"), [(BERT, TOKENS), (GPT2, TOKENS), (BERT, LANGUAGE), (GPT2, LANGUAGE)])
def test_a_configuration_takes_its_sizes_from_the_data(config: dict[str, Any], signature: Signature) -> None:
    module = made(configured(config), signature)
    assert module.model.config.vocab_size == signature.num_codes[0]
    assert module.model.config.max_position_embeddings == 10
    x = samples(signature, [9, 4, 1])
    with torch.no_grad():
        together = module(x)
        assert together.shape == (3, *signature.output_shape)
        for sample, output, length in zip(x, together, (9, 4, 1), strict=True):
            real = output[:length] if signature.per_step else output
            torch.testing.assert_close(module(sample[None, :length])[0], real, rtol=0.0, atol=1e-6)
        assert torch.isfinite(module(samples(signature, [0]))).all()


def test_its_weights_are_a_function_of_the_seed() -> None:
    first, second, other = (made(configured(BERT), TOKENS, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_it_is_looked_at_as_any_model(folder: Path) -> None:
    question = {"model": in_folder(folder).model_dump(mode="json"), "signature": LANGUAGE.to_json()}
    summary = summarize_module(question)
    width, steps, codes = 8, 9, 24  # of the folder's 30 codes, those that the data has
    assert summary.params == (codes + 10) * width + (12 * width**2 + 13 * width) + 2 * width
    assert summary.macs == steps * (12 * width**2 + codes * width) + 2 * steps**2 * width
    assert not summary.layout_invariant
    assert "single block" in summary.no_pipeline
    assert summary.no_tensor
    assert "Hugging Face" in prunable(in_folder(folder), "structured")


def test_a_folder_gives_its_weights_and_is_not_needed_again(folder: Path, tmp_path: Path) -> None:
    module = made(in_folder(folder), TOKENS)
    trained = made(configured(GPT2), LANGUAGE.model_copy(update={"num_codes": (30,), "outputs": 30}), seed=5)
    body = trained.model.transformer.state_dict()
    assert all(torch.equal(value, body[name]) for name, value in module.model.transformer.state_dict().items())
    recipe = {"model": in_folder(folder).model_dump(mode="json"), "signature": TOKENS.to_json()}
    save_model(module, recipe, tmp_path)
    assert str(folder) not in (tmp_path / "model.json").read_text()
    x = samples(TOKENS, [9, 4])
    assert torch.equal(load_model(tmp_path).eval()(x), module(x))


def test_a_folder_is_what_is_in_it(folder: Path, tmp_path: Path) -> None:
    digest = digest_folder(folder)
    assert digest == digest_folder(folder)
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert digest_folder(tmp_path) == digest
    (tmp_path / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert digest_folder(tmp_path) != digest


def test_a_folder_is_found_from_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert located(in_folder(Path("here"))).args.path == str(tmp_path / "here")
    assert located(configured(BERT)) == configured(BERT)


@pytest.mark.parametrize(
    ("changes", "signature", "path", "words"),
    [
        ({"model_type": "bertt"}, TOKENS, "model.args.config.model_type", "no architecture.*'bert'"),
        ({"hiden_size": 8}, TOKENS, "model.args.config.hiden_size", "unknown key.*'hidden_size'"),
        ({"num_labels": 8}, TOKENS, "model.args.config.num_labels", "the data decides"),
        ({"vocab_size": 9}, TOKENS, "model.args.config.vocab_size", "21 codes.*at least 21"),
        ({"vocab_size": 99}, LANGUAGE, "model.args.config.vocab_size", "24 codes.*allowed: 24"),
        ({"hidden_size": 9}, TOKENS, "model.args.config", "makes no model of it.*hidden size"),
        ({"hidden_size": "wide"}, TOKENS, "model.args.config", "makes no model of it"),
        ({}, CODES, "model.name", "takes tokens.*codes"),
    ],
)
def test_a_bad_configuration_is_refused(changes: dict[str, Any], signature: Signature, path: str, words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        made(configured(BERT | changes), signature)
    assert caught.value.problems[0].path == path


def test_too_few_positions_are_found_when_it_is_looked_at() -> None:
    model = configured(BERT | {"max_position_embeddings": 4})
    with pytest.raises(SpecError, match=r"model\.name.*does not take a batch of shape \(2, 9\)"):
        summarize_module({"model": model.model_dump(mode="json"), "signature": TOKENS.to_json()})


def test_a_bad_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    def refused(signature: Signature = TOKENS, place: Path = tmp_path) -> str:
        with pytest.raises(SpecError) as caught:
            made(in_folder(place), signature)
        assert caught.value.problems[0].path == "model.args.path"
        return str(caught.value)

    assert "no such folder; nothing is downloaded" in refused(place=tmp_path / "bert-base-uncased")
    assert "holds no model" in refused()
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    assert "pickled weights (*.bin) are not read" in refused()
    weights = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:100])
    assert "reads no model from it" in refused()
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert "knows 30 codes, and the data has 40" in refused(TOKENS.model_copy(update={"num_codes": (40,)}))
    (tmp_path / "config.json").write_text(json.dumps(config | {"pad_token_id": 1}))
    assert "pads with the code 1" in refused()
    (tmp_path / "config.json").write_text(json.dumps(config | {"n_embd": 16}))
    assert "not those of a GPT2ForSequenceClassification" in refused()
    (tmp_path / "config.json").write_text(json.dumps(BERT | {"vocab_size": 30}))
    assert "not those of a BertForSequenceClassification" in refused()
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(own))
    (tmp_path / "code.py").write_text("raise SystemExit('code of the model ran')")
    assert "reads no model from it" in refused()


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SpecError, match=r"model\.name: transformers is not installed.*pip install 'thresher\[hf\]'"):
        made(configured(BERT), TOKENS)


def test_single_weights_of_it_are_pruned(tmp_path: Path) -> None:
    model = configured(GPT2)
    module = made(model, LANGUAGE)
    masks = magnitude_masks(module, 0.8)
    assert any("attn" in name for name in masks)  # its own kind of linear layer
    assert not any("ln_" in name for name in masks)
    apply_masks(module, masks)
    save_model(module, {"model": model.model_dump(mode="json"), "signature": LANGUAGE.to_json()}, tmp_path)
    check_zeros(load_model(tmp_path), masks)
