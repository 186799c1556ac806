"""Costs of a step against their papers' formulas, by hand: rings, nodes, bubbles, offload, activations."""

import pytest

from jobs.layout import BatchShare, ParallelLayout, share_batch
from jobs.models.registry import summarize
from jobs.records import BlockSummary, ModelSummary, Signature
from jobs.spec.model import TransformerArgs, TransformerModel
from jobs.train.memory import estimate, recomputed_activations, stage_traffic
from orchestrator.planning.costs import Machine, step_cost
from orchestrator.planning.network import Network, Spread, spread

NETWORK = Network(workers_per_node=4, within=100.0, between=10.0)


def block(name: str, **sizes: int) -> BlockSummary:
    return BlockSummary(name=name, output_shape=(8,), params=1000, macs=600, **sizes)


# Four equal blocks; tensor parallelism divides all of each, and sums 8 values a sample twice.
SIZES = {"split_params": 1000, "split_macs": 600, "tensor_values": 16, "tensor_sums": 2}
MODEL = ModelSummary(
    blocks=tuple(block(f"b{number}", **SIZES) for number in range(4)),
    params=4000,
    macs=2400,
    activations=0,
    layout_invariant=True,
    tensor_width=4,
)
MACHINE = Machine(NETWORK, peak=1000.0, reached=500.0, link=50.0, host_memory=200.0)


