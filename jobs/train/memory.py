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
from dataclasses import dataclass, replace
from functools import lru_cache
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
        sums: how many such sums there are.
        borders: activations of one sample that go into its blocks.
        largest_activations: those kept of its largest block.
    """

    params: int
    largest: int
    activations: int
    in_flight: int = 1
    received: int = 0
    sent: int = 0
    tied: int = 0
    reduced: int = 0
    sums: int = 0
    borders: int = 0
    largest_activations: int = 0


@dataclass(frozen=True)
class Traffic:
    """What a worker of one stage sends in a step, in bytes, and how many messages it waits for, one after another.

    A ring of n sends n − 1 messages for each time that it hands all values around: twice in an all-reduce, once in an
    all-gather or a reduce-scatter (Thakur, Rabenseifner & Gropp 2005, section 4).

    Attributes:
        data: with data-parallel peers.
        tensor: with tensor peers.
        pipeline: to the stages beside, and to the one that has the same tied weights.
    """

    data: int = 0
    tensor: int = 0
    pipeline: int = 0
    data_messages: int = 0
    tensor_messages: int = 0
    pipeline_messages: int = 0

    @property
    def total(self) -> int:
        """Bytes."""
        return self.data + self.tensor + self.pipeline


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
    return max(traffic.total for traffic in stage_traffic(model, layout, share, precision=precision))


def stage_traffic(
    model: ModelSummary, layout: ParallelLayout, share: BatchShare, *, precision: str
) -> tuple[Traffic, ...]:
    """What a worker of each stage sends in a step: the volumes of `communication_bytes`, apart."""
    width = _width(precision)
    samples = share.micro * share.accumulation
    volumes = (2, 3, 2 * share.accumulation + 1, 3 * share.accumulation)[layout.zero_stage]
    at_once = BUCKET_VALUES if layout.zero_stage else _WHOLE_REDUCTION_VALUES

    def of(part: _Share) -> Traffic:
        neighbours = (part.received > 0) + (part.sent > 0)
        return Traffic(
            data=width * (volumes * part.params * (layout.data - 1) // layout.data),
            tensor=width * (2 * part.reduced * samples * 2 * (layout.tensor - 1) // layout.tensor),
            pipeline=width * ((part.received + part.sent) * samples + part.tied),
            data_messages=volumes * (layout.data - 1) * -(-part.params // at_once),
            tensor_messages=2 * part.sums * share.accumulation * 2 * (layout.tensor - 1),
            pipeline_messages=neighbours * share.accumulation + (part.tied > 0),
        )

    return tuple(map(of, _shares(model, layout, share)))


def worker_params(model: ModelSummary, layout: ParallelLayout) -> int:
    """Parameters of the worker that has the most, before ZeRO divides them."""
    return max(part.params for part in _parts(model, layout.tensor, layout.pipeline))


def update_bytes(optimizer: str) -> int:
    """Bytes that an update moves a parameter: weight and states in fp32, read and written, and the gradient."""
    return _FP32 * (2 * (1 + _STATES[optimizer]) + 1)


def recomputed_activations(model: ModelSummary, layout: ParallelLayout, share: BatchShare, *, precision: str) -> int:
    """Bytes of activations if only what goes into each block were kept, and the rest computed again.

    A block's own come back one block at a time (Chen et al. 2016; Korthikanti et al. 2022, section 5). Not what the
    engine does: it keeps them all.
    """
    width = _width(precision) * share.micro
    parts = _shares(model, layout, share)
    return max(width * (part.borders * part.in_flight + part.largest_activations) for part in parts)


def _estimate(
    part: _Share, layout: ParallelLayout, share: BatchShare, *, precision: str, optimizer: str, sample_bytes: int
) -> MemoryEstimate:
    width, stage = _width(precision), layout.zero_stage
    partition = -(-part.params // layout.data)
    offload = layout.offload != "none"
    whole_bytes, partition_bytes = part.params * width, partition * width
    # Mixed precision updates a copy in fp32. So does ZeRO, but at stage 3 in fp32 the flat parameters themselves.
    copies = precision != "fp32" or (stage > 0 and not (stage == 3 and not offload))
    master = _FP32 if copies else 0
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
    for stage, part in enumerate(_parts(model, layout.tensor, layout.pipeline)):
        yield replace(part, in_flight=min(share.accumulation, layout.pipeline - stage))


@lru_cache(maxsize=256)
def _parts(model: ModelSummary, tensor: int, pipeline: int) -> tuple[_Share, ...]:
    """What each stage has, whatever the batch: a search over layouts asks again and again."""
    if pipeline == 1:
        blocks = model.blocks
        params = model.params - _saved(sum(block.split_params for block in blocks), tensor)
        activations = model.activations - _saved(sum(block.split_activations for block in blocks), tensor)
        return (
            _Share(
                params,
                max((_params(block, tensor) for block in blocks), default=params),
                activations,
                reduced=sum(block.tensor_values for block in blocks),
                sums=sum(block.tensor_sums for block in blocks),
                borders=sum(prod(block.output_shape) for block in blocks[:-1]),
                largest_activations=max((_activations(block, tensor) for block in blocks), default=activations),
            ),
        )
    return tuple(_stage_parts(model, tensor, pipeline))


def _stage_parts(model: ModelSummary, tensor: int, pipeline: int) -> Iterator[_Share]:
    tied = model.tied_params
    if model.blocks[0].split_params >= tied:
        tied -= _saved(tied, tensor)
    for stage, indices in enumerate(stages_of(model, pipeline)):
        blocks = [model.blocks[index] for index in indices]
        first, last = stage == 0, stage == pipeline - 1
        sizes = [_params(block, tensor) for block in blocks]
        received = 0 if first else prod(model.blocks[indices[0] - 1].output_shape)
        yield _Share(
            params=sum(sizes) + (tied if last else 0),
            largest=max(sizes) + (tied if last else 0),
            activations=sum(_activations(block, tensor) for block in blocks),
            received=received,
            sent=0 if last else prod(blocks[-1].output_shape),
            tied=tied if first or last else 0,
            reduced=sum(block.tensor_values for block in blocks),
            sums=sum(block.tensor_sums for block in blocks),
            borders=received + sum(prod(block.output_shape) for block in blocks[:-1]),
            largest_activations=max(_activations(block, tensor) for block in blocks),
        )


def _params(block: BlockSummary, tensor: int) -> int:
    return block.params - _saved(block.split_params, tensor)


def _activations(block: BlockSummary, tensor: int) -> int:
    return block.activations - _saved(block.split_activations, tensor)


def _saved(split: int, tensor: int) -> int:
    """Of values that tensor peers divide, those that a worker does not have."""
    return split - -(-split // tensor)


def _width(precision: str) -> int:
    return _FP32 if precision == "fp32" else 2
