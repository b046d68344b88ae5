"""A folder of images to embed."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from lookalike.models.pipeline import File


@pytest.fixture
def folder(sample_images: dict[str, Image.Image], tmp_path: Path) -> Path:
    """Ten images, crops of four, named 0.png to 9.png."""
    folder = tmp_path / "images"
    folder.mkdir()
    originals = list(sample_images.values())
    for n in range(10):
        original = originals[n % 4]
        original.crop((n * 4, n * 3, n * 4 + 70, n * 3 + 60)).save(folder / f"{n}.png")
    return folder


@pytest.fixture
def sources(folder: Path) -> list[File]:
    return [File(p.name, p) for p in sorted(folder.iterdir())]
