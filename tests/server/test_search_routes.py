"""Searching over HTTP: the same hits as in Python, and one clear problem for each kind of bad request."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from lookalike.api.search import load_index, search


def expected_hits(index_folder, data, top_k):
    (hits,) = search(index_folder, [data], top_k=top_k)
    return [(hit.id, round(hit.score, 6)) for hit in hits]


def hits_of(response):
    assert response.status_code == 200, response.text
    return [(hit["id"], hit["score"]) for hit in response.json()["hits"]]


def test_a_multipart_image_has_the_hits_of_python(client, index_folder, jpeg):
    response = client.post("/v1/search?k=4", files={"image": ("q.jpg", jpeg)})
    assert hits_of(response) == expected_hits(index_folder, jpeg, 4)
    assert response.json()["took_ms"] > 0


@pytest.mark.parametrize("head", ["", "data:image/jpeg;base64,"])
def test_an_image_as_json(client, index_folder, jpeg, head):
    body = {"image": head + base64.b64encode(jpeg).decode()}
    assert hits_of(client.post("/v1/search?k=3", json=body)) == expected_hits(index_folder, jpeg, 3)


def test_a_vector_of_any_length_has_the_hits_of_its_image(client, index_folder, jpeg):
    vector = load_index(index_folder).encoder.embed([jpeg]).vectors[0].astype(float)
    response = client.post("/v1/search?k=5", json={"vector": (1e200 * vector).tolist()})
    expected = expected_hits(index_folder, jpeg, 5)
    assert [item for item, _ in hits_of(response)] == [item for item, _ in expected]
    assert [score for _, score in hits_of(response)] == pytest.approx([score for _, score in expected], abs=2e-6)


def test_by_default_ten_hits_and_an_uploaded_item_is_found(client, images):
    data = (images / "more" / "rocket1.jpg").read_bytes()
    hits = hits_of(client.post("/v1/search", files={"image": data}))
    assert len(hits) == 10
    assert hits[0] == ("more/rocket1.jpg", pytest.approx(1, abs=1e-5))


def test_one_of_several_indexes(make_client, index_folder, jpeg):
    client = make_client({"first": index_folder, "second": index_folder})
    answers = [client.post(path, files={"image": jpeg}) for path in ("/v1/search", "/v1/indexes/second/search")]
    assert hits_of(answers[0]) == hits_of(answers[1])
    problem = client.post("/v1/indexes/third/search", files={"image": jpeg}).json()
    assert (problem["status"], problem["type"]) == (404, "urn:lookalike:problem:not-found")
    assert "first, second" in problem["detail"]


def image_bytes(size, image_format):
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, format=image_format)
    return buffer.getvalue()


def test_an_item_is_searched_for_by_its_id_and_is_not_its_own_hit(client, index_folder, images):
    response = client.post("/v1/search?k=11", json={"id": "more/cat2.jpg"})
    (expected,) = search(index_folder, [images / "more" / "cat2.jpg"], top_k=11)
    assert [item for item, _ in hits_of(response)] == [hit.id for hit in expected]
    assert [score for _, score in hits_of(response)] == pytest.approx([hit.score for hit in expected], abs=2e-6)
    problem = client.post("/v1/search", json={"id": "more/dog.jpg"}).json()
    assert (problem["status"], problem["parameter"]) == (404, "id")


@pytest.mark.parametrize("as_form", [True, False])
def test_a_filter_limits_the_hits(client, jpeg, as_form):
    where = "id in ['more/cat2.jpg', 'more/rocket1.jpg', 'nothing']"
    request = {"files": {"image": jpeg}, "data": {"where": where}}
    if not as_form:
        request = {"json": {"image": base64.b64encode(jpeg).decode(), "where": where}}
    hits = hits_of(client.post("/v1/search?k=5", **request))
    assert [item for item, _ in hits] == ["more/rocket1.jpg", "more/cat2.jpg"]
    for bad in ("label ==", "__import__('os')", "x" * 3000):
        response = client.post("/v1/search", files={"image": jpeg}, data={"where": bad})
        assert (response.status_code, response.json()["parameter"]) == (422, "where")


BAD = {
    "no image": ({"files": {"other": b"x"}}, 422, "image"),
    "an empty image": ({"files": {"image": b""}}, 422, "image"),
    "not an image": ({"files": {"image": b"MZ" + bytes(100)}}, 422, "image"),
    "another field": ({"files": {"image": b"x"}, "data": {"path": "/etc/passwd"}}, 422, "path"),
    "not JSON": ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, None),
    "an array": ({"json": []}, 422, None),
    "nothing": ({"json": {}}, 422, None),
    "two queries": ({"json": {"image": "aGk=", "vector": [1.0]}}, 422, None),
    "an image and an id": ({"files": {"image": b"x"}, "data": {"id": "a.jpg"}}, 422, None),
    "not base64": ({"json": {"image": "%%%"}}, 422, "image"),
    "a URL": ({"json": {"image": "http://127.0.0.1/a.jpg"}}, 422, "image"),
    "a data URI of text": ({"json": {"image": "data:text/plain;base64,aGk="}}, 422, "image"),
    "another dimension": ({"json": {"vector": [1.0, 2.0]}}, 422, "vector"),
    "a vector of text": ({"json": {"vector": ["1"]}}, 422, "vector.0"),
    "text": ({"content": b"hello", "headers": {"content-type": "text/plain"}}, 415, None),
    "an unknown field": ({"json": {"images": []}}, 422, "images"),
    "a form without a boundary": ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, None),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_a_problem(client, case):
    request, status, parameter = BAD[case]
    response = client.post("/v1/search", **request)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert problem.get("parameter") == parameter
    assert problem["detail"].endswith(".")


@pytest.mark.parametrize("k", ["0", "-1", "1001", "13", "x", "1e3"])
def test_k_is_between_one_and_the_items(client, jpeg, k):
    response = client.post(f"/v1/search?k={k}", files={"image": jpeg})
    assert response.status_code == 422
    assert response.json()["parameter"] == "k"


@pytest.mark.parametrize("values", [[0.0], [float("1e-320")]])
def test_a_vector_without_a_direction(client, index_folder, values):
    dim = load_index(index_folder).index.dim
    response = client.post("/v1/search", json={"vector": values + [0.0] * (dim - 1)})
    assert response.status_code == (422 if values == [0.0] else 200)


@pytest.mark.parametrize("text", [b"NaN", b"Infinity", b"1e999"])
def test_a_vector_of_numbers_that_are_not_finite(client, index_folder, text):
    dim = load_index(index_folder).index.dim
    body = b'{"vector": [' + b",".join([text, *[b"0.1"] * (dim - 1)]) + b"]}"
    response = client.post("/v1/search", content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422), response.text


def test_images_with_too_many_pixels_or_of_other_formats(make_client):
    client = make_client(max_pixels=10_000)
    assert client.post("/v1/search", files={"image": image_bytes((100, 100), "PNG")}).status_code == 200
    for data, text in ((image_bytes((101, 100), "PNG"), "10,100 pixels"), (image_bytes((9, 9), "EPS"), "EPS")):
        response = client.post("/v1/search", files={"image": data})
        assert response.json()["type"] == "urn:lookalike:problem:unreadable-image"
        assert text in response.json()["detail"]


def test_a_body_above_the_limit(make_client, jpeg):
    client = make_client(max_body=1000)
    assert client.post("/v1/search", files={"image": jpeg}).status_code == 413

    def chunks():
        yield from (bytes(600), bytes(600))

    response = client.post("/v1/search", content=chunks(), headers={"content-type": "application/json"})
    assert response.status_code == 413


def test_more_images_than_may_wait_are_refused(make_client, jpeg):
    text = base64.b64encode(jpeg).decode()
    client = make_client(max_queue=2)
    model = client.get("/v1/models").json()["data"][0]["id"]
    answers = []
    for count in (2, 3):
        body = {"model": model, "input": [{"image": text}] * count}
        answers.append(client.post("/v1/embeddings", json=body))
    assert [answer.status_code for answer in answers] == [200, 422]


def test_hits_are_finite_numbers(client, jpeg):
    scores = [score for _, score in hits_of(client.post("/v1/search?k=12", files={"image": jpeg}))]
    assert np.isfinite(scores).all()
    assert scores == sorted(scores, reverse=True)
