"""`model:` a family of Thresher's own with its arguments, or the user's factory."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

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
    norm: Literal["batch", "group"] = "batch"
    norm_group: NormGroup = 32
    """As in lenet, for batch normalization."""


class LenetModel(Section):
    name: Literal["lenet"]
    args: LenetArgs = LenetArgs()


class MlpModel(Section):
    name: Literal["mlp"]
    args: MlpArgs = MlpArgs()


class ResnetModel(Section):
    name: Literal["resnet"]
    args: ResnetArgs = ResnetArgs()


class FactoryModel(Section):
    """`package.module:factory`, called as factory(input_shape=…, outputs=…, **args); returns a torch.nn.Module."""

    name: str = Field(max_length=300, json_schema_extra={"pattern": ":"})
    args: dict[str, Any] = Field(default={})

    @field_validator("name")
    @classmethod
    def _dotted(cls, value: str) -> str:
        module, _, factory = value.partition(":")
        if not factory.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
            raise illegal("a factory is named package.module:function", "package.module:function")
        return value


LATER_FAMILIES = ("lstm", "transformer", "recommender")


def _tag(value: Any) -> str | None:
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    if isinstance(name, str) and ":" in name:
        return "factory"
    return name if isinstance(name, str) else None


OwnModel = LenetModel | MlpModel | ResnetModel
Model = Annotated[
    Annotated[LenetModel, Tag("lenet")]
    | Annotated[MlpModel, Tag("mlp")]
    | Annotated[ResnetModel, Tag("resnet")]
    | Annotated[FactoryModel, Tag("factory")],
    Discriminator(_tag),
]
