"""Transformers (Vaswani et al. 2017) over tokens or float sequences of any length: encoders and language models.

As in GPT-2 (Radford et al. 2019): normalization before each branch, which trains without warm-up of the rate (Xiong et
al. 2020); learnt positions; weights from N(0, 0.02), those that end a branch narrower by the root of their number.
"""

from jobs.errors import SpecError
from jobs.models.blocks import Block, Residual, chain
from jobs.models.inputs import require
from jobs.models.layers import Activation, Dropout, Layer, Linear
from jobs.models.mlp import Parts
from jobs.models.sequences import (
    Attention,
    Embedding,
    LayerNorm,
    MeanSteps,
    Positions,
    SequenceInput,
    TokenInput,
    padded,
)
from jobs.records import Signature
from jobs.spec.model import TransformerArgs

_STD = 0.02


def blocks(args: TransformerArgs, signature: Signature) -> tuple[Block, ...]:
    """The embedding, a block for each layer, the classifier. Raises SpecError for data that it does not take."""
    require(signature, "transformer", "tokens", "sequence", per_step=True)
    steps = signature.input_shape[0]
    if args.max_length is not None and args.max_length < steps:
        raise SpecError.at(
            "model.args.max_length", f"the data has samples of {steps} steps", args.max_length, f"at least {steps}"
        )
    parts: Parts = [("embedding", _embedding(args, signature))]
    parts += [(f"layer{number}", _layer(args, causal=signature.per_step)) for number in range(1, args.layers + 1)]
    parts.append(("classifier", _classifier(args, signature)))
    return chain(signature.input_shape, parts)


def _is_tied(args: TransformerArgs, signature: Signature) -> bool:
    """Whether the classifier is the embedding itself."""
    return args.tied and signature.per_step and signature.kind == "tokens"


def _embedding(args: TransformerArgs, signature: Signature) -> tuple[Layer, ...]:
    if signature.kind == "tokens":
        rows = signature.outputs if _is_tied(args, signature) else padded(signature.num_codes[0])
        first: tuple[Layer, ...] = (TokenInput(), Embedding(rows, args.width, _STD, split="rows"))
    else:
        first = (SequenceInput(), Linear(signature.input_shape[1] - 1, args.width, std=_STD))
    return (*first, Positions(args.max_length or signature.input_shape[0], args.width, _STD), *_dropout(args))


def _layer(args: TransformerArgs, *, causal: bool) -> tuple[Layer, ...]:
    hidden = args.feed_forward or 4 * args.width
    branch_end_std = _STD / (2 * args.layers) ** 0.5
    attention = Attention(args.width, args.heads, causal, std=_STD, output_std=branch_end_std)
    return (
        Residual((LayerNorm(args.width), attention, *_dropout(args))),
        Residual(
            (
                LayerNorm(args.width),
                Linear(args.width, hidden, split="column", std=_STD),
                Activation(args.activation),
                Linear(hidden, args.width, split="row", std=branch_end_std),
                *_dropout(args),
            )
        ),
    )


def _classifier(args: TransformerArgs, signature: Signature) -> tuple[Layer, ...]:
    norm = LayerNorm(args.width)
    if not signature.per_step:
        return norm, MeanSteps(), Linear(args.width, signature.outputs, std=_STD)
    tied = _is_tied(args, signature)
    return norm, Linear(args.width, signature.outputs, bias=False, split="gather", std=_STD, tied=tied)


def _dropout(args: TransformerArgs) -> tuple[Layer, ...]:
    return (Dropout(args.dropout),) if args.dropout else ()
