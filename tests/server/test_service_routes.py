"""Health, counts, and the page that describes the service."""

from __future__ import annotations

import re

from prometheus_client.parser import text_string_to_metric_families


def test_alive_and_ready(client):
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}
    client.app.state.service.state = "stopping"
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200


def samples(client):
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value for family in families for sample in family.samples
    }


def test_counts_and_times_per_stage(client, jpeg):
    for _ in range(3):
        client.post("/v1/search", files={"image": jpeg})
    client.post("/v1/search", json={})
    client.get("/secret/path")
    values = samples(client)
    assert values["lookalike_requests_total", "/v1/search", "200", "POST"] == 3
    assert values["lookalike_requests_total", "/v1/search", "422", "POST"] == 1
    assert values["lookalike_requests_total", "404", "GET", "other"] == 1
    for stage, count in {"receive": 4, "decode": 3, "wait": 3, "search": 3}.items():
        assert values["lookalike_stage_seconds_count", stage] == count
    assert values["lookalike_batch_images_sum",] == 3
    assert values["lookalike_queue_images",] == 0
    assert values["lookalike_index_items", "small"] == 12


def test_the_page_loads_nothing_and_shows_every_route(client):
    response = client.get("/docs")
    assert response.status_code == 200
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert not re.findall(r"(?:src|href)=\"(?!openapi.json)", response.text)
    assert "<script" not in response.text
    api = client.get("/openapi.json").json()
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            assert f"{method.upper()} {path}" in response.text
            assert operation["summary"]


def test_every_answer_has_the_headers_of_a_careful_server(client):
    for path in ("/healthz", "/nothing", "/v1/items/nothing", "/docs"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert len(headers["x-request-id"]) == 16


def test_an_error_of_the_service_shows_nothing_of_it(client, monkeypatch, caplog, jpeg):
    served = client.app.state.service.indexes["small"]

    def fail(*arguments):
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(served.loaded.index, "search", fail)
    response = client.post("/v1/search", files={"image": jpeg})
    assert response.status_code == 500
    assert "secret" not in response.text
    problem = response.json()
    assert problem["request_id"] == response.headers["x-request-id"]
    assert any(problem["request_id"] in record.getMessage() for record in caplog.records)


def test_the_framework_errors_are_problems(client):
    for response, status in ((client.get("/nothing"), 404), (client.delete("/v1/search"), 405)):
        assert (response.status_code, response.json()["status"]) == (status, status)
        assert response.headers["content-type"] == "application/problem+json"
