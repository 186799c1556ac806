"""`compress:` and `export:`: how the winner is made small and fast, within what budget."""

from typing import Any, Literal

from pydantic import Field, model_validator

from jobs.section import Section, illegal

Scheme = Literal["int8_static", "int8_dynamic", "fp16", "bf16", "int8_qat", "int4_weight"]


class Distill(Section):
    """Learning from the dense parent's outputs (Hinton, Vinyals & Dean 2015).

    loss = (1 - weight) · task loss + weight · temperature² · KL(parent ‖ child) for classes; squared error for
    regression.
    """

    weight: float = Field(default=0.5, gt=0.0, le=1.0)
    temperature: float = Field(default=2.0, gt=0.0, le=100.0)


class Recover(Section):
    """Fine-tuning after each step, with the job's own batch size, loss and optimizer."""

    epochs: int = Field(default=2, ge=0, le=10_000)
    lr: float | None = Field(default=None, gt=0.0, le=100.0)
    """Peak rate; default: the training's own."""
    distill: Distill | None = None


Part = Literal["channels", "neurons", "heads", "states", "embedding", "layers"]
"""What structured pruning may remove: of convolutions the channels, of linear layers (feed-forward ones too) the
neurons, whole heads of attention, states of recurrent layers, features of embeddings, whole layers of a transformer."""


def _ratio(section: dict[str, Any]) -> float:
    """Called after the method, n and m are validated, and without them where they are wrong."""
    if section.get("method") == "nm" and "n" in section and "m" in section:
        return float(1.0 - section["n"] / section["m"])
    return 0.5


class Prune(Section):
    """`structured` removes whole parts, so that the model is smaller; `magnitude` and `nm` set single weights to zero.

    magnitude: those of the smallest magnitude, more at each step (Zhu & Gupta 2017); nm: of every m consecutive inputs
    of an output, all but the n largest (Mishra et al. 2021).
    """

    method: Literal["structured", "magnitude", "nm"] = "structured"
    n: int = Field(default=2, ge=1, le=63)
    m: int = Field(default=4, ge=2, le=64)
    """With nm: n weights stay of each m."""
    ratio: float = Field(default_factory=_ratio, gt=0.0, lt=1.0)
    """Share that is removed: of the parts of each kind, or of the weights. Default: 0.5; with nm it is 1 - n/m."""
    steps: int = Field(default=1, ge=1, le=100)
    """Prune and recover so many times, each time a part of the whole ratio."""
    what: tuple[Part, ...] | None = Field(default=None, min_length=1)
    """Which parts may go. Default: all that the model has but whole layers."""
    importance: Literal["magnitude", "taylor", "activation"] = "magnitude"
    """What makes a part important: its weights, what the loss would change without it (Molchanov et al. 2019), or how
    much it gives to what follows. The latter two look at calibration samples, which are training samples."""
    round_to: int = Field(default=1, ge=1, le=512)
    """Widths left are multiples of this; a layer that is narrower stays."""
    global_pruning: bool = False
    """Compare across layers, instead of removing the same share from each."""
    protect: Literal["none", "auto"] | tuple[str, ...] = "none"
    """Layers that are left whole: those named, or those whose pruning alone costs far more than that of the others."""
    ignore: tuple[str, ...] = ()
    """Layers, or blocks of them, that are left whole whatever `protect` finds."""
    recover: Recover = Recover()

    @model_validator(mode="after")
    def _consistent(self) -> "Prune":
        if self.method == "nm":
            self._check_nm()
        else:
            for key in ("n", "m"):
                if getattr(self, key) != Prune.model_fields[key].default:
                    raise illegal(f"method {self.method} knows no groups of m weights", "method: nm", at=key)
        if self.method != "structured":
            for key in ("what", "importance", "round_to", "protect"):
                if getattr(self, key) != Prune.model_fields[key].default:
                    what = f"method {self.method} removes single weights, by their magnitude"
                    raise illegal(what, "method: structured; or leave it out", at=key)
        if self.what is not None and len(set(self.what)) != len(self.what):
            raise illegal("a part is listed twice", "each part once", at="what")
        return self

    def _check_nm(self) -> None:
        if self.n >= self.m:
            raise illegal(f"{self.n} of each {self.m} weights would remove none", f"at most {self.m - 1}", at="n")
        if abs(self.ratio - (1.0 - self.n / self.m)) > 1e-9:
            share = f"{1.0 - self.n / self.m:.6g}"
            raise illegal(
                f"{self.n}:{self.m} removes a share of {share}, no other", f"{share}; or leave it out", "ratio"
            )
        if self.steps > 1:
            raise illegal(f"{self.n}:{self.m} is reached at once", "1", at="steps")
        if self.global_pruning:
            raise illegal("every group of weights loses the same share", "false", at="global_pruning")


