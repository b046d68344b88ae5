"""Exact rankings of a gallery, judged by labels: the same on every machine, a chunk of queries at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lookalike._top_k import LAST, STEPS, Ints, best_first, cosine_steps
from lookalike.errors import DataError, FingerprintMismatch
from lookalike.evaluation.measures import Relevant, Total
from lookalike.reranking.reranker import Similarities
from lookalike.types import Embeddings, Hits

_TOP_HITS = 10  # first hits of each query that are returned with their ids
_CHUNK_CELLS = 4_000_000  # query x gallery cells in memory at once, 8 bytes each
_CHUNK_QUERIES = 1024


@dataclass(frozen=True, eq=False)
class Relevance:
    """The queries that count and the gallery items that are relevant to them, from ids and labels alone.

    A column is the position of a gallery item when the gallery is sorted by id, so that the lower column wins a tie.
    """

    query_ids: tuple[str, ...]  # the n_query queries that count
    query_labels: tuple[str, ...]  # n_query labels
    query_rows: Ints  # `(n_query,)` rows of these queries in their embeddings
    query_codes: Ints  # `(n_query,)` labels as numbers
    gallery_rows: Ints  # `(n_gallery,)` rows in the gallery's embeddings, by column
    gallery_codes: Ints  # `(n_gallery,)` labels as numbers, by column; -1 for no label: relevant to no query
    same_file: Ints  # `(n, 2)` position of a query and column of itself or of another item with its file: not its hit
    total: Ints  # `(n_query,)` number of relevant gallery items that can be hits; at least 1
    excluded: tuple[str, ...]  # queries that do not count: no label, or nothing relevant in the gallery
    unlabelled: tuple[str, ...]  # those of `excluded` that have no label

    def __len__(self) -> int:
        return len(self.query_ids)

    @property
    def gallery(self) -> int:
        """Number of gallery items."""
        return len(self.gallery_rows)

    @property
    def max_depth(self) -> int:
        """Number of hits that every query can have: the gallery without the query itself and its file."""
        return self.gallery - int(np.bincount(self.same_file[:, 0], minlength=1).max())


def find_relevance(
    queries: Embeddings,
    gallery: Embeddings,
    query_labels: Mapping[str, str],
    gallery_labels: Mapping[str, str],
    same_file_ids: Mapping[str, Collection[str]] | None = None,
) -> Relevance:
    """Find the queries that count: those with a label and at least one other gallery item of the same label.

    `same_file_ids` are gallery items with a query's file, by its id.
    """
    if queries.fingerprint != gallery.fingerprint:
        raise FingerprintMismatch(
            f"the queries were embedded by the model {queries.fingerprint}, the gallery by {gallery.fingerprint}; "
            "embed both with one model."
        )
    if queries.dim != gallery.dim:
        raise DataError(
            f"the queries have {queries.dim} dimensions, the gallery has {gallery.dim}, with the same model "
            "fingerprint; embed both again."
        )
    labels_by_query = _select_labels(queries.ids, query_labels, "query")
    labels_by_item = _select_labels(gallery.ids, gallery_labels, "gallery")
    class_sizes = Counter(labels_by_item.values())
    order = sorted(range(len(gallery)), key=gallery.ids.__getitem__)
    columns = {gallery.ids[row]: column for column, row in enumerate(order)}
    same_files = {q: sorted({q, *(same_file_ids or {}).get(q, ())} & columns.keys()) for q in queries.ids}
    totals = {
        q: class_sizes[label] - sum(labels_by_item.get(item) == label for item in same_files[q])
        for q, label in labels_by_query.items()
    }
    ids = tuple(q for q in queries.ids if totals.get(q))
    if not ids:
        raise DataError(
            f"none of the {len(queries)} queries has an item of its label in the gallery of {len(gallery)}; "
            "check that both splits use the same class names.",
            argument="data",
        )
    codes = {label: code for code, label in enumerate(sorted({*labels_by_query.values(), *class_sizes}))}
    rows = {q: row for row, q in enumerate(queries.ids)}
    return Relevance(
        query_ids=ids,
        query_labels=tuple(labels_by_query[q] for q in ids),
        query_rows=_ints(rows[q] for q in ids),
        query_codes=_ints(codes[labels_by_query[q]] for q in ids),
        gallery_rows=_ints(order),
        gallery_codes=_ints(codes.get(labels_by_item.get(item, ""), -1) for item in columns),
        same_file=_ints(
            number for position, q in enumerate(ids) for item in same_files[q] for number in (position, columns[item])
        ).reshape(-1, 2),
        total=_ints(totals[q] for q in ids),
        excluded=tuple(q for q in queries.ids if not totals.get(q)),
        unlabelled=tuple(q for q in queries.ids if q not in labels_by_query),
    )


def iter_judged(
    queries: Embeddings, gallery: Embeddings, relevance: Relevance, depth: int, similarities: Similarities | None = None
) -> Iterator[tuple[Relevant, Total, Hits]]:
    """Yield the judged rankings chunk by chunk, so that a deep ranking of many queries is never in memory at once.

    Each chunk of queries has `(n_query, depth)` bool, whether the hit at each rank is relevant; `(n_query,)`, the
    number of relevant gallery items; and the first hits of each query, at most ten, for display.

    Hits are ordered by cosine, or by `similarities` after re-ranking, rounded to 6 decimals so that ties are ties on
    every machine, then by item id. A query is never its own hit, nor is its file: where `depth` is the whole gallery,
    they have the last ranks and are not relevant.
    """
    ids = np.array(gallery.ids, dtype=object)[relevance.gallery_rows]
    n_top = min(_TOP_HITS, relevance.max_depth)
    columns = np.arange(relevance.gallery)
    step = max(1, min(_CHUNK_QUERIES, _CHUNK_CELLS // relevance.gallery))
    for start in range(0, len(relevance), step):
        chunk = slice(start, start + step)
        rows = relevance.query_rows[chunk]
        if similarities is None:
            steps = cosine_steps(queries.vectors[rows], gallery.vectors.__getitem__, relevance.gallery_rows)
        else:
            steps = similarities.millionths(rows)
        first, last = np.searchsorted(relevance.same_file[:, 0], (start, start + step))
        positions, own_columns = relevance.same_file[first:last].T
        steps[positions - start, own_columns] = LAST
        ranked, scores = best_first(steps, columns, max(depth, n_top))
        relevant = relevance.gallery_codes[ranked] == relevance.query_codes[chunk, None]
        relevant &= scores != LAST
        top_scores = (scores[:, :n_top] / STEPS).astype(np.float32)
        hits = Hits(relevance.query_ids[chunk], ids[ranked[:, :n_top]], top_scores)
        yield relevant[:, :depth], relevance.total[chunk], hits


def _ints(values: Iterable[int]) -> Ints:
    return np.fromiter(values, dtype=np.int64)


def _select_labels(ids: Sequence[str], labels: Mapping[str, str], split: str) -> dict[str, str]:
    """Return the labels of these ids; an empty label counts as none."""
    if not ids:
        raise DataError(f"the {split} split has no embedding; nothing can be measured.", argument="data")
    selected = {item: label for item in ids if (label := labels.get(item))}
    if not selected:
        raise DataError(
            f"none of the {len(ids)} {split} images has a label, so nothing can be measured; "
            "add a labels.csv, class folders or a manifest.",
            argument="data",
        )
    return selected
