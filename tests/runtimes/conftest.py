"""Small members with a head that was fitted to photographs, and their graphs on every runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lookalike.data.images import read_image
from lookalike.models.trainable import TrainableEncoder
from lookalike.types import Pixels


@pytest.fixture
def pixels(image_files: list[Path]) -> Callable[[TrainableEncoder], Pixels]:
    """Nine photographs as a member wants them."""

    def of(member: TrainableEncoder) -> Pixels:
        return np.stack([member.preprocessing.pixels(read_image(p)) for p in image_files])

    return of
