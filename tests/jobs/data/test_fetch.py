"""Fetching tries one origin after the other, and believes nothing but the digests."""

import hashlib
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from jobs.data.fetch import FASHION_MNIST, Release, Unobtainable, fetch, from_address, from_debian, get
from jobs.errors import DataError

CONTENT = {"a.gz": b"first file", "b.gz": b"second"}
RELEASE = Release(
    name="tiny",
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
    return Release(RELEASE.name, RELEASE.digests, RELEASE.num_bytes, RELEASE.package, address)


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
