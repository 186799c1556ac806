"""How much memory a worker needs, and how much it sends, as integers: what a layout is chosen by.

    ZeRO       divides over the data-parallel workers: from stage 1 on the optimizer states (and ZeRO's fp32 copy of the
               weights), from stage 2 the gradients, at stage 3 the parameters (Rajbhandari, Rasley, Ruwase & He 2020,
               section 3)
    tensor     divides the layers that say so; the others are whole on every peer (Shoeybi et al. 2019, Megatron-LM)
    pipeline   a worker has the blocks of its stage, and the activations of up to as many micro-batches as there are
               stages from its own to the last (1F1B: Narayanan et al. 2019, PipeDream; 2021, section 2.2)

To that come the copies that DeepSpeed makes, as read in its version 0.19 and measured (docs/layouts.md). What torch's
allocator and the libraries hold is not in here; neither are parameters that ZeRO 3 leaves whole because they are small.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from jobs.layout import BatchShare, ParallelLayout, stages_of
from jobs.records import BlockSummary, MemoryEstimate, ModelSummary, Signature
from jobs.train.config import BUCKET_VALUES

_STATES = {"sgd": 1, "adam": 2, "adamw": 2}
"""fp32 tensors of a parameter's size that the optimizer keeps."""
_FP32 = 4
_WHOLE_REDUCTION_VALUES = 500_000_000
"""Gradients that DeepSpeed copies into one tensor to sum them, without ZeRO."""
_BUCKETS_OF_STAGE_3 = 5
"""Gathered parameters and the tensor they came in; gradients that wait, the tensor they leave in, and the next ones."""


@dataclass(frozen=True)
class _Share:
    """What a worker of one stage has, after pipeline and tensor parallelism, before ZeRO. In values.

    Attributes:
        params: tied ones included, wherever the stage uses them.
        largest: parameters of its largest block.
        activations: of one sample.
        in_flight: micro-batches that are on their way at once.
        received, sent: activations of one sample that cross its borders; 0 at the ends of the model.
        tied: parameters that it has in common with another stage.
        reduced: activations of one sample that tensor peers sum or gather in the forward pass.
    """

    params: int
    largest: int
    activations: int
    in_flight: int = 1
    received: int = 0
    sent: int = 0
    tied: int = 0
    reduced: int = 0


def estimate(
    model: ModelSummary,
    layout: ParallelLayout,
    share: BatchShare,
    *,
    precision: str,
    optimizer: str,
    sample_bytes: int,
) -> MemoryEstimate:
    """Of the worker that needs the most; `sample_bytes` as in the function of that name."""
    return max(
        (
            _estimate(part, layout, share, precision=precision, optimizer=optimizer, sample_bytes=sample_bytes)
            for part in _shares(model, layout, share)
        ),
        key=lambda found: found.total,
    )


def sample_bytes(signature: Signature) -> int:
    """Size of one encoded sample and its targets."""
    width = 8 if signature.input_dtype == "int64" else 4
    return width * prod(signature.input_shape) + 8 * (signature.input_shape[0] if signature.per_step else 1)


def communication_bytes(model: ModelSummary, layout: ParallelLayout, share: BatchShare, *, precision: str) -> int:
    """Bytes that the worker with the most to send sends in a step, with ring collectives.

    For Ψ parameters of a worker, N data ranks and m micro-batches, (N−1)/N of:
        ZeRO 0        2Ψ         an all-reduce of the gradients
        ZeRO 1        3Ψ         the same, and an all-gather of the updated parameters
        ZeRO 2        (2m + 1)Ψ  the gradients after each micro-batch
        ZeRO 3        3mΨ        parameters gathered for the forward and for the backward pass, gradients scattered
    The paper's ZeRO 1 and 2 scatter the gradients, for 2Ψ (Rajbhandari et al. 2020, section 7); DeepSpeed sums whole
    buckets there, so that they need not lie in the order of the ranks.

    Tensor peers sum activations, in both directions (Shoeybi et al. 2019, section 3); stages hand them on, and their
    gradients back.
    """
    width = _width(precision)
    samples = share.micro * share.accumulation
    volumes = (2, 3, 2 * share.accumulation + 1, 3 * share.accumulation)[layout.zero_stage]

    def sent(part: _Share) -> int:
        data = volumes * part.params * (layout.data - 1) // layout.data
        tensor = 2 * part.reduced * samples * 2 * (layout.tensor - 1) // layout.tensor
        pipeline = (part.received + part.sent) * samples + part.tied
        return width * (data + tensor + pipeline)

    return max(map(sent, _shares(model, layout, share)))


