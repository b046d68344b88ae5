"""Bundles of small encoders with seeded random weights, and a folder of images."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lookalike.api.index import index
from lookalike.data.layouts import load_dataset
from lookalike.embeddings.embed_folder import embed_folder
from lookalike.models.bundle import save_bundle
from lookalike.models.encoder import AnyEncoder, Encoder
from lookalike.models.trainable import build_trainable
from lookalike.progress import SILENT
from lookalike.runtimes.fit import fit_encoder


def fit(folder: Path, seeds: dict[str, int]) -> AnyEncoder:
    """Fit the heads of encoders with random weights to the training split."""
    backbones = [
        (build_trainable(name, "none", seed=seed).torch_backbone(), "untrained") for name, seed in seeds.items()
    ]
    return fit_encoder(backbones, load_dataset(folder).training, progress=SILENT).encoder


@pytest.fixture(scope="session")
def bundle(data_folder_original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundle of one encoder; never change it."""
    encoder = fit(data_folder_original, {"test_efficientnet": 1})
    return save_bundle(encoder, tmp_path_factory.mktemp("bundles") / "single")


@pytest.fixture(scope="session")
def ensemble_bundle(data_folder_original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundle of two encoders of different architectures, aligned; never change it."""
    ensemble = fit(data_folder_original, {"test_efficientnet": 1, "test_resnet": 2})
    return save_bundle(ensemble, tmp_path_factory.mktemp("bundles") / "pair")


@pytest.fixture
def images(data_folder: Path, tmp_path: Path) -> Path:
    """Twelve images of four scenes in a folder and its subfolder `more`; not a data set."""
    folder = tmp_path / "images"
    shutil.copytree(data_folder / "test" / "gallery", folder / "more")
    for path in sorted((folder / "more").iterdir())[:4]:
        path.rename(folder / path.name)
    return folder


@pytest.fixture
def index_folder(images: Path, encoder: Encoder, tmp_path: Path) -> Path:
    """Index of `images`."""
    index(images, encoder, out=tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 5 images."""
    monkeypatch.setitem(embed_folder.__kwdefaults__, "shard_size", 5)
