"""`search`: the items of an index that are most similar to query images."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lookalike._arguments import checked_arguments
from lookalike._files import file_identity, require_writable, write_text
from lookalike.api.queries import Query, ResolvedQuery, resolve_queries
from lookalike.data.images import image_in_turn
from lookalike.errors import DataError, ModelError, OptionError, StorageError, UnreadableImage, renamed_argument
from lookalike.evaluation.calibration import MIN_QUERIES
from lookalike.index.filters import Condition, Filter
from lookalike.index.index import Index
from lookalike.index.store import IndexedItem
from lookalike.models.bundle import MODEL_FOLDER, is_bundle, read_bundle_info
from lookalike.models.encoder import AnyEncoder
from lookalike.models.info import RerankingInfo
from lookalike.models.pipeline import File, ImageInput, Source, decode, require_list
from lookalike.models.preprocessing import Crop, CropResult
from lookalike.progress import SILENT, Progress, count_noun, resolve_progress
from lookalike.runtimes.load import load_encoder
from lookalike.runtimes.select import time_for_searches, with_runtime
from lookalike.types import Calibration, Embeddings, Hit, Hits, QueryHits, Skipped, Vectors

_THUMBNAIL = 256  # longer side of the images on the page, in pixels


@dataclass(frozen=True)
class LoadedIndex:
    """An index and the encoder that made it, ready for many searches."""

    index: Index
    encoder: AnyEncoder
    path: Path | None = None  # the folder that it was loaded from
    calibration: Calibration | None = None  # of its model; None if it has none
    reranking: RerankingInfo | None = None  # of its model, which no search applies; None if it has none

    def with_crop(self, crop: Callable[[Image.Image], CropResult], *, name: str) -> LoadedIndex:
        """Return the index with the crop that its encoder was made with; see `Encoder.with_crop`."""
        encoder = self.encoder.with_crop(crop, name=name)
        self.index.require_model(encoder.fingerprint, f"{encoder.name} with the crop {name!r}", argument="name")
        return replace(self, encoder=encoder)

    def search(
        self,
        images: Iterable[ImageInput | Query],
        *,
        top_k: int | None = None,
        where: Filter | str | None = None,
        min_probability: float = 0.0,
        progress: Progress | None = None,
    ) -> SearchResult:
        """Find the items that are most similar to each image or query; see `lookalike.search`."""
        return search(self, images, top_k=top_k, where=where, min_probability=min_probability, progress=progress)


@dataclass(frozen=True)
class SearchResult:
    """The hits of a search. Iterate over it for the hits of each query: `for hit in query: hit.path, hit.score`.

    Attributes:
        hits: `(n_query, top_k)` ids, cosine scores and, if the model has a calibration, probabilities, best first; with
            a filter or a minimum probability a query may have fewer, or none.
        query_paths: the queries' files, by query id; for an image in memory its id, such as `image 0`, and for a
            `Query` of several examples what it is made of.
        item_paths: the files of all hits, by item id.
        items: the items of all hits, with label and metadata, by item id.
        skipped: query files that could not be read.
        missing: files of hits that do not exist: they were moved or removed after the index was built.
    """

    hits: Hits
    query_paths: Mapping[str, Path]
    item_paths: Mapping[str, Path]
    skipped: tuple[Skipped, ...]
    missing: tuple[Path, ...] = ()
    items: Mapping[str, IndexedItem] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[QueryHits]:
        return map(self._with_items, self.hits)

    def __getitem__(self, number: int) -> QueryHits:
        """Return the hits of one query."""
        return self._with_items(self.hits[number])

    def _with_items(self, query: QueryHits) -> QueryHits:
        return replace(query, hits=tuple(map(self._with_item, query)))

    def _with_item(self, hit: Hit) -> Hit:
        item = self.items.get(hit.id, IndexedItem(hit.id))  # it may have been removed meanwhile
        return replace(hit, path=self.item_paths[hit.id], label=item.label, metadata=item.metadata)

    def to_dict(self) -> dict[str, Any]:
        """Return a plain structure for JSON."""
        queries = [
            {
                "query": str(self.query_paths[query.query_id]),
                "hits": [
                    {
                        "id": hit.id,
                        "path": str(hit.path),
                        "score": round(hit.score, 6),
                        "probability": None if hit.probability is None else round(hit.probability, 6),
                        "label": hit.label,
                        "metadata": dict(hit.metadata),
                    }
                    for hit in query
                ],
            }
            for query in self
        ]
        skipped = [{"path": str(s.path), "cause": s.cause} for s in self.skipped]
        return {"queries": queries, "skipped": skipped, "missing": list(map(str, self.missing))}


@checked_arguments()
def load_index(
    index: Path | str,
    *,
    root: Path | str | None = None,
    verify: bool = False,
    functions: Sequence[AnyEncoder | Crop] = (),
) -> LoadedIndex:
    """Load an index and its encoder, for many searches.

    Args:
        index: a folder from `lookalike index`.
        root: the folder of its images, if they were moved.
        verify: also compare more than 32 MB of vectors with their digest, at about 1 GB/s.
        functions: the encoders from `as_encoder` and the crops that the index was made with: functions are not in it.

    Raises:
        OptionError: `root` is not a folder.
        StorageError: not an index, or a damaged one.
        ModelError: its model is missing or damaged, or needs a function that is not in `functions`.
        FingerprintMismatch: its model is not the one that made it.
    """
    path = Path(index)
    with renamed_argument("index", "path"):
        items = Index.load(path, verify=verify)
    if root is not None:
        items = items.with_root(root)
    model = path / MODEL_FOLDER
    if not is_bundle(model):
        raise StorageError(
            f"{path} has no {MODEL_FOLDER} folder to embed queries with; build the index again.", argument="index"
        )
    with renamed_argument("index", "model"):
        encoder = load_encoder(model, functions=functions)
    items.require_model(encoder.fingerprint, f"the model in {model}", argument="index")
    with renamed_argument("index", "model"):
        info = read_bundle_info(model)
        of_model = info.calibration, info.reranking
    try:
        with_precision = with_runtime(encoder, precision=items.precision)
        with_precision.prepare((), 1, SILENT)
    except (OptionError, ModelError):  # no runtime here has the precision of the index
        return LoadedIndex(items, encoder, path, *of_model)
    return LoadedIndex(items, with_precision, path, *of_model)


@checked_arguments(
    index="load_index returns one; an Index is searched with index.search(encoder.embed(images))",
    images="if it is a single image, put it in a list",
)
def search(  # noqa: PLR0913 - all but two by name, with defaults that fit
    index: LoadedIndex | Path | str,
    images: Iterable[ImageInput | Query],
    *,
    top_k: int | None = None,
    where: Filter | str | None = None,
    min_probability: float = 0.0,
    root: Path | str | None = None,
    html: Path | str | None = None,
    verify: bool = False,
    progress: Progress | None = None,
) -> SearchResult:
    """Find the items of an index that are most similar to each image.

    An image that is in the index is never its own hit, even if its path is a link. Query files that cannot be read, and
    files of hits that do not exist any more, are listed.

    Args:
        index: a folder from `lookalike index`, or what `load_index` returned.
        images: paths, pipes, bytes, binary files, PIL images or `(h, w, 3)` uint8 arrays; a path that occurs twice is
            searched for once. A `Query` is searched for as a whole: a part of an image, several images, an item of
            the index, a vector, with positive and negative examples.
        top_k: hits per query; by default 10, or fewer if the index has fewer items.
        where: a filter such as `label == 'hat' and year >= 2020`: only items that fit are hits, so a query has fewer
            than `top_k` where fewer fit.
        min_probability: from 0 to 1; hits with a lower probability are dropped, so that a query may have no hit.
        root: the folder of the index's images, if they were moved.
        html: also write this page with the images, replacing an older one.
        verify: as in `load_index`, of an index that is loaded from a folder.
        progress: receives progress and messages; None shows a bar in a terminal or notebook, and logs elsewhere.

    Raises:
        DataError: none of the images can be read.
        OptionError: `top_k` is larger than the number of items, `where` is not a filter, a query that the index cannot
            answer, no image or a single image instead of a list, a page that is not named .html, `verify` for an
            index that is loaded already, or `min_probability` for a model without a calibration.
        StorageError: not an index, a damaged one, or a page that cannot be written.
        ModelError: its model is damaged.
    """
    require_list(images)
    images = list(images)
    if not images:
        raise OptionError("`images` must hold at least one image, got none.", argument="images")
    item_filter = Filter.parse(where) if isinstance(where, str) else where
    page = None if html is None else _page_path(html)
    loaded = _open(index, root, verify=verify)
    require_calibration(loaded, min_probability)
    queries, unreadable = resolve_queries(images, loaded.index)
    loaded.index.resolve_top_k(top_k, queries)
    progress = resolve_progress(progress)
    if loaded.reranking is not None and loaded is not index:  # once per index that is loaded
        progress.info(loaded.reranking.unused)
    embeddings = _embed(loaded, queries, unreadable, progress)
    query_paths = {name: queries[name].path for name in embeddings.ids}
    path_of = loaded.index.path_of
    hit_file = file_lookup(loaded.index)
    hits = search_others(loaded.index, embeddings, queries, top_k, item_filter, hit_file)
    if not isinstance(index, LoadedIndex):
        time_for_searches(loaded.encoder, progress)  # not before: a query may be missing
    if item_filter is not None and np.isnan(hits.scores).any():
        unknown = _unknown_names(loaded.index, embeddings, item_filter)
        if unknown:
            progress.info(f"no item has a value under {', '.join(map(repr, unknown))}, which the filter compares")
    if loaded.calibration is not None:
        hits = hits.with_probabilities(loaded.calibration, min_probability)
    item_paths = {hit.id: path_of(hit.id) or Path(hit.id) for query in hits for hit in query}
    items = {item.id: item for item in loaded.index.get_all(list(item_paths)) if item is not None}
    missing = tuple(path for item_id, path in item_paths.items() if hit_file(item_id) is None)
    if missing:
        progress.info(
            f"{count_noun(len(missing), 'file')} of {len(item_paths)} among the hits "
            f"{'does' if len(missing) == 1 else 'do'} not exist (first: {missing[0]}); "
            "if the images were moved, set the root to their folder"
        )
    if page is not None:
        _write_page(page, loaded, hits, queries, item_paths, missing)
    return SearchResult(hits, query_paths, item_paths, embeddings.skipped, missing, items)


def require_calibration(loaded: LoadedIndex, min_probability: float) -> None:
    """Raise `OptionError` for a minimum probability that is out of range, or that needs a missing calibration."""
    if not 0 <= min_probability <= 1:
        raise OptionError(
            f"`min_probability` must be from 0 to 1, got {min_probability:g}.", argument="min_probability"
        )
    if min_probability > 0 and loaded.calibration is None:
        raise OptionError(
            f"`min_probability` needs a calibration, but {loaded.encoder.name} has none; build the index with a bundle "
            f"from train or benchmark that has at least {MIN_QUERIES} validation images.",
            argument="min_probability",
        )


def _open(index: LoadedIndex | Path | str, root: Path | str | None, *, verify: bool) -> LoadedIndex:
    if not isinstance(index, LoadedIndex):
        return load_index(index, root=root, verify=verify)
    if verify:
        raise OptionError(
            "`verify` is for a folder, got an index that is loaded already; pass it to load_index.", argument="verify"
        )
    return index if root is None else replace(index, index=index.index.with_root(root))


def _embed(
    loaded: LoadedIndex, queries: Mapping[str, ResolvedQuery], unreadable: Sequence[Skipped], progress: Progress
) -> Embeddings:
    """Embed the images of all queries at once, each image once; a query with an unreadable image is skipped."""
    sources = {source.id: source for query in queries.values() for source in query.sources}
    vectors: dict[str, Vectors] = {}
    skipped = (*unreadable,)
    if sources:
        embeddings = loaded.encoder.embed(list(sources.values()), progress=progress, task="queries")
        vectors = {item: embeddings.vectors[row : row + 1] for row, item in enumerate(embeddings.ids)}
        skipped += embeddings.skipped
    complete = [query for query in queries.values() if all(source.id in vectors for source in query.sources)]
    if not complete:
        if len(queries) + len(unreadable) == 1:
            first = skipped[0]
            raise DataError(
                f"the query {first.path} cannot be read: {first.cause}; pass another image.", argument="images"
            )
        raise DataError(
            f"none of the {len(queries) + len(unreadable)} images can be read (first: {skipped[0]}).",
            argument="images",
        )
    rows = np.concatenate([query.vector(vectors) for query in complete])
    return Embeddings(tuple(query.id for query in complete), rows, loaded.encoder.fingerprint, skipped)


def _unknown_names(index: Index, embeddings: Embeddings, where: Filter) -> list[str]:
    """Return the names that a filter compares and no item has, which may be misspelt."""
    one = embeddings.take(embeddings.ids[:1])
    return [name for name in sorted(where.names()) if not index.search(one, 1, Condition(name, "is not none", None))[0]]


def file_lookup(index: Index) -> Callable[[str], tuple[int, int] | None]:
    """Return a function from an item's id to its `file_identity`, which asks the system once per item."""
    return functools.cache(lambda item: file_identity(index.path_of(item) or Path(item)))


