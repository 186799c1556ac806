"""A Ray of several nodes on one machine, for development and tests.

Real daemons, started by `ray start`, a set of them for each node: what a driver sees is a cluster of machines, which
can lose one (`kill_node`) and get another (`add_node`). Each node has a loopback address of its own, 127.0.0.2 and so
on, which Linux has without being asked; so nodes differ in their addresses as machines do.

Every process of a node, and whatever it starts, carries the cluster's id and the node's number in its environment, or,
where it writes its title over that, has a log of the node open. By these marks all of them are found again, whoever
their parent was and whether it lives: nothing is left after `stop`, and `down` in another process ends what `up` has
started in one that was killed. The state file is written before the first process is started.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from jobs.errors import ClusterUnreachable, SpecError

_CLUSTER = "THRESHER_LOCAL_CLUSTER"
_NODE = "THRESHER_LOCAL_NODE"
_STATE = "cluster.json"
_TOKEN = "token"
_OBJECT_STORE_BYTES = 100_000_000
_NOTICE = {"RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "1000"}
"""The head notices the loss of a node after five seconds; with Ray's own settings after fifteen."""
_TERM_S = 3.0
_KILL_S = 10.0
_POLL_S = 0.2


def cluster_home(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder of this user's local cluster: `cluster` in THRESHER_HOME, or in ~/.thresher."""
    return Path(environment.get("THRESHER_HOME") or Path.home() / ".thresher") / "cluster"


@dataclass(frozen=True)
class State:
    """What is written down of a cluster. Its token is in a file beside, which only the user can read."""

    id: str
    address: str
    """host:port of the head, for `--address`."""
    dashboard: str | None
    """URL, for `--ray`."""
    temp_dir: str
    """Ray's files. Short, because the path of a Unix socket has at most 107 characters."""
    cpus_per_node: int
    nodes: tuple[int, ...] = ()
    """Numbers of the nodes that are meant to be there. 0 is the head."""
    next_node: int = 0


class LocalCluster:
    """Nodes on this machine; a context manager that leaves nothing behind.

    >>> with LocalCluster(nodes=3, cpus_per_node=2) as cluster:
    ...     os.environ |= cluster.client_environment
    ...     ...  # a driver connects to cluster.address
    ...     cluster.kill_node(2)
    """

    def __init__(
        self,
        nodes: int = 3,
        cpus_per_node: int = 2,
        *,
        home: Path | None = None,
        dashboard: bool = True,
        start_timeout_s: float = 120.0,
    ) -> None:
        """Starts the nodes, and returns when all have joined.

        Args:
            home: where the state is kept, so that others find the cluster; default: a temporary folder.
            dashboard: whether there is one; jobs are submitted through it.
            start_timeout_s: for the head, and again for the other nodes.

        Raises:
            SpecError: a cluster is up in this home; a number is out of range; this is not Linux.
            ClusterUnreachable: a node did not start. Then none is left.
        """
        if sys.platform != "linux":
            raise SpecError.at(
                "cluster", "a local cluster needs the loopback addresses of Linux", sys.platform, "linux"
            )
        for name, number in (("--nodes", nodes), ("--cpus-per-node", cpus_per_node)):
            if not 1 <= number <= 200:
                raise SpecError.at(name, "out of range", number, "1 to 200")
        self._home = home or Path(tempfile.mkdtemp(prefix="thresher-cluster-"))
        self._owns_home = home is None
        self._timeout_s = start_timeout_s
        _refuse_second(self._home)
        port, dashboard_port, self._client_port = _free_ports(3)
        self._state = State(
            id=secrets.token_hex(8),
            address=f"{_address(0)}:{port}",
            dashboard=f"http://127.0.0.1:{dashboard_port}" if dashboard else None,
            temp_dir=tempfile.mkdtemp(prefix="thr-", dir="/tmp"),
            cpus_per_node=cpus_per_node,
        )
        self._token = secrets.token_hex(16)
        self._home.mkdir(parents=True, exist_ok=True)
        token = os.open(self.token_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(token, "w", encoding="utf-8") as file:
            file.write(self._token)
        self._write_state()
        try:
            self._start_nodes(1)
            self._await_dashboard()
            self._start_nodes(nodes - 1)
        except BaseException:
            self.stop()
            raise

    @classmethod
    def find(cls, home: Path) -> "LocalCluster | None":
        """The cluster that was started in a home, or what is left of it; None without one."""
        try:
            document = json.loads((home / _STATE).read_text(encoding="utf-8"))
            state = State(**document | {"nodes": tuple(document["nodes"])})
            token = (home / _TOKEN).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise ClusterUnreachable(f"{home / _STATE} is damaged: {error}") from error
        found = cls.__new__(cls)
        found._home, found._owns_home, found._timeout_s = home, False, 120.0
        found._state, found._token = state, token
        return found

    # --- what others need --------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        return self._state.address

    @property
    def dashboard(self) -> str | None:
        return self._state.dashboard

    @property
    def token_path(self) -> Path:
        return self._home / _TOKEN

    @property
    def client_environment(self) -> dict[str, str]:
        """What a driver, or whoever submits jobs, must have in its environment."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_path)}

    @property
    def nodes(self) -> dict[int, str]:
        """The IP address of each node that lives, by its number."""
        raylets = {node for process, node in _marked(self._state) if _name(process) == "raylet"}
        return {node: _address(node) for node in self._state.nodes if node in raylets}

    def processes(self, node: int | None = None) -> list[int]:
        """Ids of the living processes of a node, or of all."""
        return [process.pid for process, of in _marked(self._state) if node in (None, of)]

    # --- the life of the cluster -------------------------------------------------------------------------------

    def add_node(self) -> int:
        """Starts another node. Returns its number. Raises ClusterUnreachable."""
        (number,) = self._start_nodes(1)
        return number

    def kill_node(self, number: int) -> None:
        """Ends a node as a loss of power would: all its processes at once, without a word to anybody."""
        if number == 0:
            raise ValueError("node 0 is the head; without it there is no cluster")
        if number not in self._state.nodes:
            raise ValueError(f"there is no node {number}; there are {', '.join(map(str, self._state.nodes))}")
        _kill(self._state, number)
        self._state = replace(self._state, nodes=tuple(node for node in self._state.nodes if node != number))
        self._write_state()

    def restart(self) -> None:
        """Ends all nodes as a loss of power would, and starts as many at the old address: a head that has lost all.

        Raises ClusterUnreachable.
        """
        others = len(self._state.nodes) - 1
        _kill(self._state, None)
        self._state = replace(self._state, nodes=())
        self._await_start(0, self._spawn(0), time.monotonic() + self._timeout_s)
        self._state = replace(self._state, nodes=(0,))
        self._write_state()
        self._await_dashboard()
        self._start_nodes(others)

    def stop(self) -> None:
        """Ends every process of every node, and removes what they wrote. May be repeated."""
        processes = [process for process, _ in _marked(self._state)]
        for process in processes:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGTERM)
        psutil.wait_procs(processes, _TERM_S)
        _kill(self._state, None)
        shutil.rmtree(self._state.temp_dir, ignore_errors=True)
        for name in (_STATE, _TOKEN):
            (self._home / name).unlink(missing_ok=True)
        if self._owns_home:
            shutil.rmtree(self._home, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- inside ------------------------------------------------------------------------------------------------

    def _write_state(self) -> None:
        written = self._home / f"{_STATE}.tmp"
        written.write_text(json.dumps(asdict(self._state), indent=1) + "\n", encoding="utf-8")
        written.replace(self._home / _STATE)

    def _start_nodes(self, count: int) -> list[int]:
        """Starts nodes side by side, and waits until they have joined."""
        first = self._state.next_node
        numbers = list(range(first, first + count))
        self._state = replace(self._state, next_node=first + count)
        self._write_state()
        deadline = time.monotonic() + self._timeout_s
        started = {number: self._spawn(number) for number in numbers}
        try:
            for number, process in started.items():
                self._await_start(number, process, deadline)
        except BaseException:
            for number in numbers:
                _kill(self._state, number)
            raise
        self._state = replace(self._state, nodes=(*self._state.nodes, *numbers))
        self._write_state()
        return numbers

    def _spawn(self, number: int) -> "subprocess.Popen[bytes]":
        state = self._state
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--disable-usage-stats"]
        command += ["--node-name", f"local-{number}", "--node-ip-address", _address(number)]
        # Not one for all: raylets that start at the same time get into each other's way in it.
        command += ["--temp-dir", str(Path(state.temp_dir) / str(number))]
        command += ["--num-cpus", str(state.cpus_per_node), "--object-store-memory", str(_OBJECT_STORE_BYTES)]
        command += ["--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"]
        if number == 0:
            command += ["--head", "--port", state.address.rpartition(":")[2]]
            command += ["--ray-client-server-port", str(self._client_port)]
            command += [f"--include-dashboard={state.dashboard is not None}"]
            if state.dashboard:
                command += ["--dashboard-port", state.dashboard.rpartition(":")[2]]
        else:
            command += ["--address", state.address]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= _NOTICE | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self._token}
        environment |= {_CLUSTER: state.id, _NODE: str(number)}
        with open(self._log(number), "wb") as log:
            return subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _log(self, number: int) -> Path:
        return Path(self._state.temp_dir) / f"node-{number}.log"

    def _await_start(self, number: int, process: "subprocess.Popen[bytes]", deadline: float) -> None:
        try:
            code = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise ClusterUnreachable(f"node {number} did not start within {self._timeout_s:g} s") from error
        if code:
            lines = self._log(number).read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise ClusterUnreachable(f"node {number} did not start: {(lines or ['no reason given'])[-1]}")

    def _await_dashboard(self) -> None:
        deadline = time.monotonic() + self._timeout_s
        while self._state.dashboard is not None:
            try:
                urllib.request.urlopen(f"{self._state.dashboard}/api/version", timeout=5).close()
            except urllib.error.HTTPError:
                return  # It is up, and asks for the token.
            except OSError as error:
                if time.monotonic() >= deadline:
                    raise ClusterUnreachable(f"the dashboard did not start within {self._timeout_s:g} s") from error
                time.sleep(_POLL_S)
            else:
                return


def _address(node: int) -> str:
    return f"127.0.0.{node + 2}"


def _refuse_second(home: Path) -> None:
    """Removes what is left of a cluster of which nothing lives. Raises SpecError if one is up."""
    found = LocalCluster.find(home)
    if found is None:
        return
    if found.processes():
        raise SpecError.at("cluster", f"one is up already, at {found.address}", allowed="thresher cluster down first")
    found.stop()


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((_address(0), 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _marked(state: State) -> list[tuple[psutil.Process, int]]:
    """The living processes of a cluster, each with its node."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            node = _node_of(process, state)
            if node is not None and process.status() != psutil.STATUS_ZOMBIE:
                found.append((process, node))
    return found


def _node_of(process: psutil.Process, state: State) -> int | None:
    environment: dict[str, Any] = process.environ()
    if environment.get(_CLUSTER) == state.id:
        return int(environment[_NODE])
    if _CLUSTER in environment or not _name(process).startswith("ray"):
        return None
    # Ray's agents and workers write their titles over their environment; they keep their node's logs open.
    files = Path(f"/proc/{process.pid}/fd")
    for name in os.listdir(files):
        with suppress(OSError):
            path = os.readlink(files / name)
            if path.startswith(state.temp_dir + "/"):
                number = path[len(state.temp_dir) + 1 :].partition("/")[0]
                return int(number) if number.isdigit() else None
    return None


def _name(process: psutil.Process) -> str:
    try:
        name: str = process.name()
    except psutil.Error:
        return ""
    return name


def _kill(state: State, node: int | None) -> None:
    """Kills the processes of a node, or of all; again, until none is left that one of them has started meanwhile.

    Raises ClusterUnreachable if some outlive it.
    """
    deadline = time.monotonic() + _KILL_S
    while processes := [process for process, of in _marked(state) if node in (None, of)]:
        if time.monotonic() >= deadline:
            raise ClusterUnreachable(f"processes that do not end: {', '.join(str(one.pid) for one in processes)}")
        for process in processes:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(processes, 1.0)