def _estimate(
    part: _Share, layout: ParallelLayout, share: BatchShare, *, precision: str, optimizer: str, sample_bytes: int
) -> MemoryEstimate:
    width, stage = _width(precision), layout.zero_stage
    partition = -(-part.params // layout.data)
    offload = layout.offload != "none"
    whole_bytes, partition_bytes = part.params * width, partition * width
    # ZeRO updates a flat copy of its own, in fp32; but at stage 3 in fp32 the flat parameters themselves.
    master = _FP32 if stage and not (stage == 3 and precision == "fp32" and not offload) else 0
    states = (_FP32 * _STATES[optimizer] + master) * (partition if stage else part.params)
    parameters = partition_bytes if stage == 3 else whole_bytes
    gradients = partition_bytes if stage >= 2 else whole_bytes
    buffers = _gradients_with_copies(part, layout, share, width) - gradients
    kept = partition_bytes if stage == 3 else 0
    offloaded = 0
    if offload:
        # The update happens beside the device: it takes fp32 gradients there, and below stage 3 returns a copy.
        beside = _FP32 * partition + (0 if stage == 3 else partition_bytes)
        gradients += _FP32 * partition
        buffers += beside - _FP32 * partition
        kept += beside
        offloaded = states + beside + (parameters + partition_bytes if stage == 3 else 0)
    border = (part.received + part.sent) * share.micro * width
    return MemoryEstimate(
        parameters=parameters,
        gradients=gradients,
        optimizer_states=states,
        activations=(part.activations + part.received) * share.micro * width * part.in_flight,
        batch=sample_bytes * share.micro * part.in_flight,
        buffers=buffers + border,
        offloaded=offloaded,
        resident=parameters + states + kept,
    )


def _gradients_with_copies(part: _Share, layout: ParallelLayout, share: BatchShare, width: int) -> int:
    """Bytes of the gradients and of the copies that DeepSpeed makes of them and of parameters: their peak together."""
    whole, partition = part.params * width, -(-part.params // layout.data) * width
    # The optimizer takes its gradients as one tensor, and in fp32.
    step = 2 * partition + (0 if width == _FP32 else partition * _FP32 // width)
    bucket = BUCKET_VALUES * width
    accumulates = share.accumulation > 1
    match layout.zero_stage:
        case 0:
            return whole + min(part.params, _WHOLE_REDUCTION_VALUES) * width
        case 1:
            return max(whole + max(bucket, partition), step)
        case 2:
            # With micro-batches before: their sum, the gradients of this one, and a copy of them.
            return max(partition * (3 if accumulates else 1) + bucket, step + (partition if accumulates else 0))
    unit = min(part.params, max(BUCKET_VALUES, part.largest)) * width
    return max(partition + _BUCKETS_OF_STAGE_3 * unit, step)


def _shares(model: ModelSummary, layout: ParallelLayout, share: BatchShare) -> Iterator[_Share]:
    """What the workers of each stage have."""
    if layout.pipeline == 1:
        params = model.params - _saved(sum(block.split_params for block in model.blocks), layout)
        activations = model.activations - _saved(sum(block.split_activations for block in model.blocks), layout)
        largest = max((_params(block, layout) for block in model.blocks), default=params)
        reduced = sum(block.tensor_values for block in model.blocks)
        yield _Share(params, largest, activations, reduced=reduced)
        return
    bounds = stages_of(model, layout.pipeline)
    tied = model.tied_params
    if model.blocks[0].split_params >= tied:
        tied -= _saved(tied, layout)
    for stage, indices in enumerate(bounds):
        blocks = [model.blocks[index] for index in indices]
        first, last = stage == 0, stage == layout.pipeline - 1
        sizes = [_params(block, layout) for block in blocks]
        yield _Share(
            params=sum(sizes) + (tied if last else 0),
            largest=max(sizes) + (tied if last else 0),
            activations=sum(block.activations - _saved(block.split_activations, layout) for block in blocks),
            in_flight=min(share.accumulation, layout.pipeline - stage),
            received=0 if first else prod(model.blocks[indices[0] - 1].output_shape),
            sent=0 if last else prod(blocks[-1].output_shape),
            tied=tied if first or last else 0,
            reduced=sum(block.tensor_values for block in blocks),
        )


def _params(block: BlockSummary, layout: ParallelLayout) -> int:
    return block.params - _saved(block.split_params, layout)


def _saved(split: int, layout: ParallelLayout) -> int:
    """Of values that tensor peers divide, those that a worker does not have."""
    return split - -(-split // layout.tensor)


def _width(precision: str) -> int:
    return _FP32 if precision == "fp32" else 2