class TestNodes:
    """Ranks are pipeline-major, then data, then tensor, and fill one node after another."""

    @pytest.mark.parametrize(
        ("layout", "data", "tensor"),
        [
            (ParallelLayout(data=4), Spread(1, 4), Spread(1, 1)),
            (ParallelLayout(data=8), Spread(2, 4), Spread(1, 1)),
            (ParallelLayout(data=2, tensor=4), Spread(2, 1), Spread(1, 4)),
            (ParallelLayout(data=4, tensor=2), Spread(2, 2), Spread(1, 2)),
            (ParallelLayout(data=1, tensor=8), Spread(1, 1), Spread(2, 4)),
            (ParallelLayout(data=2, tensor=2, pipeline=2), Spread(1, 2), Spread(1, 2)),
            # Ranks 3, 4 and 5 are peers: one on the first node, two on the second.
            (ParallelLayout(data=2, tensor=3), Spread(2, 1), Spread(2, 1)),
        ],
    )
    def test_where_peers_lie(self, layout: ParallelLayout, data: Spread, tensor: Spread) -> None:
        assert (spread(layout, "data", 4), spread(layout, "tensor", 4)) == (data, tensor)

    def test_it_is_what_the_ranks_say(self) -> None:
        """Against every group of every rank, for layouts that do not suit the nodes as well."""
        for layout in (ParallelLayout(d, t, p) for d in (1, 2, 3, 6) for t in (1, 2, 3, 5) for p in (1, 2, 3)):
            for per_node in (1, 2, 3, 4, 8):
                groups: dict[tuple[int, int], dict[int, int]] = {}
                for rank in range(layout.size):
                    place = layout.coordinate(rank)
                    nodes = groups.setdefault((place.pipeline, place.tensor), {})
                    nodes[rank // per_node] = nodes.get(rank // per_node, 0) + 1
                most = max(len(nodes) for nodes in groups.values())
                assert spread(layout, "data", per_node).nodes == most, (layout, per_node)

    def test_within_a_node_all_bytes_take_its_links(self) -> None:
        sent = NETWORK.ring(ParallelLayout(data=4), "data", 300, 0)
        assert (sent.within, sent.between, sent.seconds) == (300, 0, 3.0)

    def test_of_k_peers_on_a_node_one_byte_in_k_leaves_it(self) -> None:
        # Two peers a node: 150 of the 300 bytes leave, at 10 a second, while 150 stay, at 100.
        sent = NETWORK.ring(ParallelLayout(data=4, tensor=2), "data", 300, 0)
        assert (sent.within, sent.between, sent.seconds) == (150, 150, 15.0)
        assert NETWORK.ring(ParallelLayout(data=8), "data", 300, 0).seconds == 7.5
        assert NETWORK.ring(ParallelLayout(data=2, tensor=4), "data", 300, 0).seconds == 30.0

    def test_latency_counts_for_each_message(self) -> None:
        network = Network(4, within=100.0, between=10.0, within_s=0.5, between_s=2.0)
        assert network.ring(ParallelLayout(data=4), "data", 300, 6).seconds == 3.0 + 6 * 0.5
        assert network.ring(ParallelLayout(data=8), "data", 300, 6).seconds == 7.5 + 6 * 2.0
        assert network.hand_on(ParallelLayout(pipeline=2), 100, 3).seconds == 1.0 + 3 * 0.5
        assert network.hand_on(ParallelLayout(data=4, pipeline=2), 100, 3).seconds == 10.0 + 3 * 2.0


class TestVolumes:
    """A ring's all-reduce sends 2 (n − 1)/n of all values, in 2 (n − 1) messages."""

    def test_an_all_reduce_of_gradients(self) -> None:
        (found,) = stage_traffic(MODEL, ParallelLayout(data=4), share_batch(8, 4, None), precision="fp32")
        assert found.data == 4 * 4000 * 2 * 3 // 4
        assert found.data_messages == 2 * 3

    def test_buckets_are_messages_of_their_own(self) -> None:
        model = MODEL.model_copy(update={"params": 12_000_000})
        (found,) = stage_traffic(model, ParallelLayout(data=4, zero_stage=1), share_batch(8, 4, None), precision="bf16")
        assert found.data == 2 * 12_000_000 * 3 * 3 // 4
        assert found.data_messages == 3 * 3 * 3  # all-reduce and all-gather, three buckets of five million values

    def test_tensor_peers_sum_in_both_directions(self) -> None:
        (found,) = stage_traffic(MODEL, ParallelLayout(tensor=4), BatchShare(6, 2, 3, 1), precision="fp32")
        assert found.tensor == 4 * (2 * 64 * 6) * 2 * 3 // 4
        assert found.tensor_messages == (2 * 8 * 3) * 2 * 3  # 8 sums, forward and backward, of 3 micro-batches

    def test_a_transformers_layer_sums_twice(self) -> None:
        """Shoeybi et al. 2019, section 3: one all-reduce for attention and one for the feed-forward."""
        model = transformer(TransformerArgs(layers=3, width=64, heads=4))
        layers = [each for each in model.blocks if each.name.startswith("layer")]
        assert [each.tensor_sums for each in layers] == [2, 2, 2]
        assert [each.tensor_values for each in layers] == [2 * 32 * 64] * 3


class TestStep:
    def test_computing_alone(self) -> None:
        # 2400 multiply-accumulates × 2 operations × 3 passes × 8 samples, at 500 a second.
        cost = step_cost(MODEL, ParallelLayout(), share_batch(8, 1, None), MACHINE, precision="fp32")
        assert cost.compute_s == cost.step_s == pytest.approx(2400 * 6 * 8 / 500)
        assert cost.utilization == pytest.approx(0.5)  # of the profile's figure, of which half is reached

    @pytest.mark.parametrize(("stages", "parts"), [(2, 2), (2, 8), (4, 4), (4, 16)])
    def test_the_bubble_is_narayanans(self, stages: int, parts: int) -> None:
        """(p − 1)/m of the time without it, so (p − 1)/(m + p − 1) of the step; 2021, section 2.2."""
        layout, share = ParallelLayout(pipeline=stages), BatchShare(parts, 1, parts, 1)
        cost = step_cost(MODEL, layout, share, MACHINE, precision="fp32")
        assert cost.compute_s == pytest.approx(2400 / stages * 6 * parts / 500)
        busy = cost.compute_s + cost.pipeline_s
        assert cost.bubble_s == pytest.approx(busy * (stages - 1) / parts)
        assert cost.bubble_s / cost.step_s == pytest.approx((stages - 1) / (parts + stages - 1))

    def test_stages_hand_on_between_nodes(self) -> None:
        # A stage in the middle sends 8 values forward and the gradients of 8 back, for each of 8 samples.
        within = step_cost(MODEL, ParallelLayout(pipeline=4), BatchShare(8, 1, 8, 1), MACHINE, precision="fp32")
        assert (within.within_bytes, within.between_bytes) == (4 * 16 * 8, 0)
        assert within.pipeline_s == pytest.approx(4 * 16 * 8 / 100)
        between = step_cost(
            MODEL, ParallelLayout(tensor=4, pipeline=4), BatchShare(8, 1, 8, 1), MACHINE, precision="fp32"
        )
        assert between.between_bytes == 4 * 16 * 8
        assert between.pipeline_s == pytest.approx(4 * 16 * 8 / 10)

    def test_tensor_peers_compute_alike_what_is_not_divided(self) -> None:
        whole = MODEL.blocks[0].model_copy(update={"split_macs": 0})
        model = MODEL.model_copy(update={"blocks": (whole, *MODEL.blocks[1:])})
        cost = step_cost(model, ParallelLayout(tensor=4), share_batch(8, 1, None), MACHINE, precision="fp32")
        assert cost.compute_s == pytest.approx((600 + 1800 / 4) * 6 * 8 / 500)

    def test_offload_sends_gradients_and_weights_and_updates_on_the_host(self) -> None:
        # 1000 parameters a worker: fp32 gradients there and 2 bytes of weights back at 50 a second; then 28 bytes each
        # for the four workers of a node, at 200 a second for all of them.
        layout = ParallelLayout(data=4, zero_stage=1, offload="cpu")
        cost = step_cost(MODEL, layout, share_batch(8, 4, None), MACHINE, precision="bf16")
        assert cost.offload_s == pytest.approx(1000 * (4 + 2) / 50 + 1000 * 28 * 4 / 200)
        # At ZeRO 3 with two micro-batches: gradients of each, weights for both passes of each.
        layout = ParallelLayout(data=4, zero_stage=3, offload="cpu")
        cost = step_cost(MODEL, layout, BatchShare(8, 1, 2, 4), MACHINE, precision="bf16", optimizer="sgd")
        assert cost.offload_s == pytest.approx(1000 * (4 * 2 + 2 * 2 * 2) / 50 + 1000 * 20 * 4 / 200)


def transformer(args: TransformerArgs) -> ModelSummary:
    tokens = Signature(kind="tokens", input_shape=(32,), outputs=64, num_codes=(64,), per_step=True)
    return summarize(TransformerModel(name="transformer", args=args), tokens)


class TestActivations:
    """Korthikanti et al. 2022, equation 2: sbh(10 + 24/t + 5as/(ht)) bytes of a layer, in 16 bit.

    2 of the 10 are masks of dropout of a byte; 5as/h are scores and their softmax, which fused kernels do not keep.
    """

    S, H, A, B = 32, 64, 4, 3

    @pytest.mark.parametrize("tensor", [1, 2, 4])
    @pytest.mark.parametrize(("dropout", "masks"), [(0.0, 0), (0.1, 4)])
    def test_a_layer_keeps_what_the_equation_says(self, tensor: int, dropout: float, masks: int) -> None:
        def kept(layers: int) -> int:
            model = transformer(TransformerArgs(layers=layers, width=self.H, heads=self.A, dropout=dropout))
            share = share_batch(self.B, 1, None)
            options = {"precision": "bf16", "optimizer": "adamw", "sample_bytes": 0}
            return estimate(model, ParallelLayout(tensor=tensor), share, **options).activations  # type: ignore[arg-type]

        one = kept(3) - kept(2)
        sbh = self.S * self.B * self.H
        # Beside the equation: mean and deviation of two normalizations, a logarithm for each head's softmax.
        small = 2 * self.S * self.B * (2 * 2 + self.A // tensor)
        assert one == sbh * (8 + masks) + sbh * 24 // tensor + small

    def test_recomputed_a_layer_keeps_what_goes_into_it(self) -> None:
        """2sbh bytes a layer (section 5)."""

        def kept(layers: int) -> int:
            model = transformer(TransformerArgs(layers=layers, width=self.H, heads=self.A, dropout=0.0))
            return recomputed_activations(model, ParallelLayout(), share_batch(self.B, 1, None), precision="bf16")

        assert kept(3) - kept(2) == 2 * self.S * self.B * self.H

    def test_a_pipeline_keeps_them_for_each_micro_batch_in_flight(self) -> None:
        model = transformer(TransformerArgs(layers=6, width=self.H, heads=self.A, dropout=0.0))
        layout = ParallelLayout(pipeline=2)

        def kept(parts: int) -> int:
            return recomputed_activations(model, layout, BatchShare(parts, 1, parts, 1), precision="bf16")

        assert kept(2) == kept(8) > kept(1)
