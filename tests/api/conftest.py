"""A small encoder with seeded random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from lookalike.embeddings.fit import fitted_encoder
from lookalike.models.torch_bundle import save_bundle

from lookalike.data.layouts import load_dataset
from lookalike.models.encoder import Encoder
from lookalike.models.trainable import build_trainable


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """0.1 million parameters, pictures of 160 × 160; do not change it."""
    return Encoder([build_trainable("test_efficientnet", "none")])


@pytest.fixture(scope="session")
def small_bundle(photo_folder_original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One member; never change it."""
    data = load_dataset(photo_folder_original)
    members = [build_trainable("test_efficientnet", "none", seed=1)]
    return save_bundle(fitted_encoder(members, data.training), tmp_path_factory.mktemp("bundles") / "single")


@pytest.fixture(scope="session")
def ensemble_bundle(photo_folder_original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two members of different architectures, aligned; never change it."""
    data = load_dataset(photo_folder_original)
    members = [build_trainable("test_efficientnet", "none", seed=1), build_trainable("test_resnet", "none", seed=2)]
    return save_bundle(fitted_encoder(members, data.training), tmp_path_factory.mktemp("bundles") / "pair")