def _energy(section: dict[str, Any]) -> float | None:
    return 0.9 if section.get("rank_ratio") is None else None


class LowRank(Section):
    """Large linear layers, each replaced by two thin ones: a truncated singular value decomposition, then recovery.

    A layer is replaced only where the two need fewer multiplications than it does.
    """

    rank_ratio: float | None = Field(default=None, gt=0.0, lt=1.0)
    """The rank left, as a share of the layer's smaller side."""
    energy: float | None = Field(default_factory=_energy, gt=0.0, lt=1.0)
    """The smallest rank that keeps this share of the squared singular values. Default: 0.9, without rank_ratio."""
    min_size: int = Field(default=64, ge=2, le=65_536)
    """Layers whose smaller side is less stay as they are."""
    convolutions: bool = False
    """Convolutions too: one with few channels, then one of 1×1."""
    ignore: tuple[str, ...] = ()
    """Layers, or blocks of them, that stay as they are."""
    recover: Recover = Recover()

    @model_validator(mode="after")
    def _one_measure(self) -> "LowRank":
        if self.rank_ratio is not None and self.energy is not None:
            raise illegal("the rank is given twice", "rank_ratio or energy", at="energy")
        return self


class StaticSearch(Section):
    """How int8_static looks for its variant: ranges, symmetry, a scale a channel or a tensor, 7 or 8 bits, exclusions.

    Variants are compared on training samples that calibrate nothing; never on validation or test.
    """

    max_variants: int = Field(default=8, ge=1, le=32)
    """How many are made and measured at most; 1: no search."""
    seconds: float = Field(default=60.0, gt=0.0, le=3600.0)
    """After which no further one is begun; five times that while none keeps to the budget's drop."""
    held_out: int = Field(default=512, ge=16, le=100_000)
    """Training samples to compare on."""


class Qat(Section):
    """Fine-tuning for int8_qat, with the job's own batch size, loss and optimizer."""

    epochs: int = Field(default=1, ge=1, le=10_000)
    lr: float | None = Field(default=None, gt=0.0, le=100.0)
    """Peak rate; default: a tenth of the training's."""
    distill: Distill | None = None


class Quantize(Section):
    schemes: tuple[Scheme, ...] = Field(default=("int8_static", "int8_dynamic", "fp16"), min_length=1)
    static: StaticSearch | None = None
    """How int8_static looks for its variant; default: as its own defaults say."""
    qat: Qat | None = None
    """How int8_qat fine-tunes; default: as its own defaults say."""

    @model_validator(mode="after")
    def _legal(self) -> "Quantize":
        if len(set(self.schemes)) != len(self.schemes):
            raise illegal("a scheme is listed twice", "each scheme once", at="schemes")
        if self.qat is not None and "int8_qat" not in self.schemes:
            raise illegal("qat goes with the scheme int8_qat, which is not listed", "null", at="qat")
        if self.static is not None and "int8_static" not in self.schemes:
            raise illegal("static goes with the scheme int8_static, which is not listed", "null", at="static")
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


class Target(Section):
    """The host that artifacts are meant for, where it is another one: what `thresher hardware --json` says of it.

    Its instruction sets decide which schemes come first, and whether 8-bit weights could saturate. Nothing is
    measured there.
    """

    name: str = Field(default="target", min_length=1, max_length=200)
    instructions: tuple[str, ...] = Field(max_length=200)
    """Flags of its processor, as in /proc/cpuinfo: avx2, avx512_vnni, …"""
    cuda: bool = False


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
    low_rank: LowRank | None = None
    """Of the pruned model where there is one, else of the dense."""
    quantize: Quantize | None = None
    pack: Pack | None = None
    """Of the dense model, whatever else is made of it."""
    budget: Budget = Budget()
    pick: Literal["smallest", "fastest", "most_accurate"] = "smallest"
    target: Target | None = None


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
