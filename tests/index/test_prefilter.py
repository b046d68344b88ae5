"""Ruling vectors out by rounded products must not change the nearest."""

import numpy as np
import pytest

from lookalike.index import prefilter
from lookalike.index.prefilter import Prefilter
from lookalike.types import l2_normalize

DIM = 64


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(prefilter, "_BLOCK", 300)
    monkeypatch.setattr(prefilter, "_GROUP", 7)
    monkeypatch.setattr(prefilter, "_DIRECTIONS_STEP", 8)


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
    monkeypatch.setattr(prefilter, "_SAMPLE", 5)
    vectors = Vectors(groups(2000, spread=1.0))
    assert vectors.prefilter._directions.shape == (DIM, 8)  # five vectors have at most five directions
    vectors.check(groups(40, spread=1.0, seed=1), 10)


def test_too_few_can_be_ruled_out(monkeypatch):
    monkeypatch.setattr(prefilter, "_MAX_PAIRS", 100)
    alike = l2_normalize(np.ones((3000, DIM)) + 1e-4 * np.random.default_rng(0).normal(size=(3000, DIM)))
    assert Vectors(alike).prefilter.nearest(alike[:20], 10) is None


def test_pairs_that_later_bounds_rule_out_are_not_counted(monkeypatch):
    monkeypatch.setattr(prefilter, "_MAX_PAIRS", 7 * 150 + 7 * 20)  # a group of queries, each with all of its kind
    Vectors(groups(3000, spread=0.5)).check(groups(20, spread=0.5, seed=1), 10)
