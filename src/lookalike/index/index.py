"""The index: items searched by the cosine of their embeddings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePath

import numpy as np

from lookalike._arguments import checked_arguments
from lookalike._files import new_folder, storage_errors
from lookalike._strings import PackedStrings
from lookalike._top_k import Ints
from lookalike.errors import DataError, FingerprintMismatch, OptionError, require_integer
from lookalike.index.autotune import RECALL_AT, Budget, autotune, format_size, time_single
from lookalike.index.exact import ExactIndex
from lookalike.index.faiss_index import ApproximateIndex
from lookalike.index.filters import Filter, ItemColumns, Mask, checked_metadata, normalized
from lookalike.index.storage import (
    BuildCheckpoint,
    IndexInfo,
    Labels,
    Metadata,
    TuningReport,
    damaged_index,
    read_info,
    read_items,
    require_unchanged_index,
    with_files,
    write_info,
    write_items,
)
from lookalike.progress import Progress, resolve_progress
from lookalike.types import Embeddings, Hits, Vectors, l2_normalize, require_embeddings

EXACT_UNTIL = 20_000  # fewer vectors are compared in a millisecond or two; no approximate index pays
APPROXIMATE_MIN = 1000  # fewer vectors are too few to tune an approximate index
_DEFAULT_TOP_K = 10
_TIMED_QUERIES = 20

VectorIndex = ExactIndex | ApproximateIndex


class Index:
    """Items with their vectors, searched by cosine, exactly or as a budget allows; created by `build` or `load`.

    Attributes:
        ids: sorted item ids, an immutable sequence.
        labels: labels by item id, of the items that have one.
        metadata: further facts by item id.
        info: what is stored about the index.
        fingerprint: of the model that made the embeddings; queries by another one are refused.
        precision: in which the embeddings were computed, as `Encoder.precision`; auto if it is unknown.
        root: the folder that ids are relative to, or None.
    """

    def __init__(
        self, vector_index: VectorIndex, ids: PackedStrings, labels: Labels, metadata: Metadata, info: IndexInfo
    ) -> None:
        self._vector_index = vector_index
        self._columns = ItemColumns(ids, ids.find, labels, metadata)
        self.ids = ids
        self.labels = labels
        self.metadata = metadata
        self.info = info
        self.fingerprint = info.fingerprint
        self.precision = info.precision
        self.root = None if info.root is None else Path(info.root)

    @classmethod
    @checked_arguments(embeddings="use encoder.embed(images), or Embeddings(ids, vectors, fingerprint)")
    def build(  # noqa: PLR0913 - all but one by name, with defaults that fit
        cls,
        embeddings: Embeddings,
        *,
        root: Path | str | None = None,
        labels: Labels | None = None,
        metadata: Metadata | None = None,
        min_recall: float = 1.0,
        max_memory: int | str | None = None,
        max_ms: float | None = None,
        checkpoint: Path | str | None = None,
        progress: Progress | None = None,
    ) -> Index:
        """Build an index of embeddings: exact, or the fastest within a budget.

        Recall and time of an approximate index are measured with held-out embeddings as queries. Fewer than 20,000
        embeddings are searched exactly, whatever the recall, if that is within the budget.

        Args:
            embeddings: at least one.
            root: the folder that ids are relative to, for `path_of`.
            labels: labels by item id; ids without an embedding are ignored.
            metadata: further facts by item id, for filters: text, numbers and truth values by key; ids without an
                embedding are ignored.
            min_recall: mean share of the exact 10 nearest that is found, above 0 and at most 1, which is exact.
            max_memory: limit for the vectors: bytes, or text such as 500MB.
            max_ms: limit for the median milliseconds of one query.
            checkpoint: a folder for the unfinished index, from which an interrupted run resumes. Call
                `remove_checkpoint` once the index is saved.
            progress: receives progress and messages; None shows a bar in a terminal or notebook, and logs elsewhere.

        Raises:
            DataError: no embeddings.
            OptionError: a value is out of range, metadata that a filter cannot compare, or no index is within the
                budget.
            StorageError: `checkpoint` holds something else, or cannot be written.
        """
        budget = Budget.parse(min_recall, max_memory, max_ms)
        if not len(embeddings):
            raise DataError("an index needs at least one embedding, got none.", argument="embeddings")
        ids = embeddings.ids if isinstance(embeddings.ids, PackedStrings) else PackedStrings(embeddings.ids)
        order = np.arange(len(embeddings))
        if not ids.is_sorted:
            order = np.array(sorted(range(len(ids)), key=list(ids).__getitem__), dtype=np.int64)
            ids = PackedStrings(map(ids.__getitem__, order.tolist()))
        build_checkpoint = BuildCheckpoint(None if checkpoint is None else Path(checkpoint))
        vector_index, tuning = _build(embeddings.vectors, order, budget, build_checkpoint, resolve_progress(progress))
        info = IndexInfo(
            key=vector_index.key,
            fingerprint=embeddings.fingerprint,
            precision=embeddings.precision,
            dim=embeddings.dim,
            count=len(ids),
            root=None if root is None else str(Path(root).resolve()),
            prefilter=vector_index.prefilter,
            tuning=tuning,
        )
        own_labels = {item: normalized(label) for item, label in (labels or {}).items() if ids.find(item) >= 0}
        own_metadata = {i: checked_metadata(i, facts) for i, facts in (metadata or {}).items() if ids.find(i) >= 0}
        return cls(vector_index, ids, own_labels, own_metadata, info)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"<Index: {len(self)} items, {self.dim} dimensions, {self.key}>"

    def __contains__(self, item: object) -> bool:
        return isinstance(item, str) and self.ids.find(item) >= 0

    @property
    def dim(self) -> int:
        """Number of dimensions of a vector."""
        return self.info.dim

    @property
    def key(self) -> str:
        """FAISS factory string; Flat for exact search."""
        return self.info.key

    @checked_arguments()
    def with_root(self, root: Path | str) -> Index:
        """Return the same index with another folder that ids are relative to, such as the one the images moved to."""
        folder = Path(root)
        if not folder.is_dir():
            raise OptionError(f"`root` must be a folder, got {folder}.", argument="root")
        info = replace(self.info, root=str(folder.resolve()))
        return Index(self._vector_index, self.ids, self.labels, self.metadata, info)

    def path_of(self, item: str) -> Path | None:
        """Return the path of an item's file; None for a relative id in an index without a root."""
        if self.root is None:
            return Path(item) if PurePath(item).is_absolute() else None
        return self.root / item

    def vectors_of(self, ids: Iterable[str]) -> Vectors:
        """Return the embeddings `(n, dim)` of items: as they were added, or as an approximate index stores them.

        Raises:
            OptionError: an id is not in the index.
        """
        ids = tuple(ids)
        rows = np.fromiter(map(self.ids.find, ids), dtype=np.int64, count=len(ids))
        if (rows < 0).any():
            raise OptionError(f"the index has no item {ids[int(np.argmin(rows))]!r}.", argument="ids")
        return l2_normalize(self._vector_index.vectors(rows))

    def search(self, queries: Embeddings, top_k: int | None = None, where: Filter | str | None = None) -> Hits:
        """Find the items nearest to each query, made by the model of the index.

        `top_k` is the number of hits per query; None for 10, or as many as every query can have. `where` is a filter
        such as `label == 'hat' and year >= 2020`: only the items that fit are hits, and a query has fewer than `top_k`
        where fewer fit.

        Hits are ordered by cosine, rounded to 6 decimals so that ties are ties on every machine, then by item id. A
        query is never its own hit: the item with its id is skipped.

        Raises:
            FingerprintMismatch: the queries were embedded by another model.
            DataError: they have another number of dimensions.
            OptionError: `top_k` is below 1 or larger than the index, or `where` is not a filter.
        """
        allowed = None if where is None else self._mask(where)
        require_embeddings(queries, "queries")
        self.require_model(queries.fingerprint, "the model of the queries", argument="queries")
        if queries.dim != self.dim:
            raise DataError(
                f"the queries have {queries.dim} dimensions, the index has {self.dim}; embed them again.",
                argument="queries",
            )
        query_rows = np.fromiter(map(self.ids.find, queries.ids), dtype=np.int64)
        top_k = self._resolve_top_k(top_k, inside=bool((query_rows >= 0).any()))
        rows, scores = self._vector_index.search(queries.vectors, query_rows, top_k, allowed)
        ids = self.ids.take(np.maximum(rows, 0))
        ids[rows < 0] = None
        return Hits(tuple(queries.ids), ids, scores, self.root)

    def _mask(self, where: Filter | str) -> Mask:
        return (Filter.parse(where) if isinstance(where, str) else where).mask(self._columns)

    def require_model(self, fingerprint: str, what: str = "the model", *, argument: str | None = None) -> None:
        """Raise `FingerprintMismatch` unless the model made the index; `what` begins the message."""
        if fingerprint != self.fingerprint:
            raise FingerprintMismatch(
                f"{what} has the fingerprint {fingerprint}, the index was made by the model {self.fingerprint}; "
                "embed both with one model.",
                argument=argument,
            )

    def resolve_top_k(self, top_k: int | None, query_ids: Iterable[str] = ()) -> int:
        """Return the number of hits of `search`, or raise `OptionError` unless every query can have `top_k` hits.

        A query that is in the index can have one hit less.
        """
        return self._resolve_top_k(top_k, inside=any(query in self for query in query_ids))

    def _resolve_top_k(self, top_k: int | None, *, inside: bool) -> int:
        if top_k is None:
            top_k = max(1, min(_DEFAULT_TOP_K, len(self) - inside))
        top_k = require_integer(top_k, "top_k")
        if top_k < 1:
            raise OptionError(f"`top_k` must be at least 1, got {top_k}.", argument="top_k")
        if top_k > len(self) - inside:
            besides = " besides the query itself" if inside else ""
            raise OptionError(
                f"`top_k` is {top_k}, but the index has only {len(self) - inside} items{besides}; "
                "choose a smaller `top_k`.",
                argument="top_k",
            )
        return top_k

    @checked_arguments()
    def save(self, path: Path | str, *, replace: bool = False) -> None:
        """Write the index as a new folder in one step, or raise `StorageError`; `replace` overwrites an older one."""
        with new_folder(Path(path), replace=replace, argument="path") as folder:
            self.write_into(folder)

    def write_into(self, folder: Path) -> None:
        """Write the files of the index into an existing folder."""
        with storage_errors(folder):
            self._vector_index.write(folder)
        write_items(folder, self.ids, self.labels, self.metadata)
        write_info(folder, with_files(folder, self.info))

    @classmethod
    @checked_arguments()
    def load(cls, path: Path | str, *, verify: bool = False) -> Index:
        """Read an index that `save` wrote; `StorageError` if it is not an index, of another format, or damaged.

        Its files are compared with their digests; of more than 32 MB of vectors only the size, unless `verify`.
        """
        path = Path(path)
        info = read_info(path)
        require_unchanged_index(path, info, verify=verify)
        vector_index: VectorIndex
        if info.tuning is not None:
            vector_index = ApproximateIndex.read(path, info.key, info.tuning.measured.parameters)
        elif info.key == ExactIndex.key:
            vector_index = ExactIndex.read(path, prefilter=info.prefilter)
        else:
            raise damaged_index(path, f"it has no tuning report, but the key {info.key!r}")
        ids, labels, metadata = read_items(path)
        if not len(ids) == len(vector_index) == info.count:
            raise damaged_index(path, f"{info.count} items expected, got {len(ids)} ids, {len(vector_index)} vectors")
        if vector_index.dim != info.dim:
            raise damaged_index(path, f"{info.dim} dimensions expected, got {vector_index.dim}")
        if not ids.is_sorted:
            raise damaged_index(path, "the ids are not sorted")
        return cls(vector_index, ids, labels, metadata, info)


