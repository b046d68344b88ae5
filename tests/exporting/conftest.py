"""A small bundle whose head was fitted to the photographs of `photo_folder`, alone and as an ensemble."""

from __future__ import annotations

from pathlib import Path

import pytest

from lookalike.backbones import build_member, save_bundle
from lookalike.data import load_dataset
from lookalike.embedding import fitted_encoder


@pytest.fixture(scope="session")
def small_bundle(photo_folder_original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One member; never change it."""
    data = load_dataset(photo_folder_original)
    members = [build_member("test_efficientnet", "none", seed=1)]
    return save_bundle(fitted_encoder(members, data.training), tmp_path_factory.mktemp("bundles") / "single")


@pytest.fixture(scope="session")
def ensemble_bundle(photo_folder_original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two members of different architectures, aligned; never change it."""
    data = load_dataset(photo_folder_original)
    members = [build_member("test_efficientnet", "none", seed=1), build_member("test_resnet", "none", seed=2)]
    return save_bundle(fitted_encoder(members, data.training), tmp_path_factory.mktemp("bundles") / "pair")
