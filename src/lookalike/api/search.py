"""`search`: the items of an index that are most similar to query images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image

from lookalike._files import require_writable, write_text
from lookalike.errors import DataError, ModelError, OptionError, StorageError, renamed_argument
from lookalike.index.index import Index
from lookalike.models.bundle import MODEL_FOLDER, is_bundle
from lookalike.models.encoder import AnyEncoder
from lookalike.models.pipeline import File, ImageInput, InMemoryImage, Source, as_sources, decode
from lookalike.progress import SILENT, Progress, count_noun, resolve_progress
from lookalike.runtimes.load import load_encoder
from lookalike.runtimes.select import with_runtime
from lookalike.types import Hits, QueryHits, Skipped

_THUMBNAIL = 256  # longer side of the images on the page, in pixels


@dataclass(frozen=True)
class LoadedIndex:
    """An index and the encoder that made it, ready for many searches."""

    index: Index
    encoder: AnyEncoder
    path: Path | None = None  # the folder that it was loaded from

    def search(
        self, images: Sequence[ImageInput], *, top_k: int | None = None, progress: Progress | None = None
    ) -> SearchResult:
        """Find the items that are most similar to each image; see `lookalike.search`."""
        return search(self, images, top_k=top_k, progress=progress)


@dataclass(frozen=True)
class SearchResult:
    """The hits of a search. Iterate over it for the hits of each query: `for hit in query: hit.path, hit.score`.

    Attributes:
        hits: `(n_query, top_k)` ids and cosine scores, best first.
        query_paths: the queries' files, by query id; for an image in memory its id, such as `image 0`.
        item_paths: the files of all hits, by item id.
        skipped: query files that could not be read.

    """

    hits: Hits
    query_paths: Mapping[str, Path]
    item_paths: Mapping[str, Path]
    skipped: tuple[Skipped, ...]

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[QueryHits]:
        return map(self._with_paths, self.hits)

    def __getitem__(self, number: int) -> QueryHits:
        """Return the hits of one query."""
        return self._with_paths(self.hits[number])

    def _with_paths(self, query: QueryHits) -> QueryHits:
        return replace(query, hits=tuple(replace(hit, path=self.item_paths[hit.id]) for hit in query))

    def to_dict(self) -> dict[str, Any]:
        """Return a plain structure for JSON."""
        queries = [
            {
                "query": str(self.query_paths[query.query_id]),
                "hits": [{"id": hit.id, "path": str(hit.path), "score": round(hit.score, 6)} for hit in query],
            }
            for query in self
        ]
        return {"queries": queries, "skipped": [{"path": str(s.path), "cause": s.cause} for s in self.skipped]}


def load_index(index: Path | str) -> LoadedIndex:
    """Load an index and its encoder, for many searches.

    Args:
        index: a folder from `lookalike index`.

    Raises:
        StorageError: not an index, or a damaged one.
        ModelError: its model is missing or damaged.
        FingerprintMismatch: its model is not the one that made it.

    """
    path = Path(index)
    with renamed_argument("index", "path"):
        items = Index.load(path)
    model = path / MODEL_FOLDER
    if not is_bundle(model):
        raise StorageError(
            f"{path} has no {MODEL_FOLDER} folder to embed queries with; build the index again.", argument="index"
        )
    with renamed_argument("index", "model"):
        encoder = load_encoder(model)
    items.require_model(encoder.fingerprint, f"the model in {model}", argument="index")
    try:
        with_precision = with_runtime(encoder, precision=items.precision)
        with_precision.prepare((), 1, SILENT)
    except (OptionError, ModelError):  # no runtime here has the precision of the index
        return LoadedIndex(items, encoder, path)
    return LoadedIndex(items, with_precision, path)


def search(
    index: LoadedIndex | Path | str,
    images: Sequence[ImageInput],
    *,
    top_k: int | None = None,
    html: Path | str | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Find the items of an index that are most similar to each image.

    An image that is in the index is never its own hit. Files that cannot be read are skipped and listed.

    Args:
        index: a folder from `lookalike index`, or what `load_index` returned.
        images: paths, bytes, PIL images or `(h, w, 3)` uint8 arrays; a path that occurs twice is searched for once.
        top_k: hits per image; by default 10, or fewer if the index has fewer items.
        html: also write this page with the images, replacing an older one.
        progress: receives progress and messages; None shows a bar in a terminal or notebook, and logs elsewhere.

    Raises:
        DataError: none of the images can be read.
        OptionError: `top_k` is larger than the number of items, no image or a single image instead of a list, or a page
            that is not named .html.
        StorageError: not an index, a damaged one, or a page that cannot be written.
        ModelError: its model is damaged.

    """
    sources = as_sources(images)
    if not sources:
        raise OptionError("`images` must hold at least one image, got none.", argument="images")
    page = None if html is None else _page_path(html)
    if isinstance(index, Index):
        raise OptionError(
            "`index` must be a path or a LoadedIndex from load_index, got an Index, which has no encoder; "
            "search it with index.search(encoder.embed(images), top_k).",
            argument="index",
        )
    loaded = index if isinstance(index, LoadedIndex) else load_index(index)
    queries: dict[str, Source] = {}
    for source in sources:
        in_memory = isinstance(source, InMemoryImage)
        query = source if in_memory else File(query_id(source.path, loaded.index), source.path)
        queries.setdefault(query.id, query)
    top_k = loaded.index.resolve_top_k(top_k, queries)
    embeddings = loaded.encoder.embed(list(queries.values()), progress=resolve_progress(progress), task="queries")
    if not len(embeddings):
        first = embeddings.skipped[0]
        if len(queries) == 1:
            raise DataError(
                f"the query {first.path} cannot be read: {first.cause}; pass another image.", argument="images"
            )
        raise DataError(f"none of the {len(queries)} images can be read (first: {first}).", argument="images")
    hits = loaded.index.search(embeddings, top_k)
    item_paths = {item_id: loaded.index.path_of(item_id) or Path(item_id) for item_id in hits.ids.ravel()}
    query_paths = {name: queries[name].path for name in embeddings.ids}
    if page is not None:
        _write_page(page, loaded, hits, queries, item_paths)
    return SearchResult(hits, query_paths, item_paths, embeddings.skipped)


