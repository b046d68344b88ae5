"""Ruling out by rounded products must not change what is found."""

import numpy as np
import pytest

from lookalike.index import prefilter
from lookalike.index.prefilter import Prefilter
from lookalike.types import l2_normalize

DIM = 64


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(prefilter, "_BLOCK", 300)
    monkeypatch.setattr(prefilter, "_QUERIES", 7)
    monkeypatch.setattr(prefilter, "_DIRECTIONS", 8)


def groups(count, *, spread, seed=0):
    """Directions in twenty groups; the smaller the spread, the more of them nearly tie."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(20, DIM))
    return l2_normalize(centres[np.arange(count) % 20] + spread * random.normal(size=(count, DIM)))


def whole(vectors, queries, count):
    scores = queries @ vectors.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(scores, order, axis=1), order


@pytest.mark.parametrize("spread", [2.0, 0.5, 0.05, 0.001])
@pytest.mark.parametrize("count", [1, 10, 299])
def test_the_nearest_are_those_of_comparing_all(spread, count):
    vectors, queries = groups(2000, spread=spread), groups(40, spread=spread, seed=1)
    scores, rows = Prefilter(lambda r: vectors[r], len(vectors), DIM).nearest(queries, count)
    expected, _ = whole(vectors, queries, count)
    np.testing.assert_allclose(scores, expected, atol=2e-6)
    np.testing.assert_allclose(np.einsum("qd,qkd->qk", queries, vectors[rows]), scores, atol=2e-6)
    assert all(len(set(row)) == count for row in rows.tolist())


def test_more_hits_than_a_block_has():
    vectors, queries = groups(650, spread=0.5), groups(3, spread=0.5, seed=1)
    scores, rows = Prefilter(lambda r: vectors[r], len(vectors), DIM).nearest(queries, 400)
    np.testing.assert_allclose(scores, whole(vectors, queries, 400)[0], atol=2e-6)
    assert all(len(set(row)) == 400 for row in rows.tolist())


def test_coordinates_of_very_different_size_are_evened_out():
    """Principal components, as heads give them: the first coordinates are large, the last next to nothing."""
    vectors, queries = (l2_normalize(groups(2000, spread=1.0, seed=s) * np.geomspace(1, 1e-4, DIM)) for s in (0, 1))
    compared = []

    def take(rows):
        compared.append(len(rows))
        return vectors[rows]

    found = Prefilter(take, len(vectors), DIM)
    compared.clear()
    scores, _ = found.nearest(queries[:50], 10)
    np.testing.assert_allclose(scores, whole(vectors, queries[:50], 10)[0], atol=2e-6)
    assert sum(compared) < 0.5 * 50 * len(vectors)


def test_most_vectors_are_ruled_out():
    vectors, queries = groups(5000, spread=1.0), groups(50, spread=1.0, seed=1)
    compared = []

    def take(rows):
        compared.append(len(rows))
        return vectors[rows]

    found = Prefilter(take, len(vectors), DIM)
    compared.clear()
    found.nearest(queries, 10)
    assert sum(compared) < 0.1 * 50 * len(vectors)


def flat(count, *, seed=0, outside=0):
    """Directions that lie nearly in 10 of the dimensions, but for the last few, which lie anywhere."""
    random = np.random.default_rng(seed)
    found = random.normal(size=(count, DIM)) * np.where(np.arange(DIM) < 10, 1, 0.01)
    found[count - outside :] = random.normal(size=(outside, DIM))
    return l2_normalize(found)


@pytest.mark.parametrize("outside", [0, 30])
def test_what_lies_beyond_the_directions_is_allowed_for(outside):
    vectors, queries = flat(2000, outside=outside), np.concatenate([flat(20, seed=1), groups(20, spread=1.0)])
    found = Prefilter(lambda r: vectors[r], len(vectors), DIM)
    assert found._directions.shape[1] < DIM
    scores, rows = found.nearest(queries, 10)
    np.testing.assert_allclose(scores, whole(vectors, queries, 10)[0], atol=2e-6)
    assert all(len(set(row)) == 10 for row in rows.tolist())


def test_directions_that_a_sample_did_not_show_are_allowed_for(monkeypatch):
    monkeypatch.setattr(prefilter, "_SAMPLE", 5)
    vectors, queries = groups(2000, spread=1.0), groups(40, spread=1.0, seed=1)
    found = Prefilter(lambda r: vectors[r], len(vectors), DIM)
    assert found._directions.shape == (DIM, 8)  # of five vectors no more than five directions are known
    np.testing.assert_allclose(found.nearest(queries, 10)[0], whole(vectors, queries, 10)[0], atol=2e-6)


def test_where_few_can_be_ruled_out_that_is_said(monkeypatch):
    monkeypatch.setattr(prefilter, "_PAIRS", 100)
    alike = l2_normalize(np.ones((3000, DIM)) + 1e-4 * np.random.default_rng(0).normal(size=(3000, DIM)))
    assert Prefilter(lambda r: alike[r], len(alike), DIM).nearest(alike[:20], 10) is None
    vectors, queries = groups(3000, spread=0.5), groups(20, spread=0.5, seed=1)
    monkeypatch.setattr(prefilter, "_PAIRS", 7 * 150 + 7 * 20)  # a group of queries, each with all of its kind and more
    scores, _ = Prefilter(lambda r: vectors[r], len(vectors), DIM).nearest(queries, 10)
    np.testing.assert_allclose(scores, whole(vectors, queries, 10)[0], atol=2e-6)