def search_others(
    index: Index,
    embeddings: Embeddings,
    queries: Mapping[str, ResolvedQuery],
    top_k: int | None,
    where: Filter | None,
    hit_file: Callable[[str], tuple[int, int] | None],
) -> Hits:
    """Search without the items that a query is made of, also under another path; only hits are compared."""
    parts = [queries[query] for query in embeddings.ids]
    count = index.resolve_top_k(top_k, embeddings.ids)
    available = len(index) - any(query in index for query in embeddings.ids)
    extra = 0
    while True:
        hits = index.search(embeddings, count + extra, where)
        is_own = np.array(
            [
                [
                    hit is not None
                    and (hit in query.item_ids or (len(query.files) > 0 and hit_file(hit) in query.files))
                    for hit in ids
                ]
                for query, ids in zip(parts, hits.ids, strict=True)
            ]
        )
        most = int(is_own.sum(axis=1).max())
        if most <= extra:
            break
        extra = most
        if top_k is None:
            count = max(1, min(count, available - extra))
            if available <= extra:  # a query is made of all items, and has no hit
                break
        if count > available - extra:
            raise OptionError(
                f"`top_k` is {count}, but the index has only {available - extra} items besides the query itself; "
                "choose a smaller `top_k`.",
                argument="top_k",
            )
    return drop_hits(hits, is_own, count) if extra else hits


