"""The PCA head against scikit-learn, and what it does where there is too little data."""

import numpy as np
import pytest
from lookalike.models.projection import fit_pca, fit_whitened, random_projection
from sklearn.decomposition import PCA

from lookalike.errors import DataError


def spread_features(n: int, width: int, seed: int = 0) -> np.ndarray:
    """Features with clearly different variances, away from the origin, `(n, width)` float32."""
    random = np.random.default_rng(seed)
    turn = np.linalg.qr(random.standard_normal((width, width)))[0]
    scaled = random.standard_normal((n, width)) * np.geomspace(4, 0.2, width)
    return (scaled @ turn + random.standard_normal(width) * 3).astype(np.float32)


def distances(rows: np.ndarray) -> np.ndarray:
    return np.linalg.norm(rows[:, None] - rows[None], axis=2)


def test_the_same_components_as_scikit_learn_up_to_their_sign():
    features = spread_features(200, 40)
    weight, bias = fit_pca(features, 12)
    reference = PCA(12, svd_solver="full").fit(features.astype(np.float64))
    cosines = (weight * reference.components_).sum(axis=1)
    np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-5)
    expected = reference.transform(features.astype(np.float64)) * np.sign(cosines)
    np.testing.assert_allclose(features @ weight.T + bias, expected, atol=1e-3)
    assert (weight.dtype, bias.dtype) == (np.float32, np.float32)


def test_the_largest_entry_of_each_component_is_positive():
    weight, _ = fit_pca(spread_features(60, 20), 8)
    assert (np.take_along_axis(weight, np.abs(weight).argmax(axis=1)[:, None], axis=1) > 0).all()


def test_by_hand():
    """Four points on a cross: variance 8 along x, 2 along y, centre (1, 1)."""
    features = np.array([[3, 1], [-1, 1], [1, 2], [1, 0]], np.float32)
    weight, bias = fit_pca(features, 2)
    np.testing.assert_allclose(weight, [[1, 0], [0, 1]], atol=1e-6)
    np.testing.assert_allclose(bias, [-1, -1], atol=1e-6)


def test_fewer_images_than_dimensions_are_completed_to_an_orthonormal_basis_that_keeps_all_distances():
    features = spread_features(10, 64)
    weight, bias = fit_pca(features, 64)
    np.testing.assert_allclose(weight @ weight.T, np.eye(64), atol=1e-5)
    new = spread_features(7, 64, seed=5)
    np.testing.assert_allclose(distances(new @ weight.T + bias), distances(new), rtol=1e-4, atol=1e-4)


def test_the_completion_is_at_right_angles_to_the_data():
    features = spread_features(10, 64)
    weight, bias = fit_pca(features, 30)
    projected = features @ weight.T + bias
    assert np.abs(projected[:, 9:]).max() < 1e-4  # ten points span nine directions
    assert np.abs(projected[:, :9]).max(axis=0).min() > 0.1


def test_identical_images_leave_no_component_and_still_a_basis():
    features = np.ones((5, 8), np.float32)
    weight, bias = fit_pca(features, 4)
    np.testing.assert_allclose(weight @ weight.T, np.eye(4), atol=1e-6)
    np.testing.assert_allclose(features @ weight.T + bias, 0, atol=1e-6)


def test_fewer_features_than_dimensions_are_filled_up_with_zeros():
    features = spread_features(50, 6)
    weight, bias = fit_pca(features, 16)
    assert weight.shape == (16, 6)
    assert not weight[6:].any()
    assert not bias[6:].any()
    np.testing.assert_allclose(weight[:6] @ weight[:6].T, np.eye(6), atol=1e-5)
    np.testing.assert_allclose(distances(features @ weight.T + bias), distances(features), rtol=1e-4, atol=1e-4)


def test_the_same_every_time_and_the_seed_decides_only_the_completion():
    features = spread_features(10, 32)
    first, again, other = (fit_pca(features, 32, seed=s)[0] for s in (0, 0, 1))
    assert np.array_equal(first, again)
    assert np.array_equal(first[:9], other[:9])
    assert not np.allclose(first[9:], other[9:])


def test_one_image_is_too_few():
    with pytest.raises(DataError) as raised:
        fit_pca(np.zeros((1, 8), np.float32), 4)
    assert str(raised.value) == "a projection needs at least 2 images to be learnt from, got 1."


@pytest.mark.parametrize(("width", "dim"), [(20, 8), (8, 20)])
def test_without_data_the_projection_is_orthonormal_and_decided_by_the_seed(width, dim):
    weight, bias = random_projection(width, dim, seed=3)
    rows = min(width, dim)
    assert weight.shape == (dim, width)
    np.testing.assert_allclose(weight[:rows] @ weight[:rows].T, np.eye(rows), atol=1e-5)
    assert not weight[rows:].any()
    assert not bias.any()
    assert np.array_equal(weight, random_projection(width, dim, seed=3)[0])
    assert not np.array_equal(weight, random_projection(width, dim, seed=4)[0])


# ---------------------------------------------------------------- evened out within the classes


def two_classes():
    """Two classes of four points, 2 apart along the first axis; within a class the second axis spreads more."""
    inner = np.array([[1, 4], [1, -4], [-1, 4], [-1, -4]], np.float32) / 4
    apart = np.array([1, 0], np.float32)
    features = np.vstack([inner + apart, inner - apart]).astype(np.float32)
    return features, np.array([0, 0, 0, 0, 1, 1, 1, 1])


def test_emphasis_stretches_the_directions_between_class_means_and_no_other():
    features, targets = two_classes()
    seen = {}
    for emphasis in (1.0, 2.0):
        weight, bias = fit_whitened(features, targets, 0.25, 2, emphasis=emphasis)
        seen[emphasis] = np.abs(features @ weight.T + bias)
    # the second axis has no part in the means, so it comes out the same; the first is doubled
    for emphasis, rows in seen.items():
        first = rows[:, rows.mean(axis=0).argmax()]
        other = rows[:, 1 - rows.mean(axis=0).argmax()]
        np.testing.assert_allclose(first / seen[1.0].max(), emphasis * seen[1.0].max(axis=1) / seen[1.0].max())
        np.testing.assert_allclose(other, seen[1.0].min(axis=1), rtol=1e-5)


def test_a_large_emphasis_is_linear_discriminant_analysis():
    """The leading direction is the one that scikit-learn finds with the same shrinkage of a pooled covariance."""
    random = np.random.default_rng(0)
    targets = np.repeat([0, 1], 200)
    features = random.standard_normal((400, 5)) * [1, 2, 3, 1, 1] + targets[:, None] * np.array([1, 1, 1, 0, 0])
    weight, _ = fit_whitened(features.astype(np.float32), targets, 1e-9, 5, emphasis=1000.0)
    direction = weight[0] / np.linalg.norm(weight[0])
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    theirs = LinearDiscriminantAnalysis(solver="eigen").fit(features, targets).scalings_[:, 0]
    assert abs(direction @ theirs) / np.linalg.norm(theirs) == pytest.approx(1, abs=1e-4)
