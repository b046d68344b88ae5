"""Each step by a slow formula over full matrices, and the rules of a search."""

import tracemalloc

import numpy as np
import pytest

from lookalike.errors import DataError, FingerprintMismatch, OptionError
from lookalike.reranking import neighbours
from lookalike.reranking.reranker import Reranker, class_means
from lookalike.reranking.steps import (
    ClassSimilarity,
    GalleryAugmentation,
    KReciprocal,
    QueryExpansion,
    Reranking,
    SimilarityNormalization,
)
from lookalike.types import Embeddings, l2_normalize

EVERYTHING = Reranking(
    ClassSimilarity(),
    GalleryAugmentation(3),
    QueryExpansion(2),
    SimilarityNormalization(4),
    KReciprocal(5, 2),
)


def embeddings(prefix, vectors, fingerprint="model"):
    ids = tuple(f"{prefix}{n:03d}" for n in range(len(vectors)))
    return Embeddings(ids, l2_normalize(vectors), fingerprint)


def random_vectors(count, dim=6, seed=0):
    return np.random.default_rng(seed).standard_normal((count, dim)) + np.eye(dim)[np.arange(count) % dim]


QUERIES, GALLERY = embeddings("q", random_vectors(9, seed=1)), embeddings("g", random_vectors(30, seed=2))
MEANS = l2_normalize(random_vectors(4, seed=3))
Q, G = QUERIES.vectors.astype(np.float64), GALLERY.vectors.astype(np.float64)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def similarities(reranking, queries=QUERIES, gallery=GALLERY, **options):
    reranker = Reranker(reranking, MEANS if reranking.class_similarity else None)
    return reranker.similarities(queries, gallery, **options).millionths(np.arange(len(queries))) / 1e6


def mean_of_nearest(rows, gallery, k, alpha):
    """Weighted sums of the k nearest gallery vectors of each row, by a loop."""
    sums = np.zeros_like(rows)
    for i, row in enumerate(rows):
        for j in np.argsort(-(gallery @ row), kind="stable")[:k]:
            sums[i] += max(gallery[j] @ row, 0) ** alpha * gallery[j]
    return sums


def test_without_steps_the_cosines_are_unchanged():
    np.testing.assert_allclose(similarities(Reranking()), Q @ G.T, atol=1e-6)


def test_class_similarity_mixes_cosine_and_bhattacharyya_coefficient():
    def probabilities(rows):
        powers = np.exp(8 * rows @ MEANS.T.astype(np.float64))
        return powers / powers.sum(axis=1, keepdims=True)

    coefficient = np.sqrt(probabilities(Q)) @ np.sqrt(probabilities(G)).T
    expected = 0.7 * Q @ G.T + 0.3 * coefficient
    np.testing.assert_allclose(similarities(Reranking(ClassSimilarity(8.0, 0.3))), expected, atol=2e-6)


def test_class_similarity_gives_unit_length_embeddings_of_another_fingerprint():
    reranker = Reranker(Reranking(ClassSimilarity()), MEANS)
    joined = reranker.transform(QUERIES)
    assert joined.dim == QUERIES.dim + len(MEANS)
    assert joined.fingerprint != QUERIES.fingerprint
    assert joined.ids == QUERIES.ids


def test_gallery_augmentation():
    augmented = unit(mean_of_nearest(G, G, 4, 3))  # the item itself is its own nearest, with the weight 1
    np.testing.assert_allclose(
        similarities(Reranking(gallery_augmentation=GalleryAugmentation(3, 3.0))), Q @ augmented.T, atol=2e-6
    )


def test_query_expansion():
    expanded = unit(Q + mean_of_nearest(Q, G, 3, 2))
    np.testing.assert_allclose(
        similarities(Reranking(query_expansion=QueryExpansion(3, 2.0))), expanded @ G.T, atol=2e-6
    )


def test_similarity_normalization():
    cosines = Q @ G.T
    expected = cosines - 0.5 * np.sort(cosines, axis=0)[-4:].mean(axis=0)
    step = SimilarityNormalization(4, 0.5)
    np.testing.assert_allclose(similarities(Reranking(similarity_normalization=step)), expected, atol=2e-6)


def test_query_expansion_uses_augmented_items_and_normalization_expanded_queries():
    reranking = Reranking(None, GalleryAugmentation(3), QueryExpansion(2), SimilarityNormalization(4))
    augmented = unit(mean_of_nearest(G, G, 4, 3))
    expanded = unit(Q + mean_of_nearest(Q, augmented, 2, 3))
    cosines = expanded @ augmented.T
    expected = cosines - 0.5 * np.sort(cosines, axis=0)[-4:].mean(axis=0)
    np.testing.assert_allclose(similarities(reranking), expected, atol=2e-6)


