"""The service is as its OpenAPI description says."""

from __future__ import annotations

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import CHECKS, load_all_checks

load_all_checks()
# random bytes are seldom an image, and reading needs no token on this machine
CHECK_NAMES = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
]


@pytest.mark.slow
def test_the_service_is_as_it_describes_itself(client):
    schema = schemathesis.openapi.from_asgi("/openapi.json", client.app, headers={"Host": "127.0.0.1"})
    checks = CHECKS.get_by_names(CHECK_NAMES)
    seen = []
    bounded = hypothesis.settings(
        max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
    )
    for result in schema.get_all_operations():
        operation = result.ok()
        seen.append(operation.label)

        @hypothesis.given(case=operation.as_strategy())
        @bounded
        def check(case):
            case.call_and_validate(base_url="http://127.0.0.1:8000", checks=checks)

        check()
    assert {"POST /v1/search", "POST /v1/embeddings", "GET /v1/items/{item}/thumbnail"} <= set(seen), seen
