"""The index: items that are found by the direction of their embedding."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lookalike._files import digest, new_folder, read_json, reading_errors, storage_errors, write_ascii_json, write_file
from lookalike._strings import PackedStrings, iter_json_lines, read_json_lines
from lookalike._versions import versions_of
from lookalike.errors import DataError, FingerprintMismatch, OptionError, StorageError
from lookalike.index.approximate import ApproximateIndex
from lookalike.index.budget import Budget, size_words
from lookalike.index.building import Kept
from lookalike.index.choose import EXACT_UNTIL, choose
from lookalike.index.flat import FlatIndex, spare_bytes
from lookalike.index.flat_file import Rows
from lookalike.index.ranking import rank, rank_approximately
from lookalike.index.tuning import RECALL_AT, single_ms
from lookalike.progress import SILENT, Progress
from lookalike.types import Embeddings, Hits, Vectors

FORMAT = 1
_FACTS = "index.json"
_ITEMS = "items.json"
_IDS = '{"ids": '
"""How it begins."""
TOO_FEW = 1000
"""Of so few vectors no approximate index is made."""
_TIMED = 20
_BLOCK = 65_536

Metadata = Mapping[str, Mapping[str, str]]


def is_index(path: Path | str) -> bool:
    """Whether a folder holds an index."""
    return (Path(path) / _FACTS).is_file()


class Index:
    """Items with their vectors, searched by cosine, exactly or as a budget allows; made with `build` or `load`.

    Attributes:
        ids: sequence of the item ids, sorted.
        fingerprint: of the model whose embeddings these are; queries by another are refused.
        root: the folder that ids are relative to, or None.
        metadata: further facts by item id.
        precision: that the vectors were computed in, as `Encoder.precision`; auto where that is not known.

    """

    def __init__(
        self,
        store: FlatIndex | ApproximateIndex,
        ids: PackedStrings,
        fingerprint: str,
        root: Path | None,
        metadata: Metadata,
        precision: str = "auto",
    ) -> None:
        self._store = store
        self.ids = ids
        self.fingerprint = fingerprint
        self.root = root
        self.metadata = metadata
        self.precision = precision

    @classmethod
    def build(
        cls,
        embeddings: Embeddings,
        *,
        root: Path | str | None = None,
        metadata: Metadata | None = None,
        min_recall: float = 1.0,
        max_memory: int | str | None = None,
        max_ms: float | None = None,
        work: Path | str | None = None,
        progress: Progress = SILENT,
    ) -> Index:
        """Make an index of embeddings: exact, or the quickest that stays within a budget.

        Recall and time of an approximate index are measured with embeddings that are held out of it meanwhile. Fewer
        than 20,000 are searched exactly whatever recall is asked for, if that stays within the budget.

        Args:
            embeddings: at least one.
            root: the folder that ids are relative to, for `path_of`.
            metadata: further facts by item id; ids without an embedding are passed over.
            min_recall: share of the exact 10 nearest that must be found on average, above 0 and at most 1, exact.
            max_memory: that the vectors may take: bytes, or text such as 500MB.
            max_ms: milliseconds that a query may take, the median.
            work: a folder for what is under way; a run that was killed goes on with it. Once the index is saved,
                `remove_work` removes it.
            progress: is told what is tried.

        Raises:
            DataError: without embeddings.
            OptionError: for a value outside what is allowed, or when nothing stays within the budget.
            StorageError: `work` holds something else, or cannot be written.

        """
        budget = Budget.of(min_recall, max_memory, max_ms)
        if not len(embeddings):
            raise DataError("an index needs at least one embedding, got none.")
        ids = embeddings.ids if isinstance(embeddings.ids, PackedStrings) else PackedStrings(embeddings.ids)
        order = np.arange(len(embeddings))
        if not ids.is_sorted:  # as they shall, so that a lower row wins a tie
            order = np.array(sorted(range(len(ids)), key=list(ids).__getitem__), dtype=np.int64)
            ids = PackedStrings(map(ids.__getitem__, order.tolist()))
        kept = Kept(None if work is None else Path(work))
        store = _store(embeddings.vectors, order, budget, kept, progress)
        known = {i: dict(own) for i, own in (metadata or {}).items() if ids.find(i) >= 0}
        place = None if root is None else Path(root).resolve()
        return cls(store, ids, embeddings.fingerprint, place, known, embeddings.precision)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, item: object) -> bool:
        return isinstance(item, str) and self.ids.find(item) >= 0

    @property
    def dim(self) -> int:
        """Number of dimensions of a vector."""
        return self._store.dim

    @property
    def key(self) -> str:
        """What kind of index it is, as a FAISS factory string."""
        return self._store.key

    def path_of(self, item: str) -> Path | None:
        """Return where an item's file is, or None for an index without a root."""
        return None if self.root is None else self.root / item

    def search(self, queries: Embeddings, top_k: int = 10) -> Hits:
        """Find the items nearest to each query.

        Ordered by cosine, rounded to 6 decimals so that ties are ties on every machine, then by item id. A query is
        never its own hit: the item with its id is passed over.

        Args:
            queries: embeddings by the model that made the index.
            top_k: hits a query.

        Returns:
            Hits `(n_query, top_k)`, best first.

        Raises:
            FingerprintMismatch: the queries were embedded by another model.
            DataError: they have another number of dimensions.
            OptionError: `top_k` is below one or more than there is to find.

        """
        self.require_model(queries.fingerprint, "the model of the queries")
        if queries.dim != self.dim:
            raise DataError(f"the queries have {queries.dim} dimensions, the index has {self.dim}; embed them again.")
        places = [self.ids.find(query) for query in queries.ids]
        own, inside = np.array(places, dtype=np.int64), max(places, default=-1) >= 0
        self._require_enough(top_k, inside=inside)
        if isinstance(self._store, FlatIndex):
            rows, scores = rank(self._store, queries.vectors, own, top_k)
        else:
            rows, scores = rank_approximately(self._store, queries.vectors, own if inside else None, top_k)
        return Hits(tuple(queries.ids), self.ids.take(rows), scores)

    def require_model(self, fingerprint: str, what: str = "the model") -> None:
        """Raise `FingerprintMismatch` for another model than the index was made with; `what` starts the sentence."""
        if fingerprint != self.fingerprint:
            raise FingerprintMismatch(
                f"{what} has the fingerprint {fingerprint}, the index was made with the model {self.fingerprint}; "
                "embed both with one model."
            )

    def require_top_k(self, top_k: int, query_ids: Iterable[str] = ()) -> None:
        """Raise `OptionError` when some query cannot have `top_k` hits, as the query itself is none."""
        self._require_enough(top_k, inside=any(query in self for query in query_ids))

    def _require_enough(self, top_k: int, *, inside: bool) -> None:
        if top_k < 1:
            raise OptionError(f"top_k must be at least 1, got {top_k}.")
        if top_k > len(self) - inside:
            without = " besides the query itself" if inside else ""
            raise OptionError(
                f"top_k is {top_k}, but the index has only {len(self) - inside} items{without}; choose a smaller top_k."
            )

    def save(self, path: Path | str, *, replace: bool = False) -> None:
        """Write the index as a folder, in one step.

        Args:
            path: the folder; must be free unless `replace`.
            replace: take the place of an older one.

        Raises:
            StorageError: when the place is taken or cannot be written.

        """
        with new_folder(Path(path), replace=replace) as folder:
            self.write_into(folder)

    def write_into(self, folder: Path) -> None:
        """Write the index's files into a folder that is being made."""
        with storage_errors(folder):
            self._store.write(folder)
        _write_items(folder / _ITEMS, self.ids, self.metadata)
        facts = {
            "format": FORMAT,
            "key": self.key,
            "fingerprint": self.fingerprint,
            "precision": self.precision,
            "dim": self.dim,
            "count": len(self),
            "root": None if self.root is None else str(self.root),
            **self._store.facts,
            "versions": {**versions_of("lookalike"), **self._store.versions()},
        }
        write_ascii_json(folder / _FACTS, facts, indent=2)

    @classmethod
    def load(cls, path: Path | str) -> Index:
        """Read an index that `save` wrote.

        Raises:
            StorageError: no index, of another format, or damaged.

        """
        path = Path(path)
        facts = _read_facts(path)
        store = _open(path, facts)
        try:
            ids, metadata = _read_items(path / _ITEMS)
            count, dim, fingerprint = int(facts["count"]), int(facts["dim"]), str(facts["fingerprint"])
            root = None if facts["root"] is None else Path(facts["root"])
            precision = str(facts.get("precision", "auto"))
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(path, f"{type(error).__name__} {error}") from error
        if not len(ids) == len(store) == count:
            raise _damaged(path, f"{count} items expected, {len(ids)} ids and {len(store)} vectors found")
        if store.dim != dim:
            raise _damaged(path, f"{dim} dimensions expected, {store.dim} found")
        if not ids.is_sorted:
            raise _damaged(path, "the ids are not sorted")
        return cls(store, ids, fingerprint, root, metadata, precision)