def test_leave_one_out_is_that_of_a_gallery_without_the_query():
    """Gallery augmentation and query expansion must not mix a query into the items that it is compared with."""
    step = GalleryAugmentation(len(GALLERY) - 1, 2.0)  # all neighbours, so that none moves up when one is removed
    reranking = Reranking(None, step, QueryExpansion(3))
    rows = similarities(reranking, GALLERY, GALLERY)
    for row in (0, 7, 29):
        others = [n for n in range(len(GALLERY)) if n != row]
        rest = GALLERY.take([GALLERY.ids[n] for n in others])
        alone = similarities(reranking, GALLERY.take([GALLERY.ids[row]]), rest)
        np.testing.assert_allclose(rows[row, others], alone[0], atol=2e-6)
        assert rows[row, row] == -10


def test_leave_one_out_normalizes_by_items_without_the_query():
    """A query must not raise the mean similarity of an item through its own part in that augmented item."""
    step = GalleryAugmentation(len(GALLERY) - 1, 2.0)
    rows = similarities(Reranking(None, step, None, SimilarityNormalization(4, 0.5)), GALLERY, GALLERY)
    cosines = G @ G.T
    np.fill_diagonal(cosines, 1)
    weights = cosines.clip(min=0) ** 2
    expected = np.full((len(G), len(G)), -10.0)
    for item in range(len(G)):
        others = [n for n in range(len(G)) if n != item]
        without = np.array([unit([weights[item] @ G - weights[item, q] * G[q]])[0] @ G[q] for q in others])
        expected[others, item] = without - 0.5 * np.sort(without)[-4:].mean()
    np.testing.assert_allclose(rows, expected, atol=2e-6)


def test_the_query_and_its_file_are_not_hits():
    for reranking in (Reranking(), EVERYTHING):
        reranker = Reranker(reranking, MEANS if reranking.class_similarity else None)
        hits = reranker.search(GALLERY, GALLERY, 28, same_file_ids={"g003": ["g004"]})
        for query, ids in zip(hits.query_ids, hits.ids, strict=True):
            assert query not in ids
            assert len(set(ids)) == 28
        assert "g004" not in hits.ids[3]


def test_ties_are_ordered_by_id_whatever_the_order_of_the_gallery():
    gallery = Embeddings(("c", "a", "b"), l2_normalize([[1, 0], [1, 0], [1, 0]]), "model")
    for reranking in (
        Reranking(),
        Reranking(None, GalleryAugmentation(1), QueryExpansion(1), None, KReciprocal(1, 1)),
    ):
        hits = Reranker(reranking).search(Embeddings(("q",), l2_normalize([[1, 0]]), "model"), gallery, 3)
        assert hits.ids.tolist() == [["a", "b", "c"]]


def test_neither_the_order_of_items_nor_the_blocks_change_the_hits(monkeypatch):
    expected = Reranker(EVERYTHING, MEANS).search(QUERIES, GALLERY, 10)
    monkeypatch.setattr(neighbours, "_MAX_BLOCK", 2)
    shuffled = GALLERY.take(reversed(GALLERY.ids))
    hits = Reranker(EVERYTHING, MEANS).search(QUERIES, shuffled, 10)
    assert hits.ids.tolist() == expected.ids.tolist()
    np.testing.assert_allclose(hits.scores, expected.scores, atol=2e-6)


def test_small_galleries():
    one = GALLERY.take(["g000"])
    assert Reranker(EVERYTHING, MEANS).search(QUERIES.take(["q000"]), one, 1).ids.tolist() == [["g000"]]
    with pytest.raises(OptionError) as caught:
        Reranker(EVERYTHING, MEANS).search(one, one, 1)
    assert caught.value.argument == "top_k"


def test_memory_holds_no_matrix_of_queries_and_gallery(monkeypatch):
    monkeypatch.setattr(neighbours, "_CELLS", 100_000)
    items = embeddings("g", random_vectors(2000, 8))
    means = l2_normalize(random_vectors(4, 8))
    tracemalloc.start()
    Reranker(EVERYTHING, means).search(items, items, 10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2000 * 2000 * 8 / 2  # half of one float64 matrix


def test_errors():
    with pytest.raises(OptionError) as caught:
        Reranker(Reranking(ClassSimilarity()))
    assert caught.value.argument == "class_means"
    with pytest.raises(DataError):
        Reranker(Reranking(ClassSimilarity()), MEANS[:, :3]).search(QUERIES, GALLERY, 1)
    with pytest.raises(FingerprintMismatch):
        Reranker(Reranking()).search(QUERIES, embeddings("g", G, "other"), 1)
    with pytest.raises(DataError):
        class_means(GALLERY, {})


def test_class_means_are_the_unit_length_means_by_class_name():
    items = Embeddings(("a", "b", "c", "d"), l2_normalize([[1, 0], [0, 1], [0, 1], [1, 1]]), "model")
    means = class_means(items, {"a": "z", "b": "y", "c": "y", "d": ""})
    np.testing.assert_allclose(means, [[0, 1], [1, 0]])
    assert means.dtype == np.float32
