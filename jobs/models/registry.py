"""Which families there are, and how large a model of one will be. Pure: no torch in here.

A new family is a file beside this one with `blocks(args, input_shape, outputs)`, its section in
`jobs/spec/model.py`, and a line in `blocks_of`.
"""

from jobs.models import lenet, mlp, resnet
from jobs.models.layers import BatchNorm, Block, Shape, every_layer
from jobs.records import ModelSummary
from jobs.spec.model import LenetModel, MlpModel, OwnModel, ResnetModel


def blocks_of(model: OwnModel, input_shape: Shape, outputs: int) -> tuple[Block, ...]:
    """The blocks of one of our own families."""
    match model:
        case LenetModel():
            return lenet.blocks(model.args, input_shape, outputs)
        case MlpModel():
            return mlp.blocks(model.args, input_shape, outputs)
        case ResnetModel():
            return resnet.blocks(model.args, input_shape, outputs)


def summarize(model: OwnModel, input_shape: Shape, outputs: int) -> ModelSummary:
    """Parameters, multiply-accumulates and activations, block by block."""
    blocks = blocks_of(model, input_shape, outputs)
    groups = {layer.group for block in blocks for layer in every_layer(block.layers) if isinstance(layer, BatchNorm)}
    return ModelSummary(
        blocks=tuple(
            {
                "name": block.name,
                "layers": [type(layer).__name__ for layer in block.layers],
                "output_shape": list(block.output_shape),
                "params": block.params,
                "macs": block.macs,
            }
            for block in blocks
        ),
        params=sum(block.params for block in blocks),
        macs=sum(block.macs for block in blocks),
        activations=sum(block.activations for block in blocks),
        layout_invariant=True,
        norm_group=max(groups, default=None),
    )
