"""Networks changed: pooling, last stride, side; what cannot be changed is refused; a bundle brings it back."""

import numpy as np
import pytest
import timm
import torch
from lookalike.models.torch_bundle import load_bundle, save_bundle

from lookalike.errors import OptionError
from lookalike.models.adapt import Adaptation, GeneralizedMean, family_of
from lookalike.models.encoder import Encoder
from lookalike.models.trainable import build_trainable

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 160, 160, 3), dtype=np.uint8)


def build(name="test_efficientnet", **changes):
    return build_trainable(name, "none", adapt=lambda _: Adaptation(**changes))


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
def test_families_are_told_apart_by_their_layers(name, family):
    assert family_of(timm.create_model(name)) == family


def test_generalised_mean_by_hand():
    """Cubes of 1, 2, 3 and 0: (36 / 4) ** (1 / 3); what is below zero counts as zero."""
    x = torch.tensor([1.0, 2.0, 3.0, -5.0]).view(1, 1, 2, 2)
    pooled = GeneralizedMean(3.0)(x)
    assert pooled.shape == (1, 1)
    assert float(pooled.detach()) == pytest.approx(9 ** (1 / 3), abs=1e-5)
    assert float(GeneralizedMean(1.0)(x).detach()) == pytest.approx(1.5, abs=1e-5)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_convnext"])
@pytest.mark.parametrize("pooling", ["max", "avgmax", "gem"])
def test_pooling_changes_the_features_and_keeps_their_number(name, pooling):
    plain, changed = build(name), build(name, pooling=pooling)
    assert changed.features_width == plain.features_width
    assert changed.encode(PIXELS).shape == (2, 512)
    assert not np.allclose(changed.features(PIXELS), plain.features(PIXELS))
    assert changed.fingerprint != plain.fingerprint


def test_average_pooling_asked_for_is_what_a_cnn_has():
    np.testing.assert_allclose(build(pooling="avg").features(PIXELS), build().features(PIXELS), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        (
            "test_vit",
            {"pooling": "gem"},
            "pooling 'gem' needs a network that pools one feature map, which test_vit does",
        ),
    ],
)
def test_what_a_network_cannot_be(name, changes, sentence):
    with pytest.raises(OptionError) as raised:
        build(name, **changes)
    assert str(raised.value).startswith(sentence)


@pytest.mark.parametrize(("name", "height"), [("test_efficientnet", 192), ("test_vit", 192)])
def test_another_side_is_taken_by_network_and_preprocessing(name, height):
    member = build(name, side=1.2)
    assert (member.preprocessing.height, member.preprocessing.width) == (height, height)
    pixels = np.zeros((1, height, height, 3), np.uint8)
    assert member.encode(pixels).shape == (1, 512)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("test_efficientnet", {"pooling": "gem", "side": 1.2}),
        ("test_vit", {"side": 1.2}),
        ("test_convnext", {"pooling": "gem"}),
    ],
)
def test_a_bundle_brings_the_changes_back(name, changes, tmp_path):
    member = build(name, **changes)
    encoder = load_bundle(save_bundle(Encoder([member]), tmp_path / "bundle"))
    assert encoder.members[0].adaptation == Adaptation(**changes)
    side = member.preprocessing.height
    pixels = np.random.default_rng(1).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    np.testing.assert_array_equal(encoder.members[0].encode(pixels), member.encode(pixels))
