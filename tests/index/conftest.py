"""Vectors for the tests of the index."""

import numpy as np
import pytest

from lookalike.types import Embeddings, l2_normalize

GROUPS, DIM = 60, 64


def grouped(count: int, *, seed: int) -> np.ndarray:
    """Directions in loose groups: neighbours are of one group, but not all alike."""
    centres = np.random.default_rng(0).normal(size=(GROUPS, DIM))
    return l2_normalize(
        centres[np.arange(count) % GROUPS] + 0.9 * np.random.default_rng(seed).normal(size=(count, DIM))
    )


@pytest.fixture(scope="session")
def vectors():
    return grouped(3000, seed=1)


@pytest.fixture(scope="session")
def queries():
    return grouped(GROUPS, seed=2)


@pytest.fixture
def embeddings(vectors):
    return Embeddings(tuple(f"{n:05}" for n in range(len(vectors))), vectors, "model")
