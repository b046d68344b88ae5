"""Checkpoints: written atomically, tied to one run, and never executed as code."""

import os

import pytest
import torch

from lookalike.errors import StorageError
from lookalike.training.checkpoint import load_checkpoint, save_checkpoint

CONTENT = {
    "key": "k",
    "state": {"w": torch.arange(6.0)},
    "history": [{"loss": 0.5}],
    "best": None,
    "low": -float("inf"),
}


def test_round_trip(tmp_path):
    save_checkpoint(tmp_path / "0", CONTENT)
    content = load_checkpoint(tmp_path / "0", "k")
    assert torch.equal(content.pop("state")["w"], CONTENT["state"]["w"])
    assert content == {k: v for k, v in CONTENT.items() if k != "state"}
    assert [p.name for p in (tmp_path / "0").iterdir()] == ["checkpoint.pt"]


def test_no_checkpoint(tmp_path):
    assert load_checkpoint(tmp_path, "k") is None
    assert load_checkpoint(None, "k") is None


def test_the_checkpoint_of_another_run_is_refused(tmp_path):
    save_checkpoint(tmp_path, CONTENT)
    with pytest.raises(StorageError, match="belongs to a run with other data, weights or options") as raised:
        load_checkpoint(tmp_path, "other")
    assert str(tmp_path) in str(raised.value)


class Trap:
    def __init__(self, sign):
        self.sign = sign

    def __reduce__(self):
        return os.mkdir, (str(self.sign),)


@pytest.mark.parametrize("damage", ["half", "noise", "empty", "code", "list"])
def test_a_damaged_checkpoint_is_refused_and_not_executed(damage, tmp_path):
    save_checkpoint(tmp_path, CONTENT)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    if damage == "code":
        torch.save({"key": "k", "trap": Trap(tmp_path / "it ran")}, path)
    elif damage == "list":
        torch.save([1, 2], path)
    else:
        path.write_bytes({"half": whole[: len(whole) // 2], "noise": b"\x93\x01zz" * 500, "empty": b""}[damage])
    with pytest.raises(StorageError) as raised:
        load_checkpoint(tmp_path, "k")
    assert str(tmp_path) in str(raised.value)
    assert not (tmp_path / "it ran").exists()


def test_an_interrupted_save_keeps_the_older_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, CONTENT)

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, {**CONTENT, "history": []})
    assert load_checkpoint(tmp_path, "k")["history"] == [{"loss": 0.5}]
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
