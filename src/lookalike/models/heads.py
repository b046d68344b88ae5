"""Heads: the linear projection of pooled features to 512 dimensions with L2 normalisation, and how it is fitted.

Also the rotation that aligns the embedding spaces of an ensemble. NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lookalike._files import digest
from lookalike.errors import DataError, ModelError
from lookalike.types import Vectors, l2_normalize

EMBEDDING_DIM = 512  # one size for every backbone


@dataclass(frozen=True, eq=False)
class Head:
    """A linear projection, then L2 normalisation."""

    weight: Vectors  # `(dim, features)` float32
    bias: Vectors  # `(dim,)` float32
    origin: str  # how it was made, in words

    def __call__(self, features: Vectors) -> Vectors:
        """Return unit-length embeddings `(n, dim)` of pooled features `(n, features)`."""
        return l2_normalize(features @ self.weight.T + self.bias)

    def fingerprint(self, backbone: str) -> str:
        """Return the fingerprint of an encoder: of its backbone with this head."""
        return digest(backbone, np.ascontiguousarray(self.weight).tobytes(), np.ascontiguousarray(self.bias).tobytes())


def pca_head(features: Vectors, dim: int = EMBEDDING_DIM, *, seed: int = 0) -> Head:
    """Return the head whose projection keeps the principal components of these features `(n, features)`."""
    return Head(*fit_pca(features, dim, seed=seed), f"PCA of {len(features)} images")


def random_head(width: int, dim: int = EMBEDDING_DIM, *, seed: int = 0) -> Head:
    """Return a head with a random orthonormal projection, for use where there are no images."""
    weight = np.zeros((dim, width))
    rows = min(dim, width)
    weight[:rows] = _complement(np.zeros((0, width)), rows, seed)
    return Head(weight.astype(np.float32), np.zeros(dim, np.float32), "random orthonormal")


def fit_pca(features: Vectors, dim: int = EMBEDDING_DIM, *, seed: int = 0) -> tuple[Vectors, Vectors]:
    """Fit a linear projection `x -> weight @ x + bias` to the principal components of the centred features.

    If the data has fewer than `dim` components, the remaining rows are a seeded orthonormal basis of directions that
    the data does not span, because new images may differ in them. Rows beyond the number of features are zero.

    Returns weight `(dim, features)` and bias `(dim,)`, float32. Raises `DataError` for fewer than two rows.
    """
    n, width = features.shape
    if n < 2:
        raise DataError(f"principal components need at least 2 images, got {n}.")
    if not np.isfinite(features).all():
        raise ModelError("the backbone computes features that are not finite; use other `weights`.", argument="weights")
    centre = features.mean(axis=0, dtype=np.float64)
    centred = features.astype(np.float64) - centre
    _, singular, components = np.linalg.svd(centred, full_matrices=False)
    rank = int((singular > singular.max(initial=0.0) * 1e-6).sum())
    rows = components[: min(rank, dim)]
    # a decomposition does not determine the sign: the largest value of each row is positive
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)
    rows = rows * np.where(largest < 0, -1.0, 1.0)
    missing = min(dim, width) - len(rows)
    if missing > 0:
        rows = np.vstack([rows, _complement(rows, missing, seed)])
    weight = np.zeros((dim, width))
    weight[: len(rows)] = rows
    return weight.astype(np.float32), (-weight @ centre).astype(np.float32)


class Whitening:
    """Projections to the principal components, in which the images of one class spread equally in all directions.

    Within-class covariance normalisation (Hatch, Kajarekar, Stolcke 2006): linear discriminant analysis without its
    last step. It has no parameters per class, so that it also suits classes that are not in the training data. The
    decompositions are made once, of features `(n, features)` and class numbers `(n,)`, so that many values of shrinkage
    and emphasis are fitted fast.
    """

    def __init__(
        self, features: Vectors, targets: npt.NDArray[np.int64], dim: int = EMBEDDING_DIM, *, seed: int = 0
    ) -> None:
        self._weight, self._bias = fit_pca(features, dim, seed=seed)
        x = features.astype(np.float64) @ self._weight.T.astype(np.float64) + self._bias
        classes, rows = np.unique(targets, return_inverse=True)
        means = np.stack([x[rows == c].mean(axis=0) for c in range(len(classes))])
        inner = x - means[rows]
        self._values, self._vectors = np.linalg.eigh(inner.T @ inner / len(x))
        self._level = float(self._values.clip(min=0).sum()) / min(features.shape[1], dim)
        self._means = means - means.mean(axis=0)

    def fit(self, shrinkage: float, emphasis: float = 1.0) -> tuple[Vectors, Vectors]:
        """Return weight `(dim, features)` and bias `(dim,)` of a projection.

        Shrinkage, above 0 and at most 1, is the weight of a multiple of the identity in the within-class covariance;
        emphasis, at least 1, a factor on the directions between the class means. A large one gives linear discriminant
        analysis.
        """
        if self._level <= 0:  # one image per class
            return self._weight, self._bias
        values = (1 - shrinkage) * self._values.clip(min=0) + shrinkage * self._level
        matrix = (self._vectors * np.sqrt(self._level / values)) @ self._vectors.T
        if emphasis != 1:
            _, strengths, between = np.linalg.svd(self._means @ matrix, full_matrices=False)
            between = between[strengths > strengths.max(initial=0.0) * 1e-6]
            matrix = matrix + (emphasis - 1) * (matrix @ between.T) @ between
        weight, bias = matrix.T @ self._weight.astype(np.float64), matrix.T @ self._bias.astype(np.float64)
        return weight.astype(np.float32), bias.astype(np.float32)


def _complement(rows: npt.NDArray[np.float64], count: int, seed: int) -> npt.NDArray[np.float64]:
    """Return `count` orthonormal rows that are orthogonal to `rows`."""
    random = np.random.default_rng(seed).standard_normal((rows.shape[1], count))
    for _ in range(2):  # the second pass removes the rounding errors of the first
        random -= rows.T @ (rows @ random)
    basis: npt.NDArray[np.float64] = np.linalg.qr(random)[0].T
    return basis


def fit_alignment(source: Vectors, target: Vectors) -> Vectors:
    """Return the orthogonal matrix `R` that minimises `|source @ R - target|` (orthogonal Procrustes; Schönemann 1966).

    Both are `(n, dim)` embeddings of the same training images: by the encoder to rotate, and by the first encoder.
    """
    if source.shape != target.shape:
        raise DataError(f"an alignment needs embeddings of equal shape, got {source.shape} and {target.shape}.")
    u, _, vt = np.linalg.svd(source.astype(np.float64).T @ target.astype(np.float64))
    rotation: Vectors = (u @ vt).astype(np.float32)
    return rotation
