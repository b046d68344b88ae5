"""A small encoder with seeded random weights, and a folder of images to embed."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lookalike.models.encoder import Encoder
from lookalike.models.pipeline import File
from lookalike.models.trainable import build_trainable


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """0.1 million parameters, images of 160 × 160."""
    return build_trainable("test_efficientnet", "none").freeze()


@pytest.fixture(scope="session")
def other_encoder() -> Encoder:
    """The same architecture with other weights."""
    return build_trainable("test_efficientnet", "none", seed=1).freeze()


@pytest.fixture
def folder(photos: dict[str, Image.Image], tmp_path: Path) -> Path:
    """Ten images, crops of four, named 0.png to 9.png."""
    folder = tmp_path / "images"
    folder.mkdir()
    originals = list(photos.values())
    for n in range(10):
        original = originals[n % 4]
        original.crop((n * 4, n * 3, n * 4 + 70, n * 3 + 60)).save(folder / f"{n}.png")
    return folder


@pytest.fixture
def sources(folder: Path) -> list[File]:
    return [File(p.name, p) for p in sorted(folder.iterdir())]
