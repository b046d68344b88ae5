"""From embeddings to a judged ranking: exact, the same on every machine, a chunk of queries at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lookalike._ranking import LAST, STEPS, best_first, cosine_steps
from lookalike.evaluation.measures import Relevant, Total
from lookalike.evaluation.relevance import Ints, Relevance, find_relevance
from lookalike.types import Embeddings, Hits

TOP_HITS = 10
"""How many hits of each query are kept by id, to show them."""

_CHUNK_CELLS = 4_000_000  # query × gallery cells in memory at once, 8 bytes each
_CHUNK_QUERIES = 1024


@dataclass(frozen=True, eq=False)
class Judged:
    """A ranking of the gallery for each query, reduced to what measures need.

    Attributes:
        query_ids: the `n_query` queries that count.
        relevant: `(n_query, depth)` bool, whether the hit at each rank is relevant.
        total: `(n_query,)` number of relevant gallery items.
        top: the first hits of each query, at most `TOP_HITS`.
        left_out: queries that do not count: no label, or nothing relevant in the gallery.

    """

    query_ids: tuple[str, ...]
    relevant: Relevant
    total: Total
    top: Hits
    left_out: tuple[str, ...]


def judge(
    queries: Embeddings,
    gallery: Embeddings,
    query_labels: Mapping[str, str],
    gallery_labels: Mapping[str, str],
    depth: int | None = None,
) -> Judged:
    """Rank the gallery for each query that counts, and say which hits are relevant.

    Hits are ordered by cosine, rounded to 6 decimals so that ties are ties on every machine, then by item id. A query
    is never its own hit: an item with the query's id is passed over, so the same embeddings on both sides mean
    leave-one-out. Queries without a label or without anything relevant in the gallery are left out.

    Args:
        queries: embeddings of the queries.
        gallery: embeddings of the gallery, by the same model.
        query_labels: label by query id.
        gallery_labels: label by gallery id; an item without a label is relevant to no query.
        depth: how many hits to judge; None for the whole gallery, as `n_query × n_gallery` booleans.

    Raises:
        FingerprintMismatch: when the two were made by different models.
        DataError: when labels are missing or no query counts.
        OptionError: when `depth` is larger than the gallery.

    """
    relevance = find_relevance(queries, gallery, query_labels, gallery_labels)
    if depth is None:
        depth = relevance.smallest_gallery
    relevance.require_depth(depth, "the depth")
    chunks = list(judged_chunks(queries, gallery, relevance, depth))
    return Judged(
        query_ids=relevance.query_ids,
        relevant=np.concatenate([c.relevant for c in chunks]),
        total=relevance.total,
        top=join_hits([c.top for c in chunks]),
        left_out=relevance.left_out,
    )


def judged_chunks(queries: Embeddings, gallery: Embeddings, relevance: Relevance, depth: int) -> Iterator[Judged]:
    """Yield the judged ranking chunk by chunk, so that a deep ranking of many queries is never held at once.

    Where `depth` is the whole gallery, the last place of a query that is in the gallery is its own and not relevant.
    """
    ids = np.array(gallery.ids, dtype=object)[relevance.gallery_rows]
    top = min(TOP_HITS, relevance.smallest_gallery)
    step = max(1, min(_CHUNK_QUERIES, _CHUNK_CELLS // relevance.gallery))
    for start in range(0, len(relevance), step):
        part = slice(start, start + step)
        vectors = queries.vectors[relevance.query_rows[part]]
        own = relevance.own[part]
        columns, scores = _best(vectors, gallery, relevance.gallery_rows, own, max(depth, top))
        relevant = relevance.gallery_codes[columns] == relevance.query_codes[part, None]
        relevant &= columns != own[:, None]
        names = relevance.query_ids[part]
        hits = Hits(names, ids[columns[:, :top]], scores[:, :top].astype(np.float32))
        yield Judged(names, relevant[:, :depth], relevance.total[part], hits, ())


def join_hits(parts: list[Hits]) -> Hits:
    """Put the hits of several chunks of queries, all of one k, under each other."""
    return Hits(
        tuple(q for part in parts for q in part.query_ids),
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.scores for part in parts]),
    )


def _best(
    vectors: npt.NDArray[np.float32], gallery: Embeddings, rows: Ints, own: Ints, depth: int
) -> tuple[Ints, npt.NDArray[np.float64]]:
    """Return columns and rounded scores `(n, depth)`, ordered by falling score, then column; `own` comes last."""
    steps = cosine_steps(vectors, gallery.vectors.__getitem__, rows)
    in_gallery = np.flatnonzero(own >= 0)
    steps[in_gallery, own[in_gallery]] = LAST
    columns, best = best_first(steps, np.arange(len(rows)), depth)
    return columns, best / STEPS
