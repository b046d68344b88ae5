from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike._html import Thumbnails, thumbnail_data_uri
from lookalike.api.page import write_search_page
from lookalike.errors import OptionError, UnreadableImage
from lookalike.types import Hits


def decoded(uri: str) -> Image.Image:
    head, _, data = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


class Collector(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def pictures(photo_folder: Path) -> list[Path]:
    return sorted((photo_folder / "test/gallery").iterdir())


def test_a_thumbnail_keeps_the_shape_and_is_small(tmp_path):
    path = tmp_path / "wide.png"
    Image.new("RGB", (400, 100), (200, 30, 30)).save(path)
    small = decoded(thumbnail_data_uri(path, 128))
    assert small.size == (128, 32)
    red, green, blue = small.getpixel((60, 16))
    assert red > 180 and green < 60 and blue < 60


def test_a_small_picture_is_not_made_larger(tmp_path):
    path = tmp_path / "small.png"
    Image.new("RGBA", (20, 10), (0, 0, 0, 0)).save(path)
    small = decoded(thumbnail_data_uri(path))
    assert small.size == (20, 10)
    assert min(small.getpixel((5, 5))) > 250  # transparent is white, not black


def test_thumbnails_of_what_cannot_be_read(tmp_path):
    with pytest.raises(UnreadableImage):
        thumbnail_data_uri(tmp_path / "none.jpg")
    with pytest.raises(OptionError, match="at least 1 pixel, got 0"):
        thumbnail_data_uri(tmp_path / "none.jpg", 0)
    assert Thumbnails().uri(tmp_path / "none.jpg") is None
    assert Thumbnails().uri(None) is None


def test_page_holds_pictures_ids_and_scores_in_order(pictures, tmp_path):
    ids = np.array([["a/1.jpg", "a/2.jpg", "gone.jpg"], ["a/2.jpg", "unknown.jpg", "a/1.jpg"]], dtype=object)
    scores = np.array([[0.91, 0.5, 0.25], [0.8, 0.7, -0.1]], dtype=np.float32)
    hits = Hits(("q1.jpg", "q<2>.jpg"), ids, scores)
    items = {"a/1.jpg": pictures[0], "a/2.jpg": pictures[1], "gone.jpg": tmp_path / "gone.jpg"}
    out = tmp_path / "search.html"
    write_search_page(out, hits, {"q1.jpg": pictures[2], "q<2>.jpg": pictures[3]}, items, "Look & find")

    source = out.read_text(encoding="utf-8")
    page = Collector(source)
    assert [attrs["title"] for attrs in page.all("li")] == [*ids[0], *ids[1]]
    assert re.findall(r'class="score">(.*?)<', source) == ["0.910", "0.500", "0.250", "0.800", "0.700", "-0.100"]
    images = page.all("img")
    assert len(images) == 2 + 4  # gone.jpg and unknown.jpg stand by their names
    assert all(str(image["src"]).startswith("data:image/jpeg;base64,") for image in images)
    assert "<title>Look &amp; find</title>" in source and "q&lt;2&gt;.jpg" in source and "q<2>" not in source
    assert not re.search(r"https?:|@import|<script|<link", source)
    assert images[1]["src"] == images[5]["src"]  # the same item, whichever query found it


def test_page_without_queries(tmp_path):
    hits = Hits((), np.empty((0, 5), dtype=object), np.empty((0, 5), dtype=np.float32))
    write_search_page(tmp_path / "none.html", hits, {}, {})
    assert "No picture was searched with." in (tmp_path / "none.html").read_text(encoding="utf-8")
