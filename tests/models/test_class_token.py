"""The last block computes the class token alone, with timm's own values."""

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
    made = timm.create_model("vit_tiny_patch16_224", **{**SMALL, **options}).eval()
    with torch.no_grad():  # timm's own start is so small that a block changes next to nothing
        for parameter in made.parameters():
            parameter.normal_(std=0.2)
    return made


PICTURES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


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
    ours = copy.deepcopy(plain)
    drop_unread_tokens(ours)
    assert ours.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        assert ours.forward_features(PICTURES).shape[1] == 1 < plain.forward_features(PICTURES).shape[1]
        torch.testing.assert_close(ours(PICTURES), plain(PICTURES), rtol=1e-4, atol=1e-4)


def test_the_gradients_are_those_of_timm() -> None:
    plain = network()
    ours = copy.deepcopy(plain)
    drop_unread_tokens(ours)
    for module in (plain, ours):
        module.train()(PICTURES).square().sum().backward()
    for (name, expected), (_, found) in zip(plain.named_parameters(), ours.named_parameters(), strict=True):
        scale = float(expected.grad.abs().max())
        torch.testing.assert_close(found.grad, expected.grad, rtol=0, atol=1e-4 * scale, msg=name)


@pytest.mark.parametrize("name", ["vit_base_patch16_rope_224", "test_resnet", "deit_tiny_distilled_patch16_224"])
def test_other_networks_stay_as_they_are(name: str) -> None:
    with torch.device("meta"):
        module = timm.create_model(name, num_classes=0)
    drop_unread_tokens(module)
    assert not any(isinstance(m, ClassTokenBlock) for m in module.modules())


@pytest.mark.parametrize(("pooling", "cut"), [("token", True), ("avg", False), ("map", False)])
def test_only_where_the_class_token_is_all_that_is_read(pooling: str, cut: bool) -> None:
    made = network(global_pool=pooling)
    drop_unread_tokens(made)
    assert isinstance(made.blocks[-1], ClassTokenBlock) == cut


def test_weights_that_are_split_for_exporters_give_the_same() -> None:
    for options in ({}, {"qkv_bias": False, "qk_norm": True}):
        ours = network(**options)
        drop_unread_tokens(ours)
        split = copy.deepcopy(ours)
        split_weights(split)
        with torch.no_grad():
            torch.testing.assert_close(split(PICTURES), ours(PICTURES), rtol=1e-5, atol=1e-5)


def test_a_mask_is_refused() -> None:
    made = network()
    drop_unread_tokens(made)
    with pytest.raises(NotImplementedError, match="mask"):
        made.forward_features(PICTURES, is_causal=True)


def test_a_backbone_is_built_so() -> None:
    member = build_trainable("vit_tiny_patch16_224", weights="none")
    assert isinstance(member.module.blocks[-1], ClassTokenBlock)
