"""Requests made to do harm: every one is refused with a problem, and nothing is written."""

from __future__ import annotations

import base64
import io
import os
import random
import resource
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from lookalike.errors import UnreadableImage
from lookalike.server.app import create_app
from lookalike.server.batching import require_acceptable
from lookalike.server.options import ServiceOptions
from lookalike.server.service import Service

IMAGE_FORMATS = {
    "JPEG": {},
    "PNG": {},
    "GIF": {},
    "BMP": {},
    "WEBP": {},
    "TIFF": {"compression": "tiff_lzw"},
    "PPM": {},
}


def encoded(image: Image.Image, image_format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, **IMAGE_FORMATS[image_format])
    return buffer.getvalue()


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Cut an image off, change some of its bytes, or both."""
    changed = bytearray(data[: chance.randrange(1, len(data))] if chance.random() < 0.5 else data)
    for _ in range(chance.randrange(0, 20)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(side: int) -> bytes:
    """Claim a large image in a few bytes."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(1000))) + png_chunk(b"IEND", b"")


def text_bomb() -> bytes:
    """Hold a text of 200 MB in 200 kB."""
    text = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000)))
    data = encoded(Image.new("RGB", (4, 4)), "PNG")
    return data[:33] + text + data[33:]


def tiff_loop() -> bytes:
    """Point the next directory of a TIFF at itself."""
    entries = [(256, 4, 1, 4), (257, 4, 1, 4), (273, 4, 1, 8), (279, 4, 1, 16)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 8)


SPECIAL = {
    "empty": b"",
    "one byte": b"\xff",
    "zeros": bytes(5000),
    "text": b"hello " * 1000,
    "HTML": b"<html><script>alert(1)</script></html>",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "PDF": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj",
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/written) (w) file closefile\nshowpage\n",
    "ZIP": b"PK\x03\x04" + bytes(200),
    "ELF": b"\x7fELF" + bytes(200),
    "HEIC without a body": b"\x00\x00\x00\x18ftypheic" + bytes(200),
    "AVIF without a body": b"\x00\x00\x00\x1cftypavif" + bytes(200),
    "JPEG 2000 without a body": b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(100),
    "PNG bomb": png_bomb(60_000),
    "PNG of the largest size": png_bomb(2**31 - 1),
    "GIF of the largest size": b"GIF89a" + b"\xff" * 4 + bytes(3) + b"," + bytes(4) + b"\xff" * 4 + bytes(9),
    "BMP of a negative size": b"BM" + struct.pack("<IHHIIiiHH", 99, 0, 0, 54, 40, -9, -9, 1, 24) + bytes(60),
    "PPM of a large size": b"P6 99999 99999 255\n" + bytes(100),
    "a path": b"/etc/passwd",
}


