"""`search`: the pictures of an index that look like given ones."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookalike._files import require_writable
from lookalike.errors import DataError, OptionError, StorageError
from lookalike.index.index import Index
from lookalike.progress import SILENT, Progress
from lookalike.types import Hits, Skipped

if TYPE_CHECKING:
    from lookalike.models.encoder import Encoder


_USUAL_TOP_K = 10
_PAGES = (".html", ".htm")


@dataclass(frozen=True)
class LoadedIndex:
    """An index and the model that made it, ready for many searches."""

    index: Index
    encoder: Encoder


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        hits: `(n_query, top_k)` ids and cosine scores, best first.
        query_paths: the queries' files as given, by query id.
        item_paths: the files of all hits, by item id.
        skipped: query files that could not be read.

    """

    hits: Hits
    query_paths: Mapping[str, Path]
    item_paths: Mapping[str, Path]
    skipped: tuple[Skipped, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a plain structure for JSON."""
        queries = [
            {
                "query": str(self.query_paths[query.query_id]),
                "hits": [
                    {"id": hit.id, "path": str(self.item_paths[hit.id]), "score": round(hit.score, 6)} for hit in query
                ],
            }
            for query in self.hits
        ]
        return {"queries": queries, "skipped": [{"path": str(s.path), "cause": s.cause} for s in self.skipped]}


def load_index(path: Path | str) -> LoadedIndex:
    """Load an index and its model.

    Raises:
        StorageError: no index, or a damaged one.
        ModelError: its model is missing or damaged.
        FingerprintMismatch: its model is not the one that made it.

    """
    path = Path(path)
    index = Index.load(path)
    from lookalike.models.facts import MODEL, is_bundle  # as in `search`
    from lookalike.runtimes.bundle import load_bundle

    if not is_bundle(path / MODEL):
        raise StorageError(f"{path} has no {MODEL} folder to embed queries with; make the index again.")
    encoder = load_bundle(path / MODEL, single=True, precision=index.precision)
    index.require_model(encoder.fingerprint, f"the model in {path / MODEL}")
    return LoadedIndex(index, encoder)


def search(
    index: LoadedIndex | Path | str,
    images: Sequence[Path | str],
    *,
    top_k: int | None = None,
    html: Path | str | None = None,
    progress: Progress = SILENT,
) -> SearchResult:
    """Find the pictures of an index that look most like each of the given ones.

    A query that is in the index itself is never its own hit. Files that cannot be read are listed, not searched for.

    Args:
        index: a folder made by `lookalike.index`, or what `load_index` made of it.
        images: files; one that is given twice is searched for once.
        top_k: hits for each; by default 10, or as many as all of them can have.
        html: also write this page with the pictures, in place of an older one.
        progress: is told the number of queries embedded.

    Raises:
        DataError: none of the files can be read.
        OptionError: `top_k` is more than there is to find, no file or a single path is given, or the page is not named
            .html.
        StorageError: no index, a damaged one, or a page that cannot be written.
        ModelError: its model is damaged.

    """
    if isinstance(images, str | Path):
        raise OptionError(f"search takes a list of images, got the single path {images}; put it in a list.")
    if not images:
        raise OptionError("search needs at least one image, got none.")
    page = None if html is None else _page_at(html)
    loaded = index if isinstance(index, LoadedIndex) else load_index(index)
    from lookalike.models.stream import File  # seconds of imports: only once there is an index

    made = loaded.index
    paths: dict[str, Path] = {}
    for image in images:
        paths.setdefault(query_id(Path(image), made), Path(image))
    top_k = _usual_top_k(made, paths) if top_k is None else top_k
    made.require_top_k(top_k, paths)
    queries = loaded.encoder.embed([File(q, p) for q, p in paths.items()], progress=progress, task="queries")
    if not len(queries):
        first = queries.skipped[0]
        if len(paths) == 1:
            raise DataError(f"{first.path} cannot be searched for: {first.cause}; give another picture.")
        raise DataError(f"none of the {len(paths)} images can be read, the first is {first}.")
    hits = made.search(queries, top_k)
    items = {item: made.path_of(item) or Path(item) for item in hits.ids.ravel()}
    found = SearchResult(hits, {q: paths[q] for q in queries.ids}, items, queries.skipped)
    if page is not None:
        from lookalike.api.page import write_search_page

        write_search_page(page, hits, found.query_paths, items)
    return found


def _page_at(html: Path | str) -> Path:
    page = Path(html)
    if page.suffix.lower() not in _PAGES:
        raise OptionError(f"html must be named .html, got {page}; write for example found.html.")
    require_writable(page)
    return page


def _usual_top_k(index: Index, query_ids: Iterable[str]) -> int:
    """Return ten, or as many hits as every query can have."""
    inside = any(query in index for query in query_ids)
    return max(1, min(_USUAL_TOP_K, len(index) - inside))


def query_id(path: Path, index: Index) -> str:
    """Return the item id of a file in the index, else an id that no item has.

    A file inside the index's root gets its path relative to it, whether it was indexed or not; any other its path.
    """
    written = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a link that stands for the file
    places = dict.fromkeys((written, written.parent.resolve() / written.name, written.resolve()))
    root = index.root
    inside = [p.relative_to(root).as_posix() for p in places if root is not None and p.is_relative_to(root)]
    known = [name for name in (*inside, *(p.as_posix() for p in places)) if name in index]
    if known or inside:
        return (known or inside)[0]
    return written.as_posix() if path.as_posix() in index else path.as_posix()
