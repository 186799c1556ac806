"""`model:` a family of Thresher's own with its arguments, or the user's factory."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from jobs.section import Section, illegal

Width = Annotated[int, Field(ge=1, le=65_536)]
Activation = Literal["relu", "tanh", "gelu", "silu"]
Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]
NormGroup = Annotated[int, Field(ge=2, le=4096)]


class LenetArgs(Section):
    """LeNet-5 (LeCun et al. 1998), for any image size and any number of channels.

    Each entry of `conv_widths` is a convolution, then pooling by 2 while the image is large enough.
    """

    conv_widths: tuple[Width, ...] = Field(default=(6, 16), min_length=1, max_length=6)
    linear_widths: tuple[Width, ...] = Field(default=(120, 84), max_length=6)
    kernel: Literal[3, 5] = 5
    activation: Activation = "relu"
    dropout: Dropout = 0.0
    """Before each hidden linear layer's successor."""
    batch_norm: bool = False
    norm_group: NormGroup = 32
    """Samples over which batch normalization takes its statistics; a worker's micro-batch is a multiple of it."""


class MlpArgs(Section):
    """A multi-layer perceptron; images and other shapes are flattened."""

    hidden: tuple[Width, ...] = Field(default=(128, 64), max_length=64)
    activation: Activation = "relu"
    dropout: Dropout = 0.0
    batch_norm: bool = False
    norm_group: NormGroup = 32
    """As in lenet."""


class ResnetArgs(Section):
    """A residual network (He et al. 2016): 8, 20 or 56 layers for small images, or ResNet-18."""

    depth: Literal[8, 18, 20, 56] = 20
    width: Annotated[int, Field(ge=8, le=1024, multiple_of=8)] | None = None
    """Channels of the first stage; each further one doubles them. Default: 16, and 64 for depth 18."""
    activation: Activation = "relu"
    norm: Literal["batch", "group"] = "batch"
    norm_group: NormGroup = 32
    """As in lenet, for batch normalization."""


class LstmArgs(Section):
    """Long short-term memory (Hochreiter & Schmidhuber 1997) from left to right, over tokens or float sequences."""

    hidden: Width = 128
    layers: Annotated[int, Field(ge=1, le=32)] = 1
    embedding: Width | None = None
    """Width of the tokens' embedding. Default: as `hidden`."""
    dropout: Dropout = 0.0
    """After the embedding, and after each recurrent layer."""
    pool: Literal["last", "mean"] = "last"
    """What the classifier sees: the last real step, or the mean over the real steps. A language model sees each."""


class TransformerArgs(Section):
    """A transformer (Vaswani et al. 2017) over tokens or float sequences.

    An encoder, in which each step sees all real ones, with a classifier over their mean; for a language model, each
    step sees itself and the steps before.
    """

    layers: Annotated[int, Field(ge=1, le=128)] = 4
    width: Width = 128
    heads: Annotated[int, Field(ge=1, le=256)] = 4
    feed_forward: Width | None = None
    """Default: four times `width`."""
    dropout: Dropout = 0.1
    """After the embedding, and at the end of each residual branch."""
    activation: Activation = "gelu"
    max_length: Annotated[int, Field(ge=1, le=1_048_576)] | None = None
    """Steps that there are positions for. Default: as many as the data's samples have."""
    tied: bool = True
    """A language model's classifier is the embedding itself (Press & Wolf 2017)."""

    @model_validator(mode="after")
    def _whole_heads(self) -> "TransformerArgs":
        if self.width % self.heads:
            raise illegal(
                f"{self.heads} heads do not divide the width {self.width}", f"a divisor of {self.width}", at="heads"
            )
        return self


class RecommenderArgs(Section):
    """Neural collaborative filtering (He et al. 2017) over columns of codes: users, items, and what is known of them.

    Each column has a table of embeddings; they, and the sum of their products in pairs, go into a multi-layer
    perceptron (He & Chua 2017).
    """

    embedding: Width = 32
    hidden: tuple[Width, ...] = Field(default=(64, 32), max_length=64)
    activation: Activation = "relu"
    dropout: Dropout = 0.0


class HuggingFaceArgs(Section):
    """A model of Hugging Face's transformers, over tokens: a folder with its weights, or a configuration alone."""

    path: str | None = None
    """A local folder with config.json and safetensors files."""
    config: dict[str, Any] | None = None
    """`model_type` and what differs from its defaults; the weights are random."""

    @model_validator(mode="after")
    def _one_of_them(self) -> "HuggingFaceArgs":
        if (self.path is None) == (self.config is None):
            raise illegal("needs either a path or a config", "path: FOLDER, or config: {model_type: …}")
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise illegal("names no model_type", "a model_type of transformers, such as bert or gpt2", at="config")
        return self


class LenetModel(Section):
    name: Literal["lenet"]
    args: LenetArgs = LenetArgs()


class MlpModel(Section):
    name: Literal["mlp"]
    args: MlpArgs = MlpArgs()


class ResnetModel(Section):
    name: Literal["resnet"]
    args: ResnetArgs = ResnetArgs()


class LstmModel(Section):
    name: Literal["lstm"]
    args: LstmArgs = LstmArgs()


class TransformerModel(Section):
    name: Literal["transformer"]
    args: TransformerArgs = TransformerArgs()


class RecommenderModel(Section):
    name: Literal["recommender"]
    args: RecommenderArgs = RecommenderArgs()


class HuggingFaceModel(Section):
    name: Literal["huggingface"]
    args: HuggingFaceArgs


class FactoryModel(Section):
    """`package.module:factory`, called as factory(input_shape=…, outputs=…, **args); returns a torch.nn.Module.

    For tokens and codes it gets `num_codes` too: how many there are, of the tokens or of each column.
    """

    name: str = Field(max_length=300, json_schema_extra={"pattern": ":"})
    args: dict[str, Any] = Field(default={})

    @field_validator("name")
    @classmethod
    def _dotted(cls, value: str) -> str:
        module, _, factory = value.partition(":")
        if not factory.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
            raise illegal("a factory is named package.module:function", "package.module:function")
        return value


def _tag(value: Any) -> str | None:
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    if isinstance(name, str) and ":" in name:
        return "factory"
    return name if isinstance(name, str) else None


OwnModel = LenetModel | MlpModel | ResnetModel | LstmModel | TransformerModel | RecommenderModel
ForeignModel = FactoryModel | HuggingFaceModel
"""Whose sizes are known only once it is built."""
Model = Annotated[
    Annotated[LenetModel, Tag("lenet")]
    | Annotated[MlpModel, Tag("mlp")]
    | Annotated[ResnetModel, Tag("resnet")]
    | Annotated[LstmModel, Tag("lstm")]
    | Annotated[TransformerModel, Tag("transformer")]
    | Annotated[RecommenderModel, Tag("recommender")]
    | Annotated[HuggingFaceModel, Tag("huggingface")]
    | Annotated[FactoryModel, Tag("factory")],
    Discriminator(_tag),
]
