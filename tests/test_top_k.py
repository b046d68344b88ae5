"""The ranking rule against sorting everything in float64."""

import numpy as np
import pytest

from lookalike import _top_k
from lookalike._top_k import LAST, STEPS, best_first, cosine_steps, nearest_in_blocks
from lookalike.types import l2_normalize


def vectors(count, seed):
    return l2_normalize(np.random.default_rng(seed).normal(size=(count, 24)))


def test_cosines_in_millionths_by_hand():
    items = np.array([(1, 0), (0.6, 0.8), (-0.6, 0.8)], np.float32)
    steps = cosine_steps(np.array([(1, 0)], np.float32), items.__getitem__, np.array([2, 0, 1]))
    assert steps.tolist() == [[-600_000, STEPS, 600_000]]


def test_equal_cosines_are_ordered_by_row():
    steps = np.array([[5, 7, 7, LAST, -3]])
    rows, best = best_first(steps.copy(), np.arange(5), 5)
    assert (rows.tolist(), best.tolist()) == ([[1, 2, 0, 4, 3]], [[7, 7, 5, -3, LAST]])
    rows, best = best_first(steps.copy(), np.array([[9, 4, 3, 0, 8]]), 3)
    assert (rows.tolist(), best.tolist()) == ([[3, 4, 9]], [[7, 7, 5]])


@pytest.mark.parametrize("count", [1, 10, 300])
@pytest.mark.parametrize("size", [7, 64, 1000])
def test_blocks_do_not_change_the_nearest(count, size, monkeypatch):
    monkeypatch.setattr(_top_k, "_CELLS", 500)
    items, queries = vectors(300, 0), vectors(20, 1)
    scores, rows = nearest_in_blocks(queries, (items[n : n + size] for n in range(0, 300, size)), count)
    products = queries @ items.T
    np.testing.assert_array_equal(rows, np.argsort(-products, axis=1)[:, :count])
    np.testing.assert_allclose(scores, -np.sort(-products, axis=1)[:, :count], atol=1e-6)


def test_fewer_vectors_than_are_requested():
    scores, rows = nearest_in_blocks(vectors(2, 0), [vectors(3, 1), vectors(1, 2)], 10)
    assert scores.shape == rows.shape == (2, 4)
    assert [sorted(row) for row in rows.tolist()] == [[0, 1, 2, 3]] * 2
    assert nearest_in_blocks(vectors(0, 0), [vectors(3, 1)], 2)[1].shape == (0, 2)
