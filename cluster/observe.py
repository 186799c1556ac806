"""What a cluster is and has, from its dashboard: no driver's connection, which would end with the head.

Every wait is bounded. Raises ClusterUnreachable where there is no answer, or one that is not understood.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import requests

from cluster.connect import find_token, token_refused
from jobs.errors import ClusterUnreachable

_CONNECT_S = 5.0
_MOST_ROWS = 10_000
_COUNTED = ("CPU", "GPU", "memory")
_PLACED = ("CREATED", "RESCHEDULING")


@dataclass(frozen=True)
class Holding:
    """What one Ray job holds on one node, in one placement group, actor or task."""

    ray_job: str
    """Ray's id of the job; one that came through the Jobs API has it beside its submission id."""
    node: str
    amounts: dict[str, float]


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
        with self._understood("nodes"):
            return {
                row["node_id"]: _counted(row["resources_total"])
                for row in self._rows("nodes")
                if row["state"] == "ALIVE"
            }

    def holdings(self) -> list[Holding]:
        """What placement groups, and actors and running tasks outside of them, hold at this moment.

        Ray's own figure of what is free on a node is seconds old, and does not say whose the rest is.
        """
        found = []
        with self._understood("placement groups"):
            for row in self._rows("placement_groups"):
                if row["state"] in _PLACED:
                    bundles = [bundle for bundle in row["bundles"] if bundle["node_id"]]
                    found += [
                        Holding(row["creator_job_id"], bundle["node_id"], _counted(bundle["unit_resources"]))
                        for bundle in bundles
                    ]
        for what, state in (("actors", "ALIVE"), ("tasks", "RUNNING")):
            with self._understood(what):
                found += [
                    Holding(row["job_id"], row["node_id"], _counted(row["required_resources"] or {}))
                    for row in self._rows(what, state)
                    if row["node_id"] and not row["placement_group_id"] and row.get("type") != "ACTOR_TASK"
                ]
        return [holding for holding in found if holding.amounts]

    def _rows(self, what: str, state: str | None = None) -> list[dict[str, Any]]:
        only = f"&filter_keys=state&filter_predicates=%3D&filter_values={state}" if state else ""
        answer = self._get(f"/api/v0/{what}?limit={_MOST_ROWS}&detail=1{only}")
        rows: list[dict[str, Any]] = answer["data"]["result"]["result"]
        return rows

    @contextmanager
    def _understood(self, what: str) -> Iterator[None]:
        try:
            yield
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ClusterUnreachable(f"the list of {what} at {self._address} is not understood: {error!r}") from error

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


def _counted(amounts: Mapping[str, float]) -> dict[str, float]:
    return {name: float(amount) for name, amount in amounts.items() if name in _COUNTED and amount}
