"""Thumbnails of the HTML pages."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from lookalike import _html
from lookalike._html import Thumbnails, page_environment


def decode(uri: str | None) -> Image.Image:
    assert uri is not None
    head, _, data = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_a_thumbnail_keeps_the_aspect_ratio(tmp_path: Path) -> None:
    Image.new("RGB", (400, 100), (200, 30, 30)).save(tmp_path / "wide.png")
    thumbnail = decode(Thumbnails(128).uri(tmp_path / "wide.png"))
    assert thumbnail.size == (128, 32)
    red, green, blue = thumbnail.getpixel((60, 16))
    assert red > 180 and green < 60 and blue < 60


def test_a_small_image_is_not_enlarged(tmp_path: Path) -> None:
    Image.new("RGBA", (20, 10), (0, 0, 0, 0)).save(tmp_path / "small.png")
    thumbnail = decode(Thumbnails().uri(tmp_path / "small.png"))
    assert thumbnail.size == (20, 10)
    assert min(thumbnail.getpixel((5, 5))) > 250  # transparent is white, not black


def test_an_image_in_memory_is_not_changed() -> None:
    image = Image.new("RGB", (400, 100))
    uri = Thumbnails(64).uri(image)
    assert decode(uri).size == (64, 16)
    assert image.size == (400, 100)


def test_what_cannot_be_shown_has_no_thumbnail(tmp_path: Path) -> None:
    assert Thumbnails().uri(tmp_path / "missing.jpg") is None
    assert Thumbnails().uri(None) is None


def test_an_image_that_takes_too_much_memory_has_no_thumbnail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> Image.Image:
        raise MemoryError

    monkeypatch.setattr(_html, "read_image", fail)
    assert Thumbnails().uri(tmp_path / "a.png") is None


def test_each_file_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    thumbnails = Thumbnails()
    uri = thumbnails.uri(tmp_path / "a.png")
    monkeypatch.setattr(_html, "read_image", lambda _: pytest.fail("decoded again"))
    assert thumbnails.uri(tmp_path / "a.png") == uri


def test_pages_escape_what_they_show() -> None:
    assert page_environment().from_string("{{ name }}").render(name="<b>") == "&lt;b&gt;"
