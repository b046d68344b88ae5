"""The last block computes the class token alone, with the values of timm."""

from __future__ import annotations

import copy

import pytest
import timm
import torch

from lookalike.models.class_token import ClassTokenBlock, drop_unread_tokens, split_weights
from lookalike.models.trainable import build_trainable

SMALL = {"embed_dim": 64, "num_heads": 4, "depth": 2, "img_size": 64, "num_classes": 0}


def network(**options: object) -> torch.nn.Module:
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
def test_the_features_are_those_of_timm(options: dict[str, object]) -> None:
    plain = network(**options)
    module = copy.deepcopy(plain)
    drop_unread_tokens(module)
    assert module.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        assert module.forward_features(IMAGES).shape[1] == 1 < plain.forward_features(IMAGES).shape[1]
        torch.testing.assert_close(module(IMAGES), plain(IMAGES), rtol=1e-4, atol=1e-4)


def test_the_gradients_are_those_of_timm() -> None:
    plain = network()
    changed = copy.deepcopy(plain)
    drop_unread_tokens(changed)
    for module in (plain, changed):
        module.train()(IMAGES).square().sum().backward()
    for (name, expected), (_, parameter) in zip(plain.named_parameters(), changed.named_parameters(), strict=True):
        scale = float(expected.grad.abs().max())
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=0, atol=1e-4 * scale, msg=name)


@pytest.mark.parametrize("name", ["vit_base_patch16_rope_224", "test_resnet", "deit_tiny_distilled_patch16_224"])
def test_other_networks_are_not_changed(name: str) -> None:
    with torch.device("meta"):
        module = timm.create_model(name, num_classes=0)
    drop_unread_tokens(module)
    assert not any(isinstance(m, ClassTokenBlock) for m in module.modules())


@pytest.mark.parametrize(("pooling", "changed"), [("token", True), ("avg", False), ("map", False)])
def test_a_network_that_reads_other_tokens_is_not_changed(pooling: str, changed: bool) -> None:
    module = network(global_pool=pooling)
    drop_unread_tokens(module)
    assert isinstance(module.blocks[-1], ClassTokenBlock) == changed


def test_split_weights_compute_the_same() -> None:
    for options in ({}, {"qkv_bias": False, "qk_norm": True}):
        module = network(**options)
        drop_unread_tokens(module)
        split = copy.deepcopy(module)
        split_weights(split)
        with torch.no_grad():
            torch.testing.assert_close(split(IMAGES), module(IMAGES), rtol=1e-5, atol=1e-5)


def test_a_mask_is_refused() -> None:
    module = network()
    drop_unread_tokens(module)
    with pytest.raises(NotImplementedError, match="mask"):
        module.forward_features(IMAGES, is_causal=True)


def test_backbones_are_built_with_it() -> None:
    trainable = build_trainable("vit_tiny_patch16_224", weights="none")
    assert isinstance(trainable.module.blocks[-1], ClassTokenBlock)
