"""What a processor can do that decides which number formats pay: pure functions of its flags.

Which scheme really is faster is measured (docs/quantization.md); this only says what to try first, and what would
give wrong results.
"""

import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

KNOWN_FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
)
"""Instruction sets that decide which number formats are fast, as /proc/cpuinfo names them."""


@dataclass(frozen=True)
class Abilities:
    """What follows from the flags of a processor.

    Attributes:
        vectors: the widest vector instructions: avx512, avx2, neon, or none.
        exact_int8: products of 8-bit integers are added up in 32 bits (VNNI, AMX, dot products of Arm). Without,
            x86 adds two products up in 16 bits, which saturates.
        matrix_int8: tiles of 8-bit integers are multiplied at once (AMX, i8mm).
        fast_bf16: there are products of bfloat16.
        fast_fp16: there is arithmetic in half precision.
        cuda: there is an NVIDIA device.
    """

    vectors: str
    exact_int8: bool
    matrix_int8: bool
    fast_bf16: bool
    fast_fp16: bool
    cuda: bool

    @property
    def words(self) -> str:
        """`avx512, exact int8, bf16`."""
        said = {
            "exact int8": self.exact_int8,
            "int8 tiles": self.matrix_int8,
            "bf16": self.fast_bf16,
            "fp16": self.fast_fp16,
            "CUDA": self.cuda,
        }
        return ", ".join([self.vectors, *(name for name, there in said.items() if there)])


@dataclass(frozen=True)
class Planned:
    """A scheme of quantization, and why it stands where it does."""

    scheme: str
    reason: str


def flags(info: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """Those of KNOWN_FLAGS that this machine's processor has; none where the system does not say."""
    if not info.exists():
        return ("asimd",) if platform.machine() in ("arm64", "aarch64") else ()
    for line in info.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            found = set(value.split())
            return tuple(flag for flag in KNOWN_FLAGS if flag in found)
    return ()


def has_cuda(driver: Path = Path("/proc/driver/nvidia/version")) -> bool:
    """Whether an NVIDIA driver is loaded. It says nothing of what the runtime was built for."""
    return driver.exists()


def abilities(found: Iterable[str], *, cuda: bool) -> Abilities:
    """What a processor with these flags can do."""
    has = set(found)
    vectors = "avx512" if "avx512f" in has else "avx2" if "avx2" in has else "neon" if "asimd" in has else "none"
    return Abilities(
        vectors=vectors,
        exact_int8=bool(has & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}) or vectors == "neon",
        matrix_int8=bool(has & {"amx_int8", "i8mm"}),
        fast_bf16=bool(has & {"avx512_bf16", "amx_bf16", "bf16"}),
        fast_fp16="avx512_fp16" in has,
        cuda=cuda,
    )


def order(schemes: Sequence[str], where: Abilities, *, convolutions: bool) -> tuple[Planned, ...]:
    """The schemes, those first that the host has instructions for; otherwise in the order given.

    Args:
        schemes: as in the spec.
        where: the host that the artifacts are for.
        convolutions: whether the model is made of convolutions, for which scaling anew in each run does not pay.
    """
    ranked = {scheme: _rank(scheme, where, convolutions) for scheme in schemes}
    ordered = sorted(schemes, key=lambda scheme: ranked[scheme][0])
    return tuple(Planned(scheme, ranked[scheme][1]) for scheme in ordered)


def _rank(scheme: str, where: Abilities, convolutions: bool) -> tuple[int, str]:
    if scheme in ("int8_static", "int8_qat"):
        if where.exact_int8:
            how = "tiles" if where.matrix_int8 else "dot products"
            return 0, f"the host multiplies 8-bit integers in {how}, added up in 32 bits"
        return 2, "no 32-bit sums of 8-bit products: weights take 7 bits, so that none saturates"
    if scheme == "int8_dynamic":
        if convolutions:
            return 6, "a quarter of the bytes; convolutions that scale anew in each run are slow"
        reason = "a quarter of the bytes, and no calibration; gains where matrix products take the time"
        return 1, reason
    if scheme == "int4_weight":
        return 3, "an eighth of the bytes of matrix products; what is multiplied is float"
    if scheme == "fp16":
        if where.cuda or where.fast_fp16:
            return (0 if where.cuda else 4), "half the bytes; the host computes in half precision"
        return 5, "half the bytes; the processor has no arithmetic for it"
    return 4, "half the bytes, float32 in use"
