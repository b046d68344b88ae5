"""A small encoder with seeded random weights."""

from __future__ import annotations

import pytest

from lookalike.backbones import build_member
from lookalike.encoding import Encoder


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """0.1 million parameters, pictures of 160 × 160; do not change it."""
    return Encoder([build_member("test_efficientnet", "none")])
