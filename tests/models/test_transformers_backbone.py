"""Folders of transformers as backbones: features are those of the model itself; other folders are refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import transformers

from lookalike.errors import LookalikeError, ModelError, OptionError
from lookalike.models.bundle import read_bundle_info, save_bundle
from lookalike.models.torch_backbone import normalize_pixels
from lookalike.models.trainable import build_trainable
from lookalike.models.transformers_backbone import _quiet
from lookalike.runtimes.load import load_encoder
from lookalike.training.train import train

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VISION = {**SIZES, "image_size": 32, "patch_size": 8}


def vit():
    return transformers.ViTForImageClassification(transformers.ViTConfig(**VISION))  # without a pooler


def dinov2():
    return transformers.Dinov2Model(transformers.Dinov2Config(**VISION))


def clip():
    text = {**SIZES, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    return transformers.CLIPModel(config)


def siglip():
    text = {**SIZES, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=VISION))


def resnet():
    return transformers.ResNetModel(transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]))


MODELS = {"vit": (vit, 32), "dinov2": (dinov2, 32), "clip": (clip, 24), "siglip": (siglip, 32), "resnet": (resnet, 16)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One folder per model, with random weights."""
    root = tmp_path_factory.mktemp("transformers")
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, "do_resize": True}
    processor |= {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 3, "do_normalize": True}
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(0)
        for name, (make, _) in MODELS.items():
            make().eval().save_pretrained(str(root / name))
            (root / name / "preprocessor_config.json").write_text(json.dumps(processor))
    return root


def features_of(name, model, images):
    with torch.inference_mode():
        if name in ("clip", "siglip"):
            return model.get_image_features(pixel_values=images).pooler_output
        if name == "vit":
            return model.vit(pixel_values=images).last_hidden_state[:, 0]
        return model(pixel_values=images).pooler_output.flatten(1)


@pytest.mark.parametrize("name", MODELS)
def test_features_are_those_of_the_model(name, folders, image_files, pixels):
    encoder = build_trainable(f"hf:{folders / name}")
    p = encoder.preprocessing
    assert (p.height, p.width, p.crop_mode, p.interpolation) == (32, 32, "squash", "bicubic")
    assert (p.mean, p.std) == ((0.5,) * 3, (0.25,) * 3)
    assert encoder.features_width == MODELS[name][1]
    kind = transformers.ViTForImageClassification if name == "vit" else transformers.AutoModel
    with _quiet():
        model = kind.from_pretrained(str(folders / name)).eval()
    expected = features_of(name, model, normalize_pixels(pixels(p), p, torch.device("cpu")))
    np.testing.assert_allclose(encoder.torch_backbone().submit(pixels(p))(), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["vit", "clip"])
def test_a_bundle_needs_only_itself(name, folders, image_files, tmp_path):
    folder = shutil.copytree(folders / name, tmp_path / "copy")
    encoder = load_encoder(f"hf:{folder}")
    assert encoder.state == "frozen"
    expected = encoder.embed(image_files).vectors
    save_bundle(encoder, tmp_path / "model")
    shutil.rmtree(folder)
    loaded = load_encoder(tmp_path / "model")
    assert loaded.fingerprint == encoder.fingerprint
    np.testing.assert_allclose(loaded.embed(image_files).vectors, expected, atol=1e-5)
    info = read_bundle_info(tmp_path / "model").members[0].backbone
    assert (info.library, info.weights) == ("transformers", "folder copy")


def test_another_runtime_computes_the_same(folders, image_files):
    encoder = load_encoder(f"hf:{folders / 'vit'}", precision="float32")
    on_openvino = load_encoder(f"hf:{folders / 'vit'}", runtime="openvino", precision="float32")
    expected = encoder.embed(image_files).vectors
    assert (on_openvino.embed(image_files).vectors * expected).sum(axis=1).min() > 0.9999


def test_the_settings_of_transformers_are_restored(folders):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    build_trainable(f"hf:{folders / 'vit'}")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_a_frozen_training_fits_its_head_and_fine_tuning_is_refused(folders, data_folder, tmp_path):
    name = f"hf:{folders / 'vit'}"
    encoder = train(data_folder, name, frozen=True, out=tmp_path / "model")
    assert encoder.state in ("frozen", "frozen + trained head")
    with pytest.raises(OptionError) as error:
        train(data_folder, name, out=tmp_path / "other")
    assert error.value.argument == "frozen"


def remove(name):
    return lambda folder: (folder / name).unlink()


def edit(name, **changes):
    def change(folder):
        record = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**record, **changes}))

    return change


def pickle_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def damage(name, content):
    return lambda folder: (folder / name).write_bytes(content)


BAD = {
    "no config": remove("config.json"),
    "no processor": remove("preprocessor_config.json"),
    "no weights": remove("model.safetensors"),
    "a pickle": pickle_weights,
    "damaged weights": damage("model.safetensors", b"garbage"),
    "damaged config": damage("config.json", b"{"),
    "an unknown model": edit("config.json", model_type="unheard"),
    "a text model": edit("config.json", model_type="bert"),
    "other weights": edit("config.json", hidden_size=64),
    "code of its own": edit("config.json", model_type="mine", auto_map={"AutoModel": "code.Model"}),
    "many layers": edit("config.json", num_hidden_layers=10**9),
    "a huge layer": edit("config.json", hidden_size=1 << 16),
    "another size": edit("preprocessor_config.json", size={"height": 64, "width": 64}),
    "a huge size": edit("preprocessor_config.json", size={"height": 10**6, "width": 10**6}),
    "a size by its longest edge": edit("preprocessor_config.json", size={"longest_edge": 32}),
}


@pytest.mark.parametrize("name", BAD)
def test_other_folders_are_refused(name, folders, tmp_path):
    folder = shutil.copytree(folders / "vit", tmp_path / "vit")
    BAD[name](folder)
    with pytest.raises(LookalikeError, match="vit") as error:
        load_encoder(f"hf:{folder}")
    assert error.value.argument == "model"
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["missing", "file.txt"])
def test_a_folder_is_needed(path, tmp_path):
    (tmp_path / "file.txt").touch()
    with pytest.raises(ModelError):
        load_encoder(f"hf:{tmp_path / path}")
