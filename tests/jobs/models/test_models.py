"""Models: what is planned is what is built, what is divided, and how it begins."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import CODES, FAMILIES, IMAGE, LANGUAGE, SEQUENCE, TOKENS, VECTOR, held_values, made, samples
from torch import nn
from torch.nn import functional

from jobs.errors import SpecError
from jobs.models import modules
from jobs.models.build import build
from jobs.models.invariant import GROUPED, SampleDropout
from jobs.models.registry import blocks_of, packable, prunable, summarize
from jobs.records import BlockSummary, Signature
from jobs.spec.load import model_section
from jobs.spec.model import LenetArgs, LenetModel, MlpArgs, MlpModel, OwnModel, ResnetArgs, ResnetModel

ACTIVATIONS = st.sampled_from(["relu", "tanh", "gelu", "silu"])
WIDTHS = st.integers(1, 9)
DROPOUTS = st.sampled_from([0.0, 0.3])
LENETS = st.builds(
    LenetArgs,
    conv_widths=st.lists(WIDTHS, min_size=1, max_size=4).map(tuple),
    linear_widths=st.lists(WIDTHS, max_size=3).map(tuple),
    kernel=st.sampled_from([3, 5]),
    activation=ACTIVATIONS,
    dropout=DROPOUTS,
    batch_norm=st.booleans(),
)
MLPS = st.builds(
    MlpArgs,
    hidden=st.lists(WIDTHS, max_size=4).map(tuple),
    activation=ACTIVATIONS,
    dropout=DROPOUTS,
    batch_norm=st.booleans(),
)
IMAGES = st.tuples(st.sampled_from([1, 3]), st.integers(1, 12), st.integers(1, 12))


def shaped(shape: tuple[int, ...], outputs: int) -> Signature:
    return Signature(kind="image" if len(shape) == 3 else "vector", input_shape=shape, outputs=outputs)


def measured(module: nn.Sequential, x: torch.Tensor) -> dict[str, Any]:
    """What torch itself counts in one forward pass: parameters, MACs, the shapes that blocks put out."""
    macs = 0

    def count(layer: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal macs
        if isinstance(layer, nn.Linear | nn.Conv2d):
            # Every output value is a sum over the weights that lead to it.
            macs += output[0].numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.LSTM):
            macs += output[0].shape[1] * sum(p.numel() for p in layer.parameters() if p.dim() == 2)
        elif isinstance(layer, modules.Attention):
            macs += 2 * output.shape[1] * output[0].numel()  # scores, and the values mixed by them

    for layer in module.modules():
        layer.register_forward_hook(count)
    shapes, state = [], x
    for block in module.eval():
        state = block(state)
        shapes.append(tuple((state[0] if isinstance(state, tuple) else state).shape[1:]))
    return {"params": sum(p.numel() for p in module.parameters()), "shapes": shapes, "macs": macs}


def check_plan(model: OwnModel, signature: Signature) -> None:
    plan = summarize(model, signature)
    module = build(model, signature, seed=0)
    assert isinstance(module, nn.Sequential)
    found = measured(module, samples(signature, [signature.input_shape[0]] * 2))
    assert found["params"] == plan.params == sum(block.params for block in plan.blocks)
    assert found["macs"] == plan.macs == sum(block.macs for block in plan.blocks)
    assert found["shapes"] == [block.output_shape for block in plan.blocks]
    assert found["shapes"][-1] == signature.output_shape
    assert [block.name for block in plan.blocks] == [name for name, _ in module.named_children()]
    assert plan.layout_invariant
    assert not any(looks_at_micro_batch(layer) for layer in module.modules())
    assert plan.norm_group == max(
        (layer.group for layer in module.modules() if isinstance(layer, GROUPED)), default=None
    )
    check_split(list(plan.blocks), module)


def check_split(blocks: list[BlockSummary], module: nn.Sequential) -> None:
    """The parameters planned to be divided are those of the layers that say so."""
    seen: set[nn.Parameter] = set()
    for planned, block in zip(blocks, module, strict=True):
        divided = 0
        for layer in block.modules():
            for name, parameter in layer.named_parameters(recurse=False):
                split = getattr(layer, "split", None)
                whole = split is None or (split == "row" and name == "bias")
                divided += 0 if whole or parameter in seen else parameter.numel()
                seen.add(parameter)
        assert divided == planned.split_params
        assert planned.split_macs <= planned.macs
        assert planned.split_activations <= planned.activations


def looks_at_micro_batch(layer: nn.Module) -> bool:
    stock_norm = isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and not isinstance(layer, GROUPED)
    return stock_norm or isinstance(layer, nn.Dropout)


class TestSizes:
    @given(LENETS, IMAGES, st.integers(1, 12))
    @settings(max_examples=20, deadline=None)
    def test_a_lenet_is_built_as_planned(self, args: LenetArgs, shape: tuple[int, ...], outputs: int) -> None:
        check_plan(LenetModel(name="lenet", args=args), shaped(shape, outputs))

    @given(MLPS, st.one_of(st.tuples(st.integers(1, 20)), IMAGES), st.integers(1, 12))
    @settings(max_examples=20, deadline=None)
    def test_an_mlp_is_built_as_planned(self, args: MlpArgs, shape: tuple[int, ...], outputs: int) -> None:
        check_plan(MlpModel(name="mlp", args=args), shaped(shape, outputs))

    @pytest.mark.parametrize("norm", ["batch", "group"])
    @pytest.mark.parametrize(
        ("depth", "shape"), [(8, (3, 32, 32)), (8, (1, 9, 7)), (20, (1, 28, 28)), (18, (3, 64, 64))]
    )
    def test_a_resnet_is_built_as_planned(self, depth: Any, norm: Any, shape: tuple[int, ...]) -> None:
        args = ResnetArgs(depth=depth, norm=norm, width=8, activation="silu")
        check_plan(ResnetModel(name="resnet", args=args), shaped(shape, 10))

    @pytest.mark.parametrize("family", FAMILIES)
    def test_every_family_is_built_as_planned(self, family: str) -> None:
        check_plan(*FAMILIES[family])

    def test_resnets_have_the_sizes_of_the_paper(self) -> None:
        """He et al. 2016, table 6: 0.27 M parameters for 20 layers, 0.85 M for 56; table 1: 1.8 GFLOPs for 18."""

        def sizes(depth: Any, shape: tuple[int, ...], outputs: int) -> tuple[int, int]:
            plan = summarize(ResnetModel(name="resnet", args=ResnetArgs(depth=depth)), shaped(shape, outputs))
            return plan.params, plan.macs

        assert sizes(20, (3, 32, 32), 10)[0] == pytest.approx(0.27e6, rel=0.03)
        assert sizes(56, (3, 32, 32), 10)[0] == pytest.approx(0.85e6, rel=0.03)
        params, macs = sizes(18, (3, 224, 224), 1000)
        assert params == 11_689_512  # as torchvision's
        assert macs == pytest.approx(1.81e9, rel=0.01)

    def test_lenet_5_has_the_sizes_of_the_paper(self) -> None:
        """61,706 parameters and 416,520 MACs with 32×32 inputs unpadded; ours keeps the size before pooling."""
        plan = summarize(LenetModel(name="lenet"), shaped((1, 28, 28), 10))
        conv = (6 * 25 + 6) + (16 * 6 * 25 + 16)
        linear = (16 * 7 * 7 * 120 + 120) + (120 * 84 + 84) + (84 * 10 + 10)
        assert plan.params == conv + linear
        assert plan.macs == 6 * 25 * 784 + 16 * 150 * 196 + 784 * 120 + 120 * 84 + 84 * 10
        assert plan.layout_invariant

    def test_a_language_model_has_the_size_of_the_paper(self) -> None:
        """GPT-2 small has 124 M parameters (124,439,808 with the biases of its keys, which do nothing)."""
        args = {"layers": 12, "width": 768, "heads": 12, "max_length": 1024}
        language = Signature(kind="tokens", input_shape=(1024,), outputs=50257, num_codes=(50257,), per_step=True)
        plan = summarize(model_section({"name": "transformer", "args": args}), language)
        assert plan.params == 124_439_808 - 12 * 768
        assert plan.tied_params == 50257 * 768

    def test_the_last_linear_layer_is_the_classifier(self) -> None:
        for model in (LenetModel(name="lenet"), MlpModel(name="mlp"), MlpModel(name="mlp", args=MlpArgs(hidden=()))):
            module = build(model, shaped((1, 8, 8), 7), seed=0)
            last = [layer for layer in module.modules() if not list(layer.children())][-1]
            assert isinstance(last, nn.Linear)
            assert last.out_features == 7

    @pytest.mark.parametrize(
        ("name", "signature", "words"),
        [
            ("lenet", VECTOR, "images.*vectors.*mlp"),
            ("resnet", VECTOR, "images.*vectors.*mlp"),
            ("mlp", TOKENS, "tokens.*lstm, transformer"),
            ("mlp", CODES, "codes.*recommender"),
            ("lstm", IMAGE, "images.*lenet"),
            ("transformer", CODES, "codes.*recommender"),
            ("recommender", SEQUENCE, "sequences.*lstm, transformer"),
            ("mlp", SEQUENCE.model_copy(update={"per_step": True}), "each step.*lstm, transformer"),
        ],
    )
    def test_a_family_refuses_data_that_it_does_not_take(self, name: str, signature: Signature, words: str) -> None:
        with pytest.raises(SpecError, match=rf"model\.name.*{words}"):
            blocks_of(model_section({"name": name}), signature)


class TestActivations:
    """What a plan says is kept for the backward pass is what autograd keeps."""

    TEXTS = Signature(kind="tokens", input_shape=(32,), outputs=5, num_codes=(40,))
    LANGUAGE = Signature(kind="tokens", input_shape=(32,), outputs=40, num_codes=(40,), per_step=True)

    @pytest.mark.parametrize(
        ("name", "args", "signature", "tolerance"),
        [
            ("lenet", {}, shaped((1, 28, 28), 10), 0.01),
            ("lenet", {"batch_norm": True, "dropout": 0.2, "activation": "gelu"}, shaped((1, 28, 28), 10), 0.01),
            ("mlp", {"hidden": [64, 32], "dropout": 0.2}, shaped((30,), 10), 0.01),
            ("resnet", {"depth": 8, "width": 8, "norm": "group"}, shaped((3, 16, 16), 10), 0.01),
            ("resnet", {"depth": 8, "width": 8, "activation": "tanh"}, shaped((3, 16, 16), 10), 0.01),
            ("lstm", {"hidden": 32, "layers": 2, "dropout": 0.1}, TEXTS, 0.2),
            ("transformer", {"width": 32, "layers": 2}, TEXTS, 0.02),
            ("transformer", {"width": 32, "layers": 2, "activation": "relu"}, LANGUAGE, 0.02),
            ("recommender", {}, CODES, 0.02),
        ],
    )
    def test_they_are_what_autograd_keeps(
        self, name: str, args: dict[str, Any], signature: Signature, tolerance: float
    ) -> None:
        model = model_section({"name": name, "args": args})
        module = build(model, signature, seed=0).train()
        batch = 32
        for layer in module.modules():
            if isinstance(layer, SampleDropout):
                layer.begin(0, 0, np.arange(batch), torch.device("cpu"))
        x = samples(signature, [signature.input_shape[0]] * batch)
        targets = torch.zeros(x.shape if signature.per_step else batch, dtype=torch.int64)
        found = held_values(
            module, x, lambda outputs: functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())
        )
        assert summarize(model, signature).activations == pytest.approx(found, rel=tolerance)

    def test_what_lies_between_a_column_and_a_row_layer_is_divided(self) -> None:
        blocks = summarize(model_section({"name": "mlp", "args": {"hidden": [6, 5]}}), VECTOR).blocks
        assert [block.split_activations for block in blocks] == [6, 0, 0]
        assert [block.activations for block in blocks] == [6, 5, 2 * 3]


class TestSplit:
    def split(self, name: str, signature: Signature, **args: Any) -> list[Any]:
        module = build(model_section({"name": name, "args": args}), signature, seed=0)
        return [layer.split for layer in module.modules() if hasattr(layer, "split")]

    def test_linear_layers_are_divided_in_pairs(self) -> None:
        assert self.split("mlp", VECTOR, hidden=[6]) == ["column", "row"]
        assert self.split("mlp", VECTOR, hidden=[6, 6]) == ["column", "row", None]
        assert self.split("mlp", VECTOR, hidden=[6, 6, 6]) == ["column", "row", "column", "row"]
        assert self.split("mlp", VECTOR, hidden=[6], batch_norm=True, dropout=0.1) == [
            *("column", "channels", "channels"),
            "row",
        ]
        assert self.split("mlp", VECTOR, hidden=[]) == [None]

    def test_a_residual_body_is_divided_between_its_convolutions(self) -> None:
        body = ["column", "channels", "row", None]
        assert self.split("resnet", IMAGE, depth=8, width=8) == [
            *(None, None),
            *body,
            *body,
            *(None, None),
            *body,
            *(None, None),
            None,
        ]

    def test_a_transformer_is_divided_by_heads_neurons_and_codes(self) -> None:
        args = {"layers": 1, "width": 8, "heads": 2, "dropout": 0.1}
        layer = ["column", "column", "column", "row", None, "column", "row", None]
        assert self.split("transformer", LANGUAGE, **args) == ["rows", None, *layer, "gather"]
        assert self.split("transformer", TOKENS, **args) == ["rows", None, *layer, None]

    @pytest.mark.parametrize(
        ("name", "args", "signature", "width", "reason"),
        [
            ("mlp", {"hidden": [12, 8]}, VECTOR, 12, ""),
            ("mlp", {"hidden": [12, 8, 18]}, VECTOR, 6, ""),
            ("mlp", {"hidden": []}, VECTOR, 1, "no hidden layer"),
            ("mlp", {"hidden": [8, 8, 9]}, VECTOR, 1, "no common divisor: 8, 9"),
            ("resnet", {"depth": 8, "width": 16}, IMAGE, 16, ""),
            ("resnet", {"depth": 8, "width": 16, "norm": "group"}, IMAGE, 8, ""),
            ("lstm", {}, TOKENS, 1, "each step of a recurrence"),
            ("transformer", {"width": 12, "heads": 6}, TOKENS, 6, ""),
            ("transformer", {"width": 12, "heads": 4}, LANGUAGE, 4, ""),
            ("recommender", {"hidden": [16]}, CODES, 8, ""),
        ],
    )
    def test_degrees_divide_every_width_that_is_divided(
        self, name: str, args: dict[str, Any], signature: Signature, width: int, reason: str
    ) -> None:
        plan = summarize(model_section({"name": name, "args": args}), signature)
        assert plan.tensor_width == width
        assert reason in plan.no_tensor
        assert bool(plan.no_tensor) == bool(reason)

    def test_what_peers_sum_is_counted(self) -> None:
        blocks = summarize(*FAMILIES["transformer of language"]).blocks
        width, steps, vocabulary = 8, 9, 24
        assert [b.tensor_values for b in blocks] == [steps * width, *[2 * steps * width] * 2, steps * vocabulary]

    def test_one_block_alone_is_no_pipeline(self) -> None:
        assert "single block" in summarize(model_section({"name": "mlp", "args": {"hidden": []}}), VECTOR).no_pipeline
        assert summarize(model_section({"name": "mlp"}), VECTOR).no_pipeline == ""

    def test_which_families_can_be_pruned(self) -> None:
        for model, _ in FAMILIES.values():
            assert {prunable(model, method) for method in ("structured", "magnitude", "nm")} == {""}

    def test_which_families_can_be_packed(self) -> None:
        for name in ("mlp", "lenet", "resnet", "recommender", "transformer"):
            assert packable(model_section({"name": name}), TOKENS) == ""
        assert "recurrent" in packable(model_section({"name": "lstm"}), TOKENS)
        assert "tied: false" in packable(model_section({"name": "transformer"}), LANGUAGE)
        untied = model_section({"name": "transformer", "args": {"tied": False}})
        assert packable(untied, LANGUAGE) == ""


class TestInitialization:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_it_is_a_function_of_the_seed(self, family: str) -> None:
        first = made(family, seed=3).state_dict()
        before = torch.get_rng_state()
        torch.rand(7)
        second, other = (made(family, seed=seed).state_dict() for seed in (3, 4))
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert any(not torch.equal(first[name], other[name]) for name in first)
        torch.set_rng_state(before)

    def test_the_random_state_outside_is_untouched(self) -> None:
        before = torch.get_rng_state()
        made("transformer of language")
        assert torch.equal(before, torch.get_rng_state())

    def test_a_transformer_begins_as_gpt_2_does(self) -> None:
        """N(0, 0.02) and biases of 0; the ends of the residual branches narrower by √(2 · layers)."""
        args = {"layers": 8, "width": 64, "heads": 2}
        module = build(model_section({"name": "transformer", "args": args}), LANGUAGE, seed=0)
        weights = dict(module.named_parameters())
        for name, std in (
            ("embedding.1.weight", 0.02),
            ("layer3.0.body.1.query.weight", 0.02),
            ("layer3.0.body.1.output.weight", 0.005),
            ("layer3.1.body.1.weight", 0.02),
            ("layer3.1.body.3.weight", 0.005),
        ):
            assert weights[name].std().item() == pytest.approx(std, rel=0.1)
        assert all(not p.any() for name, p in weights.items() if name.endswith("bias"))
        assert "layer3.0.body.1.key.bias" not in weights
