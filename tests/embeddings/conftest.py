"""A small encoder with seeded random weights, and a folder of pictures to embed."""

from __future__ import annotations

from pathlib import Path

import pytest
from lookalike.models.stream import File
from PIL import Image

from lookalike.models.encoder import Encoder
from lookalike.models.trainable import build_trainable


class Watch:
    """A progress that writes down what it is told, and stops the run when it is told a number."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.steps: list[tuple[int, int]] = []
        self.stop_at = stop_at

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:  # noqa: ARG002
        self.steps.append((done, total))
        if self.stop_at is not None and done >= self.stop_at:
            raise KeyboardInterrupt

    def info(self, text: str) -> None:
        raise AssertionError(text)


@pytest.fixture
def watch() -> type[Watch]:
    return Watch


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """0.1 million parameters, pictures of 160 × 160; do not change it."""
    return Encoder([build_trainable("test_efficientnet", "none")])


@pytest.fixture
def folder(photos: dict[str, Image.Image], tmp_path: Path) -> Path:
    """Ten pictures: parts of photographs, named 0.png to 9.png."""
    place = tmp_path / "pictures"
    place.mkdir()
    every = list(photos.values())
    for n in range(10):
        photo = every[n % 4]
        photo.crop((n * 4, n * 3, n * 4 + 70, n * 3 + 60)).save(place / f"{n}.png")
    return place


@pytest.fixture
def sources(folder: Path) -> list[File]:
    return [File(p.name, p) for p in sorted(folder.iterdir())]
