"""docs/results/training.md and the script that makes it."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pages(load_script) -> ModuleType:
    return load_script("docs/make_training.py")


def row(precision, hit, map_r, minutes=1.0):
    return {"measures": {"precision@3": precision, "hit@1": hit, "map@r": map_r}, "minutes": minutes}


def test_means_and_largest_distances_by_hand(pages):
    page = pages.render(
        {
            "photos/resnet_x/full/0": row(0.5, 0.25, 0.1, 2.0),
            "photos/resnet_x/full/1": row(0.6, 0.25, 0.4, 4.0),
            "photos/resnet_x/full/2": row(0.7, 0.25, 0.1, 9.0),
            "photos/resnet_x/full-arcface/0": row(0.5, 0.5, 0.5),
            "photos/resnet_x/frozen/0": row(0.125, 0.5, 1.0),
            "photos/resnet_x+other/ensemble/0": row(0.1, 0.2, 0.3, 0.0),
        }
    )
    lines = page.splitlines()
    # the order is that of METHODS, whatever that of the runs
    first = lines.index(r"| resnet\_x | frozen, PCA head | 0.125 | 0.500 | 1.000 | 1.0 | 1 |")
    assert lines[first + 1] == (
        r"| resnet\_x | whole recipe (`train`) | 0.600 (±0.100) | 0.250 (±0.000) | 0.200 (±0.200) | 4.0 | 3 |"
    )
    assert r"| resnet\_x+other | ensemble, aligned | 0.100 | 0.200 | 0.300 | – | 1 |" in lines
    assert r"| resnet\_x | whole recipe with `--loss arcface` | 0.500 | 0.500 | 0.500 | 1.0 | 1 |" in lines
    assert "## photos" in lines
    assert "### Losses" not in page


def test_ensembles_of_differently_trained_encoders_have_their_own_rows(pages):
    whole, head = {"a": "full", "b": "full"}, {"a": "full", "b": "head"}
    page = pages.render(
        {
            "photos/a+b/ensemble/0": {**row(0.1, 0.1, 0.1, 0.0), "of": head},
            "photos/a+b/ensemble/1": {**row(0.5, 0.5, 0.5, 0.0), "of": whole},
            "photos/a+b/ensemble/2": {**row(0.7, 0.5, 0.5, 0.0), "of": whole},
        }
    )
    assert "| a+b | ensemble, aligned (full + head) | 0.100 | 0.100 | 0.100 | – | 1 |" in page
    assert "| a+b | ensemble, aligned (full + full) | 0.600 (±0.100) | 0.500 (±0.000) | 0.500 (±0.000) |" in page


def test_losses_have_their_own_table_best_first(pages):
    page = pages.render(
        {
            "photos/a/frozen/0": row(0.1, 0.1, 0.1),
            "photos/a/triplet/0": row(0.9, 0.9, 0.2),
            "photos/a/arcface/0": row(0.1, 0.1, 0.7),
        }
    )
    before, after = page.split("### Losses with a short recipe")
    assert "| arcface |" not in before
    assert after.index("arcface") < after.index("triplet")


def test_losses_side_by_side_by_set_and_recipe(pages):
    page = pages.render(
        {
            "x/a/full/0": row(0.5, 0.5, 0.25),
            "x/a/full/1": row(0.5, 0.5, 0.75),
            "x/a/full-arcface/0": row(0.5, 0.5, 0.625),
            "y/a/arcface/0": {**row(0.125, 0.5, 0.25), "share": 0},
            "y/a/triplet/0": {**row(0.125, 0.5, 0.125), "share": 0.5},
            "x/b/full/0": row(0.5, 0.5, 0.5),
        }
    )
    section = page.split("## Losses side by side")[1].splitlines()
    table = section[section.index("| a | x, whole recipe | y, short recipe |") :]
    assert table[2:5] == [
        "| cross-entropy | 0.500 / 0.500 | – |",
        "| arcface | **0.500 / 0.625** | **0.125 / 0.250 †** |",
        "| triplet | – | 0.125 / 0.125 |",
    ]
    assert "| b |" not in page.split("## Losses side by side")[1]


def test_the_page_is_up_to_date(pages):
    results = json.loads((ROOT / "docs" / "results" / "training.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs" / "results" / "training.md").read_text(encoding="utf-8") == pages.render(results), (
        "run python docs/make_training.py"
    )
