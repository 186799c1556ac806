import pytest
import torch
from torch import nn

from jobs.compress import prune_structured, step_ratios
from jobs.errors import SpecError
from jobs.models.build import build
from jobs.records import Signature
from jobs.spec.load import model_section

IMAGE = Signature(kind="image", input_shape=(1, 28, 28), outputs=10)
SMALL = Signature(kind="image", input_shape=(3, 8, 8), outputs=5)
TOKENS = Signature(kind="tokens", input_shape=(7,), outputs=3, num_codes=(16,))
LANGUAGE = Signature(kind="tokens", input_shape=(7,), outputs=16, num_codes=(16,), per_step=True)
SEQUENCE = Signature(kind="sequence", input_shape=(7, 4), outputs=3)
CODES = Signature(kind="codes", input_shape=(3,), outputs=2, num_codes=(10, 7, 3))


def vector(features: int, outputs: int) -> Signature:
    return Signature(kind="vector", input_shape=(features,), outputs=outputs)


def lenet() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)
    )


class Residual(nn.Module):
    """Two arms that must keep the same width, a depthwise and a grouped convolution, group normalization."""

    def __init__(self, outputs: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.arm = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 16, 3, padding=1))
        self.norm = nn.GroupNorm(4, 16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 32, 1, groups=2)
        self.head = nn.Conv2d(32, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.norm(self.arm(x)))
        return self.head(torch.relu(self.grouped(self.depthwise(x)))).mean((2, 3))


