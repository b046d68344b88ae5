"""Exact search against sorting all cosines."""

import numpy as np
import pytest

from lookalike import _ranking
from lookalike.index import exact, prefilter
from lookalike.index.exact import ExactIndex
from lookalike.types import l2_normalize


def some(count, *, seed=0, dim=16):
    return l2_normalize(np.random.default_rng(seed).normal(size=(count, dim)))


def oracle(vectors, queries, query_rows, top_k):
    """Rows by falling cosine in float64, rounded to 6 decimals, then by row, without the query itself."""
    cosines = np.round(vectors.astype(np.float64) @ queries.astype(np.float64).T, 6).T
    cosines[query_rows >= 0, query_rows[query_rows >= 0]] = -2
    return np.lexsort((np.broadcast_to(np.arange(len(vectors)), cosines.shape), -cosines))[:, :top_k]


OUTSIDE = np.full(30, -1)


@pytest.mark.parametrize("count", [7, 40, 700])
@pytest.mark.parametrize("top_k", [1, 5])
def test_queries_outside_the_index(count, top_k):
    vectors, queries = some(count), some(30, seed=1)
    rows, scores = ExactIndex(vectors).search(queries, OUTSIDE, top_k)
    np.testing.assert_array_equal(rows, oracle(vectors, queries, OUTSIDE, top_k))
    np.testing.assert_allclose(scores, -np.sort(-(queries @ vectors.T), axis=1)[:, :top_k], atol=1e-6)


def test_few_distinct_cosines():
    """Coordinates of 0 and 1: ties extend far past the candidates that are fetched first."""
    random = np.random.default_rng(3)
    vectors = l2_normalize(random.integers(0, 2, size=(400, 6)) + np.eye(6, dtype=int)[0])
    query_rows = np.arange(0, 400, 8)
    for top_k in (1, 10, 399):
        rows, _ = ExactIndex(vectors).search(vectors[query_rows], query_rows, top_k)
        np.testing.assert_array_equal(rows, oracle(vectors, vectors[query_rows], query_rows, top_k))


def test_small_chunks(monkeypatch):
    vectors, queries = some(100), some(30, seed=1)
    monkeypatch.setattr(exact, "_CELLS", 60)
    monkeypatch.setattr(_ranking, "_BLOCK", 3)
    monkeypatch.setattr(_ranking, "_CELLS", 700)
    rows, _ = ExactIndex(vectors).search(queries, OUTSIDE, 4)
    np.testing.assert_array_equal(rows, oracle(vectors, queries, OUTSIDE, 4))


def test_many_vectors_are_searched_by_faiss_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(exact, "BRUTE_FORCE_MAX", 10)
    monkeypatch.setattr(exact, "_BLOCK", 7)
    vectors, queries = some(100), some(30, seed=1)
    ExactIndex(vectors).write(tmp_path)
    rows, _ = ExactIndex.read(tmp_path, prefilter=True).search(queries, OUTSIDE, 5)
    np.testing.assert_array_equal(rows, oracle(vectors, queries, OUTSIDE, 5))


@pytest.fixture
def small(monkeypatch):
    """Let a few vectors be many."""
    monkeypatch.setattr(exact, "BRUTE_FORCE_MAX", 10)
    monkeypatch.setattr(exact, "PREFILTER_MIN", 50)
    monkeypatch.setattr(exact, "PREFILTER_AFTER_QUERIES", 40)


def test_the_prefilter_is_built_after_many_queries(small):
    vectors, queries = some(300), some(30, seed=1)
    index, expected = ExactIndex(vectors), oracle(vectors, queries, OUTSIDE, 5)
    for built in (False, True):
        np.testing.assert_array_equal(index.search(queries, OUTSIDE, 5)[0], expected)
        assert (index._prefilter is not None) is built
    np.testing.assert_array_equal(index.search(queries[3:4], OUTSIDE[:1], 5)[0], expected[3:4])


def test_a_prefilter_that_rules_out_little_is_dropped(small, monkeypatch):
    monkeypatch.setattr(prefilter, "_MAX_PAIRS", 10)
    monkeypatch.setattr(prefilter, "_MAX_SHARE", 1e-4)
    vectors, queries = some(300), some(30, seed=1)
    index = ExactIndex(vectors)
    for _ in range(3):
        rows, _ = index.search(queries, OUTSIDE, 5)
        np.testing.assert_array_equal(rows, oracle(vectors, queries, OUTSIDE, 5))
        assert index._prefilter is None


def test_no_prefilter_where_memory_is_limited(small):
    index = ExactIndex(some(300), prefilter=False)
    for _ in range(2):
        index.search(some(30, seed=1), OUTSIDE, 5)
    assert index._prefilter is None
