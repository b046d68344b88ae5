"""Heads against scikit-learn, alignments against SciPy, both by hand, and both with too little data."""

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from scipy.stats import ortho_group
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from lookalike.errors import DataError
from lookalike.models.heads import (
    Head,
    Whitening,
    fit_alignment,
    fit_pca,
    pca_head,
    random_head,
)
from lookalike.types import l2_normalize


def spread_features(n, width, seed=0):
    """Features with clearly different variances, away from the origin, `(n, width)` float32."""
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.standard_normal((width, width)))[0]
    scaled = rng.standard_normal((n, width)) * np.geomspace(4, 0.2, width)
    return (scaled @ rotation + rng.standard_normal(width) * 3).astype(np.float32)


def unit_rows(n, dim, seed=0):
    return l2_normalize(np.random.default_rng(seed).standard_normal((n, dim)))


def distances(rows):
    return np.linalg.norm(rows[:, None] - rows[None], axis=2)


def test_a_head_by_hand():
    """(1, 2) becomes (1 + 2, 4 + 0) = (3, 4), of length 5."""
    head = Head(np.array([[1, 0], [0, 2]], np.float32), np.array([2, 0], np.float32), "by hand")
    np.testing.assert_allclose(head(np.array([[1, 2]], np.float32)), [[0.6, 0.8]], atol=1e-6)


def test_the_fingerprint_depends_on_backbone_weight_and_bias_but_not_on_the_origin():
    weight, bias = np.eye(2, dtype=np.float32), np.zeros(2, np.float32)
    fingerprint = Head(weight, bias, "a").fingerprint("backbone")
    assert Head(weight, bias, "b").fingerprint("backbone") == fingerprint
    changed = {
        Head(weight, bias, "a").fingerprint("other"),
        Head(2 * weight, bias, "a").fingerprint("backbone"),
        Head(weight, bias + 1, "a").fingerprint("backbone"),
    }
    assert len(changed | {fingerprint}) == 4


def test_the_heads_describe_how_they_were_made():
    assert pca_head(spread_features(30, 8)).origin == "PCA of 30 images"
    assert random_head(8).origin == "random orthonormal"
    assert random_head(8).weight.shape == (512, 8)


# ---------------------------------------------------------------- principal components


def test_the_components_are_those_of_scikit_learn_up_to_their_sign():
    features = spread_features(200, 40)
    weight, bias = fit_pca(features, 12)
    reference = PCA(12, svd_solver="full").fit(features.astype(np.float64))
    cosines = (weight * reference.components_).sum(axis=1)
    np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-5)
    expected = reference.transform(features.astype(np.float64)) * np.sign(cosines)
    np.testing.assert_allclose(features @ weight.T + bias, expected, atol=1e-3)
    assert (weight.dtype, bias.dtype) == (np.float32, np.float32)


def test_the_largest_value_of_each_component_is_positive():
    weight, _ = fit_pca(spread_features(60, 20), 8)
    assert (np.take_along_axis(weight, np.abs(weight).argmax(axis=1)[:, None], axis=1) > 0).all()


def test_principal_components_by_hand():
    """Four points on a cross: variance 8 along x, 2 along y, centre (1, 1)."""
    features = np.array([[3, 1], [-1, 1], [1, 2], [1, 0]], np.float32)
    weight, bias = fit_pca(features, 2)
    np.testing.assert_allclose(weight, [[1, 0], [0, 1]], atol=1e-6)
    np.testing.assert_allclose(bias, [-1, -1], atol=1e-6)


def test_with_fewer_images_than_dimensions_an_orthonormal_basis_keeps_all_distances():
    weight, bias = fit_pca(spread_features(10, 64), 64)
    np.testing.assert_allclose(weight @ weight.T, np.eye(64), atol=1e-5)
    new = spread_features(7, 64, seed=5)
    np.testing.assert_allclose(distances(new @ weight.T + bias), distances(new), rtol=1e-4, atol=1e-4)


def test_the_completing_rows_are_orthogonal_to_the_data():
    features = spread_features(10, 64)
    weight, bias = fit_pca(features, 30)
    projected = features @ weight.T + bias
    assert np.abs(projected[:, 9:]).max() < 1e-4  # ten points span nine directions
    assert np.abs(projected[:, :9]).max(axis=0).min() > 0.1


def test_identical_images_give_an_orthonormal_basis():
    features = np.ones((5, 8), np.float32)
    weight, bias = fit_pca(features, 4)
    np.testing.assert_allclose(weight @ weight.T, np.eye(4), atol=1e-6)
    np.testing.assert_allclose(features @ weight.T + bias, 0, atol=1e-6)


def test_with_fewer_features_than_dimensions_the_remaining_rows_are_zero():
    features = spread_features(50, 6)
    weight, bias = fit_pca(features, 16)
    assert weight.shape == (16, 6)
    assert not weight[6:].any()
    assert not bias[6:].any()
    np.testing.assert_allclose(weight[:6] @ weight[:6].T, np.eye(6), atol=1e-5)
    np.testing.assert_allclose(distances(features @ weight.T + bias), distances(features), rtol=1e-4, atol=1e-4)


