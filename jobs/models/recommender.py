"""Neural collaborative filtering (He et al. 2017): embeddings of users and items, then a perceptron."""

from jobs.models.blocks import Block, chain
from jobs.models.inputs import require
from jobs.models.layers import Flatten, Layer
from jobs.models.mlp import perceptron
from jobs.models.sequences import CodeEmbedding, Embedding, Interactions, padded
from jobs.records import Signature
from jobs.spec.model import RecommenderArgs

_STD = 0.01


def blocks(args: RecommenderArgs, signature: Signature) -> tuple[Block, ...]:
    """The embedding, hidden layers, the outputs. Raises SpecError for data that is no columns of codes."""
    require(signature, "recommender", "codes")
    tables = tuple(Embedding(padded(count), args.embedding, _STD, split="rows") for count in signature.num_codes)
    several = len(tables) > 1
    embedding: tuple[Layer, ...] = (CodeEmbedding(tables), Interactions() if several else Flatten())
    parts = perceptron(
        "hidden",
        (len(tables) + several) * args.embedding,
        args.hidden,
        signature.outputs,
        activation=args.activation,
        dropout=args.dropout,
    )
    return chain(signature.input_shape, [("embedding", embedding), *parts])
