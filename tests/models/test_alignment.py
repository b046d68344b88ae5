"""Rotating one space onto another, and the three ways to combine embeddings, by hand."""

import numpy as np
import pytest
from lookalike.models.alignment import fit_alignment
from scipy.linalg import orthogonal_procrustes
from scipy.stats import ortho_group

from lookalike.errors import DataError
from lookalike.models.encoder import combine
from lookalike.types import l2_normalize


def unit_rows(n: int, dim: int, seed: int = 0) -> np.ndarray:
    return l2_normalize(np.random.default_rng(seed).standard_normal((n, dim)))


def test_a_known_rotation_is_found():
    rotation = ortho_group.rvs(16, random_state=3).astype(np.float32)
    source = unit_rows(40, 16)
    found = fit_alignment(source, source @ rotation)
    np.testing.assert_allclose(found, rotation, atol=1e-5)
    assert found.dtype == np.float32


def test_the_same_as_scipy_where_the_spaces_only_resemble_each_other():
    source, target = unit_rows(50, 12, 1), unit_rows(50, 12, 2)
    expected, _ = orthogonal_procrustes(source.astype(np.float64), target.astype(np.float64))
    np.testing.assert_allclose(fit_alignment(source, target), expected, atol=1e-5)


def test_with_fewer_images_than_dimensions_it_is_still_a_rotation_that_brings_them_together():
    source, target = unit_rows(5, 32, 1), unit_rows(5, 32, 2)
    found = fit_alignment(source, target)
    np.testing.assert_allclose(found @ found.T, np.eye(32), atol=1e-5)
    assert np.linalg.norm(source @ found - target) < 0.7 * np.linalg.norm(source - target)


def test_different_shapes_are_refused():
    with pytest.raises(DataError) as raised:
        fit_alignment(unit_rows(4, 8), unit_rows(5, 8))
    assert str(raised.value) == ("an alignment needs embeddings of one shape from both members, got (4, 8) and (5, 8).")


FIRST = np.array([[1, 0], [0, 1]], np.float32)
SECOND = np.array([[0, 1], [0.6, 0.8]], np.float32)
QUARTER = np.array([[0, -1], [1, 0]], np.float32)  # (x, y) @ QUARTER = (y, -x)
HALF_ROOT = np.sqrt(0.5)


def test_average_by_hand():
    """(1, 1) / 2 and (0.6, 1.8) / 2, to unit length."""
    expected = [[HALF_ROOT, HALF_ROOT], [0.6 / np.sqrt(3.6), 1.8 / np.sqrt(3.6)]]
    np.testing.assert_allclose(combine([FIRST, SECOND], "average", [None, QUARTER]), expected, atol=1e-6)


def test_aligned_by_hand():
    """The second becomes (1, 0) and (0.8, -0.6); the sums are (2, 0) and (0.8, 0.4)."""
    expected = [[1, 0], [0.8 / np.sqrt(0.8), 0.4 / np.sqrt(0.8)]]
    np.testing.assert_allclose(combine([FIRST, SECOND], "aligned", [None, QUARTER]), expected, atol=1e-6)


def test_concat_by_hand():
    expected = np.array([[1, 0, 0, 1], [0, 1, 0.6, 0.8]]) * HALF_ROOT
    np.testing.assert_allclose(combine([FIRST, SECOND], "concat", [None, None]), expected, atol=1e-6)


def test_three_members_by_hand():
    """(1, 0) + (0, 1) + (1, 0) = (2, 1)."""
    third = np.array([[1, 0]], np.float32)
    found = combine([FIRST[:1], SECOND[:1], third], "average", [None, None, None])
    np.testing.assert_allclose(found, [[2 / np.sqrt(5), 1 / np.sqrt(5)]], atol=1e-6)


@pytest.mark.parametrize("how", ["aligned", "average", "concat"])
def test_the_result_is_float32_of_unit_length(how):
    parts = [unit_rows(6, 8, 1), unit_rows(6, 8, 2)]
    rotation = ortho_group.rvs(8, random_state=1).astype(np.float32)
    found = combine(parts, how, [None, rotation])
    assert found.dtype == np.float32
    assert found.shape == (6, 16 if how == "concat" else 8)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_two_equal_spaces_that_differ_by_a_rotation_average_to_the_first():
    """This is why the second space is rotated first: the average of the raw ones is another space."""
    rotation = ortho_group.rvs(16, random_state=3).astype(np.float32)
    first = unit_rows(40, 16)
    second = first @ rotation
    alignment = fit_alignment(second, first)
    np.testing.assert_allclose(combine([first, second], "aligned", [None, alignment]), first, atol=1e-5)
    assert np.abs(combine([first, second], "average", [None, None]) - first).max() > 0.1