def _write_items(path: Path, ids: PackedStrings, metadata: Metadata) -> None:
    """Write ids and metadata as one JSON object, an id a line."""

    def fill(temporary: Path) -> None:
        with temporary.open("w", encoding="ascii") as file:
            file.write(_IDS)
            file.writelines(iter_json_lines(ids))
            file.write(f",\n{json.dumps({'metadata': metadata})[1:]}\n")

    write_file(path, fill)


def _read_items(path: Path) -> tuple[PackedStrings, dict[str, Any]]:
    """Read ids and metadata.

    Raises:
        StorageError: missing, or no JSON.
        KeyError, TypeError, ValueError: something else.

    """
    with reading_errors(path, "the index's items"), path.open(encoding="utf-8") as file:
        if file.readline() == f"{_IDS}[\n":
            ids = read_json_lines(itertools.takewhile(lambda line: line[0] != "]", file))
            return ids, dict(json.loads("{" + file.read())["metadata"])
        file.seek(0)
        items = json.load(file)  # an older one has all in one line
        return PackedStrings(map(str, items["ids"])), dict(items["metadata"])


def _read_facts(path: Path) -> dict[str, Any]:
    if not is_index(path):
        raise StorageError(f"{path} is not an index: it has no {_FACTS}; make one with 'lookalike index'.")
    facts = read_json(path / _FACTS, "the index's description")
    got = facts.get("format") if isinstance(facts, dict) else None
    if got != FORMAT:
        raise StorageError(f"{path} has index format {got}, this version reads {FORMAT}; make the index again.")
    return dict(facts)


