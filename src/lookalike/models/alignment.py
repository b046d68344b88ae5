"""Rotating one embedding space onto another, so that averaging the two means something."""

from __future__ import annotations

import numpy as np

from lookalike.errors import DataError
from lookalike.types import Vectors


def fit_alignment(source: Vectors, target: Vectors) -> Vectors:
    """Return the orthogonal matrix `R` that minimises `|source @ R - target|` (orthogonal Procrustes; Schönemann 1966).

    Args:
        source: `(n, dim)` embeddings of training images by the member to be rotated.
        target: `(n, dim)` embeddings of the same images, row by row, by the member that stays.

    Returns:
        `(dim, dim)` float32.

    Raises:
        DataError: when the shapes differ.

    """
    if source.shape != target.shape:
        raise DataError(
            f"an alignment needs embeddings of one shape from both members, got {source.shape} and {target.shape}."
        )
    u, _, vt = np.linalg.svd(source.astype(np.float64).T @ target.astype(np.float64))
    rotation: Vectors = (u @ vt).astype(np.float32)
    return rotation
