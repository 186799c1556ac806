"""One local Ray for all tests of this folder, and a real head for those that submit jobs."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.connect import Connection, connect

ROOT = Path(__file__).parents[2]


# Of this package, not of the session: whoever comes afterwards must find a process that is not connected.
@pytest.fixture(scope="package")
def local_ray() -> Iterator[Connection]:
    """Ray on this machine, with four CPUs to give away, whatever the machine has."""
    with pytest.MonkeyPatch.context() as patch:
        # Must not matter: a local connection is never redirected.
        patch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        with connect(None, working_dir=ROOT, num_cpus=4) as connection:
            yield connection


@dataclass(frozen=True)
class Head:
    """A cluster of one node, started by `ray start --head`, that demands a token."""

    address: str
    url: str
    token: str
    pid: int
    folder: Path
    """Where it keeps the files of its sessions."""


@pytest.fixture(scope="session")
def ray_head() -> Iterator[Head]:
    # Not pytest's own temporary folder: the path of a Unix socket has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        token = secrets.token_hex(16)
        port, dashboard, client = free_ports(3)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        command += ["--port", str(port), "--dashboard-port", str(dashboard), "--ray-client-server-port", str(client)]
        command += ["--dashboard-agent-listen-port", "0", "--num-cpus", "2", "--temp-dir", folder]
        command += ["--min-worker-port", "0", "--max-worker-port", "0", "--disable-usage-stats"]
        with open(Path(folder) / "head.log", "w", encoding="utf-8") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            wait_for_dashboard(f"http://127.0.0.1:{dashboard}", process, Path(log.name))
            yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", token, process.pid, Path(folder))
        finally:
            process.terminate()
            try:
                process.wait(20)
            finally:
                # The daemons are in the session that was opened for them; by now they should be gone.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def wait_for_dashboard(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/api/version", timeout=5).close()
        except urllib.error.HTTPError:
            return  # It is up, and asks for the token.
        except OSError:
            time.sleep(0.2)
        else:
            return
    pytest.fail(f"the head did not start:\n{log.read_text(encoding='utf-8')[-3000:]}")
