"""Changes to a network: pooling and side; unsupported changes are refused, and bundles repeat them."""

import numpy as np
import pytest
import timm
import torch

from lookalike.errors import OptionError
from lookalike.models.adapt import GeneralizedMean, family_of
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
