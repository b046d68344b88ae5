"""Names of backbones: short ones, those of timm, repositories, and unknown ones."""

import pytest

from lookalike.errors import ModelError
from lookalike.models.registry import find_backbone


@pytest.mark.parametrize(
    ("name", "timm_name"),
    [
        ("resnet50", "resnet50.a1_in1k"),
        ("efficientnet_b0", "efficientnet_b0.ra_in1k"),
        ("vit_b_16", "vit_base_patch16_224.augreg2_in21k_ft_in1k"),
        ("efficientnet_lite0", "tf_efficientnet_lite0.in1k"),
        ("clip_b_32", "vit_base_patch32_clip_quickgelu_224.openai"),
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
