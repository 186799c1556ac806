"""What a cluster is and has, from its dashboard: no driver's connection, which would end with the head.

Every wait is bounded. Raises ClusterUnreachable where there is no answer, or one that is not understood.
"""

from typing import Any

import requests

from cluster.connect import find_token, token_refused
from jobs.errors import ClusterUnreachable

_CONNECT_S = 5.0
_MOST_NODES = 10_000
_COUNTED = ("CPU", "GPU", "memory")


class Dashboard:
    """The cluster whose dashboard is at `address`, such as `http://head:8265`."""

    def __init__(self, address: str, timeout_s: float = 10.0) -> None:
        self._address, self._timeout_s = address.rstrip("/"), timeout_s

    def identity(self) -> str:
        """The name of the head's session: a head that starts anew has another one."""
        name = self._get("/api/version").get("session_name")
        if not name:
            raise ClusterUnreachable(f"the dashboard at {self._address} does not tell its session")
        return str(name)

    def nodes(self) -> dict[str, dict[str, float]]:
        """What each living node has, by its id: CPU, GPU, memory (bytes)."""
        answer = self._get(f"/api/v0/nodes?limit={_MOST_NODES}&detail=1")
        try:
            rows = answer["data"]["result"]["result"]
            return {
                row["node_id"]: {
                    name: float(amount) for name, amount in row["resources_total"].items() if name in _COUNTED
                }
                for row in rows
                if row["state"] == "ALIVE"
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ClusterUnreachable(f"the list of nodes at {self._address} is not understood: {error!r}") from error

    def _get(self, path: str) -> dict[str, Any]:
        token = find_token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        timeout = (min(_CONNECT_S, self._timeout_s), self._timeout_s)
        try:
            answer = requests.get(self._address + path, headers=headers, timeout=timeout, allow_redirects=False)
            if answer.status_code in (401, 403):
                raise token_refused(self._address)
            answer.raise_for_status()
            document = answer.json()
        except (requests.RequestException, ValueError) as error:
            raise ClusterUnreachable(f"no Ray dashboard answers at {self._address}: {error}") from error
        if not isinstance(document, dict):
            raise ClusterUnreachable(f"what answers at {self._address} is no Ray dashboard")
        return document
