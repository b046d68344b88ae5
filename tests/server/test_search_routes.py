"""Searching over HTTP: the same hits as in Python, and one clear problem for each kind of bad request."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.api.index import index
from lookalike.api.queries import Query
from lookalike.api.search import load_index, search
from lookalike.server.schemas import SearchBody


def expected_hits(index_folder, query, top_k, **options):
    (hits,) = search(index_folder, [query], top_k=top_k, **options)
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
    vector = (1e200 * load_index(index_folder).encoder.embed([jpeg]).vectors[0].astype(float)).tolist()
    text = json.dumps(vector)
    expected = expected_hits(index_folder, jpeg, 5)
    for request in (
        {"json": {"vector": vector}},
        {"files": {"vector": (None, text)}},
        {"files": {"vector": ("v.json", text + " " * 100_000)}},
    ):
        response = client.post("/v1/search?k=5", **request)
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


def as_json(form):
    """Return the request with a JSON body that asks for the same as a form."""

    def text(data):
        return base64.b64encode(data).decode()

    body = dict(form.get("data", {}))
    for name, data in form["files"]:
        value = text(data) if name == "image" else {"image": text(data)}
        body[name] = [*body.get(name, []), value]
    if len(body.get("image", [])) == 1:
        (body["image"],) = body["image"]
    return {"json": body}


@pytest.fixture
def combined(index_folder, images, jpeg):
    """Requests as a form, and the queries of Python that ask for the same, by what they combine."""
    cat = (images / "more" / "cat2.jpg").read_bytes()
    coffee = image_bytes((30, 40), "PNG")
    ids = {"positive": ["more/cat2.jpg", "more/coffee2.jpg"], "negative": ["more/rocket1.jpg"]}
    files = [("image", jpeg), ("image", cat)]
    return {
        "a part in pixels": (
            {"files": files[:1], "data": {"crop": "10,20,60,50"}},
            Query([jpeg], crop="10,20,60,50"),
        ),
        "a part in shares": (
            {"files": files[1:], "data": {"crop": "25%,0%,50%,75%"}},
            Query([cat], crop="25%,0%,50%,75%"),
        ),
        "several images": ({"files": [*files, ("image", coffee)]}, Query([jpeg, cat, coffee])),
        "a part of several images": (
            {"files": files, "data": {"crop": "0%,0%,50%,50%"}},
            Query([jpeg, cat], crop="0%,0%,50%,50%"),
        ),
        "examples that are items": ({"files": files[:1], "data": ids}, Query([jpeg], **ids)),
        "examples that are images": (
            {"files": [("image", jpeg), ("positive", cat), ("negative", coffee), ("negative", jpeg)]},
            Query([jpeg], positive=[cat], negative=[coffee, jpeg]),
        ),
        "only positive examples": (
            {"files": [("positive", cat)], "data": {"positive": ["more/rocket1.jpg"]}},
            Query(positive=["more/rocket1.jpg", cat]),
        ),
        "an item and examples": (
            {"files": [("negative", cat)], "data": {"id": "more/cat2.jpg", "positive": ["astronaut0.jpg"]}},
            Query(id="more/cat2.jpg", positive=["astronaut0.jpg"], negative=[cat]),
        ),
    }


COMBINED = (
    "a part in pixels", "a part in shares", "several images", "a part of several images", "examples that are items",
    "examples that are images", "only positive examples", "an item and examples",
)  # fmt: skip


@pytest.mark.parametrize("as_form", [True, False])
@pytest.mark.parametrize("name", COMBINED)
def test_queries_of_all_kinds_have_the_hits_of_python(client, index_folder, combined, name, as_form):
    form, query = combined[name]
    expected = expected_hits(index_folder, query, 8)
    hits = hits_of(client.post("/v1/search?k=8", **(form if as_form else as_json(form))))
    assert [item for item, _ in hits] == [item for item, _ in expected]
    assert [score for _, score in hits] == pytest.approx([score for _, score in expected], abs=5e-6)


def test_form_and_json_are_described_with_the_same_fields(client):
    bodies = client.get("/openapi.json").json()["paths"]["/v1/search"]["post"]["requestBody"]["content"]
    form, body = (bodies[kind]["schema"] for kind in ("multipart/form-data", "application/json"))
    assert set(form["properties"]) == set(body["properties"]) == set(SearchBody.model_fields)
    assert "$ref" not in str(bodies)  # it would point outside of the description
    for example in body["examples"]:
        SearchBody.model_validate_json(json.dumps(example))


def test_a_vector_with_examples_has_the_hits_of_python(client, index_folder):
    vector = np.random.default_rng(0).normal(size=load_index(index_folder).index.dim).tolist()
    body = {"vector": vector, "positive": ["more/cat2.jpg"], "where": "id != 'astronaut0.jpg'"}
    query = Query(vector=vector, positive=["more/cat2.jpg"])
    expected = expected_hits(index_folder, query, 9, where="id != 'astronaut0.jpg'")
    hits = hits_of(client.post("/v1/search?k=9", json=body))
    assert [item for item, _ in hits] == [item for item, _ in expected]


def test_the_file_of_an_item_under_another_name_is_not_its_hit(make_client, images, encoder, tmp_path):
    copy = Path(shutil.copytree(images, tmp_path / "copy"))
    (copy / "link.jpg").symlink_to(copy / "more" / "cat2.jpg")
    index(copy, encoder, out=tmp_path / "linked.index")
    hits = hits_of(make_client({"linked": tmp_path / "linked.index"}).post("/v1/search?k=11", json={"id": "link.jpg"}))
    assert hits == expected_hits(tmp_path / "linked.index", Query(id="link.jpg"), 11)
    assert {"link.jpg", "more/cat2.jpg"}.isdisjoint(item for item, _ in hits)


def test_probabilities_are_those_of_python(make_client, calibrated_folder, jpeg):
    client = make_client({"calibrated": calibrated_folder})
    (expected,) = search(calibrated_folder, [jpeg], top_k=12)
    hits = client.post("/v1/search?k=12", files={"image": jpeg}).json()["hits"]
    assert [hit["id"] for hit in hits] == [hit.id for hit in expected]
    assert [hit["probability"] for hit in hits] == pytest.approx([hit.probability for hit in expected], abs=2e-5)
    assert client.get("/v1/indexes").json()["indexes"][0]["calibrated"] is True


@pytest.mark.parametrize("as_form", [True, False])
def test_a_minimum_probability_drops_hits(make_client, calibrated_folder, jpeg, as_form):
    client = make_client({"calibrated": calibrated_folder})
    (everything,) = search(calibrated_folder, [jpeg], top_k=12)
    between = (everything[2].probability + everything[3].probability) / 2
    for minimum, count in ((0, 12), (between, 3), (1, 0)):
        form = {"files": [("image", jpeg)], "data": {"min_probability": minimum}}
        hits = hits_of(client.post("/v1/search?k=12", **(form if as_form else as_json(form))))
        assert [item for item, _ in hits] == [hit.id for hit in everything[:count]]


def test_without_a_calibration_there_is_no_probability(client, jpeg):
    response = client.post("/v1/search?k=2", files={"image": jpeg}, data={"min_probability": "0"})
    assert [hit["probability"] for hit in response.json()["hits"]] == [None, None]
    assert client.get("/v1/indexes").json()["indexes"][0]["calibrated"] is False
    response = client.post("/v1/search", files={"image": jpeg}, data={"min_probability": "0.5"})
    assert (response.status_code, response.json()["parameter"]) == (422, "min_probability")
    assert "calibration" in response.json()["detail"]


@pytest.mark.parametrize("value", ["-0.1", "1.1", "nan", "high"])
def test_a_minimum_probability_is_from_0_to_1(client, jpeg, value):
    response = client.post("/v1/search", files={"image": jpeg}, data={"min_probability": value})
    assert (response.status_code, response.json()["parameter"]) == (422, "min_probability")


@pytest.mark.parametrize("as_form", [True, False])
def test_an_example_never_names_a_file_of_the_service(client, images, jpeg, as_form):
    path = str(images / "more" / "cat2.jpg")
    for name in ("positive", "negative"):
        form = {"files": [("image", jpeg)], "data": {name: ["more/cat1.jpg", path]}}
        response = client.post("/v1/search", **(form if as_form else as_json(form)))
        assert (response.status_code, response.json()["parameter"]) == (404, f"{name}.1")


def test_an_unreadable_image_of_several_is_named(client, jpeg):
    files = [("image", jpeg), ("image", jpeg[:200]), ("positive", jpeg), ("negative", jpeg)]
    for number, name in ((1, "image.1"), (2, "positive.0"), (3, "negative.0")):
        damaged = [(field, b"MZ" + bytes(100) if n == number else jpeg) for n, (field, _) in enumerate(files)]
        response = client.post("/v1/search", files=damaged, data={"crop": "0%,0%,50%,50%"})
        assert (response.status_code, response.json()["parameter"]) == (422, name)
        assert response.json()["type"] == "urn:lookalike:problem:unreadable-image"


def test_more_images_than_a_request_may_have(make_client, jpeg):
    client = make_client(max_images=3)
    files = [("image", jpeg), ("image", jpeg), ("positive", jpeg), ("negative", jpeg)]
    assert client.post("/v1/search", files=files[:3]).status_code == 200
    for request in ({"files": files}, as_json({"files": files})):
        response = client.post("/v1/search", **request)
        assert (response.status_code, response.json()["parameter"]) == (422, "image")
        assert "at most 3 images, got 4" in response.json()["detail"]


def test_the_limits_of_an_image_hold_for_a_part_of_it(make_client):
    client = make_client(max_pixels=10_000)
    for data, text in ((image_bytes((101, 100), "PNG"), "10,100 pixels"), (image_bytes((9, 9), "EPS"), "EPS")):
        response = client.post("/v1/search", files={"image": data}, data={"crop": "0,0,2,2"})
        assert response.json()["type"] == "urn:lookalike:problem:unreadable-image"
        assert text in response.json()["detail"]


def test_a_part_outside_of_the_image(client, jpeg):
    response = client.post("/v1/search", files={"image": jpeg}, data={"crop": "5000,0,10,10"})
    assert (response.status_code, response.json()["parameter"]) == (422, "crop")
    assert "outside of an image of" in response.json()["detail"]


BAD = {
    "no image": ({"files": {"other": b"x"}}, 422, "other"),
    "only a negative example": ({"json": {"negative": ["more/cat2.jpg"]}}, 422, None),
    "a part of an item": ({"json": {"id": "more/cat2.jpg", "crop": "0,0,1,1"}}, 422, "crop"),
    "a part with three numbers": ({"files": {"image": b"x"}, "data": {"crop": "0,0,1"}}, 422, "crop"),
    "a part that is a list": ({"json": {"image": "aGk=", "crop": [0, 0, 1, 1]}}, 422, "crop"),
    "a vector next to an image": ({"files": {"image": b"x"}, "data": {"vector": "[1.0]"}}, 422, None),
    "a vector that is not JSON": ({"files": {"vector": b"\x93NUMPY"}}, 422, "vector"),
    "a vector in a form that is not a list": ({"files": {"vector": b'{"a": 1}'}}, 422, "vector"),
    "a vector in a form of large numbers": ({"files": {"vector": b"[" + b"9" * 400 + b"]"}}, 422, "vector.0"),
    "a vector in a form that is deep": ({"files": {"vector": b"[" * 100_000}}, 422, "vector"),
    "an empty example": ({"files": [("image", b"x"), ("positive", b"")]}, 422, "positive.0"),
    "an example that is a number": ({"json": {"positive": [3]}}, 422, "positive.0"),
    "an example with another field": ({"json": {"positive": [{"image": "aGk=", "id": "a"}]}}, 422, "positive.0"),
    "many examples": ({"json": {"positive": ["more/cat2.jpg"] * 101}}, 422, "positive"),
    "a text instead of examples": ({"json": {"positive": "more/cat2.jpg"}}, 422, "positive"),
    "one of several is not base64": ({"json": {"image": ["aGk=", "%%%"]}}, 422, "image.1"),
    "an example at a URL": ({"json": {"positive": [{"image": "http://127.0.0.1/a.jpg"}]}}, 422, "positive.0"),
    "images that are numbers": ({"json": {"image": [1]}}, 422, "image.0"),
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
