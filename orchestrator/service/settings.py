"""What the service may be told when it starts, and what it refuses to start with."""

import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import SpecError

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Limits:
    """What one caller may ask for."""

    spec_bytes: int = 128 * KIB
    """Of a body that is not an archive. Reading YAML takes a second for each 200 KiB."""
    code_bytes: int = 50 * MIB
    code_files: int = 10_000
    code_unpacked_bytes: int = 200 * MIB
    page: int = 200
    body_s: float = 30.0
    """A body that takes longer to arrive is given up."""
    code_body_s: float = 300.0
    requests_per_s: float = 50.0
    """Of one token, in the long run; 0: as many as it likes."""
    burst: int = 200
    streams: int = 32
    """Logs and events that one token may follow at the same time."""
    stream_s: float = 3600.0
    """A stream ends after so long; whoever follows comes back."""


@dataclass(frozen=True)
class ServiceSettings:
    """Where runs are, and which files jobs may name.

    Args:
        runs: the storage of all jobs.
        data_roots: a spec may name files below these folders; none: only built-in data.
    """

    runs: Path
    data_roots: tuple[Path, ...] = ()
    limits: Limits = Limits()

    @property
    def uploads(self) -> Path:
        return self.runs / ".service" / "uploads"

    def job_folder(self, job_id: str) -> Path:
        """What travels with a job: `code/`."""
        return self.runs / ".service" / "jobs" / job_id


@dataclass(frozen=True)
class Listen:
    """Where the service listens. Raises SpecError for what would send tokens over a network in the clear."""

    host: str
    port: int
    tls_cert: Path | None = None
    tls_key: Path | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            missing = "--tls-cert" if self.tls_cert is None else "--tls-key"
            raise SpecError.at(missing, "a certificate and its key go together", allowed="both, or neither")
        for option, path in (("--tls-cert", self.tls_cert), ("--tls-key", self.tls_key)):
            if path is not None and not path.is_file():
                raise SpecError.at(option, "no such file", str(path))
        if self.tls_cert is not None:
            _check_pair(self.tls_cert, self.tls_key)
        if not on_loopback(self.host) and self.tls_cert is None and not self.insecure:
            raise SpecError.at(
                "--host",
                "beyond this machine, tokens would travel unencrypted",
                self.host,
                "127.0.0.1; or --tls-cert and --tls-key; or --insecure, where something in front does TLS",
            )

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls_cert else 'http'}://{host}:{self.port}"


def _check_pair(cert: Path, key: Path | None) -> None:
    """Raises SpecError for files that TLS cannot use, rather than when the first connection comes."""
    try:
        # An encrypted key would ask for its password on the terminal; with an empty one it is refused instead.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, lambda: "")
    except (OSError, ValueError) as error:  # ssl's own errors are of the first kind
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        what = f"TLS cannot use this certificate with its key: {reason}"
        raise SpecError.at("--tls-cert", what, str(cert), "PEM: a certificate chain, and its key unencrypted") from None


def on_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
