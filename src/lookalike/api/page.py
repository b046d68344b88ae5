"""Search results as one HTML file that contains its images and needs neither scripts nor network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from lookalike._files import write_text
from lookalike._html import Thumbnails, page_environment
from lookalike.types import Hits


def write_search_page(
    path: Path,
    hits: Hits,
    query_images: Mapping[str, Path | Image.Image],
    item_paths: Mapping[str, Path],
    title: str = "Search results",
) -> None:
    """Write one HTML file with each query image and its hits, best first, with their scores.

    Args:
        path: the file to write.
        hits: `(n_query, k)` ids and cosine scores.
        query_images: the queries' files or images, by query id.
        item_paths: the items' files, by item id. An image without a path, or that cannot be read, is shown by its id.
        title: heading of the page.

    Raises:
        StorageError: the file cannot be written.

    """
    query_thumbnails, item_thumbnails = Thumbnails(size=256), Thumbnails()
    results = [
        {
            "id": query.query_id,
            "image": query_thumbnails.uri(query_images.get(query.query_id)),
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