def widths(model: nn.Module) -> list[int]:
    return [m.weight.shape[0] for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def num_params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_half_of_every_layer_goes_but_not_the_outputs() -> None:
    pruned = prune_structured(lenet(), IMAGE, ratio=0.5)
    assert widths(pruned) == [3, 8, 60, 42, 10]
    assert [m.num_features for m in pruned.modules() if isinstance(m, nn.BatchNorm2d)] == [3, 8]
    assert pruned.eval()(torch.randn(7, 1, 28, 28)).shape == (7, 10)


def test_the_weakest_channels_go_and_the_rest_keeps_its_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        for layer in (model[0].weight, model[2].weight.T):
            layer[[1, 3, 4]] *= 1e-3
    pruned = prune_structured(model, vector(4, 2), ratio=0.5)
    assert torch.equal(pruned[0].weight, model[0].weight[[0, 2, 5]])
    assert torch.equal(pruned[0].bias, model[0].bias[[0, 2, 5]])
    assert torch.equal(pruned[2].weight, model[2].weight[:, [0, 2, 5]])


def test_channels_that_do_nothing_can_go_without_a_trace() -> None:
    """Flatten between convolution and linear layer, and batch normalization: the right columns are taken."""
    model = lenet().eval()
    with torch.no_grad():
        for norm, dead in ((model[1], [0, 4, 5]), (model[5], [1, 2, 3, 5, 8, 11, 13, 15])):
            norm.weight[dead] = norm.bias[dead] = 0.0
        for conv, dead in ((model[0], [0, 4, 5]), (model[4], [1, 2, 3, 5, 8, 11, 13, 15])):
            conv.weight[dead] = 0.0
        for linear in (model[9], model[12]):
            half = len(linear.weight) // 2
            linear.weight[half:] = linear.bias[half:] = 0.0
    pruned = prune_structured(model, IMAGE, ratio=0.5)
    x = torch.randn(4, 1, 28, 28)
    assert num_params(pruned) < num_params(model) / 3
    torch.testing.assert_close(pruned(x), model(x))


def test_the_original_is_left_alone() -> None:
    model = lenet().train()
    model[0].weight.requires_grad_(False)
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruned = prune_structured(model, IMAGE, ratio=0.5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert pruned.state_dict().keys() == before.keys()
    for copy in (model, pruned):
        assert not copy[0].weight.requires_grad
        assert copy[4].weight.requires_grad
        assert copy[4].weight.grad is None
        assert (copy.training, copy[1].training, copy[5].training) == (True, False, True)


@pytest.mark.parametrize("global_pruning", [False, True])
def test_the_same_model_gives_the_same_result(global_pruning: bool) -> None:
    first, second = (prune_structured(lenet(), IMAGE, ratio=0.4, global_pruning=global_pruning) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("global_pruning", [False, True])
@pytest.mark.parametrize("round_to", [4, 8])
def test_widths_are_multiples(round_to: int, global_pruning: bool) -> None:
    pruned = prune_structured(lenet(), IMAGE, ratio=0.45, round_to=round_to, global_pruning=global_pruning)
    first, *hidden, outputs = widths(pruned)
    assert first == (6 if round_to > 6 else 4)  # narrower than a multiple: stays
    assert all(width % round_to == 0 for width in hidden)
    assert outputs == 10


def test_a_larger_ratio_leaves_less() -> None:
    sizes = [num_params(prune_structured(mlp(), vector(8, 1), ratio=r)) for r in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 5


def test_global_pruning_takes_from_the_weakest_layer() -> None:
    model = mlp()
    with torch.no_grad():  # in the first layer half of the channels are far below the mean; the second is even
        model[0].weight[:32] *= 0.01
        model[1].weight[:32] *= 0.01
        model[4].weight[:, :32] *= 0.01
        model[4].weight[:, 32:] = 1.0
        model[6].weight[:] = 1.0
    pruned = prune_structured(model, vector(8, 1), ratio=1 / 3, global_pruning=True)
    assert widths(pruned) == [32, 32, 1]


def test_global_pruning_removes_the_share_of_all_channels_and_no_whole_layer() -> None:
    model = mlp()
    with torch.no_grad():
        model[4].weight[1:] *= 1e-4
        model[6].weight[:, 1:] *= 1e-4
    pruned = prune_structured(model, vector(8, 1), ratio=0.75, global_pruning=True)
    assert widths(pruned) == [23, 1, 1]
    assert pruned.eval()(torch.randn(3, 8)).shape == (3, 1)


def test_residual_arms_groups_and_a_convolution_as_the_head() -> None:
    pruned = prune_structured(Residual(), SMALL, ratio=0.5)
    assert widths(pruned) == [8, 12, 8, 8, 16, 5]
    assert (pruned.depthwise.groups, pruned.grouped.groups, pruned.norm.num_channels) == (8, 2, 8)
    assert pruned.eval()(torch.randn(2, 3, 8, 8)).shape == (2, 5)


def test_layers_that_add_up_to_the_output_keep_it() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.wide, self.narrow = nn.Linear(8, 20), nn.Linear(20, 4), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.log_softmax(self.wide(torch.relu(self.body(x))) + self.narrow(x), dim=1)

    assert widths(prune_structured(TwoHeads(), vector(8, 4), ratio=0.5)) == [10, 4, 4]


@pytest.mark.parametrize("global_pruning", [False, True])
def test_a_layer_that_would_vanish_is_refused(global_pruning: bool) -> None:
    with pytest.raises(SpecError, match="would leave nothing") as refusal:
        prune_structured(lenet(), IMAGE, ratio=0.995, global_pruning=global_pruning)
    assert refusal.value.problems[0].path == "compress.prune.ratio"
    assert refusal.value.problems[0].value == 0.995


def test_a_model_without_hidden_layers_is_refused() -> None:
    with pytest.raises(SpecError, match="no layer that can be pruned"):
        prune_structured(nn.Sequential(nn.Linear(16, 3)), vector(16, 3), ratio=0.5)


@pytest.mark.parametrize(("ratio", "steps"), [(0.5, 1), (0.5, 2), (0.8, 4), (0.33, 7)])
def test_steps_add_up_to_the_ratio(ratio: float, steps: int) -> None:
    left = 1.0
    for share in step_ratios(ratio, steps):
        assert 0.0 < share < 1.0
        left *= 1.0 - share
    assert len(step_ratios(ratio, steps)) == steps
    assert left == pytest.approx(1.0 - ratio)


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_pruning_in_steps_ends_where_one_step_does(steps: int) -> None:
    model: nn.Module = lenet()
    for share in step_ratios(0.5, steps):
        model = prune_structured(model, IMAGE, ratio=share)
    assert all(abs(a - b) <= 1 for a, b in zip(widths(model), [3, 8, 60, 42, 10], strict=True))


def changed(dense: nn.Module, pruned: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes that are not what they were."""
    before = dict(dense.named_parameters())
    return {name: tuple(p.shape) for name, p in pruned.named_parameters() if p.shape != before[name].shape}


@pytest.mark.parametrize("signature", [TOKENS, LANGUAGE, SEQUENCE])
def test_a_transformer_loses_neurons_alone_where_only_they_may_go(signature: Signature) -> None:
    args = {"layers": 2, "width": 8, "heads": 2, "feed_forward": 12}
    dense = build(model_section({"name": "transformer", "args": args}), signature, seed=0).eval()
    dead = torch.tensor([0, 3, 4, 7, 8, 10])
    with torch.no_grad():  # neurons that do nothing can go without a trace
        for layer in ("layer1", "layer2"):
            for part in ("weight", "bias"):
                dense.get_parameter(f"{layer}.1.body.1.{part}")[dead] = 0.0
    pruned = prune_structured(dense, signature, ratio=0.5, what=["neurons"])
    assert changed(dense, pruned) == {
        f"{layer}.1.body.{part}": shape
        for layer in ("layer1", "layer2")
        for part, shape in (("1.weight", (6, 8)), ("1.bias", (6,)), ("3.weight", (8, 6)))
    }
    x = torch.randint(1, 16, (3, 7)) if signature.kind == "tokens" else torch.rand(3, 7, 4)
    torch.testing.assert_close(pruned(x), dense(x))
    if signature.per_step:
        assert pruned.get_parameter("classifier.1.weight") is pruned.get_parameter("embedding.1.weight")


def test_a_recommender_keeps_its_embeddings_where_only_neurons_may_go() -> None:
    dense = build(model_section({"name": "recommender", "args": {"embedding": 4, "hidden": [8, 6]}}), CODES, seed=0)
    assert changed(dense, prune_structured(dense, CODES, ratio=0.5, what=["neurons"])) == {
        "hidden1.0.weight": (4, 16),
        "hidden1.0.bias": (4,),
        "hidden2.0.weight": (3, 4),
        "hidden2.0.bias": (3,),
        "classifier.0.weight": (2, 3),
    }
