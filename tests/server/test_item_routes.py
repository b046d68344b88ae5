"""Indexes, items and thumbnails."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace

import pytest
from PIL import ExifTags, Image

from lookalike.api.index import index


def test_indexes(make_client, index_folder):
    client = make_client({"first": index_folder, "second": index_folder})
    first, second = client.get("/v1/indexes").json()["indexes"]
    assert (first["name"], first["items"], first["default"]) == ("first", 12, True)
    assert (second["name"], second["default"]) == ("second", False)


def test_items_are_listed_page_by_page(client, images):
    expected = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.jpg"))
    ids, after = [], {}
    while after is not None:
        page = client.get("/v1/items", params={"limit": 5, **after}).json()
        assert len(page["items"]) <= 5
        ids += [item["id"] for item in page["items"]]
        after = None if page["next"] is None else {"after": page["next"]}
    assert ids == expected


def test_an_item_by_its_id(client):
    for path in ("/v1/items/more/cat2.jpg", "/v1/indexes/small/items/more%2Fcat2.jpg"):
        assert client.get(path).json()["id"] == "more/cat2.jpg"
    assert client.get("/v1/items/more/dog.jpg").status_code == 404


def test_a_thumbnail_is_a_small_jpeg_without_exif(client, images):
    response = client.get("/v1/items/more/cat2.jpg/thumbnail")
    assert response.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(response.content)) as image, Image.open(images / "more" / "cat2.jpg") as original:
        assert image.size == original.size
        assert not image.getexif()
    again = client.get("/v1/items/more/cat2.jpg/thumbnail", headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_thumbnail_of_a_large_turned_image(make_client, encoder, tmp_path):
    (tmp_path / "images").mkdir()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Artist] = "someone"
    Image.new("RGB", (1200, 600), "red").save(tmp_path / "images" / "a.jpg", exif=exif)
    index(tmp_path / "images", encoder, out=tmp_path / "a.index")
    content = make_client({"a": tmp_path / "a.index"}).get("/v1/items/a.jpg/thumbnail").content
    assert b"someone" not in content
    with Image.open(io.BytesIO(content)) as image:
        assert image.size == (128, 256)


@pytest.mark.parametrize(
    "item",
    [
        "../../../../etc/passwd",
        "..%2F..%2Fetc%2Fpasswd",
        "%2Fetc%2Fpasswd",
        "more/../../secret.jpg",
        "a%00b",
        "more",
    ],
)
def test_a_path_of_a_client_opens_no_file(client, item):
    for path in (f"/v1/items/{item}/thumbnail", f"/v1/items/{item}"):
        response = client.get(path)
        assert response.status_code == 404
        assert "root" not in response.text


def test_an_item_whose_path_leads_out_of_the_folder_has_no_thumbnail(make_client, index_folder, images):
    secret = images.parent / "secret.jpg"
    Image.new("RGB", (8, 8)).save(secret)
    file = index_folder / "items.json"
    file.write_text(file.read_text().replace('"more/rocket2.jpg"', '"zz/../../secret.jpg"'))
    client = make_client_unchecked(make_client, index_folder)
    assert client.get("/v1/items/zz%2F..%2F..%2Fsecret.jpg/thumbnail").status_code == 404


def make_client_unchecked(make_client, index_folder):
    """Make the description of an index fit its changed items."""
    from lookalike._files import FileRecord
    from lookalike.index.storage import ITEMS_FILE, read_info, write_info

    info = read_info(index_folder)
    files = {**info.files, ITEMS_FILE: FileRecord.of(index_folder / ITEMS_FILE)}
    write_info(index_folder, replace(info, files=files))
    return make_client({"small": index_folder})


def test_a_missing_file_has_no_thumbnail_and_its_path_is_not_shown(make_client, encoder, tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 20), "red").save(tmp_path / "images" / name)
    index(tmp_path / "images", encoder, out=tmp_path / "a.index")
    (tmp_path / "images" / "a.png").unlink()
    (tmp_path / "images" / "b.png").write_bytes(b"not an image")
    client = make_client({"a": tmp_path / "a.index"})
    for name in ("a.png", "b.png"):
        response = client.get(f"/v1/items/{name}/thumbnail")
        assert response.status_code == 404
        assert str(tmp_path) not in response.text


@pytest.mark.skipif(os.name != "posix", reason="file names are Unicode elsewhere")
def test_an_id_that_is_not_valid_unicode(make_client, encoder, tmp_path):
    (tmp_path / "images").mkdir()
    name = os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (20, 20), "red").save(tmp_path / "images" / name)
    index(tmp_path / "images", encoder, out=tmp_path / "a.index")
    client = make_client({"a": tmp_path / "a.index"})
    assert json.loads(client.get("/v1/items").content)["items"][0]["id"] == name
