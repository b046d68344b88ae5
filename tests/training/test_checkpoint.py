"""Checkpoints: whole or not at all, of one run, and never run as code."""

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


def test_what_was_saved_comes_back(tmp_path):
    save_checkpoint(tmp_path / "0", CONTENT)
    found = load_checkpoint(tmp_path / "0", "k")
    assert torch.equal(found.pop("state")["w"], CONTENT["state"]["w"])
    assert found == {k: v for k, v in CONTENT.items() if k != "state"}
    assert [p.name for p in (tmp_path / "0").iterdir()] == ["checkpoint.pt"]


def test_none_where_there_is_none(tmp_path):
    assert load_checkpoint(tmp_path, "k") is None


def test_the_checkpoint_of_another_run_is_refused(tmp_path):
    save_checkpoint(tmp_path, CONTENT)
    with pytest.raises(StorageError) as raised:
        load_checkpoint(tmp_path, "other")
    assert str(raised.value) == (
        f"the checkpoint in {tmp_path} belongs to a run with other data, weights or options; "
        "resume with the options it was started with (learning rates may be others), or remove it."
    )


class Trap:
    def __init__(self, sign):
        self.sign = sign

    def __reduce__(self):
        return os.mkdir, (str(self.sign),)


@pytest.mark.parametrize("damage", ["half", "noise", "empty", "code", "list"])
def test_a_damaged_checkpoint_is_refused_and_nothing_in_it_is_run(damage, tmp_path):
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
    assert str(raised.value).endswith(".")
    if damage != "list":
        assert str(raised.value) == f"the checkpoint {path} is damaged; remove {tmp_path} and start again."
    assert not (tmp_path / "it ran").exists()


def test_a_save_that_is_interrupted_leaves_the_older_one(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, CONTENT)

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, {**CONTENT, "history": []})
    assert load_checkpoint(tmp_path, "k")["history"] == [{"loss": 0.5}]
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
