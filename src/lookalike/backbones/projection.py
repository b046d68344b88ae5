"""The head's linear layer before any training: principal components of the training features."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lookalike.errors import DataError
from lookalike.types import Vectors

EMBEDDING_DIM = 512
"""One size for every backbone."""


def fit_pca(features: Vectors, dim: int = EMBEDDING_DIM, *, seed: int = 0) -> tuple[Vectors, Vectors]:
    """Fit a linear projection `x -> weight @ x + bias` that centres and keeps the principal directions.

    With fewer than `dim` components in the data, the remaining rows are a seeded orthonormal basis of directions that
    the data does not span, so that nothing which only new images show is lost; past the number of features rows are 0.

    Args:
        features: `(n, features)` float32, n at least 2.
        dim: rows of the result.
        seed: decides the completing basis.

    Returns:
        weight `(dim, features)` and bias `(dim,)`, float32.

    Raises:
        DataError: with fewer than two rows.

    """
    n, width = features.shape
    if n < 2:
        raise DataError(f"a projection needs at least 2 images to be learnt from, got {n}.")
    centre = features.mean(axis=0, dtype=np.float64)
    centred = features.astype(np.float64) - centre
    _, singular, components = np.linalg.svd(centred, full_matrices=False)
    rank = int((singular > singular.max(initial=0.0) * 1e-6).sum())
    kept = min(rank, dim)
    rows = _fixed_signs(components[:kept])
    missing = min(dim, width) - kept
    if missing > 0:
        rows = np.vstack([rows, _complement(rows, missing, seed)])
    weight = np.zeros((dim, width))
    weight[: len(rows)] = rows
    return weight.astype(np.float32), (-weight @ centre).astype(np.float32)


def fit_whitened(
    features: Vectors,
    targets: npt.NDArray[np.int64],
    shrinkage: float,
    dim: int = EMBEDDING_DIM,
    *,
    emphasis: float = 1.0,
    seed: int = 0,
) -> tuple[Vectors, Vectors]:
    """Fit a projection that evens out how images of one class differ, then keeps the principal directions.

    Within-class covariance normalisation (Hatch, Kajarekar, Stolcke 2006), which is linear discriminant analysis
    without its last step: directions in which classes spread count less. It has no parameters a class, so it serves
    classes that were not seen.

    Args:
        features: `(n, features)` float32, n at least 2.
        targets: `(n,)` class rows.
        shrinkage: above 0, up to 1: how far the covariance is drawn towards a multiple of the identity.
        dim: rows of the result.
        emphasis: at least 1: factor on the directions between the class means, once all is evened out. Without limit
            it leaves linear discriminant analysis.
        seed: decides the completing basis.

    Returns:
        weight `(dim, features)` and bias `(dim,)`, float32.

    """
    x = features.astype(np.float64)
    classes, rows = np.unique(targets, return_inverse=True)
    means = np.stack([x[rows == c].mean(axis=0) for c in range(len(classes))])
    inner = x - means[rows]
    covariance = inner.T @ inner / len(x)
    level = float(np.trace(covariance)) / len(covariance)
    if level <= 0:  # one image a class: nothing to even out
        return fit_pca(features, dim, seed=seed)
    covariance = (1 - shrinkage) * covariance + shrinkage * level * np.eye(len(covariance))
    values, vectors = np.linalg.eigh(covariance)
    whitening = (vectors * np.sqrt(level / values)) @ vectors.T
    if emphasis != 1:
        centred = (means - means.mean(axis=0)) @ whitening
        _, strengths, between = np.linalg.svd(centred, full_matrices=False)
        between = between[strengths > strengths.max(initial=0.0) * 1e-6]
        whitening = whitening + (emphasis - 1) * (whitening @ between.T) @ between
    weight, bias = fit_pca((x @ whitening).astype(np.float32), dim, seed=seed)
    return (weight.astype(np.float64) @ whitening.T).astype(np.float32), bias


def random_projection(width: int, dim: int = EMBEDDING_DIM, *, seed: int = 0) -> tuple[Vectors, Vectors]:
    """Return a seeded orthonormal projection for when there is no data: weight `(dim, width)` and a bias of zeros."""
    weight = np.zeros((dim, width))
    rows = min(dim, width)
    weight[:rows] = _complement(np.zeros((0, width)), rows, seed)
    return weight.astype(np.float32), np.zeros(dim, np.float32)


def _fixed_signs(components: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Make the largest entry of each row positive: a decomposition leaves the sign open."""
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    fixed: npt.NDArray[np.float64] = components * np.where(largest < 0, -1.0, 1.0)
    return fixed


def _complement(rows: npt.NDArray[np.float64], count: int, seed: int) -> npt.NDArray[np.float64]:
    """Return `count` orthonormal rows that are orthogonal to `rows`."""
    random = np.random.default_rng(seed).standard_normal((rows.shape[1], count))
    for _ in range(2):  # once more, for the rounding of the first pass
        random -= rows.T @ (rows @ random)
    basis: npt.NDArray[np.float64] = np.linalg.qr(random)[0].T
    return basis
