"""A data folder of 4 × 8 training crops, a weights file, and options small enough for a test."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from lookalike.data.dataset import Dataset
from lookalike.data.layouts import load_dataset
from lookalike.data.validation import with_validation
from lookalike.models.trainable import TrainableEncoder, build_trainable
from lookalike.training.config import TrainingOptions

SMALL = "test_efficientnet"  # 0.1 million parameters
PARTS = {"training": 8, "test/query": 1, "test/gallery": 2}


class Recorder:
    """Records what it receives; may raise at a step."""

    def __init__(self, stop_at: Callable[[str, int], bool] = lambda _task, _done: False) -> None:
        self.steps: list[tuple[str, int, int]] = []
        self.messages: list[str] = []
        self.stop_at = stop_at

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:  # noqa: ARG002
        self.steps.append((task, done, total))
        if self.stop_at(task, done):
            raise KeyboardInterrupt

    def info(self, text: str) -> None:
        self.messages.append(text)

    @property
    def tasks(self) -> list[str]:
        """The tasks in the order they began."""
        return list(dict.fromkeys(task for task, _, _ in self.steps))


@pytest.fixture(scope="session")
def recorder() -> type[Recorder]:
    return Recorder


@pytest.fixture(scope="session")
def crops_original(sample_images: dict[str, Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the folder of `crops` once; never change it."""
    root = tmp_path_factory.mktemp("original") / "crops"
    labels = ["path,label"]
    for name, image in sample_images.items():
        chance = random.Random(f"crops of {name}")
        for part, count in PARTS.items():
            folder = root / part / name if part == "training" else root / part
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                side = chance.randint(64, 96)
                left, top = chance.randint(0, image.width - side), chance.randint(0, image.height - side)
                path = folder / f"{name}{number}.png"
                image.crop((left, top, left + side, top + side)).save(path)
                if part != "training":
                    labels.append(f"{part}/{path.name},{name}")
    (root / "labels.csv").write_text("\n".join(labels) + "\n")
    return root


@pytest.fixture
def crops(crops_original: Path, tmp_path: Path) -> Path:
    """Data folder of layout 1, yours to change: 4 classes of 8 training, 1 query and 2 gallery crops of one image."""
    return Path(shutil.copytree(crops_original, tmp_path / "crops"))


@pytest.fixture(scope="session")
def data(crops_original: Path) -> Dataset:
    """The crops with a validation split of two images per class, so that 24 remain for training."""
    return with_validation(load_dataset(crops_original), seed=0)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file; a member made from it counts as pretrained, so there is something to go back to."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        save_file(timm.create_model(SMALL, num_classes=0).state_dict(), path)
    return path


@pytest.fixture
def member(weights: Path) -> TrainableEncoder:
    return build_trainable(SMALL, weights)


@pytest.fixture(scope="session")
def quick() -> Callable[..., TrainingOptions]:
    """Make options of a run of seconds; any option may be given."""

    def make(**options: Any) -> TrainingOptions:
        return TrainingOptions(**{"epochs": 2, "batch_size": 8, "precision": "float32", "resolution": 0.5, **options})

    return make
