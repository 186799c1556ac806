"""The user's modules as one file that can travel: the same modules give the same bytes, so the same digest."""

import gzip
import io
import tarfile
from pathlib import Path

from jobs.code import module_files


def pack_modules(folder: Path) -> bytes:
    """A .tar.gz of the modules that `jobs.code` counts as the user's, without times and owners.

    Raises SpecError if there is no such folder.
    """
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as squeezed,
        tarfile.open(fileobj=squeezed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in module_files(folder):
            content = (folder / path).read_bytes()
            entry = tarfile.TarInfo(path.as_posix())
            entry.size = len(content)
            entry.mode = 0o644
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
