"""Small members with seeded random weights, and photographs as files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lookalike.backbones import Encoder, Member, build_member, fit_alignment

SMALL = "test_efficientnet"  # 0.1 million parameters, pictures of 160 × 160
OTHER = "test_resnet"


@pytest.fixture
def make_member() -> Callable[..., Member]:
    """Build a small member with random weights; `name` and `seed` may be given."""

    def make(name: str = SMALL, seed: int = 0) -> Member:
        return build_member(name, "none", seed=seed)

    return make


@pytest.fixture(scope="session")
def pictures(photos: dict[str, Image.Image], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Nine photographs as files: each of the four, mirrored too, and one of them on its side."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for name, photo in photos.items():
        for kind, picture in (("plain", photo), ("mirrored", photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT))):
            paths.append(folder / f"{name}_{kind}.png")
            picture.save(paths[-1])
    paths.append(folder / "rocket_turned.png")
    photos["rocket"].transpose(Image.Transpose.ROTATE_90).save(paths[-1])
    return paths


@pytest.fixture
def make_ensemble(make_member: Callable[..., Member], pictures: list[Path]) -> Callable[[str], Encoder]:
    """Build an ensemble of two different small members, combined in the way that is named."""

    def make(how: str) -> Encoder:
        members = [make_member(), make_member(OTHER, seed=1)]
        if how != "aligned":
            return Encoder(members, how)
        first, second = (Encoder([m]).embed(pictures).vectors for m in members)
        return Encoder(members, how, [None, fit_alignment(second, first)])

    return make
