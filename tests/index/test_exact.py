"""Exact search against sorting all cosines; ruling vectors out by rounded products must not change the nearest."""

import numpy as np
import pytest

from lookalike import _top_k
from lookalike.index import exact, storage
from lookalike.index.exact import ExactIndex, Prefilter
from lookalike.types import l2_normalize


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(exact, "_BLOCK", 300)
    monkeypatch.setattr(exact, "_GROUP", 7)
    monkeypatch.setattr(exact, "_DIRECTIONS_STEP", 8)


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
    monkeypatch.setattr(_top_k, "_BLOCK", 3)
    monkeypatch.setattr(_top_k, "_CELLS", 700)
    rows, _ = ExactIndex(vectors).search(queries, OUTSIDE, 4)
    np.testing.assert_array_equal(rows, oracle(vectors, queries, OUTSIDE, 4))


def test_many_vectors_are_searched_by_faiss_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(exact, "BRUTE_FORCE_MAX", 10)
    monkeypatch.setattr(storage, "BLOCK", 7)
    vectors, queries = some(100), some(30, seed=1)
    ExactIndex(vectors).write(tmp_path)
    rows, _ = ExactIndex.read(tmp_path, prefilter=True).search(queries, OUTSIDE, 5)
    np.testing.assert_array_equal(rows, oracle(vectors, queries, OUTSIDE, 5))


@pytest.fixture
def many(monkeypatch):
    """Let a few vectors be many."""
    monkeypatch.setattr(exact, "BRUTE_FORCE_MAX", 10)
    monkeypatch.setattr(exact, "PREFILTER_MIN", 50)
    monkeypatch.setattr(exact, "PREFILTER_AFTER_QUERIES", 40)


def test_the_prefilter_is_built_after_many_queries(many):
    vectors, queries = some(300), some(30, seed=1)
    index, expected = ExactIndex(vectors), oracle(vectors, queries, OUTSIDE, 5)
    for built in (False, True):
        np.testing.assert_array_equal(index.search(queries, OUTSIDE, 5)[0], expected)
        assert (index._prefilter is not None) is built
    np.testing.assert_array_equal(index.search(queries[3:4], OUTSIDE[:1], 5)[0], expected[3:4])


def test_a_prefilter_that_rules_out_little_is_dropped(many, monkeypatch):
    monkeypatch.setattr(exact, "_MAX_PAIRS", 10)
    monkeypatch.setattr(exact, "_MAX_SHARE", 1e-4)
    vectors, queries = some(300), some(30, seed=1)
    index = ExactIndex(vectors)
    for _ in range(3):
        rows, _ = index.search(queries, OUTSIDE, 5)
        np.testing.assert_array_equal(rows, oracle(vectors, queries, OUTSIDE, 5))
        assert index._prefilter is None


def test_no_prefilter_where_memory_is_limited(many):
    index = ExactIndex(some(300), prefilter=False)
    for _ in range(2):
        index.search(some(30, seed=1), OUTSIDE, 5)
    assert index._prefilter is None


DIM = 64


def groups(count, *, spread, seed=0):
    """Directions in twenty groups; the smaller the spread, the more of them nearly tie."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(20, DIM))
    return l2_normalize(centres[np.arange(count) % 20] + spread * random.normal(size=(count, DIM)))


def flat(count, *, seed=0, outside=0):
    """Directions nearly within 10 of the dimensions, except for the last `outside`, which point anywhere."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(count, DIM)) * np.where(np.arange(DIM) < 10, 1, 0.01)
    vectors[count - outside :] = random.normal(size=(outside, DIM))
    return l2_normalize(vectors)


class Vectors:
    """Counts the vectors that are taken."""

    def __init__(self, vectors):
        self.vectors, self.taken = vectors, 0
        self.prefilter = Prefilter(self.take, len(vectors))
        self.taken = 0

    def take(self, rows):
        self.taken += len(rows)
        return self.vectors[rows]

    def check(self, queries, count):
        """Compare with sorting all products."""
        scores, rows = self.prefilter.nearest(queries, count)
        expected = -np.sort(-(queries @ self.vectors.T), axis=1)[:, :count]
        np.testing.assert_allclose(scores, expected, atol=2e-6)
        np.testing.assert_allclose(np.einsum("qd,qkd->qk", queries, self.vectors[rows]), scores, atol=2e-6)
        assert all(len(set(row)) == count for row in rows.tolist())


