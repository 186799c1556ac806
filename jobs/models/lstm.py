"""Long short-term memory (Hochreiter & Schmidhuber 1997) over tokens or float sequences of any length."""

from jobs.errors import SpecError
from jobs.models.blocks import Block, chain
from jobs.models.inputs import require
from jobs.models.layers import Dropout, Layer, Linear
from jobs.models.mlp import Parts
from jobs.models.sequences import Embedding, LastStep, Lstm, MeanSteps, SequenceInput, TokenInput, padded
from jobs.records import Signature
from jobs.spec.model import LstmArgs

_EMBEDDING_STD = 0.1


def blocks(args: LstmArgs, signature: Signature) -> tuple[Block, ...]:
    """An embedding of tokens, a block for each recurrent layer, the classifier. Raises SpecError for other data.

    What follows a sample's last step comes too late to change the states that are looked at, so nothing is masked.
    """
    require(signature, "lstm", "tokens", "sequence", per_step=True)
    dropout: tuple[Layer, ...] = (Dropout(args.dropout),) if args.dropout else ()
    parts: Parts = []
    first: tuple[Layer, ...] = ()
    if signature.kind == "tokens":
        width = args.embedding or args.hidden
        parts.append(
            ("embedding", (TokenInput(), Embedding(padded(signature.num_codes[0]), width, _EMBEDDING_STD), *dropout))
        )
    elif args.embedding is not None:
        raise SpecError.at("model.args.embedding", "the data has no tokens to embed", args.embedding)
    else:
        width, first = signature.input_shape[1] - 1, (SequenceInput(),)
    for number in range(1, args.layers + 1):
        parts.append((f"lstm{number}", (*first, Lstm(width, args.hidden), *dropout)))
        width, first = args.hidden, ()
    pool: tuple[Layer, ...] = (LastStep() if args.pool == "last" else MeanSteps(),)
    parts.append(("classifier", (*(() if signature.per_step else pool), Linear(width, signature.outputs))))
    return chain(signature.input_shape, parts)
