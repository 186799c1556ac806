"""What a plan says of memory, against what a worker holds: 21 million parameters, AdamW, two ranks, ZeRO 0 to 3."""

from jobs.layout import ParallelLayout, share_batch
from jobs.models.registry import summarize
from jobs.records import Signature
from jobs.spec.model import TransformerArgs, TransformerModel
from jobs.train.memory import estimate, sample_bytes
from tests.multiprocess.ranks import Ranks
from tests.multiprocess.works import Weighed

STEPS, VOCABULARY, BATCH = 64, 2000, 8
MODEL = TransformerModel(
    name="transformer", args=TransformerArgs(layers=6, width=512, heads=8, dropout=0.0, tied=False)
)
SIGNATURE = Signature(kind="tokens", input_shape=(STEPS,), outputs=VOCABULARY, num_codes=(VOCABULARY,), per_step=True)
WITHIN = 0.2


def test_workers_hold_what_the_plan_says_and_less_at_each_zero_stage(ranks: Ranks) -> None:
    summary = summarize(MODEL, SIGNATURE)
    assert summary.params > 20_000_000
    resident, peaks = [], []
    for stage in range(4):
        layout = ParallelLayout(data=2, zero_stage=stage)
        planned = estimate(
            summary,
            layout,
            share_batch(BATCH, 2, None),
            precision="fp32",
            optimizer="adamw",
            sample_bytes=sample_bytes(SIGNATURE),
        )
        found = ranks.run("tests.multiprocess.works:memory_of", Weighed(MODEL, SIGNATURE, layout, BATCH), 2)
        for measured in found:
            assert abs(measured["resident"] / planned.resident - 1.0) < WITHIN, (stage, measured, planned)
            assert abs(measured["peak"] / planned.total - 1.0) < WITHIN, (stage, measured, planned)
        resident.append(max(measured["resident"] for measured in found))
        peaks.append(max(measured["peak"] for measured in found))
    # Between steps gradients are gone, and they are what stage 2 divides.
    assert resident[0] > resident[1] >= resident[2] > resident[3]
    assert peaks[0] > peaks[1] > peaks[2] > peaks[3]
