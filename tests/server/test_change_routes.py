"""Items that are added, changed and removed over HTTP: durable, found at once, and only by those who may."""

from __future__ import annotations

import base64
import io
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from PIL import Image

from lookalike.api.search import load_index
from lookalike.errors import ServiceError
from lookalike.index import index as index_module
from lookalike.server.audit import AuditLog
from lookalike.server.client import Client


@pytest.fixture
def writer(make_client, tokens):
    client = make_client(token_file=tokens["file"])
    client.headers["Authorization"] = f"Bearer {tokens['write']}"
    return client


def png(colour, size=(40, 30)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format="PNG")
    return buffer.getvalue()


def best(client, data, **fields):
    hits = client.post("/v1/search?k=1", files={"image": data}, data=fields).json()["hits"]
    return hits[0] if hits else None


def uploads(index_folder):
    return [path for path in (index_folder / "uploads").rglob("*") if path.is_file()]


def test_an_added_item_is_the_first_hit_of_the_next_search(writer, index_folder):
    data = png("red")
    fields = {"id": "new/red.png", "label": "red", "metadata": json.dumps({"year": 2021, "sold": False})}
    response = writer.post("/v1/items", files={"image": ("x.png", data)}, data=fields)
    assert response.status_code == 201, response.text
    assert response.json() == {"id": "new/red.png", "label": "red", "metadata": {"year": 2021, "sold": False}}
    assert writer.get(response.headers["location"]).json() == response.json()
    hit = best(writer, data)
    assert hit == {**response.json(), "score": pytest.approx(1, abs=1e-5), "probability": None}
    assert best(writer, data, where="label == 'red' and year >= 2021")["id"] == "new/red.png"
    assert writer.get("/v1/items/new/red.png/thumbnail").headers["content-type"] == "image/jpeg"
    # another process sees the same, and the upload is in the folder of the index, as it was sent
    reopened = load_index(index_folder).index
    assert reopened.get("new/red.png").label == "red"
    (upload,) = uploads(index_folder)
    assert reopened.path_of("new/red.png") == upload
    assert upload.read_bytes() == data


def test_an_item_as_json_gets_a_random_id(writer):
    body = {"image": base64.b64encode(png("blue")).decode()}
    first, second = (writer.post("/v1/items", json=body).json() for _ in range(2))
    assert first["id"] != second["id"]
    assert first["label"] is None


def test_an_id_in_use_is_a_conflict_and_nothing_is_changed(writer, index_folder):
    for item in ("more/cat2.jpg", "x"):
        first = writer.post("/v1/items", files={"image": png("red")}, data={"id": item})
        second = writer.post("/v1/items", files={"image": png("blue")}, data={"id": item, "label": "blue"})
        assert (first.status_code, second.status_code) == (409 if item != "x" else 201, 409)
    assert writer.get("/v1/items/x").json()["label"] is None
    assert len(uploads(index_folder)) == 1


def test_of_requests_with_one_id_at_once_one_is_answered_with_201(writer, index_folder):
    with ThreadPoolExecutor(6) as pool:
        tasks = [
            pool.submit(writer.post, "/v1/items", files={"image": png((20 * n, 0, 0))}, data={"id": "same"})
            for n in range(6)
        ]
        statuses = sorted(task.result().status_code for task in tasks)
    assert statuses == [201] + [409] * 5
    assert len(uploads(index_folder)) == 1


def test_label_and_metadata_are_changed_and_the_rest_stays(writer):
    item = "more/cat2.jpg"
    changed = writer.patch(f"/v1/items/{item}", json={"label": "cat", "metadata": {"year": 2020, "colour": "brown"}})
    assert changed.json() == {"id": item, "label": "cat", "metadata": {"year": 2020, "colour": "brown"}}
    changed = writer.patch(f"/v1/items/{item}", json={"metadata": {"year": None, "sold": True}})
    assert changed.json() == {"id": item, "label": "cat", "metadata": {"colour": "brown", "sold": True}}
    assert writer.patch(f"/v1/items/{item}", json={"label": None}).json()["label"] is None
    assert writer.get(f"/v1/items/{item}").json() == {
        "id": item,
        "label": None,
        "metadata": {"colour": "brown", "sold": True},
    }


def test_a_new_image_replaces_the_old_one(writer, index_folder):
    writer.post("/v1/items", files={"image": png("red")}, data={"id": "x"})
    assert writer.patch("/v1/items/x", files={"image": png("green")}, data={"label": "green"}).status_code == 200
    assert best(writer, png("green"))["id"] == "x"
    (upload,) = uploads(index_folder)
    assert upload.read_bytes() == png("green")


def test_a_removed_item_is_never_a_hit_and_its_upload_is_removed(writer, index_folder, images):
    writer.post("/v1/items", files={"image": png("red")}, data={"id": "x"})
    for item in ("x", "more/cat2.jpg"):
        assert writer.delete(f"/v1/items/{item}").status_code == 204
        assert writer.delete(f"/v1/items/{item}").status_code == 404
        assert writer.get(f"/v1/items/{item}").status_code == 404
    assert uploads(index_folder) == []
    data = (images / "more" / "cat2.jpg").read_bytes()  # it was not uploaded, so it stays
    assert best(writer, data)["id"] != "more/cat2.jpg"


