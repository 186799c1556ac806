"""The way into a Ray cluster, and always out of it again.

The rules:
- Without an address, this machine becomes a cluster of one node for as long as the connection lasts. RAY_ADDRESS, and
  whatever Ray others started here, are not looked at.
- With an address, this machine must be one of the cluster's nodes: a `host:port` of its head, or `auto` for the
  cluster of this node (in the entrypoint of a Ray job: the job's own). From anywhere else, submit the job instead
  (`cluster.submit`).
- A process that is connected already, such as a Ray worker, keeps its connection: it is used, and left open.
- Clusters started by `ray start` demand a token; `find_token` says where it is looked for.
- The user's own modules travel to a cluster as Ray's working_dir; on this machine, workers import them where they lie.
  Thresher itself must be installed on every node.
- What workers print stays in Ray's log files, unless THRESHER_DEBUG is set.
"""

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.errors import ClusterUnreachable, SpecError

EXCLUDES = (
    ".git/",
    ".venv/",
    "venv/",
    "__pycache__/",
    ".*_cache/",
    "*.egg-info/",
)
"""What never travels with a working directory, as in a .gitignore; the directory's own .gitignore counts as well."""

_TCP_TIMEOUT_S = 5.0
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray's name, odd as it is, for the variable in which the entrypoint of a Ray job finds the job's runtime_env."""


@dataclass(frozen=True)
class Connection:
    """An open connection to a cluster."""

    address: str
    """host:port of the cluster's head."""

    def free(self) -> dict[str, float]:
        """What nobody holds at this moment, over all nodes, by Ray's resource names."""
        import ray

        return {name: float(amount) for name, amount in ray.available_resources().items()}


@contextmanager
def connect(
    address: str | None,
    *,
    working_dir: Path | None = None,
    requirements: tuple[str, ...] = (),
    num_cpus: int | None = None,
    connect_timeout_s: float = 30.0,
) -> Iterator[Connection]:
    """Connects to a Ray cluster; see the module for the rules.

    Args:
        address: None for this machine alone, else `host:port` or `auto`.
        working_dir: the folder with the user's modules; workers can import them.
        requirements: pip requirements that Ray installs for the workers.
        num_cpus: how many CPUs this machine offers; None for all. Only without an address.
        connect_timeout_s: how long the cluster may take to answer.

    Raises:
        ClusterUnreachable: nobody answers there, it is no Ray cluster, or it does not accept the token.
        SpecError: the address is one for another purpose.
    """
    if address is not None:
        check_address(address)
        _accept_token()
    import ray

    if ray.is_initialized():
        yield Connection(ray.get_runtime_context().gcs_address)
        return
    if address is not None:
        _probe(address, connect_timeout_s)
    debug = bool(os.environ.get("THRESHER_DEBUG"))
    options: dict[str, Any] = {"address": address or "local"}
    if address is None:
        options |= {"include_dashboard": False, "num_cpus": num_cpus}
    try:
        ray.init(
            **options,
            runtime_env=runtime_env(working_dir, requirements, local=address is None, inherited=_inherited()),
            log_to_driver=debug,
            logging_level=logging.INFO if debug else logging.ERROR,
        )
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        ray.shutdown()
        where = f"the Ray cluster at {address}" if address else "Ray on this machine"
        raise ClusterUnreachable(f"{where} did not come up: {error}") from error
    try:
        yield Connection(ray.get_runtime_context().gcs_address)
    finally:
        ray.shutdown()


def check_address(address: str) -> None:
    """Refuses what is no address of a cluster's head. Raises SpecError."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "://" in address:
        raise SpecError.at(
            "--address",
            "a URL is for whole jobs: `thresher submit --ray`",
            address,
            "host:port of a cluster that this machine is a node of, or auto",
        )
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise SpecError.at(
            "--address", "no address of a Ray cluster", address, "host:port, for example head:6379; or auto"
        )


def find_token(environment: Mapping[str, str] = os.environ) -> str | None:
    """The token for Ray clusters, from where Ray looks for it, in its order.

    RAY_AUTH_TOKEN; the file named by RAY_AUTH_TOKEN_PATH; ~/.ray/auth_token. None without one, or with
    RAY_AUTH_MODE=disabled.
    """
    if environment.get("RAY_AUTH_MODE", "token").lower() != "token":
        return None
    if token := environment.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = environment.get("RAY_AUTH_TOKEN_PATH", "").strip()
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None


def token_refused(address: str) -> ClusterUnreachable:
    """The error for a cluster that wants a token, and another one than it was shown."""
    what = "demands a token, and none was found" if find_token() is None else "does not accept the token"
    return ClusterUnreachable(
        f"the Ray cluster at {address} {what}; put the cluster's own into RAY_AUTH_TOKEN, "
        "the file named by RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token"
    )


def _accept_token() -> None:
    """Makes this process show its token, if it has one and the user has not said otherwise.

    Ray does this by itself where it finds the cluster by itself, but not for an address that is spelt out.
    """
    if "RAY_AUTH_MODE" in os.environ or find_token() is None:
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    if "ray" in sys.modules:
        # Ray has read its settings when it was imported. It offers no public way to read them again.
        raylet: Any = sys.modules["ray._raylet"]
        raylet.Config.initialize("")


def runtime_env(
    working_dir: Path | None,
    requirements: tuple[str, ...],
    *,
    local: bool,
    inherited: Mapping[str, Any],
    environment: Mapping[str, str] = os.environ,
) -> dict[str, Any]:
    """Ray's runtime_env with the user's modules and requirements; empty if there is nothing to provide.

    `inherited` is that of the Ray job this process belongs to: what stands there must not be said again.
    """
    wanted: dict[str, Any] = {}
    if working_dir is not None and local:
        # No copy is packed, hashed and unpacked: it is the same machine.
        path = [str(working_dir.resolve()), environment.get("PYTHONPATH", "")]
        wanted["env_vars"] = {"PYTHONPATH": os.pathsep.join(filter(None, path))}
    elif working_dir is not None:
        wanted |= {"working_dir": str(working_dir.resolve()), "excludes": list(EXCLUDES)}
    if requirements:
        wanted["pip"] = list(requirements)
    if "working_dir" in inherited:
        wanted.pop("excludes", None)
    return {key: value for key, value in wanted.items() if key not in inherited}


def _inherited() -> dict[str, Any]:
    inherited: dict[str, Any] = json.loads(os.environ.get(_JOB_CONFIG) or "{}").get("runtime_env") or {}
    return inherited


def _probe(address: str, timeout_s: float) -> None:
    """Asks in a process of its own whether a cluster answers.

    ray.init would wait for two minutes, deaf to signals, where nobody is, or somebody who does not speak its language.
    """
    if address != "auto":
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=min(_TCP_TIMEOUT_S, timeout_s)).close()
        except OSError as error:
            raise ClusterUnreachable(
                f"no Ray cluster answers at {address}: {error}; does it run, and is this the port of its head?"
            ) from error
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check"]
    if address != "auto":
        command += ["--address", address]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise ClusterUnreachable(
            f"no Ray cluster answers at {address} within {timeout_s:g} s; the port may belong to something else"
        ) from error
    except subprocess.CalledProcessError as error:
        if "AuthenticationError" in error.stderr:
            raise token_refused(address) from error
        last = (error.stderr or error.stdout).strip().splitlines()[-1:] or ["no reason given"]
        raise ClusterUnreachable(f"no Ray cluster answers at {address}: {last[0]}") from error
