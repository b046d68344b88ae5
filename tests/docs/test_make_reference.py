"""docs/reference/backbones.md and recipes.md, and the script that makes them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pages(load_script) -> ModuleType:
    return load_script("docs/make_reference.py")


@pytest.mark.parametrize("name", ["backbones.md", "recipes.md"])
def test_the_page_is_up_to_date(pages, name):
    written = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert written == pages.PAGES[name](), "run: python docs/make_reference.py"


def test_a_value_by_hand(pages):
    recipes = pages.recipes()
    assert "| `lr` | 0.0001 | 0.0005 | 0.0001 | 0.0001 |" in recipes
    assert "| `frozen_statistics` | true | true | true | true |" in recipes
    assert (
        "| `resnet50` | `resnet50.a1_in1k` | supervised | cnn | average | 23.5 M | 4.1 | 2048 | 224 px | 94 MB |"
        in pages.backbones()
    )
