"""Well-known data sets, by name: from where they are, to a folder, verified."""

import difflib
import http.client
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import DataError
from jobs.hashing import digest_file
from jobs.storage import fsync, storage_errors

_COMMAND_TIMEOUT_S = 300.0
_READ_TIMEOUT_S = 30.0
_DOWNLOAD_TIMEOUT_S = 900.0
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Release:
    """A data set's files, and where they can be had.

    Attributes:
        name: what the user calls it.
        digests: SHA-256 (hex) by file name.
        num_bytes: the largest file; a download stops there.
        package: the Debian package that holds the files.
        address: the official address, with a slash at its end.
    """

    name: str
    digests: dict[str, str]
    num_bytes: int
    package: str
    address: str


FASHION_MNIST = Release(
    name="fashion-mnist",
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
RELEASES = {release.name: release for release in (FASHION_MNIST,)}


class Unobtainable(Exception):
    """One origin can't provide the files; the next may."""


Origin = Callable[[Release, Path], None]
"""Puts a release's files into an empty folder, or raises Unobtainable."""


def get(name: str, folder: Path | None = None) -> Path:
    """The folder with the data set `name`, fetched unless its files are there and intact.

    Args:
        folder: where it is to lie; by default data/<name>.

    Raises DataError for an unknown name, or when no origin provides the right files.
    """
    if name not in RELEASES:
        near = difflib.get_close_matches(name, RELEASES, n=1)
        raise DataError.at("data get", "no data set of this name", name, ", ".join(RELEASES), near[0] if near else None)
    return fetch(RELEASES[name], folder or Path("data") / name, (from_debian, from_address))


def fetch(release: Release, folder: Path, origins: Sequence[Origin]) -> Path:
    """Tries the origins in turn until the files match their digests. A file appears in `folder` whole or not at all."""
    if not _wrong_files(release, folder):
        return folder
    failures = []
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for origin in origins:
            with tempfile.TemporaryDirectory(prefix=f".{release.name}.", dir=folder.parent) as scratch:
                received = Path(scratch) / "received"
                received.mkdir()
                try:
                    origin(release, received)
                except Unobtainable as error:
                    failures.append(str(error))
                    continue
                if wrong := _wrong_files(release, received):
                    failures.append(f"{origin.__name__}: {', '.join(wrong)} missing, or not the known content")
                    continue
                _move(release, received, folder)
                return folder
    raise DataError.at("data get", f"{release.name} can't be had: {'; '.join(failures)}")


def from_debian(release: Release, folder: Path) -> None:
    """Downloads and unpacks the Debian package; needs neither root nor an installation."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise Unobtainable("Debian: no apt-get and dpkg here")
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        _run(["apt-get", "download", release.package], Path(scratch))
        packages = list(Path(scratch).glob("*.deb"))
        if len(packages) != 1:
            raise Unobtainable(f"Debian: apt-get left {len(packages)} packages")
        _run(["dpkg", "-x", packages[0].name, "unpacked"], Path(scratch))
        for path in (Path(scratch) / "unpacked").rglob("*"):
            if path.name in release.digests and path.is_file():
                shutil.move(path, folder / path.name)


def from_address(release: Release, folder: Path) -> None:
    """Downloads from the official address, each file up to the size that is known."""
    for name in release.digests:
        try:
            _download(release.address + name, folder / name, release.num_bytes)
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            raise Unobtainable(f"{release.address}{name}: {error}") from error


def _download(address: str, path: Path, max_bytes: int) -> None:
    deadline = time.monotonic() + _DOWNLOAD_TIMEOUT_S
    with urllib.request.urlopen(address, timeout=_READ_TIMEOUT_S) as response, path.open("wb") as file:
        while chunk := response.read(_CHUNK_BYTES):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not done after {_DOWNLOAD_TIMEOUT_S:g} s")
            file.write(chunk)
            if file.tell() > max_bytes:
                raise Unobtainable(f"{address} is larger than the {max_bytes} bytes it should have at most")


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise Unobtainable(f"{' '.join(command)}: not done after {_COMMAND_TIMEOUT_S:g} s") from None
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["no message"]
        raise Unobtainable(f"{' '.join(command)}: {lines[-1]}") from error


def _wrong_files(release: Release, folder: Path) -> list[str]:
    """Files that are missing, or not what they should be."""
    paths = {name: folder / name for name in release.digests}
    return [name for name, path in paths.items() if not path.is_file() or digest_file(path) != release.digests[name]]


def _move(release: Release, received: Path, folder: Path) -> None:
    for name in release.digests:
        (received / name).chmod(0o644)
        fsync(received / name)
        (received / name).replace(folder / name)
    fsync(folder)
