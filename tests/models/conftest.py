"""Pixels of real images for a preprocessing, and a saved bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lookalike.data.images import read_image
from lookalike.models.bundle import save_bundle
from lookalike.models.preprocessing import Preprocessing
from lookalike.models.trainable import TrainableEncoder
from lookalike.types import Pixels


@pytest.fixture
def pixels(image_files: list[Path]) -> Callable[[Preprocessing], Pixels]:
    """Prepare the nine images for a preprocessing: `(9, h, w, 3)` uint8."""
    return lambda preprocessing: np.stack([preprocessing.pixels(read_image(path)) for path in image_files])


@pytest.fixture
def bundle(make_trainable: Callable[..., TrainableEncoder], tmp_path: Path) -> Path:
    """A bundle of one small encoder."""
    return save_bundle(make_trainable().freeze(), tmp_path / "model")
