"""Structured pruning of every family: smaller, the same after a reload, exported with parity, at any batch size."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from jobs.compress import prune_structured
from jobs.compress.groups import find_groups
from jobs.errors import ArtifactError, SpecError
from jobs.models.build import load_model, save_model
from jobs.models.modules import Attention, Lstm
from jobs.models.prunable import layer_names, prunable_layers
from jobs.models.registry import summarize
from jobs.records import Signature
from tests.jobs.compress.compressed import PICKED, check_onnx, check_same_after_reload, data_of, num_params, recipe_of
from tests.jobs.models.small_models import FAMILIES, made, samples


def pruned_half(family: str) -> nn.Module:
    _, signature = FAMILIES[family]
    what = ["layers", "heads", "neurons"] if "transformer" in family else None
    return prune_structured(made(family), signature, ratio=0.5, what=what, samples=data_of(signature))


@pytest.mark.parametrize("family", ["lenet", "recommender", "lstm of tokens", "transformer of language"])
def test_a_pruned_model_is_exported_with_parity_and_counted_as_it_is(family: str, tmp_path: Path) -> None:
    figures = check_onnx(family, pruned_half(family), tmp_path / "pruned.onnx")
    dense = summarize(*FAMILIES[family])
    assert figures["macs"] < 0.7 * dense.macs
    assert figures["params"] < 0.75 * dense.params


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_knows_what_can_be_pruned(family: str) -> None:
    model, signature = FAMILIES[family]
    module = made(family)
    example = torch.zeros(2, *signature.input_shape, dtype=getattr(torch, signature.input_dtype))
    found = {(group.name, group.part, group.width, group.size) for group in find_groups(module, example)}
    planned = prunable_layers(model, signature)
    assert found <= {(each.name, each.part, each.width, each.size) for each in planned}
    if not family.startswith("resnet"):  # there, layers that shrink together stand one by one
        assert len(found) == len([each for each in planned if each.part != "layers"])
    assert {name for name, layer in module.named_modules() if [*layer.parameters(recurse=False)]} <= set(
        layer_names(model, signature)
    )


@pytest.mark.parametrize("family", ["lstm of tokens", "lstm of sequences", "lstm of language"])
def test_states_that_do_nothing_can_go_without_a_trace(family: str) -> None:
    _, signature = FAMILIES[family]
    dense = made(family)
    dead = torch.tensor([0, 3, 4])
    with torch.no_grad():
        for layer in dense.modules():
            if isinstance(layer, Lstm):
                for parameter in layer.lstm.parameters():
                    for gate in range(4):
                        parameter[dead + 6 * gate] = 0.0
    pruned = prune_structured(dense, signature, ratio=0.5, what=["states"])
    assert [m.lstm.hidden_size for m in pruned.modules() if isinstance(m, Lstm)] == [3, 3]
    x = samples(signature, [9, 5, 2])
    torch.testing.assert_close(pruned(x), dense(x))


def test_heads_that_do_nothing_can_go_without_a_trace() -> None:
    _, signature = FAMILIES["transformer of tokens"]
    dense = made("transformer of tokens")
    with torch.no_grad():
        for layer in dense.modules():
            if isinstance(layer, Attention):
                layer.output.weight[:, 4:] = layer.value.weight[4:] = layer.value.bias[4:] = 0.0
    pruned = prune_structured(dense, signature, ratio=0.5, what=["heads"])
    assert [m.query.out_features // m.head_width for m in pruned.modules() if isinstance(m, Attention)] == [1, 1]
    x = samples(signature, [9, 5, 2])
    torch.testing.assert_close(pruned(x), dense(x))


def test_embedding_features_that_do_nothing_can_go_without_a_trace() -> None:
    _, signature = FAMILIES["recommender"]
    dense = made("recommender")
    with torch.no_grad():
        for table in dense[0][0].tables:
            table.weight[:, [1, 2]] = 0.0
        dense[1][0].weight.view(6, 4, 4)[:, :, [1, 2]] = 0.0
    pruned = prune_structured(dense, signature, ratio=0.5, what=["embedding"])
    assert [table.embedding_dim for table in pruned[0][0].tables] == [2, 2, 2]
    x = samples(signature, [1, 1, 1])
    torch.testing.assert_close(pruned(x), dense(x))


def test_the_layer_that_is_needed_least_is_dropped() -> None:
    _, signature = FAMILIES["transformer of tokens"]
    dense = made("transformer of tokens")
    with torch.no_grad():
        for parameter in dense.layer1.parameters():
            parameter.zero_()
    pruned = prune_structured(dense, signature, ratio=0.5, what=["layers"], samples=data_of(signature))
    assert [name for name, _ in pruned.named_children()] == ["embedding", "layer2", "classifier"]
    x = samples(signature, [9, 5, 2])
    torch.testing.assert_close(pruned(x), dense(x))


def test_one_head_and_one_layer_stay_whatever_the_ratio() -> None:
    _, signature = FAMILIES["transformer of tokens"]
    what = ["heads", "layers"]
    pruned = prune_structured(
        made("transformer of tokens"), signature, ratio=0.95, what=what, samples=data_of(signature)
    )
    (attention,) = [layer for layer in pruned.modules() if isinstance(layer, Attention)]
    assert attention.query.out_features == attention.head_width == 4


@pytest.mark.parametrize(("round_to", "heads"), [(1, 1), (4, 1), (8, 2)])
def test_heads_are_rounded_by_their_features(round_to: int, heads: int) -> None:
    _, signature = FAMILIES["transformer of tokens"]
    pruned = prune_structured(made("transformer of tokens"), signature, ratio=0.5, round_to=round_to)
    found = {m.query.out_features // m.head_width for m in pruned.modules() if isinstance(m, Attention)}
    assert found == {heads}


def test_what_is_named_is_left_whole() -> None:
    _, signature = FAMILIES["lenet"]
    pruned = prune_structured(made("lenet"), signature, ratio=0.5, keep=["linear1"])
    assert [m.out_features for m in pruned.modules() if isinstance(m, nn.Linear)] == [8, 3, 4]
    with pytest.raises(SpecError, match="no layer remains"):
        prune_structured(made("lenet"), signature, ratio=0.5, keep=["conv1", "linear1", "linear2"])


def test_whole_blocks_that_shrink_together_are_left_whole_together() -> None:
    _, signature = FAMILIES["resnet"]
    pruned = prune_structured(made("resnet"), signature, ratio=0.5, keep=["stage1_block1"])
    assert pruned.get_parameter("stem.0.weight").shape[0] == 8  # the stem is added to what the block gives
    assert pruned.get_parameter("stage2_block1.0.body.0.weight").shape[0] == 8


def test_what_the_model_does_not_have_is_refused() -> None:
    _, signature = FAMILIES["lenet"]
    with pytest.raises(SpecError, match=r"no layer that can be pruned of the kinds heads.*neurons, channels"):
        prune_structured(made("lenet"), signature, ratio=0.5, what=["heads"])
    with pytest.raises(SpecError, match="has no layers that it can do without"):
        prune_structured(made("lenet"), signature, ratio=0.5, what=["layers"], samples=data_of(signature))
    with pytest.raises(SpecError, match="no layer is so wide"):
        prune_structured(made("lenet"), signature, ratio=0.5, round_to=16)


def test_a_structure_that_the_model_has_not_is_damage(tmp_path: Path) -> None:
    model, signature = FAMILIES["lenet"]
    for structure in ({"dropped": ["layer1"]}, {"low_rank": {"conv9": 2}}, {"low_rank": {"linear1.1": 0}}):
        save_model(made("lenet"), recipe_of(model, signature) | structure, tmp_path)
        with pytest.raises(ArtifactError, match=str(tmp_path)):
            load_model(tmp_path)


def test_a_users_recurrent_layers_keep_their_widths() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.body, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.body(self.lstm(x)[0][:, -1])))

    signature = Signature(kind="sequence", input_shape=(7, 4), outputs=3)
    pruned = prune_structured(Recurrent(), signature, ratio=0.5)
    assert (pruned.lstm.hidden_size, pruned.body.out_features) == (6, 4)


LOAD_ALL = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file
from jobs.models.build import load_model
for folder in map(Path, sys.argv[1:]):
    kept = load_file(folder / "kept.safetensors")
    assert torch.equal(load_model(folder).eval()(kept["x"]), kept["outputs"]), folder
print("the same")
"""


def test_a_fresh_process_rebuilds_every_family_to_the_last_bit(tmp_path: Path) -> None:
    for number, family in enumerate(PICKED):
        folder = tmp_path / str(number)
        pruned = pruned_half(family)
        assert num_params(pruned) < 0.75 * num_params(made(family))
        check_same_after_reload(family, pruned, folder, pruned=True)
        x = samples(FAMILIES[family][1], [9, 4, 1])
        save_file({"x": x, "outputs": pruned.eval()(x).detach().contiguous()}, folder / "kept.safetensors")
    command = [sys.executable, "-c", LOAD_ALL, *sorted(str(folder) for folder in tmp_path.iterdir())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "the same", done.stderr