def _page_path(html: Path | str) -> Path:
    page = Path(html)
    if page.suffix.lower() not in (".html", ".htm"):
        raise OptionError(f"`html` must be named .html, got {page}; for example hits.html.", argument="html")
    require_writable(page, "html")
    return page


def _write_page(
    path: Path, loaded: LoadedIndex, hits: Hits, queries: Mapping[str, Source], item_paths: Mapping[str, Path]
) -> None:
    """Write one HTML file with each query image and its hits; an image that cannot be read is shown by its id."""
    from lookalike._html import Thumbnails, page_environment

    thumbnails = Thumbnails(_THUMBNAIL)

    def query_image(query: Source) -> str | None:
        in_memory = isinstance(query, InMemoryImage)
        return thumbnails.uri(Image.fromarray(decode(query, [_THUMBNAIL])[0]) if in_memory else query.path)

    page_queries = [
        {
            "id": query.query_id,
            "image": query_image(queries[query.query_id]),
            "hits": [
                {
                    "id": hit.id,
                    "score": hit.score,
                    "image": thumbnails.uri(item_paths[hit.id]),
                    "same": None,
                    "caption": "",
                }
                for hit in query
            ],
        }
        for query in hits
    ]
    page = page_environment().get_template("search.html.j2")
    members = " + ".join(f"{member.name} ({member.state})" for member in loaded.encoder.members)
    facts = [
        ("Model", f"{members}, {loaded.encoder.dim} dimensions"),
        (
            "Index",
            f"{loaded.path.resolve().name if loaded.path else 'in memory'}, {count_noun(len(loaded.index), 'item')}",
        ),
        ("Date", datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")),
    ]
    content = {"title": "Search results", "facts": facts, "queries": page_queries, "top_k": hits.ids.shape[1]}
    write_text(path, page.render(content))


def query_id(path: Path, index: Index) -> str:
    """Return the item id of a file in the index, else an id that no item has.

    A file inside the index's root gets its path relative to it, whether it was indexed or not; any other its path.
    """
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a link to the file
    spellings = dict.fromkeys((absolute, absolute.parent.resolve() / absolute.name, absolute.resolve()))
    root = index.root
    relative = [p.relative_to(root).as_posix() for p in spellings if root is not None and p.is_relative_to(root)]
    items = [name for name in (*relative, *(p.as_posix() for p in spellings)) if name in index]
    if items or relative:
        return (items or relative)[0]
    return absolute.as_posix() if path.as_posix() in index else path.as_posix()