class Watch:
    """Records which files Python opens for writing, and which programs it starts."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.is_on = False
        sys.addaudithook(self._record)  # which stays until the process ends

    def _record(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.is_on:
            return
        if event == "open":
            path, _, flags = arguments
            if flags & (os.O_WRONLY | os.O_RDWR):
                self.seen.append(f"write {path}")
        elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
            self.seen.append(f"start {arguments[0]}")


@pytest.fixture(scope="module")
def client(folder) -> Iterator[TestClient]:
    """A client of a service that all tests of this file share: no request may change it."""
    service = Service({"small": folder / "small.index"}, ServiceOptions())
    app = create_app(service)
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.fixture(autouse=True)
def nothing_is_written(watch, client, folder):
    """Fail if a test opens a file for writing, starts a program, or changes the data folder."""
    before = files_of(folder)
    watch.seen.clear()
    watch.is_on = True
    yield
    watch.is_on = False
    assert watch.seen == []
    assert files_of(folder) == before


def files_of(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("name", SPECIAL)
def test_what_is_not_an_image_is_refused(client, name):
    for request in (
        {"files": {"image": ("a.jpg", SPECIAL[name], "image/jpeg")}},
        {"json": {"image": base64.b64encode(SPECIAL[name]).decode()}},
    ):
        response = client.post("/v1/search", **request)
        assert response.status_code == 422, response.text
        assert response.json()["parameter"] == "image"


@pytest.mark.parametrize("make", [text_bomb, tiff_loop])
def test_what_surrounds_an_image_is_not_expanded(client, make):
    assert client.post("/v1/search", files={"image": make()}).status_code == 200


def test_a_text_does_not_hide_the_size_of_an_image():
    bomb = png_bomb(300)
    text = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(20_000_000)))
    with pytest.raises(UnreadableImage, match="90,000 pixels"):
        require_acceptable("image", bomb[:33] + text + bomb[33:], 80_000)


def test_damaged_images_are_refused_or_read_and_take_no_memory(client, sample_images):
    image = sample_images["cat"].resize((64, 48))
    chances = {image_format: random.Random(image_format) for image_format in IMAGE_FORMATS}
    sizes = []
    for _ in range(2):
        for image_format, chance in chances.items():
            data = encoded(image, image_format)
            statuses = {
                client.post("/v1/search", files={"image": damaged(data, chance)}).status_code for _ in range(20)
            }
            assert 422 in statuses and statuses <= {200, 422}, (image_format, statuses)
        sizes.append(resident_bytes())
    assert sizes[1] - sizes[0] < 10_000_000


def resident_bytes() -> int:
    """Return the memory of this process, 0 where the system does not say it so."""
    file = Path("/proc/self/statm")
    return int(file.read_text().split()[1]) * resource.getpagesize() if file.exists() else 0


def test_a_file_that_is_two_things_is_read_as_an_image_only(client, jpeg):
    polyglot = jpeg + b"<script>alert(1)</script>PK\x03\x04"
    response = client.post("/v1/search", files={"image": ("a.html", polyglot, "text/html")})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "filename", ["../../x.jpg", "/etc/passwd", "a\0b", "x" * 5000, "con", "\u202egpj.exe", "; rm -rf /"]
)
def test_a_file_name_is_never_used(client, jpeg, filename):
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="' + filename.encode() + b'"\r\n\r\n'
    response = client.post(
        "/v1/search",
        content=head + jpeg + b"\r\n--b--\r\n",
        headers={"Content-Type": "multipart/form-data; boundary=b"},
    )
    assert response.status_code in (200, 400, 431)


FORMS = {
    "no end": b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nxx',
    "no name": b"--b\r\nContent-Disposition: form-data\r\n\r\nxx\r\n--b--\r\n",
    "no disposition": b"--b\r\n\r\nxx\r\n--b--\r\n",
    "another boundary": b"--c\r\n\r\nxx\r\n--c--\r\n",
    "empty": b"",
    "a large header": b"--b\r\nX: " + b"x" * 100_000 + b"\r\n\r\nxx\r\n--b--\r\n",
    "many headers": b"--b\r\n" + b"X: y\r\n" * 5000 + b"\r\nxx\r\n--b--\r\n",
    "many parts": b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n' * 2000 + b"--b--\r\n",
    "many images": b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nx\r\n' * 300
    + b"--b--\r\n",
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_damaged_form_is_refused(client, name):
    response = client.post(
        "/v1/search", content=FORMS[name], headers={"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert response.status_code in (400, 422), response.text
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "body",
    [b"[" * 100_000, b'{"a":' * 10_000, b'{"image": "\xff"}', b'"\\ud800"', b'{"vector": [' + b"9" * 100_000 + b"]}",
     b"null", b'{"image": null}', b'{"image": {"a": 1}}', b'{"vector": "0x10"}', b""],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/search", "/v1/embeddings"])
def test_damaged_json_is_refused(client, path, body):
    response = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 422), response.text


def test_large_headers_and_addresses_are_refused(client):
    assert client.get("/healthz", headers={"X": "x" * 20_000}).status_code == 431
    assert client.get(f"/v1/items?after={'x' * 20_000}").status_code == 431
