"""What both clients do before and after a request. Pure, but for the look at the user's modules and the environment."""

import ipaddress
import json
import os
import re
import secrets
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jobs.errors import SpecError
from jobs.spec import JobSpec
from orchestrator.client.archive import pack_modules
from orchestrator.client.shapes import Event
from orchestrator.client.sse import Message

URL_VARIABLE = "THRESHER_URL"
TOKEN_VARIABLE = "THRESHER_TOKEN"
CA_VARIABLE = "THRESHER_CA"
_CONNECT_TIMEOUT_S = 5.0
_LOCAL_NAMES = ("localhost",)


@dataclass(frozen=True)
class Submission:
    document: dict[str, Any]
    project: str | None = None
    archive: bytes | None = None
    sha256: str = ""


def submission(spec: JobSpec | dict[str, Any]) -> Submission:
    """What is sent for a spec: paths made absolute, and the user's modules packed, if it uses any."""
    from jobs.spec.paths import with_absolute_paths

    parsed = spec if isinstance(spec, JobSpec) else JobSpec.parse(spec)
    document = with_absolute_paths(parsed.document())
    if not parsed.uses_own_code:
        return Submission(document)
    archive = pack_modules(Path(parsed.code.working_dir))
    project = parsed.project if "project" in document else None
    return Submission(document, project, archive, sha256(archive).hexdigest())


def key_of(given: str | None) -> str:
    """The idempotency key, or a new one. Raises SpecError for one that no header takes."""
    if given is None:
        return secrets.token_urlsafe(24)
    if not re.fullmatch(r"[\x21-\x7e]{1,200}", given):
        raise SpecError.at("key", "not an idempotency key", given, "1 to 200 visible ASCII signs")
    return given


def connection(url: str | None, token: str | None, timeout_s: float) -> dict[str, Any]:
    """Settings of the HTTP client. Raises SpecError without an address or a token, or with ones that are none."""
    import httpx

    address = (url or os.environ.get(URL_VARIABLE) or "").rstrip("/")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SpecError.at(URL_VARIABLE, "the address of the service is needed", address or None, "http://HOST:PORT")
    secret = (token or os.environ.get(TOKEN_VARIABLE) or "").strip()
    if not secret:
        raise SpecError.at(TOKEN_VARIABLE, "a token of the service is needed", allowed="what `thresher serve` printed")
    if not secret.isascii() or not secret.isprintable():
        raise SpecError.at(TOKEN_VARIABLE, "is no token of the service")
    authority = os.environ.get(CA_VARIABLE)
    verify: Any = True
    if authority:
        import ssl

        try:
            verify = ssl.create_default_context(cafile=authority)
        except OSError as error:
            raise SpecError.at(CA_VARIABLE, f"no certificate can be read: {error}", authority) from error
    return {
        "base_url": address,
        "headers": {"Authorization": f"Bearer {secret}", "User-Agent": "thresher"},
        "timeout": httpx.Timeout(timeout_s, connect=min(_CONNECT_TIMEOUT_S, timeout_s)),
        "follow_redirects": False,  # the token goes to this address and to no other
        "trust_env": not _on_loopback(parts.hostname),
        "verify": verify,
    }


def _on_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in _LOCAL_NAMES


def event_of(message: Message) -> Event:
    return Event.from_json(json.loads(message.data))


def end_of_stream(message: Message) -> bool:
    """The service says that nothing more will come; a stream that only breaks off does not say so."""
    return message.event == "end"
