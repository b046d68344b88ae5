"""Apply a re-ranking: embeddings in, similarities and hits out, a block of queries at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from lookalike._arguments import checked_arguments
from lookalike._files import digest
from lookalike._top_k import LAST, STEPS, Ints, best_first
from lookalike.errors import DataError, FingerprintMismatch, OptionError, require_integer
from lookalike.reranking.gallery import Gallery, powers, weighted_sums
from lookalike.reranking.k_reciprocal import JaccardSimilarities
from lookalike.reranking.neighbours import SparseRows, Values, blocks
from lookalike.reranking.steps import ClassSimilarity, QueryExpansion, Reranking, SimilarityNormalization
from lookalike.types import Embeddings, Hits, Vectors, l2_normalize, require_embeddings


@dataclass(frozen=True, eq=False)
class Reranker:
    """A re-ranking, ready for use.

    Attributes:
        reranking: the steps.
        class_means: `(classes, dim)` float32, the unit-length means of the training embeddings of each class, which
            `class similarity` needs; see `class_means`.

    Raises:
        OptionError: class similarity without class means.

    """

    reranking: Reranking
    class_means: Vectors | None = None

    def __post_init__(self) -> None:
        if self.reranking.class_similarity is not None and self.class_means is None:
            raise OptionError(
                "class similarity needs `class_means`, the mean training embedding of each class.",
                argument="class_means",
            )

    def __str__(self) -> str:
        return str(self.reranking)

    @property
    def transductive(self) -> bool:
        """Whether the order for one query depends on other queries, or gallery items are changed."""
        return self.reranking.transductive

    def transform(self, embeddings: Embeddings) -> Embeddings:
        """Return the embeddings after class similarity, which changes each on its own; others are unchanged."""
        step, means = self.reranking.class_similarity, self.class_means
        if step is None or means is None:
            return embeddings
        if means.ndim != 2 or means.shape[1] != embeddings.dim:
            raise DataError(
                f"class means of shape {means.shape} do not fit embeddings of {embeddings.dim} dimensions; "
                "compute them with the same model.",
                argument="class_means",
            )
        fingerprint = digest(embeddings.fingerprint, repr(step), np.ascontiguousarray(means).tobytes())
        return replace(embeddings, vectors=_add_classes(embeddings.vectors, means, step), fingerprint=fingerprint)

    def similarities(
        self,
        queries: Embeddings,
        gallery: Embeddings,
        same_file_ids: Mapping[str, Collection[str]] | None = None,
    ) -> Similarities:
        """Prepare the similarities of queries to a gallery; `same_file_ids` are as in `search`."""
        return Similarities(self, queries, gallery, same_file_ids or {})

    def search(
        self,
        queries: Embeddings,
        gallery: Embeddings,
        top_k: int = 10,
        *,
        same_file_ids: Mapping[str, Collection[str]] | None = None,
    ) -> Hits:
        """Return the first hits of each query after re-ranking; ties are ordered by item id.

        Args:
            queries: n_query embeddings.
            gallery: n_gallery embeddings of the same model.
            top_k: hits per query.
            same_file_ids: gallery items with the file of a query, by its id; like the query itself they are not hits.

        Returns:
            Hits whose scores are the new similarities, which are not cosines.

        Raises:
            OptionError: more hits than the gallery has for a query.
            FingerprintMismatch: the two were embedded by different models.

        """
        top_k = require_integer(top_k, "top_k")
        similarities = self.similarities(queries, gallery, same_file_ids)
        if not 1 <= top_k <= similarities.max_depth:
            raise OptionError(
                f"`top_k` must be from 1 to {similarities.max_depth}, the number of gallery items, got {top_k}.",
                argument="top_k",
            )
        columns = np.arange(len(gallery))
        ids = np.empty((len(queries), top_k), dtype=object)
        scores = np.empty((len(queries), top_k), dtype=np.float32)
        for block in blocks(len(queries), len(gallery)):
            ranked, millionths = best_first(similarities.millionths(block), columns, top_k)
            ids[block], scores[block] = similarities.gallery_ids[ranked], millionths / STEPS
        return Hits(tuple(queries.ids), ids, scores)


class Similarities:
    """The similarities of queries to a gallery after re-ranking, in memory for one block of queries at a time.

    Attributes:
        gallery_ids: ids of the gallery, sorted: the columns of the similarities.
        max_depth: number of hits that every query can have.

    """

    def __init__(
        self,
        reranker: Reranker,
        queries: Embeddings,
        gallery: Embeddings,
        same_file_ids: Mapping[str, Collection[str]],
    ) -> None:
        _require_same_model(queries, gallery)
        self._reranking = reranker.reranking
        self.gallery_ids = np.array(sorted(gallery.ids), dtype=object)
        columns = {item: column for column, item in enumerate(self.gallery_ids)}
        self._excluded = _excluded_pairs(queries, columns, same_file_ids)
        self.max_depth = len(gallery) - int(np.diff(self._excluded.starts).max(initial=0))
        order = sorted(range(len(gallery)), key=gallery.ids.__getitem__)
        self._gallery = Gallery(reranker.transform(gallery).vectors[order], self._reranking.gallery_augmentation)
        self._queries = reranker.transform(queries).vectors
        if self._reranking.query_expansion is not None:
            self._queries = self._expanded(self._reranking.query_expansion)
        self._penalty: Values | None = None
        if self._reranking.similarity_normalization is not None:
            self._penalty = self._mean_similarity(self._reranking.similarity_normalization)
        self._jaccard: JaccardSimilarities | None = None
        if self._reranking.k_reciprocal is not None:
            others = np.array([item not in columns for item in queries.ids], dtype=bool)
            position = len(gallery) + np.cumsum(others) - 1
            self._nodes = np.array([columns.get(q, p) for q, p in zip(queries.ids, position.tolist(), strict=True)])
            nodes = np.concatenate([self._gallery.vectors, self._queries[others]])
            self._jaccard = JaccardSimilarities(nodes, len(gallery), self._reranking.k_reciprocal)

    def millionths(self, query_rows: Ints) -> Ints:
        """Return the similarities `(n, n_gallery)` of queries in millionths; excluded items have the lowest value."""
        excluded = self._excluded.entries(query_rows)[:2]
        millionths = self._gallery.millionths(self._queries[query_rows], excluded, self._gallery.without(*excluded))
        similarities: Values = millionths.astype(np.float64)
        if self._penalty is not None:
            similarities -= self._penalty * STEPS
        if self._jaccard is not None and self._reranking.k_reciprocal is not None:
            weight = self._reranking.k_reciprocal.weight
            similarities = (1 - weight) * similarities + weight * STEPS * self._jaccard.rows(self._nodes[query_rows])
        if self._penalty is not None or self._jaccard is not None:
            millionths = np.rint(similarities).astype(np.int64)
            millionths[excluded] = LAST
        return millionths

    def _expanded(self, step: QueryExpansion) -> Vectors:
        k = min(step.k, self.max_depth)
        expanded = self._queries.copy()
        columns = np.arange(len(self._gallery))
        for block in blocks(len(expanded), max(len(self._gallery), k * expanded.shape[1])) if k else ():
            excluded = self._excluded.entries(block)[:2]
            other = self._gallery.without(*excluded)
            cosines = self._gallery.millionths(expanded[block], excluded, other)
            nearest_columns, millionths = best_first(cosines, columns, k)
            weights = powers(millionths / STEPS, step.alpha)
            expanded[block] += weighted_sums(weights, self._gallery.take(nearest_columns, other))
        return l2_normalize(expanded)

    def _mean_similarity(self, step: SimilarityNormalization) -> Values:
        """Return `weight` times the mean cosine `(n_gallery,)` of each gallery item to its k nearest queries."""
        k = min(step.k, len(self._queries))
        largest = np.full((k, len(self._gallery)), LAST)
        for block in blocks(len(self._queries), len(self._gallery)):
            excluded = self._excluded.entries(block)[:2]
            cosines = self._gallery.millionths(self._queries[block], excluded, self._gallery.without(*excluded))
            largest = np.partition(np.concatenate([largest, cosines]), -k, axis=0)[-k:]
        valid = largest > LAST
        means: Values = step.weight * np.where(valid, largest / STEPS, 0).sum(axis=0) / valid.sum(axis=0).clip(min=1)
        return means


@checked_arguments()
def class_means(embeddings: Embeddings, labels: Mapping[str, str]) -> Vectors:
    """Return the unit-length means `(classes, dim)` of labelled embeddings by class, in the order of the class names.

    Labels are by item id; items without a label are not used. Raises `DataError` if no item has one.
    """
    by_class: dict[str, list[int]] = {}
    for row, item in enumerate(embeddings.ids):
        if labels.get(item):
            by_class.setdefault(labels[item], []).append(row)
    if not by_class:
        raise DataError(f"class means need labels, but none of {len(embeddings)} items has one.", argument="labels")
    return l2_normalize([embeddings.vectors[by_class[label]].mean(axis=0) for label in sorted(by_class)])


def _add_classes(vectors: Vectors, means: Vectors, step: ClassSimilarity) -> Vectors:
    dim = vectors.shape[1]
    joined = np.empty((len(vectors), dim + len(means)), dtype=np.float32)
    wide = means.astype(np.float64).T
    for block in blocks(len(vectors), len(means)):
        logits = step.temperature * (vectors[block].astype(np.float64) @ wide)
        roots = np.exp((logits - logits.max(axis=1, keepdims=True)) / 2)  # square roots of probabilities
        roots /= np.linalg.norm(roots, axis=1, keepdims=True)
        joined[block, :dim] = np.sqrt(1 - step.weight) * vectors[block]
        joined[block, dim:] = np.sqrt(step.weight) * roots
    return joined


def _excluded_pairs(
    queries: Embeddings, columns: Mapping[str, int], same_file_ids: Mapping[str, Collection[str]]
) -> SparseRows:
    """Return the pairs of a query and the gallery items that are not hits: itself, and items with its file."""
    pairs = [
        (row, columns[item])
        for row, query in enumerate(queries.ids)
        for item in {query, *same_file_ids.get(query, ())}
        if item in columns
    ]
    rows, items = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return SparseRows.of((len(queries), max(1, len(columns))), rows, items, np.ones(len(pairs)))


def _require_same_model(queries: Embeddings, gallery: Embeddings) -> None:
    for name, embeddings in (("queries", queries), ("gallery", gallery)):
        require_embeddings(embeddings, name)
        if not len(embeddings):
            raise DataError(f"a re-ranking needs at least one embedding in `{name}`, got none.", argument=name)
    if queries.fingerprint != gallery.fingerprint or queries.dim != gallery.dim:
        raise FingerprintMismatch(
            f"the queries were embedded by the model {queries.fingerprint}, the gallery by {gallery.fingerprint}; "
            "embed both with one model."
        )
