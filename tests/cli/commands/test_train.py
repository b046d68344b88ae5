"""`lookalike train` and `refit`."""

from __future__ import annotations

import json
from pathlib import Path


def test_train_frozen(workspace, lookalike):
    outcome = lookalike(
        "train photos --backbone test_efficientnet --weights small.safetensors --frozen --out 'the model'"
    )
    assert (outcome.code, outcome.out) == (0, "the model\n")
    *_, measures, next_command = outcome.err.splitlines()
    assert measures.startswith("test_efficientnet: validation map@r: frozen 0.")
    assert next_command == "next: lookalike evaluate photos --model 'the model'"
    assert lookalike("evaluate photos --model 'the model'").code == 0


def test_train_without_test_labels_suggests_an_index(workspace, lookalike):
    Path("photos/labels.csv").unlink()
    outcome = lookalike("train photos --backbone test_efficientnet --weights none --frozen --out second")
    assert outcome.err.splitlines()[-1] == "next: lookalike index IMAGES --model second --out IMAGES.index"


def test_train_only_the_main_process_reports(workspace, lookalike, monkeypatch):
    monkeypatch.setattr("lookalike.training.train.train", lambda *_, **__: None)
    monkeypatch.setenv("RANK", "1")
    outcome = lookalike("train photos --backbone test_efficientnet --weights none --out new")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")


def test_refit(workspace, lookalike, fails):
    weights = "--weights small.safetensors"
    lookalike(f"train photos --backbone test_efficientnet {weights} --frozen --out first")
    before = Path("first/bundle.json").read_bytes()
    outcome = lookalike(f"refit photos --model first {weights} --out final")
    assert (outcome.code, outcome.out) == (0, "final\n")
    *_, measures, next_command = outcome.err.splitlines()
    assert measures.startswith("test_efficientnet: validation map@r of the first training: frozen 0.")
    assert next_command == "next: lookalike index IMAGES --model final --out IMAGES.index"
    assert lookalike("evaluate photos --model final").code == 0
    assert Path("first/bundle.json").read_bytes() == before
    fails(f"refit photos --model first {weights} --out final", "final")
    fails("refit photos --model first --weights none --out second", "test_efficientnet", "weights")
    fails("refit photos --model model --out second", "model", "trained")
    Path("photos/training/cat/cat0.jpg").unlink()
    fails(f"refit photos --model first {weights} --out second", "first", "photos")


def test_train_combines_backbones(workspace, lookalike):
    line = "train photos --backbone test_efficientnet+test_vit --weights none --frozen --combination concat --out both"
    assert lookalike(line).code == 0
    assert "concat" in json.loads(Path("both/bundle.json").read_text()).values()
