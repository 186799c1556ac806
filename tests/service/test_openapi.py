"""Requests drawn from the service's own description: none of them makes it fail."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error

from orchestrator.client.calls import API
from orchestrator.service.app import create_app
from orchestrator.service.settings import Limits, ServiceSettings
from orchestrator.store import AttemptRecord, JobRecord, Store

EXAMPLES = 30
MORE = 200


@schemathesis.serializer("application/gzip")
def _as_it_is(context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


class Silent:
    """A log source that has nothing."""

    def read(self, job: JobRecord, attempt: AttemptRecord, offset: int, most: int) -> bytes:
        return b""


@pytest.fixture(scope="module")
def token() -> list[str]:
    return []


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory, token: list[str]) -> Iterator[Any]:
    folder: Path = tmp_path_factory.mktemp("described")
    with Store.open(f"sqlite:///{folder / 'thresher.db'}") as store:
        first = store.create_first_token()
        assert first is not None
        token.append(first[1])
        limits = Limits(requests_per_s=0, stream_s=0.1)
        app = create_app(store, ServiceSettings(folder, (), limits), lambda: None, None, Silent())
        yield schemathesis.openapi.from_asgi(f"{API}/openapi.json", app)


@pytest.mark.parametrize(
    "examples", [EXAMPLES, pytest.param(MORE, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
def test_no_request_makes_it_fail(described: Any, token: list[str], examples: int) -> None:
    tried = set()
    for found in described.get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy())
        @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        def check(case: Any) -> None:
            answer = case.call(headers={"Authorization": f"Bearer {token[0]}"})
            case.validate_response(answer, checks=[not_a_server_error])

        check()
        tried.add(operation.label)
    assert len(tried) >= 30, sorted(tried)