@pytest.mark.parametrize("spread", [2.0, 0.5, 0.05, 0.001])
@pytest.mark.parametrize("count", [1, 10, 299])
def test_the_nearest_are_those_of_all(spread, count):
    Vectors(groups(2000, spread=spread)).check(groups(40, spread=spread, seed=1), count)


def test_more_hits_than_a_block_has():
    Vectors(groups(650, spread=0.5)).check(groups(3, spread=0.5, seed=1), 400)


def test_most_vectors_are_ruled_out():
    vectors = Vectors(groups(5000, spread=1.0))
    vectors.prefilter.nearest(groups(50, spread=1.0, seed=1), 10)
    assert vectors.taken < 0.1 * 50 * 5000


def test_coordinates_of_very_different_size():
    """Principal components, as from a PCA head: the first coordinates are large, the last close to zero."""
    items, queries = (l2_normalize(groups(2000, spread=1.0, seed=s) * np.geomspace(1, 1e-4, DIM)) for s in (0, 1))
    vectors = Vectors(items)
    vectors.check(queries[:50], 10)
    assert vectors.taken < 0.5 * 50 * 2000


@pytest.mark.parametrize("outside", [0, 30])
def test_vectors_outside_the_directions(outside):
    vectors = Vectors(flat(2000, outside=outside))
    assert vectors.prefilter._directions.shape[1] < DIM
    vectors.check(np.concatenate([flat(20, seed=1), groups(20, spread=1.0)]), 10)


def test_directions_missing_from_the_sample(monkeypatch):
    monkeypatch.setattr(exact, "_SAMPLE", 5)
    vectors = Vectors(groups(2000, spread=1.0))
    assert vectors.prefilter._directions.shape == (DIM, 8)  # five vectors have at most five directions
    vectors.check(groups(40, spread=1.0, seed=1), 10)


def test_too_few_can_be_ruled_out(monkeypatch):
    monkeypatch.setattr(exact, "_MAX_PAIRS", 100)
    alike = l2_normalize(np.ones((3000, DIM)) + 1e-4 * np.random.default_rng(0).normal(size=(3000, DIM)))
    assert Vectors(alike).prefilter.nearest(alike[:20], 10) is None


def test_pairs_that_later_bounds_rule_out_are_not_counted(monkeypatch):
    monkeypatch.setattr(exact, "_MAX_PAIRS", 7 * 150 + 7 * 20)  # a group of queries, each with all of its kind
    Vectors(groups(3000, spread=0.5)).check(groups(20, spread=0.5, seed=1), 10)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.2, 0.5, 0.95])
@pytest.mark.parametrize("itself", [False, True])
def test_a_filter_allows_the_nearest_among_what_fits(share, itself):
    vectors = some(700)
    allowed = np.random.default_rng(2).random(700) < share
    query_rows = np.arange(0, 700, 23) if itself else OUTSIDE
    queries = vectors[query_rows] if itself else some(30, seed=1)
    rows, scores = ExactIndex(vectors).search(queries, query_rows, 9, allowed)
    full = oracle(vectors, queries, query_rows, 700)
    full = full[:, :-1] if itself else full  # the query itself is the last
    for query, ranking, hits, cosines in zip(queries, full, rows, scores, strict=True):
        expected = [row for row in ranking if allowed[row]][:9]
        assert hits.tolist() == expected + [-1] * (9 - len(expected))
        np.testing.assert_allclose(cosines[: len(expected)], vectors[expected] @ query, atol=2e-6)
        assert np.isnan(cosines[len(expected) :]).all()


@pytest.mark.parametrize("side", [-1, 1])
def test_a_filter_that_allows_only_what_is_far_or_near(many, side):
    """A wide filter without any of the nearest: what is fetched first holds no hit."""
    vectors, queries = some(700), some(5, seed=1)
    query_rows = np.full(5, -1)
    for query in queries:
        allowed = side * (vectors @ query) > np.quantile(side * (vectors @ query), 0.5)
        rows, _ = ExactIndex(vectors).search(query[None], query_rows[:1], 9, allowed)
        expected = [row for row in oracle(vectors, query[None], query_rows[:1], 700)[0] if allowed[row]]
        assert rows[0].tolist() == expected[:9]


def test_ties_among_what_a_filter_allows_go_to_the_lower_row():
    vectors = np.repeat(some(3), 100, axis=0)
    allowed = np.arange(300) % 2 == 1
    rows, _ = ExactIndex(vectors).search(vectors[:1], np.array([-1]), 4, allowed)
    assert rows.tolist() == [[1, 3, 5, 7]]
