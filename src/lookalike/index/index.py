"""The index: items searched by the cosine of their embeddings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lookalike._arguments import checked_arguments
from lookalike._files import new_folder, storage_errors
from lookalike._strings import PackedStrings
from lookalike._top_k import Ints
from lookalike.errors import DataError, FingerprintMismatch, OptionError, StorageError, require_integer
from lookalike.index.autotune import EXACT_UNTIL, RECALL_AT, Budget, autotune, format_size, time_single
from lookalike.index.exact import ExactIndex
from lookalike.index.faiss_index import ApproximateIndex
from lookalike.index.filters import Filter, checked_metadata, normalized
from lookalike.index.folder_store import FolderStore
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
from lookalike.index.store import (
    CHANGED_FILE,
    UNCHANGED,
    Add,
    FileState,
    IndexedItem,
    ItemMetadata,
    Remove,
    Store,
    Unchanged,
    Update,
    located,
)
from lookalike.progress import Progress, resolve_progress
from lookalike.types import Embeddings, Hits, Vectors, l2_normalize, require_embeddings

APPROXIMATE_MIN = 1000  # fewer vectors are too few to tune an approximate index
_DEFAULT_TOP_K = 10
_PAGE = 1000  # items read at once
_COMPACT_FROM = 1000  # changes after which an index is compacted,
_COMPACT_SHARE = 10  # and at least one per this many items
_TIMED_QUERIES = 20


class Index:
    """Items with their vectors, searched by cosine, exactly or as a budget allows; created by `build` or `load`.

    One that is loaded can be changed, by several threads and processes at once. A change is durable when the call
    returns, and every process sees it in its next search.

    Attributes:
        info: what is stored about the index as it was built.
        fingerprint: of the model that made the embeddings; queries by another one are refused.
        precision: in which the embeddings were computed, as `Encoder.precision`; auto if it is unknown.
        root: the folder that ids are relative to, or None.
    """

    def __init__(self, store: FolderStore | Store, info: IndexInfo, folder: Path | None = None) -> None:
        self._stored = store
        self._folder = folder
        self._changed_file = None if folder is None else str(folder / CHANGED_FILE)
        self.info = info
        self.fingerprint = info.fingerprint
        self.precision = info.precision
        self.root = None if info.root is None else Path(info.root)

    @property
    def _store(self) -> FolderStore | Store:
        """The current store: another process may have made the first change."""
        changed = self._changed_file
        # os.path.exists takes half the time of Path.exists
        if changed is not None and isinstance(self._stored, FolderStore) and os.path.exists(changed):  # noqa: PTH110
            self._stored = _open_changed(Path(changed).parent, self.info)
        return self._stored

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
            metadata: by item id, for filters: text, numbers and booleans by key; ids without an
                embedding are ignored.
            min_recall: mean share of the exact 10 nearest that is found, above 0 and at most 1, which is exact.
            max_memory: limit for the vectors: bytes, or text such as 500MB.
            max_ms: limit for the median milliseconds of one query.
            checkpoint: a folder for the unfinished index, from which an interrupted run resumes. Call
                `remove_checkpoint` once the index is saved.
            progress: receives progress and messages; None shows a bar in a terminal or notebook, and logs elsewhere.

        Raises:
            DataError: no embeddings.
            OptionError: a value is out of range, or no index is within the budget.
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
        return cls(FolderStore(vector_index, ids, own_labels, own_metadata), info)

    def __len__(self) -> int:
        return len(self._store)

    def __repr__(self) -> str:
        return f"<Index: {len(self)} items, {self.dim} dimensions, {self.key}>"

    def __contains__(self, item: object) -> bool:
        return item in self._store

    @property
    def ids(self) -> Sequence[str]:
        """Sorted ids of all items, an immutable sequence."""
        return self._store.ids

    @property
    def labels(self) -> Labels:
        """Labels by item id, of the items that have one."""
        store = self._store
        if isinstance(store, FolderStore):
            return store.labels
        return {item.id: item.label for item in self.iter_items() if item.label is not None}

    @property
    def metadata(self) -> Metadata:
        """Further facts by item id, of the items that have some."""
        store = self._store
        if isinstance(store, FolderStore):
            return store.metadata
        return {item.id: item.metadata for item in self.iter_items() if item.metadata}

    @property
    def dim(self) -> int:
        """Number of dimensions of a vector."""
        return self.info.dim

    @property
    def key(self) -> str:
        """FAISS factory string; Flat for exact search."""
        return self._store.key

    @checked_arguments()
    def with_root(self, root: Path | str) -> Index:
        """Return the same index with another folder that ids are relative to, such as the one the images moved to."""
        folder = Path(root)
        if not folder.is_dir():
            raise OptionError(f"`root` must be a folder, got {folder}.", argument="root")
        return Index(self._store, replace(self.info, root=str(folder.resolve())), self._folder)

    def path_of(self, item: str) -> Path | None:
        """Return the path of an item's file; None without a file, or for a relative path in an index without a root."""
        return located(self._store.other_paths.get(item, Path(item)), self.root)

    @checked_arguments()
    def get(self, item: str) -> IndexedItem | None:
        """Return an item by its id; None if there is none."""
        return self.get_all([item])[0]

    @checked_arguments()
    def get_all(self, ids: Sequence[str]) -> list[IndexedItem | None]:
        """Return items by their ids, None for an id that has no item."""
        return [None if item is None else self._located(item) for item in self._store.get(ids)]

    @checked_arguments()
    def items(self, after: str | None = None, limit: int = 100) -> list[IndexedItem]:
        """Return the first items in the order of their ids, after the id `after`."""
        if limit < 1:
            raise OptionError(f"`limit` must be at least 1, got {limit}.", argument="limit")
        return list(map(self._located, self._store.items(after, limit)))

    def iter_items(self) -> Iterator[IndexedItem]:
        """Yield all items in the order of their ids, a page at a time: one that is changed meanwhile may be missed."""
        page = self.items(limit=_PAGE)
        while page:
            yield from page
            page = self.items(page[-1].id, _PAGE)

    def vectors_of(self, ids: Iterable[str]) -> Vectors:
        """Return the embeddings `(n, dim)` of items: as they were added, or as an approximate index stores them.

        Raises:
            OptionError: an id is not in the index.
        """
        return l2_normalize(self._store.vectors_of(tuple(ids)))

    def _located(self, item: IndexedItem) -> IndexedItem:
        return replace(item, path=located(item.path, self.root))

    @checked_arguments(embeddings="use encoder.embed(images), or Embeddings(ids, vectors, fingerprint)")
    def add(
        self,
        embeddings: Embeddings,
        *,
        labels: Labels | None = None,
        metadata: Metadata | None = None,
        paths: Mapping[str, Path | str | None] | None = None,
        files: Mapping[str, FileState] | None = None,
        replace: bool = False,
    ) -> int:
        """Add items, all or none of them.

        Args:
            embeddings: of the model that made the index.
            labels: by item id.
            metadata: text, numbers and booleans by item id.
            paths: files by item id, None for an item without one; of any other item the id is the path.
            files: the states of files when they were embedded, by item id.
            replace: allow items that exist; they are replaced with label, metadata and path.

        Returns:
            How many items were replaced.

        Raises:
            DataError: an item exists.
            FingerprintMismatch: the embeddings are of another model.
            OptionError: the index is only in memory, or metadata that no filter can compare.
            StorageError: the index cannot be written.
        """
        self._require_embeddings(embeddings, "embeddings")
        labels, metadata, paths, files = labels or {}, metadata or {}, paths or {}, files or {}
        items = []
        for item in embeddings.ids:
            label, path = labels.get(item), self._stored_path(paths.get(item, item))
            facts = checked_metadata(item, metadata.get(item, {}))
            items.append(IndexedItem(item, None if label is None else normalized(label), facts, path, files.get(item)))
        return self._changeable().apply(Add(items, embeddings.vectors, replace)) if items else 0

    @checked_arguments(ids="if it is a single id, put it in a list")
    def remove(self, ids: Sequence[str]) -> None:
        """Remove items, all or none of them; `OptionError` for an id that has no item."""
        if ids:
            self._changeable().apply(Remove(list(dict.fromkeys(ids))))

    @checked_arguments()
    def update(
        self,
        item: str,
        *,
        label: str | Unchanged | None = UNCHANGED,
        metadata: ItemMetadata | None = None,
        embeddings: Embeddings | None = None,
        path: Path | str | Unchanged | None = UNCHANGED,
        file: FileState | Unchanged | None = UNCHANGED,
    ) -> None:
        """Change an item in one step.

        Args:
            item: its id; `OptionError` if there is none.
            label: its new label, None for none.
            metadata: merged with what it has; a value of None removes a name.
            embeddings: one embedding, of the image that replaces its own.
            path: its new file, None for none.
            file: the state of its file when it was embedded.
        """
        vector = None
        if embeddings is not None:
            self._require_embeddings(embeddings, "embeddings")
            if len(embeddings) != 1:
                raise DataError(f"`embeddings` must hold one embedding, got {len(embeddings)}.", argument="embeddings")
            vector = embeddings.vectors[0]
        new_path = path if isinstance(path, Unchanged) else self._stored_path(path)
        new_label = normalized(label) if isinstance(label, str) else label
        self._changeable().apply(
            Update(item, new_label, checked_metadata(item, metadata or {}), vector, new_path, file)
        )

    def refresh(self) -> bool:
        """See what other processes have changed; return whether they have. Every search does it first."""
        before = self._stored
        return self._store.refresh() or self._stored is not before

    @property
    def pending(self) -> int:
        """Items that were added or removed since the index was compacted, each of which makes searches slower."""
        return self._store.pending

    @property
    def needs_compaction(self) -> bool:
        """Whether so much was changed since the index was compacted that `compact` pays."""
        return self.pending >= max(_COMPACT_FROM, len(self) // _COMPACT_SHARE)

    @checked_arguments()
    def compact(self, *, min_recall: float | None = None, progress: Progress | None = None) -> bool:
        """Rebuild what makes searches of a changed index fast, while searches and changes continue.

        Args:
            min_recall: lowest index recall@10 of more than 20,000 items, 1 for exact search; None for that of the
                index so far.
            progress: receives progress and messages; None shows a bar in a terminal or notebook, and logs elsewhere.

        Returns:
            False if the index was never changed, or another process is compacting it.
        """
        if min_recall is not None:
            Budget(min_recall)
        store = self._store
        return not isinstance(store, FolderStore) and store.compact(min_recall, resolve_progress(progress))

    def close(self) -> None:
        """Close the files of a changed index, which must not be used afterwards."""
        self._stored.close()

    def prepare_changes(self) -> None:
        """Do what the first change does, and change nothing."""
        self._changeable()

    def _changeable(self) -> Store:
        """Return the store of a changed index; the first change makes it."""
        store = self._store
        if isinstance(store, FolderStore):
            if self._folder is None:
                raise OptionError(
                    "an index in memory cannot be changed; save it, and change what Index.load returns.",
                    argument="index",
                )
            from lookalike.index.local_store import make_local_store

            make_local_store(self._folder, store, self.info)
            self._stored = store = _open_changed(self._folder, self.info)
        return store

    def _stored_path(self, path: Path | str | None) -> Path | None:
        """Return a path as stores keep it: relative to the root where it is below it."""
        if path is None:
            return None
        path = Path(path)
        return path.relative_to(self.root) if self.root is not None and path.is_relative_to(self.root) else path

    def _require_embeddings(self, embeddings: Embeddings, argument: str) -> None:
        require_embeddings(embeddings, argument)
        self.require_model(embeddings.fingerprint, f"the model of the {argument}", argument=argument)
        if embeddings.dim != self.dim:
            raise DataError(
                f"the {argument} have {embeddings.dim} dimensions, the index has {self.dim}; embed them again.",
                argument=argument,
            )

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
        self._require_embeddings(queries, "queries")
        store = self._store
        item_filter = Filter.parse(where) if isinstance(where, str) else where
        top_k = self.resolve_top_k(top_k, queries.ids)
        ids, scores = store.search(queries.vectors, queries.ids, top_k, item_filter)
        other = store.other_paths
        paths = {item: located(other[item], self.root) for item in ids.ravel() if item in other} if other else {}
        return Hits(tuple(queries.ids), ids, scores, self.root, paths)

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
        store = self._store
        if not (count := len(store)):
            raise DataError("the index holds no item; add images first.", argument="index")
        top_k = None if top_k is None else require_integer(top_k, "top_k")
        if top_k is not None and top_k < 1:
            raise OptionError(f"`top_k` must be at least 1, got {top_k}.", argument="top_k")
        # looked up only where it matters
        inside = count <= (_DEFAULT_TOP_K if top_k is None else top_k) and any(query in store for query in query_ids)
        if top_k is None:
            top_k = max(1, min(_DEFAULT_TOP_K, count - inside))
        if top_k > count - inside:
            besides = " besides the query itself" if inside else ""
            raise OptionError(
                f"`top_k` is {top_k}, but the index has only {count - inside} items{besides}; "
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
        store = self._store
        if not isinstance(store, FolderStore):
            store.copy_into(folder)
            write_info(folder, self.info)
            return
        with storage_errors(folder):
            store.vector_index.write(folder)
        write_items(folder, store.ids, store.labels, store.metadata)
        write_info(folder, with_files(folder, self.info))

    @classmethod
    @checked_arguments()
    def load(cls, path: Path | str, *, verify: bool = False) -> Index:
        """Read an index that `save` wrote; `StorageError` if it is not an index, of another format, or damaged.

        Its files are compared with their digests; of more than 32 MB of vectors only the size, unless `verify`. Of a
        changed index a damaged snapshot is built again.
        """
        path = Path(path)
        info = read_info(path)
        folder = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a link, which may be moved
        if not (path / CHANGED_FILE).exists():
            try:
                return cls(_read_folder(path, info, verify=verify), info, folder)
            except StorageError:
                if not (path / CHANGED_FILE).exists():  # or another process has just made the first change
                    raise
        return cls(_open_changed(folder, info, verify=verify), info, folder)


def _read_folder(path: Path, info: IndexInfo, *, verify: bool) -> FolderStore:
    require_unchanged_index(path, info, verify=verify)
    vector_index: ExactIndex | ApproximateIndex
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
    return FolderStore(vector_index, ids, labels, metadata)


def _open_changed(folder: Path, info: IndexInfo, *, verify: bool = False) -> Store:
    """Open an index that was changed; an index that never was does not import SQLite."""
    from lookalike.index.local_store import LocalStore

    return LocalStore(folder, info.dim, verify=verify)


def _build(
    vectors: Vectors, order: Ints, budget: Budget, checkpoint: BuildCheckpoint, progress: Progress
) -> tuple[ExactIndex | ApproximateIndex, TuningReport | None]:
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