def _build(
    vectors: Vectors, order: Ints, budget: Budget, checkpoint: BuildCheckpoint, progress: Progress
) -> tuple[VectorIndex, TuningReport | None]:
    count, dim = vectors.shape
    if budget.exact or count < EXACT_UNTIL:
        # of a vector: float32, and in the prefilter 8 bits per dimension and two lengths
        prefilter = budget.max_memory is None or (5 * dim + 8) * count <= budget.max_memory
        is_sorted = (order == np.arange(count)).all()
        index = ExactIndex(vectors if is_sorted else vectors[order], prefilter=prefilter)
        excess = _excess(index, budget)
        if excess is None:
            if not budget.exact:
                progress.info(f"using exact search: {count} vectors meet {budget}")
            return index, None
        cause, argument = excess
        if budget.exact or count < APPROXIMATE_MIN:
            advice = ", or a smaller `min_recall`" if count >= APPROXIMATE_MIN else ""
            raise OptionError(
                f"exact search of {count} vectors of {dim} dimensions takes {cause}; allow more{advice}.",
                argument=argument,
            )
    progress.info(f"selecting the fastest index of {count} vectors with {budget}")

    def take(rows: Ints) -> Vectors:
        return np.asarray(vectors[order[rows]])

    checkpoint.open(take, count)
    approximate, report = autotune(take, count, dim, budget, checkpoint, progress)
    progress.info(report.reason)
    return approximate, report


def _excess(index: ExactIndex, budget: Budget) -> tuple[str, str] | None:
    """Return by what an exact index exceeds a budget, and the argument that sets it; None within it."""
    size = 4 * index.dim * len(index)
    if budget.max_memory is not None and size > budget.max_memory:
        return f"{format_size(size)}, and `max_memory` is {format_size(budget.max_memory)}", "max_memory"
    if budget.max_ms is not None:
        count = min(RECALL_AT, len(index))
        queries = index.vectors(np.arange(min(_TIMED_QUERIES, len(index))))
        single_ms = time_single(lambda query: index.nearest(query, count), queries)
        if single_ms > budget.max_ms:
            return f"{single_ms:.3g} ms per query, and `max_ms` is {budget.max_ms:g}", "max_ms"
    return None
