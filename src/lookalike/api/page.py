"""Search results as one HTML file that contains its images and needs neither scripts nor network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from lookalike._files import write_text
from lookalike._html import Thumbnails, page_environment
from lookalike.models.pipeline import InMemoryImage, Source, decode
from lookalike.types import Hits

_QUERY_PIXELS = 256


def write_search_page(
    path: Path,
    hits: Hits,
    queries: Mapping[str, Source],
    item_paths: Mapping[str, Path],
    title: str = "Search results",
) -> None:
    """Write one HTML file with each query image and its hits, best first, with their scores.

    An image without a path, or that cannot be read, is shown by its id.
    """
    query_thumbnails, item_thumbnails = Thumbnails(_QUERY_PIXELS), Thumbnails()
    results = [
        {
            "id": query.query_id,
            "image": query_thumbnails.uri(_image(queries[query.query_id])),
            "hits": [
                {
                    "id": hit.id,
                    "score": hit.score,
                    "image": item_thumbnails.uri(item_paths.get(hit.id)),
                    "same": None,
                    "caption": "",
                }
                for hit in query
            ],
        }
        for query in hits
    ]
    page = page_environment().get_template("search.html.j2")
    write_text(Path(path), page.render(title=title, results=results, top_k=hits.ids.shape[1]))


def _image(query: Source) -> Path | Image.Image:
    return Image.fromarray(decode(query, [_QUERY_PIXELS])[0]) if isinstance(query, InMemoryImage) else query.path
