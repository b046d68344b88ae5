"""Changes to a network: pooling, side and the last block; bundles repeat them."""

import copy

import numpy as np
import pytest
import timm
import torch

from lookalike.errors import OptionError
from lookalike.models.adapt import ClassTokenBlock, GeneralizedMean, drop_unread_tokens, family_of
from lookalike.models.bundle import save_bundle
from lookalike.models.info import Adaptation
from lookalike.models.trainable import build_trainable
from lookalike.runtimes.load import load_encoder

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 160, 160, 3), dtype=np.uint8)


def build(name="test_efficientnet", **changes):
    return build_trainable(name, "none", adapt=lambda _: Adaptation(**changes))


def features(trainable):
    return trainable.torch_backbone().submit(PIXELS)()


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("test_efficientnet", "mobile-cnn"),
        ("test_resnet", "cnn"),
        ("test_convnext", "cnn"),
        ("test_vit", "transformer"),
        ("swin_tiny_patch4_window7_224", "transformer"),
        ("coatnet_0_rw_224", "hybrid"),
        ("mobilevit_xxs", "hybrid"),
    ],
)
def test_the_layers_decide_the_family(name, family):
    with torch.device("meta"):
        module = timm.create_model(name)
    assert family_of(module) == family


def test_generalized_mean_by_hand():
    """Cubes of 1, 2, 3 and 0: (36 / 4) ** (1 / 3); values below zero count as zero."""
    x = torch.tensor([1.0, 2.0, 3.0, -5.0]).view(1, 1, 2, 2)
    pooled = GeneralizedMean(3.0)(x)
    assert pooled.shape == (1, 1)
    assert float(pooled.detach()) == pytest.approx(9 ** (1 / 3), abs=1e-5)
    assert float(GeneralizedMean(1.0)(x).detach()) == pytest.approx(1.5, abs=1e-5)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_convnext"])
@pytest.mark.parametrize("pooling", ["max", "avgmax", "gem"])
def test_pooling_changes_the_features_but_not_their_number(name, pooling):
    plain, changed = build(name), build(name, pooling=pooling)
    assert changed.features_width == plain.features_width
    assert features(changed).shape == features(plain).shape
    assert not np.allclose(features(changed), features(plain))
    assert changed.freeze().fingerprint != plain.freeze().fingerprint


def test_average_pooling_is_the_default_of_a_cnn():
    np.testing.assert_allclose(features(build(pooling="avg")), features(build()), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "changes", "argument"),
    [("test_vit", {"pooling": "gem"}, "pooling"), ("mixer_s32_224", {"side": 0.9}, "side")],
)
def test_unsupported_changes_are_refused(name, changes, argument):
    with pytest.raises(OptionError, match=name) as raised:
        build(name, **changes)
    assert raised.value.argument == argument


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_a_side_changes_network_and_preprocessing(name):
    trainable = build(name, side=1.2)
    assert (trainable.preprocessing.height, trainable.preprocessing.width) == (192, 192)
    pixels = np.zeros((1, 192, 192, 3), np.uint8)
    assert trainable.torch_backbone().submit(pixels)().shape == (1, trainable.features_width)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("test_efficientnet", {"pooling": "gem", "side": 1.2}),
        ("test_vit", {"side": 1.2}),
        ("test_convnext", {"pooling": "gem"}),
    ],
)
def test_a_bundle_repeats_the_changes(name, changes, tmp_path):
    encoder = build(name, **changes).freeze()
    loaded = load_encoder(save_bundle(encoder, tmp_path / "bundle"), runtime="torch")
    assert loaded.info.backbone.adaptation == Adaptation(**changes)
    side = encoder.preprocessing.height
    pixels = np.random.default_rng(1).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    np.testing.assert_array_equal(loaded.encode(pixels), encoder.encode(pixels))


# ---------------------------------------------------------------- the last block of a transformer

SMALL = {"embed_dim": 64, "num_heads": 4, "depth": 2, "img_size": 64, "num_classes": 0}


def network(**options):
    torch.manual_seed(0)
    module = timm.create_model("vit_tiny_patch16_224", **{**SMALL, **options}).eval()
    with torch.no_grad():  # timm's initial weights are so small that a block changes very little
        for parameter in module.parameters():
            parameter.normal_(std=0.2)
    return module


IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"qk_norm": True, "qkv_bias": False},
        {"scale_attn_norm": True, "init_values": 0.5},
        {"reg_tokens": 4, "no_embed_class": True, "pre_norm": True},
        {"mlp_layer": timm.layers.SwiGLUPacked, "fc_norm": True, "final_norm": False},
    ],
    ids=["plain", "qk_norm", "scaled", "registers", "swiglu"],
)
def test_the_features_are_those_of_timm(options):
    plain = network(**options)
    module = copy.deepcopy(plain)
    drop_unread_tokens(module)
    assert module.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        assert module.forward_features(IMAGES).shape[1] == 1 < plain.forward_features(IMAGES).shape[1]
        torch.testing.assert_close(module(IMAGES), plain(IMAGES), rtol=1e-4, atol=1e-4)


def test_the_gradients_are_those_of_timm():
    plain = network()
    changed = copy.deepcopy(plain)
    drop_unread_tokens(changed)
    for module in (plain, changed):
        module.train()(IMAGES).square().sum().backward()
    for (name, expected), (_, parameter) in zip(plain.named_parameters(), changed.named_parameters(), strict=True):
        scale = float(expected.grad.abs().max())
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=0, atol=1e-4 * scale, msg=name)


@pytest.mark.parametrize("name", ["vit_base_patch16_rope_224", "test_resnet", "deit_tiny_distilled_patch16_224"])
def test_other_networks_are_not_changed(name):
    with torch.device("meta"):
        module = timm.create_model(name, num_classes=0)
    drop_unread_tokens(module)
    assert not any(isinstance(m, ClassTokenBlock) for m in module.modules())


@pytest.mark.parametrize(("pooling", "changed"), [("token", True), ("avg", False), ("map", False)])
def test_a_network_that_reads_other_tokens_is_not_changed(pooling, changed):
    module = network(global_pool=pooling)
    drop_unread_tokens(module)
    assert isinstance(module.blocks[-1], ClassTokenBlock) == changed


def test_split_weights_compute_the_same():
    for options in ({}, {"qkv_bias": False, "qk_norm": True}):
        module = network(**options)
        drop_unread_tokens(module)
        split = copy.deepcopy(module)
        split.blocks[-1].split()
        with torch.no_grad():
            torch.testing.assert_close(split(IMAGES), module(IMAGES), rtol=1e-5, atol=1e-5)


def test_a_mask_is_refused():
    module = network()
    drop_unread_tokens(module)
    with pytest.raises(NotImplementedError, match="mask"):
        module.forward_features(IMAGES, is_causal=True)


def test_backbones_are_built_with_it():
    trainable = build_trainable("vit_tiny_patch16_224", weights="none")
    assert isinstance(trainable.module.blocks[-1], ClassTokenBlock)
