"""Which families there are, and how large a model of one will be. Pure: no torch in here.

A new family is a file beside this one with `blocks(args, signature)`, its section in
`jobs/spec/model.py`, and a line in `blocks_of`.
"""

from math import gcd, prod

from jobs.models import lenet, lstm, mlp, recommender, resnet, transformer
from jobs.models.blocks import Block, every_layer
from jobs.models.layers import BatchNorm, Linear
from jobs.records import BlockSummary, ModelSummary, Signature
from jobs.spec.model import (
    ForeignModel,
    HuggingFaceModel,
    LenetModel,
    LstmModel,
    MlpModel,
    OwnModel,
    RecommenderModel,
    ResnetModel,
    TransformerModel,
)


def blocks_of(model: OwnModel, signature: Signature) -> tuple[Block, ...]:
    """The blocks of one of our own families. Raises SpecError for data that the family does not take."""
    match model:
        case LenetModel():
            return lenet.blocks(model.args, signature)
        case MlpModel():
            return mlp.blocks(model.args, signature)
        case ResnetModel():
            return resnet.blocks(model.args, signature)
        case LstmModel():
            return lstm.blocks(model.args, signature)
        case TransformerModel():
            return transformer.blocks(model.args, signature)
        case RecommenderModel():
            return recommender.blocks(model.args, signature)


def summarize(model: OwnModel, signature: Signature) -> ModelSummary:
    """Sizes block by block, and what parallelism may divide. Raises SpecError as `blocks_of`."""
    blocks = blocks_of(model, signature)
    summaries = [_summarize(block) for block in blocks]
    # The loop holds the outputs, and the loss something of the same size (log-probabilities, differences).
    outputs = 2 * prod(blocks[-1].output_shape)
    summaries[-1] = summaries[-1].model_copy(update={"activations": summaries[-1].activations + outputs})
    groups = {layer.group for block in blocks for layer in every_layer(block.layers) if isinstance(layer, BatchNorm)}
    widths = [width for block in blocks for width in block.body.tensor_widths]
    tied = [layer for layer in every_layer(blocks[-1].layers) if isinstance(layer, Linear) and layer.tied]
    return ModelSummary(
        blocks=tuple(summaries),
        params=sum(block.params for block in summaries),
        macs=sum(block.macs for block in summaries),
        activations=sum(block.activations for block in summaries),
        layout_invariant=True,
        norm_group=max(groups, default=None),
        tensor_width=gcd(*widths) if widths else 1,
        no_tensor=_no_tensor(model, widths),
        no_pipeline="" if len(blocks) > 1 else "the model has a single block",
        tied_params=sum(layer.inputs * layer.outputs for layer in tied),
    )


def _summarize(block: Block) -> BlockSummary:
    _, tally = block.trace()
    shape = block.source.shape
    return BlockSummary(
        name=block.name,
        layers=tuple(type(layer).__name__ for layer in block.layers),
        output_shape=block.output_shape,
        params=block.params,
        split_params=block.body.split_params,
        macs=block.macs,
        split_macs=block.body.split_macs(shape),
        activations=tally.total,
        split_activations=tally.split,
        tensor_values=block.body.tensor_values(shape),
        tensor_sums=block.body.tensor_sums(shape),
    )


def _no_tensor(model: OwnModel, widths: list[int]) -> str:
    if isinstance(model, LstmModel):
        return "each step of a recurrence needs the whole state of the one before"
    if not widths:
        return "the model has no hidden layer that can be divided"
    if gcd(*widths) == 1:
        return f"the widths that would be divided have no common divisor: {', '.join(map(str, sorted(set(widths))))}"
    return ""


def packable(model: OwnModel | ForeignModel, signature: Signature) -> str:
    """Why a model can't be packed; empty if it can. Of a factory's model only packing itself can tell."""
    match model:
        case LstmModel():
            return "a pack shares the weights of convolutions and linear layers, and a recurrent layer's are neither"
        case HuggingFaceModel():
            return "what ties its layers together is its library's own affair"
        case TransformerModel() if model.args.tied and signature.per_step:
            return (
                "its classifier is the embedding itself, and would come apart; untied (model.args.tied: false) it can"
            )
    return ""


def prunable(model: OwnModel | ForeignModel, method: str) -> str:
    """Why a method can't prune a model; empty if it can. Of a factory's model only pruning itself can tell."""
    if isinstance(model, HuggingFaceModel) and method == "structured":
        return "widths within a model of Hugging Face's are bound by its configuration; magnitude and nm do prune it"
    return ""