def drop_hits(hits: Hits, dropped: npt.NDArray[np.bool_], count: int) -> Hits:
    """Return the first `count` hits of each query that are not dropped; `dropped` is `(n_query, top_k)`."""
    rows, columns = np.arange(len(hits))[:, None], np.argsort(dropped, axis=1, kind="stable")[:, :count]
    ids, scores, is_dropped = hits.ids[rows, columns], hits.scores[rows, columns], dropped[rows, columns]
    ids[is_dropped], scores[is_dropped] = None, np.nan  # where fewer than `count` are left
    return replace(hits, ids=ids, scores=scores)


def _page_path(html: Path | str) -> Path:
    page = Path(html)
    if page.suffix.lower() not in (".html", ".htm"):
        raise OptionError(f"`html` must be named .html, got {page}; for example hits.html.", argument="html")
    require_writable(page, "html")
    return page


def _write_page(
    path: Path,
    loaded: LoadedIndex,
    hits: Hits,
    queries: Mapping[str, ResolvedQuery],
    item_paths: Mapping[str, Path],
    missing: Collection[Path],
) -> None:
    """Write one HTML file with each query image and its hits; an image that cannot be read is shown by its id."""
    from lookalike._html import Thumbnails, page_environment

    thumbnails = Thumbnails(_THUMBNAIL)

    def query_image(query: Source | None) -> str | None:
        if query is None:
            return None
        if isinstance(query, File):
            return thumbnails.uri(query.path)
        with contextlib.suppress(UnreadableImage), image_in_turn(query.path):
            return thumbnails.uri(Image.fromarray(decode(query, [_THUMBNAIL])[0]))
        return None

    page_queries = [
        {
            "id": query.query_id,
            "image": query_image(queries[query.query_id].image),
            "hits": [
                {
                    "id": hit.id,
                    "score": hit.score,
                    "probability": hit.probability,
                    "image": thumbnails.uri(item_paths[hit.id]),
                    "same": None,
                    "caption": "missing" if item_paths[hit.id] in missing else "",
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
    content = {
        "title": "Search results",
        "facts": facts,
        "queries": page_queries,
        "top_k": hits.ids.shape[1],
        "calibrated": hits.probabilities is not None,
    }
    write_text(path, page.render(content))
