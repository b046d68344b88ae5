"""The page of a search: images, ids and scores in order, in one file."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.api.page import write_search_page
from lookalike.errors import StorageError
from lookalike.models.pipeline import File, InMemoryImage
from lookalike.types import Hits


class Collector(HTMLParser):
    """The tags of a page, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def paths(photo_folder: Path) -> list[Path]:
    return sorted((photo_folder / "test/gallery").iterdir())


def test_the_page_shows_images_ids_and_scores_in_order(paths, tmp_path):
    ids = np.array([["a/1.jpg", "a/2.jpg", "gone.jpg"], ["a/2.jpg", "unknown.jpg", "a/1.jpg"]], dtype=object)
    scores = np.array([[0.91, 0.5, 0.25], [0.8, 0.7, -0.1]], dtype=np.float32)
    hits = Hits(("q1.jpg", "q<2>.jpg"), ids, scores)
    items = {"a/1.jpg": paths[0], "a/2.jpg": paths[1], "gone.jpg": tmp_path / "gone.jpg"}
    queries = {"q1.jpg": File("q1.jpg", paths[2]), "q<2>.jpg": File("q<2>.jpg", paths[3])}
    out = tmp_path / "search.html"
    write_search_page(out, hits, queries, items, "Look & find")

    source = out.read_text(encoding="utf-8")
    page = Collector(source)
    assert [attrs["title"] for attrs in page.all("li")] == [*ids[0], *ids[1]]
    assert re.findall(r'class="score">(.*?)<', source) == ["0.910", "0.500", "0.250", "0.800", "0.700", "-0.100"]
    images = page.all("img")
    assert len(images) == 2 + 4  # gone.jpg and unknown.jpg are shown by their ids
    assert all(str(image["src"]).startswith("data:image/jpeg;base64,") for image in images)
    assert "<title>Look &amp; find</title>" in source
    assert "q&lt;2&gt;.jpg" in source and "q<2>" not in source
    assert not re.search(r"https?:|@import|<script|<link", source)
    assert images[1]["src"] == images[5]["src"]  # the same item as a hit of both queries


@pytest.mark.parametrize("kind", ["bytes", "PIL", "array"])
def test_queries_in_memory_are_shown(paths, tmp_path, kind):
    image = Image.open(paths[0])
    content = {"bytes": paths[0].read_bytes(), "PIL": image, "array": np.asarray(image)}[kind]
    hits = Hits(("image 0",), np.array([["a"]], object), np.ones((1, 1), np.float32))
    write_search_page(tmp_path / "page.html", hits, {"image 0": InMemoryImage("image 0", content)}, {})
    (query,) = Collector((tmp_path / "page.html").read_text(encoding="utf-8")).all("img")
    assert (query["alt"], len(str(query["src"])) > 1000) == ("image 0", True)


def test_a_page_without_queries(tmp_path):
    hits = Hits((), np.empty((0, 5), dtype=object), np.empty((0, 5), dtype=np.float32))
    write_search_page(tmp_path / "none.html", hits, {}, {})
    assert Collector((tmp_path / "none.html").read_text(encoding="utf-8")).all("img") == []


def test_a_page_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    hits = Hits((), np.empty((0, 5), dtype=object), np.empty((0, 5), dtype=np.float32))
    with pytest.raises(StorageError, match="is not a folder"):
        write_search_page(tmp_path / "file" / "page.html", hits, {}, {})
