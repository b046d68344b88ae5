"""Which queries count and what is relevant to them: from ids and labels alone, before any score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lookalike.errors import DataError, FingerprintMismatch, OptionError
from lookalike.types import Embeddings

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Relevance:
    """The queries that count, and what is relevant to each of them.

    A gallery column is an item's place when the gallery is sorted by id, so that a lower column wins a tie.

    Attributes:
        query_ids: the `n_query` queries that count.
        query_labels: `n_query` labels.
        query_rows: `(n_query,)` rows of these queries in their embeddings.
        query_codes: `(n_query,)` labels as numbers.
        gallery_rows: `(n_gallery,)` rows in the gallery's embeddings, by column.
        gallery_codes: `(n_gallery,)` labels as numbers by column; -1 where there is none: relevant to no query.
        own: `(n_query,)` column of the query itself, -1 where it is not in the gallery.
        total: `(n_query,)` number of relevant gallery items, the query itself not counted; at least 1.
        left_out: queries that do not count: no label, or nothing relevant in the gallery.
        unlabelled: those of `left_out` that have no label.

    """

    query_ids: tuple[str, ...]
    query_labels: tuple[str, ...]
    query_rows: Ints
    query_codes: Ints
    gallery_rows: Ints
    gallery_codes: Ints
    own: Ints
    total: Ints
    left_out: tuple[str, ...]
    unlabelled: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.query_ids)

    @property
    def gallery(self) -> int:
        """Number of gallery items."""
        return len(self.gallery_rows)

    @property
    def smallest_gallery(self) -> int:
        """Number of items that every query can find: the gallery, without the query itself where it is in there."""
        return self.gallery - int((self.own >= 0).any())

    def require_depth(self, depth: int, wanted_by: str) -> None:
        """Raise `OptionError` when a ranking of `depth` hits is more than the gallery has, or less than one."""
        if depth < 1:
            raise OptionError(f"{wanted_by} must be at least 1, got {depth}.")
        if depth <= self.smallest_gallery:
            return
        without = " besides the query itself" if self.smallest_gallery < self.gallery else ""
        raise OptionError(
            f"{wanted_by} needs {depth} hits, but the gallery has only {self.smallest_gallery} items{without}; "
            "choose a smaller k or a larger gallery."
        )


def find_relevance(
    queries: Embeddings, gallery: Embeddings, query_labels: Mapping[str, str], gallery_labels: Mapping[str, str]
) -> Relevance:
    """Work out which queries count: those with a label and at least one other gallery item of the same label.

    Args:
        queries: embeddings of the queries; may be the gallery itself, for leave-one-out.
        gallery: embeddings of the gallery, by the same model.
        query_labels: label by query id; further ids do no harm.
        gallery_labels: label by gallery id.

    Raises:
        FingerprintMismatch: when the two were made by different models.
        DataError: when a part is empty or has no label, or no query has anything relevant in the gallery.

    """
    _require_same_model(queries, gallery)
    query_label = _known_labels(queries.ids, query_labels, "query")
    gallery_label = _known_labels(gallery.ids, gallery_labels, "gallery")
    in_gallery = Counter(gallery_label.values())
    counts = {q: in_gallery[label] - (gallery_label.get(q) == label) for q, label in query_label.items()}
    ids = tuple(q for q in queries.ids if counts.get(q))
    if not ids:
        raise DataError(
            f"none of the {len(queries)} queries has an item of its label in the gallery of {len(gallery)}; "
            "check that both parts use the same class names."
        )
    code = {label: n for n, label in enumerate(sorted({*query_label.values(), *in_gallery}))}
    row = {q: n for n, q in enumerate(queries.ids)}
    order = sorted(range(len(gallery)), key=gallery.ids.__getitem__)
    column = {gallery.ids[n]: place for place, n in enumerate(order)}
    return Relevance(
        query_ids=ids,
        query_labels=tuple(query_label[q] for q in ids),
        query_rows=_ints(row[q] for q in ids),
        query_codes=_ints(code[query_label[q]] for q in ids),
        gallery_rows=_ints(order),
        gallery_codes=_ints(code.get(gallery_label.get(item, ""), -1) for item in column),
        own=_ints(column.get(q, -1) for q in ids),
        total=_ints(counts[q] for q in ids),
        left_out=tuple(q for q in queries.ids if not counts.get(q)),
        unlabelled=tuple(q for q in queries.ids if q not in query_label),
    )


def _ints(values: Iterable[int]) -> Ints:
    return np.fromiter(values, dtype=np.int64)


def _require_same_model(queries: Embeddings, gallery: Embeddings) -> None:
    if queries.fingerprint != gallery.fingerprint:
        raise FingerprintMismatch(
            f"the queries were embedded by the model {queries.fingerprint}, the gallery by {gallery.fingerprint}; "
            "embed both with one model."
        )
    if queries.dim != gallery.dim:
        raise DataError(
            f"the queries have {queries.dim} dimensions, the gallery has {gallery.dim}, though both name one model; "
            "embed both again."
        )


def _known_labels(ids: Sequence[str], labels: Mapping[str, str], part: str) -> dict[str, str]:
    """Return the labels of these ids; an empty label counts as none."""
    if not ids:
        raise DataError(f"the {part} part has no embedding; nothing can be measured.")
    known = {item: label for item in ids if (label := labels.get(item))}
    if not known:
        raise DataError(
            f"none of the {len(ids)} {part} images has a label, so nothing can be measured; "
            "add a labels.csv, class folders or a manifest."
        )
    return known