def test_an_index_without_items_has_no_hits(writer):
    for item in writer.get("/v1/items").json()["items"]:
        assert writer.delete(f"/v1/items/{item['id']}").status_code == 204
    assert writer.post("/v1/search", files={"image": png("red")}).json()["hits"] == []


@pytest.mark.parametrize(
    "item",
    ["", ".", "..", "../x.png", "a/../b", "/etc/passwd", "a//b", "a/", "a\0b", "a\nb", "x" * 1025, "a/thumbnail"],
)
def test_ids_that_could_be_mistaken_for_paths_are_refused(writer, index_folder, item):
    response = writer.post("/v1/items", json={"image": base64.b64encode(png("red")).decode(), "id": item})
    assert (response.status_code, response.json()["parameter"]) == (422, "id")
    assert uploads(index_folder) == []


def test_an_absolute_path_or_its_spelling_is_only_a_name(writer):
    for item in ("etc/passwd", "%2e%2e/x", "c:\\windows\\win.ini", "\u202eoof", "ä\u0308"):
        response = writer.post("/v1/items", json={"image": base64.b64encode(png("red")).decode(), "id": item})
        assert response.status_code == 201, response.text


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"metadata": "not JSON"}, "metadata"),
        ({"metadata": "[1]"}, "metadata"),
        ({"metadata": '{"a": [1]}'}, None),
        ({"metadata": '{"a": NaN}'}, None),
        ({"metadata": '{"label": "x"}'}, "metadata"),
        ({"label": "x" * 1001}, "label"),
        ({"path": "/etc/passwd"}, "path"),
    ],
)
def test_bad_fields_change_nothing(writer, index_folder, fields, parameter):
    response = writer.post("/v1/items", files={"image": png("red")}, data={"id": "x", **fields})
    assert response.status_code == 422, response.text
    if parameter:
        assert response.json()["parameter"] == parameter
    assert writer.get("/v1/items/x").status_code == 404
    assert uploads(index_folder) == []


def test_what_is_not_an_image_is_not_stored(writer, index_folder):
    for data in (b"MZ", png("red")[:60], b""):
        assert writer.post("/v1/items", files={"image": data}, data={"id": "x"}).status_code == 422
    assert writer.post("/v1/items", data={"id": "x"}, files={"other": b"1"}).status_code == 422
    assert uploads(index_folder) == []


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
def test_only_a_write_token_may_change(make_client, tokens, index_folder, method):
    def send(client, token):
        path = "/v1/items" if method == "POST" else "/v1/items/more/cat2.jpg"
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return client.request(method, path, headers=headers).status_code

    assert send(make_client(), None) == 403  # no token can be right: the service is read-only
    client = make_client(token_file=tokens["file"])
    assert [send(client, token) for token in (None, "wrong", tokens["read"])] == [401, 401, 403]
    assert send(client, tokens["write"]) in (204, 422, 400)
    assert sorted(path.name for path in index_folder.iterdir() if path.name == "uploads") == []


def test_changes_are_in_the_audit_log(writer, caplog, tmp_path):
    file = tmp_path / "audit.jsonl"
    writer.app.state.service.audit = AuditLog(file)
    with caplog.at_level(logging.INFO, logger="lookalike.audit"):
        writer.post("/v1/items", files={"image": png("red")}, data={"id": "x"})
        writer.patch("/v1/items/x", json={"label": "red"})
        writer.delete("/v1/items/x")
        writer.delete("/v1/items/x")
    lines = [record.getMessage() for record in caplog.records if record.name == "lookalike.audit"]
    assert file.read_text().splitlines() == lines
    entries = list(map(json.loads, lines))
    assert [(entry["action"], entry["item"], entry["token"], entry["index"]) for entry in entries] == [
        ("add", "x", "writeer", "small"),
        ("change", "x", "writeer", "small"),
        ("remove", "x", "writeer", "small"),
    ]
    age = datetime.now(UTC) - datetime.fromisoformat(entries[0]["time"])
    assert timedelta(0) <= age < timedelta(minutes=1)


def test_many_changes_compact_the_index(writer, monkeypatch):
    monkeypatch.setattr(index_module, "_COMPACT_FROM", 3)
    for number in range(3):
        assert writer.post("/v1/items", files={"image": png((50 * number, 9, 9))}).status_code == 201
    served = writer.app.state.service.indexes["small"]
    while served.compacting:
        pass
    assert served.loaded.index.pending == 0
    assert len(served.loaded.index) == 15


def test_the_client_changes_items(make_client, tokens, tmp_path):
    client = make_client(token_file=tokens["file"])
    (tmp_path / "x.png").write_bytes(png("red"))
    with Client(token=tokens["write"], transport=client._transport) as remote:
        added = remote.add(tmp_path / "x.png", item="x", label="red", metadata={"year": 2021})
        assert (added.id, added.label, added.metadata) == ("x", "red", {"year": 2021})
        changed = remote.update("x", metadata={"year": None}, image=png("green"))
        assert (changed.label, changed.metadata) == ("red", {})
        assert remote.update("x", label=None).label is None
        assert remote.search(png("green"), top_k=1)[0].id == "x"
        with pytest.raises(ServiceError) as caught:
            remote.add(png("red"), item="x")
        assert (caught.value.status, caught.value.kind) == (409, "conflict")
        remote.remove("x")
        with pytest.raises(ServiceError):
            remote.get("x")
    assert Path(tmp_path / "x.png").is_file()
