"""A cache with the graphs of `encoder`, so that tests of selection convert nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lookalike.data.images import read_image
from lookalike.models.pipeline import Source, as_sources
from lookalike.models.preprocessing import Preprocessing
from lookalike.models.trainable import build_trainable
from lookalike.progress import SILENT
from lookalike.runtimes import onnx, openvino
from lookalike.runtimes.select import with_runtime
from lookalike.types import Pixels

SMALL = "test_efficientnet"


@pytest.fixture(scope="session")
def graph_cache_original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the graphs of `encoder` for every runtime that is installed; never change it."""
    folder = tmp_path_factory.mktemp("graph_cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOOKALIKE_CACHE", str(folder))
        encoder = build_trainable(SMALL, "none").freeze()
        for module in (openvino, onnx):
            if module.is_installed():
                for precision in module.float_precisions():
                    backbone = with_runtime(encoder, module.RUNTIME, precision).backbone
                    for count in (1, 1000):  # images
                        backbone.prepare((), count, SILENT)
    return folder


@pytest.fixture
def graph_cache(graph_cache_original: Path, own_cache: Path) -> Path:
    """Let the cache hold the graphs of `encoder`."""
    return Path(shutil.copytree(graph_cache_original, own_cache, dirs_exist_ok=True))


@pytest.fixture
def sample(image_files: list[Path]) -> list[Source]:
    """The nine images as sources."""
    return list(as_sources(image_files))


@pytest.fixture
def pixels(image_files: list[Path]) -> Callable[[Preprocessing], Pixels]:
    """Prepare the nine images for a preprocessing: `(9, h, w, 3)` uint8."""
    return lambda preprocessing: np.stack([preprocessing.pixels(read_image(path)) for path in image_files])
