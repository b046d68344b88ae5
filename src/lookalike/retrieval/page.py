"""Search results as one HTML file that needs nothing else: no script, no network, no folder of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lookalike.files import write_text
from lookalike.retrieval.thumbnails import Thumbnails
from lookalike.types import Hits

if TYPE_CHECKING:
    from jinja2 import Environment


def page_environment(*packages: str) -> Environment:
    """Return the templates of these packages and of this one, which holds what all pages share; autoescape is on."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loaders = [PackageLoader(name) for name in (*packages, "lookalike.retrieval")]
    return Environment(
        loader=ChoiceLoader(loaders), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def write_search_page(
    path: Path,
    hits: Hits,
    query_paths: Mapping[str, Path],
    item_paths: Mapping[str, Path],
    title: str = "Search results",
) -> None:
    """Write one HTML file with each query's picture and its hits, best first, with their scores.

    Args:
        path: the file to write.
        hits: `(n_query, k)` ids and cosine scores.
        query_paths: where the queries' files are, by query id.
        item_paths: where the gallery's files are, by item id. A picture without a path here, or one that cannot be
            read, is shown by its id.
        title: heading of the page.

    Raises:
        StorageError: when the file cannot be written.

    """
    queries, items = Thumbnails(size=256), Thumbnails()
    results = [
        {
            "id": query,
            "picture": queries.uri(query_paths.get(query)),
            "hits": [
                {"id": item, "score": score, "picture": items.uri(item_paths.get(item)), "same": None, "caption": ""}
                for item, score in found
            ],
        }
        for query, found in hits.rows()
    ]
    page = page_environment().get_template("search.html.j2")
    write_text(Path(path), page.render(title=title, results=results, top_k=hits.ids.shape[1]))
