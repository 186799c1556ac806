"""What flags mean, and the order in which schemes are tried."""

from pathlib import Path

import pytest

from jobs.hardware import Abilities, abilities, flags, has_cuda, order

AVX2 = ("avx2", "fma", "f16c")
VNNI = (*AVX2, "avx512f", "avx512_vnni", "avx512_bf16")
AMX = (*VNNI, "amx_tile", "amx_int8", "amx_bf16", "avx512_fp16")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (AVX2, Abilities("avx2", False, False, False, False, False)),
        ((*AVX2, "avx_vnni"), Abilities("avx2", True, False, False, False, False)),
        (VNNI, Abilities("avx512", True, False, True, False, False)),
        (AMX, Abilities("avx512", True, True, True, True, False)),
        (("asimd", "asimddp", "i8mm", "bf16"), Abilities("neon", True, True, True, False, False)),
        (("asimd",), Abilities("neon", True, False, False, False, False)),
        ((), Abilities("none", False, False, False, False, False)),
    ],
)
def test_abilities_follow_from_the_flags_alone(found: tuple[str, ...], expected: Abilities) -> None:
    assert abilities(found, cuda=False) == expected


def test_their_words() -> None:
    assert abilities(AMX, cuda=True).words == "avx512, exact int8, int8 tiles, bf16, fp16, CUDA"
    assert abilities(AVX2, cuda=False).words == "avx2"


def test_flags_are_read_from_the_systems_file(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nmodel name : X\nflags\t\t: fpu avx2 sse avx512_vnni unheard_of\n\nflags : other\n")
    assert flags(info) == ("avx2", "avx512_vnni")
    info.write_text("processor : 0\nFeatures : fp asimd asimddp\n")
    assert flags(info) == ("asimd", "asimddp")
    info.write_text("nothing\n")
    assert flags(info) == ()
    assert not has_cuda(tmp_path / "none")


SCHEMES = ("fp16", "int8_dynamic", "int8_static", "bf16", "int4_weight", "int8_qat")


def names(found: tuple[str, ...], *, convolutions: bool, cuda: bool = False) -> list[str]:
    ordered = order(SCHEMES, abilities(found, cuda=cuda), convolutions=convolutions)
    assert sorted(each.scheme for each in ordered) == sorted(SCHEMES)
    assert all(each.reason for each in ordered)
    return [each.scheme for each in ordered]


def test_the_order_follows_the_host() -> None:
    assert names(VNNI, convolutions=True)[:2] == ["int8_static", "int8_qat"]
    assert names(VNNI, convolutions=True)[-1] == "int8_dynamic"
    assert names(AVX2, convolutions=False)[0] == "int8_dynamic"
    assert names(AVX2, convolutions=False)[-1] == "fp16"
    assert names(AVX2, convolutions=True, cuda=True)[0] == "fp16"