def test_the_seed_decides_the_completing_rows_only():
    features = spread_features(10, 32)
    first, repeated, other = (fit_pca(features, 32, seed=s)[0] for s in (0, 0, 1))
    assert np.array_equal(first, repeated)
    assert np.array_equal(first[:9], other[:9])
    assert not np.allclose(first[9:], other[9:])


def test_one_image_is_too_few():
    with pytest.raises(DataError, match="at least 2 images, got 1"):
        fit_pca(np.zeros((1, 8), np.float32), 4)


@pytest.mark.parametrize(("width", "dim"), [(20, 8), (8, 20)])
def test_a_random_head_is_orthonormal_and_decided_by_the_seed(width, dim):
    head = random_head(width, dim, seed=3)
    weight, bias = head.weight, head.bias
    rows = min(width, dim)
    assert weight.shape == (dim, width)
    np.testing.assert_allclose(weight[:rows] @ weight[:rows].T, np.eye(rows), atol=1e-5)
    assert not weight[rows:].any()
    assert not bias.any()
    assert np.array_equal(weight, random_head(width, dim, seed=3).weight)
    assert not np.array_equal(weight, random_head(width, dim, seed=4).weight)


# ---------------------------------------------------------------- within-class whitening


def test_emphasis_stretches_the_directions_between_class_means_only():
    """Two classes of four points, 2 apart along the first axis; within a class the second axis spreads more."""
    within = np.array([[1, 4], [1, -4], [-1, 4], [-1, -4]], np.float32) / 4
    between = np.array([1, 0], np.float32)
    features = np.vstack([within + between, within - between]).astype(np.float32)
    whitening = Whitening(features, np.array([0, 0, 0, 0, 1, 1, 1, 1]), 2)
    weight, bias = whitening.fit(0.25)
    plain = np.abs(features @ weight.T + bias)
    weight, bias = whitening.fit(0.25, emphasis=2.0)
    emphasized = np.abs(features @ weight.T + bias)
    class_axis = int(plain.mean(axis=0).argmax())
    np.testing.assert_allclose(emphasized[:, class_axis], 2 * plain[:, class_axis], rtol=1e-5)
    np.testing.assert_allclose(emphasized[:, 1 - class_axis], plain[:, 1 - class_axis], rtol=1e-5)


def test_a_large_emphasis_is_linear_discriminant_analysis():
    rng = np.random.default_rng(0)
    targets = np.repeat([0, 1], 200)
    features = rng.standard_normal((400, 5)) * [1, 2, 3, 1, 1] + targets[:, None] * np.array([1, 1, 1, 0, 0])
    weight, _ = Whitening(features.astype(np.float32), targets, 5).fit(1e-9, emphasis=1000.0)
    direction = weight[0] / np.linalg.norm(weight[0])
    reference = LinearDiscriminantAnalysis(solver="eigen").fit(features, targets).scalings_[:, 0]
    assert abs(direction @ reference) / np.linalg.norm(reference) == pytest.approx(1, abs=1e-4)


def test_classes_of_one_image_leave_the_principal_components():
    features = spread_features(6, 10)
    weight, bias = Whitening(features, np.arange(6), 4).fit(0.5)
    expected_weight, expected_bias = fit_pca(features, 4)
    np.testing.assert_array_equal(weight, expected_weight)
    np.testing.assert_array_equal(bias, expected_bias)


# ---------------------------------------------------------------- alignment


def test_a_rotation_is_recovered():
    rotation = ortho_group.rvs(16, random_state=3).astype(np.float32)
    source = unit_rows(40, 16)
    alignment = fit_alignment(source, source @ rotation)
    np.testing.assert_allclose(alignment, rotation, atol=1e-5)
    assert alignment.dtype == np.float32


def test_the_alignment_is_that_of_scipy():
    source, target = unit_rows(50, 12, 1), unit_rows(50, 12, 2)
    expected, _ = orthogonal_procrustes(source.astype(np.float64), target.astype(np.float64))
    np.testing.assert_allclose(fit_alignment(source, target), expected, atol=1e-5)


def test_with_fewer_images_than_dimensions_the_alignment_is_orthogonal():
    source, target = unit_rows(5, 32, 1), unit_rows(5, 32, 2)
    alignment = fit_alignment(source, target)
    np.testing.assert_allclose(alignment @ alignment.T, np.eye(32), atol=1e-5)
    assert np.linalg.norm(source @ alignment - target) < 0.7 * np.linalg.norm(source - target)


def test_an_alignment_needs_equal_shapes():
    with pytest.raises(DataError, match=r"\(4, 8\) and \(5, 8\)"):
        fit_alignment(unit_rows(4, 8), unit_rows(5, 8))
