"""The sparse similarities against the dense algorithm of the paper."""

import numpy as np
import pytest

from lookalike.reranking import k_reciprocal
from lookalike.reranking.k_reciprocal import JaccardSimilarities
from lookalike.reranking.steps import KReciprocal
from lookalike.types import l2_normalize


def clusters(count, dim, seed=0):
    random = np.random.default_rng(seed)
    centres = random.standard_normal((count // 6 + 1, dim))
    return l2_normalize(centres[np.arange(count) % len(centres)] + random.standard_normal((count, dim)))


def dense_jaccard(nodes, k1, k2):
    """Zhong et al. 2017, equations 2 to 10, with full matrices and sets; each image is its own first neighbour."""
    cosines = nodes.astype(np.float64) @ nodes.astype(np.float64).T
    ranks = cosines.copy()
    np.fill_diagonal(ranks, 2)
    order = np.argsort(-ranks, axis=1, kind="stable")
    n = len(nodes)

    def reciprocal(p, k):
        return {g for g in order[p, : k + 1] if p in order[g, : k + 1]}

    weights = np.zeros((n, n))
    for p in range(n):
        narrow = reciprocal(p, k1)
        expanded = set(narrow)
        for g in narrow:
            candidates = reciprocal(g, round(k1 / 2))
            if len(candidates & narrow) >= 2 / 3 * len(candidates) - 1e-12:
                expanded |= candidates
        for g in expanded:
            weights[p, g] = np.exp(-(1 - cosines[p, g]))
        weights[p] /= weights[p].sum()
    weights = np.stack([weights[order[p, :k2]].mean(axis=0) for p in range(n)])
    smaller = np.minimum(weights[:, None, :], weights[None, :, :]).sum(axis=2)
    larger = np.maximum(weights[:, None, :], weights[None, :, :]).sum(axis=2)
    return smaller / larger


@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (5, 2), (8, 3), (20, 6), (500, 80)])
def test_equals_the_dense_algorithm(k1, k2):
    nodes = clusters(60, 12)
    sparse = JaccardSimilarities(nodes, 45, KReciprocal(k1, k2))
    np.testing.assert_allclose(sparse.rows(np.arange(60)), dense_jaccard(nodes, k1, k2)[:, :45], atol=1e-9)


def test_blocks_do_not_change_the_result(monkeypatch):
    nodes = clusters(50, 8)
    expected = JaccardSimilarities(nodes, 40, KReciprocal(6, 3)).rows(np.arange(50))
    monkeypatch.setattr(k_reciprocal, "_QUERIES", 3)
    monkeypatch.setattr("lookalike.reranking.neighbours._MAX_BLOCK", 7)
    assert np.array_equal(JaccardSimilarities(nodes, 40, KReciprocal(6, 3)).rows(np.arange(50)), expected)


def test_images_without_a_shared_neighbour_have_similarity_zero():
    nodes = l2_normalize([[1, 0], [1, 0.1], [0, 1], [0.1, 1]])
    similarities = JaccardSimilarities(nodes, 4, KReciprocal(1, 1)).rows(np.arange(4))
    assert (similarities[:2, :2] > 0.9).all()
    assert (similarities[:2, 2:] == 0).all()