def _store(
    vectors: Vectors, order: Rows, budget: Budget, kept: Kept, progress: Progress
) -> FlatIndex | ApproximateIndex:
    """Keep vectors in this order in the kind of index that the budget leads to."""
    count, dim = vectors.shape
    if budget.exact or count < EXACT_UNTIL:
        spare = budget.max_memory is None or (4 * dim + spare_bytes(dim)) * count <= budget.max_memory
        flat = FlatIndex.of(vectors, order, spare=spare)
        problem = _beyond(flat, budget)
        if problem is None:
            if not budget.exact:
                progress.info(f"{count} vectors are few enough to be searched exactly, with {budget}")
            return flat
        if budget.exact or count < TOO_FEW:
            advice = ", or ask for less than all with min_recall" if count >= TOO_FEW else ""
            raise OptionError(f"{count} vectors of {dim} dimensions, searched exactly, {problem}; allow more{advice}.")
    progress.info(f"looking for the quickest index of {count} vectors with {budget}")

    def take(rows: Rows) -> Vectors:
        return np.asarray(vectors[order[rows]])

    kept.begin(lambda: _digest(vectors, order))
    made = choose(take, count, dim, budget, kept=kept, progress=progress)
    progress.info(made.why)
    return ApproximateIndex.of(made)


def _beyond(flat: FlatIndex, budget: Budget) -> str | None:
    """Say what an exact index exceeds of a budget; None where it stays within."""
    size = 4 * flat.dim * len(flat)
    if budget.max_memory is not None and size > budget.max_memory:
        return f"take {size_words(size)}, and max_memory is {size_words(budget.max_memory)}"
    if budget.max_ms is not None:
        some = flat.vectors(np.arange(min(_TIMED, len(flat))))
        spent = single_ms(lambda query: flat.nearest(query, min(RECALL_AT, len(flat))), some)
        if spent > budget.max_ms:
            return f"take {spent:.3g} ms a query, and max_ms is {budget.max_ms:g}"
    return None


def _digest(vectors: Vectors, order: Rows) -> str:
    """Return a fingerprint of vectors in this order."""
    parts = (vectors[order[start : start + _BLOCK]].tobytes() for start in range(0, len(order), _BLOCK))
    return digest(str(vectors.shape), *(digest(part) for part in parts))


def _open(path: Path, facts: Mapping[str, Any]) -> FlatIndex | ApproximateIndex:
    if isinstance(facts.get("key"), str) and "choice" in facts:
        return ApproximateIndex.read(path, str(facts["key"]), facts["choice"])
    if facts.get("key") != FlatIndex.key:
        raise StorageError(
            f"{path} is an index of the kind {facts.get('key')!r}, this version reads {FlatIndex.key!r}; "
            "update lookalike or make the index again."
        )
    return FlatIndex.read(path, spare=facts.get("spare", True) is True)


def _damaged(path: Path, what: str) -> StorageError:
    return StorageError(f"the index in {path} is damaged ({what}); make the index again.")
