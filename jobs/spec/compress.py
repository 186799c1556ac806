"""`compress:` and `export:`: how the winner is made small and fast, within what budget."""

from typing import Literal

from pydantic import Field, model_validator

from jobs.section import Section, illegal, not_supported_yet

Scheme = Literal["int8_static", "int8_dynamic", "fp16", "bf16", "int8_qat", "int4_weight"]


class Distill(Section):
    """Learning from the dense parent's outputs (Hinton, Vinyals & Dean 2015).

    loss = (1 - weight) · task loss + weight · temperature² · KL(parent ‖ child) for classes; squared error for
    regression.
    """

    weight: float = Field(default=0.5, gt=0.0, le=1.0)
    temperature: float = Field(default=2.0, gt=0.0, le=100.0)


class Recover(Section):
    """Fine-tuning after each pruning step, with the job's own batch size, loss and optimizer."""

    epochs: int = Field(default=2, ge=0, le=10_000)
    lr: float | None = Field(default=None, gt=0.0, le=100.0)
    """Peak rate; default: the training's own."""
    distill: Distill | None = None


class Prune(Section):
    method: Literal["structured", "magnitude", "nm"] = "structured"
    ratio: float = Field(default=0.5, gt=0.0, lt=1.0)
    """Share of the channels or neurons removed from the prunable layers, all together."""
    steps: int = Field(default=1, ge=1, le=100)
    """Prune and recover so many times, each time a part of the whole ratio."""
    round_to: int = Field(default=1, ge=1, le=512)
    """Widths left are multiples of this."""
    global_pruning: bool = False
    """Compare channels across layers, instead of removing the same share from each."""
    recover: Recover = Recover()

    @model_validator(mode="after")
    def _later(self) -> "Prune":
        if self.method != "structured":
            raise not_supported_yet(f"prune method {self.method}", at="method")
        return self


class Quantize(Section):
    schemes: tuple[Scheme, ...] = Field(default=("int8_static", "int8_dynamic", "fp16"), min_length=1)

    @model_validator(mode="after")
    def _legal(self) -> "Quantize":
        if len(set(self.schemes)) != len(self.schemes):
            raise illegal("a scheme is listed twice", "each scheme once", at="schemes")
        for scheme in self.schemes:
            if scheme in ("bf16", "int8_qat", "int4_weight"):
                raise not_supported_yet(f"quantization scheme {scheme}", at="schemes")
        return self


class Sparsify(Section):
    """The training in which the weights of a pack become zero, with the job's own batch size, loss and optimizer.

    Its rate falls by cosine. In the first 40 % of the steps ever more weights are zero, then the model recovers.
    """

    epochs: int = Field(default=20, ge=0, le=10_000)
    """0 sets them to zero at once, and leaves it at that."""
    lr: float | None = Field(default=None, gt=0.0, le=100.0)
    """Peak rate; default: the training's own."""
    distill: Distill | None = Distill()


class Finetune(Section):
    """The training of a pack's codebooks, biases and normalizations, distilled likewise; its rate falls too."""

    epochs: int = Field(default=3, ge=0, le=10_000)
    lr: float | None = Field(default=None, gt=0.0, le=100.0)
    """Peak rate; default: half the training's own."""


class Pack(Section):
    """An archive for storage and transfer (Han, Mao & Dally 2016): few weights, from a small codebook a layer.

    It is made of the dense model, as an artifact of its own, and restores an ordinary float model bit for bit.
    """

    sparsity: float = Field(default=0.95, ge=0.0, lt=1.0)
    """Share of the weights of all convolutions and linear layers, together, that become zero."""
    codebook_bits: int = Field(default=5, ge=1, le=8)
    """A layer has at most 2^bits values beside zero."""
    conv_bits: int | None = Field(default=None, ge=1, le=8)
    """The same for convolutions; default: codebook_bits."""
    recover: Sparsify = Sparsify()
    finetune: Finetune = Finetune()


class Budget(Section):
    """What a selected artifact must keep to. Measured on the validation split, through the exported file."""

    max_metric_drop: float | None = Field(default=0.005, ge=0.0)
    """Against the dense parent, in the metric's own units, whichever way it gets worse."""
    max_latency_ms: float | None = Field(default=None, gt=0.0)
    """p50 at batch 1."""
    max_bytes: int | None = Field(default=None, ge=1)
    required: bool = False
    """When nothing fits: fail, instead of keeping the dense parent and saying so."""


class Compress(Section):
    prune: Prune | None = None
    quantize: Quantize | None = None
    pack: Pack | None = None
    """Of the dense model, whatever else is made of it."""
    budget: Budget = Budget()
    pick: Literal["smallest", "fastest", "most_accurate"] = "smallest"


class Export(Section):
    formats: tuple[Literal["onnx", "safetensors"], ...] = ("onnx", "safetensors")

    @model_validator(mode="after")
    def _onnx_is_measured(self) -> "Export":
        if "onnx" not in self.formats:
            raise illegal(
                "every figure is measured through the ONNX file, so `onnx` must be listed",
                "[onnx], [onnx, safetensors]",
                at="formats",
            )
        if len(set(self.formats)) != len(self.formats):
            raise illegal("a format is listed twice", "each format once", at="formats")
        return self
