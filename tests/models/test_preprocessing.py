"""Our preprocessing against timm's own evaluation transform, on photographs of awkward shapes."""

import json

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

from lookalike.errors import ModelError
from lookalike.models.preprocessing import Preprocessing
from lookalike.models.trainable import build_trainable

SHAPES = {  # width, height
    "landscape": (317, 211),
    "portrait": (203, 331),
    "very wide": (640, 37),
    "very tall": (29, 500),
    "tiny": (9, 7),
    "one pixel": (1, 1),
    "exactly the crop": (96, 96),
    "exactly the resized": (109, 109),
    "odd square": (151, 151),
}

IMAGENET, HALF = (0.485, 0.456, 0.406), (0.5, 0.5, 0.5)
CONFIGURATIONS = [
    Preprocessing(96, 96, 1.0, "bicubic"),
    Preprocessing(96, 96, 0.875, "bicubic"),
    Preprocessing(96, 96, 0.95, "bilinear", HALF, HALF),
    Preprocessing(97, 97, 0.875, "bilinear", IMAGENET, HALF),
    Preprocessing(64, 96, 0.875, "bicubic"),
    Preprocessing(96, 64, 1.0, "bilinear"),
    Preprocessing(96, 96, 0.9, "bicubic", crop_mode="squash"),
    Preprocessing(96, 64, 1.0, "bilinear", crop_mode="squash"),
    Preprocessing(96, 96, 1.0, "bicubic", crop_mode="border"),
    Preprocessing(64, 96, 0.875, "bicubic", crop_mode="border"),
]


def timms(p: Preprocessing):
    return timm.data.create_transform(
        input_size=(3, p.height, p.width),
        is_training=False,
        interpolation=p.interpolation,
        mean=p.mean,
        std=p.std,
        crop_pct=p.crop_pct,
        crop_mode=p.crop_mode,
    )


@pytest.fixture(scope="module")
def to_input():
    """The member's own step from pixels to normalised input, with any preprocessing."""
    member = build_trainable("test_efficientnet", "none")

    def convert(preprocessing, image):
        member.preprocessing = preprocessing
        return member.to_input(preprocessing.pixels(image)[None])[0]

    return convert


@pytest.mark.parametrize("p", CONFIGURATIONS, ids=lambda p: f"{p.crop_mode}-{p.height}x{p.width}-{p.crop_pct}")
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_numbers_as_timm(p, shape, photos, to_input):
    image = photos["coffee"].resize(SHAPES[shape], Image.Resampling.BOX)
    expected = timms(p)(image)
    found = to_input(p, image)
    assert found.shape == expected.shape == (3, p.height, p.width)
    grey = 1 / (255 * min(p.std))
    assert (found - expected).abs().max() < 4.01 * grey  # where it is shrunk a lot, else half of it
    assert (found - expected).abs().mean() < 0.25 * grey


def test_a_shift_by_one_pixel_would_be_noticed(photos, to_input):
    """The tolerance above is far below what a wrong rounding does."""
    p = CONFIGURATIONS[1]
    image = photos["coffee"].resize(SHAPES["landscape"])
    shifted = np.roll(p.pixels(image), 1, axis=1)
    expected = timms(p)(image)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (p.mean, p.std))
    found = (torch.from_numpy(shifted).permute(2, 0, 1) / 255 - mean) / std
    assert (found - expected).abs().max() > 0.1


@pytest.mark.parametrize("name", ["resnet50", "vit_b_16", "efficientnet_b0", "coatnet_rmlp_2_rw_384.sw_in12k_ft_in1k"])
def test_the_configuration_is_the_one_that_timm_keeps_for_the_weights(name):
    from lookalike.models.pretrained import preprocessing_of

    from lookalike.models.registry import find_row

    row = find_row(name)
    config = timm.get_pretrained_cfg(row.timm_name)

    class Module(torch.nn.Module):
        pretrained_cfg = config.to_dict()

    p = preprocessing_of(row, Module())
    assert (3, p.height, p.width) == config.input_size
    assert (p.crop_pct, p.interpolation, p.crop_mode) == (config.crop_pct, config.interpolation, config.crop_mode)
    assert (p.mean, p.std) == (config.mean, config.std)


def test_the_lite_weights_have_their_own_mean_and_deviation():
    p = build_trainable("efficientnet_lite0", "none").preprocessing
    assert (p.mean, p.std) == (HALF, HALF)
    assert (p.height, p.width, p.crop_pct, p.interpolation) == (224, 224, 0.875, "bicubic")


@pytest.mark.parametrize("p", CONFIGURATIONS)
def test_json_and_back(p):
    assert Preprocessing.from_dict(json.loads(json.dumps(p.to_dict()))) == p


def test_the_usual_crop_mode_is_not_written_so_that_old_bundles_keep_their_fingerprint():
    assert set(Preprocessing(8, 8).to_dict()) == {"height", "width", "crop_pct", "interpolation", "mean", "std"}
    assert Preprocessing(8, 8, crop_mode="squash").to_dict()["crop_mode"] == "squash"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"interpolation": "cubic"}, "interpolation must be one of bicubic, bilinear, lanczos, nearest, got 'cubic'."),
        ({"crop_mode": "corner"}, "crop_mode must be one of center, squash, border, got 'corner'."),
        (
            {"crop_pct": 0.0},
            "height and width must be at least 1 and crop_pct above 0 and at most 1, got 8, 8 and 0.0.",
        ),
    ],
)
def test_values_that_cannot_be_are_refused(options, sentence):
    with pytest.raises(ModelError) as raised:
        Preprocessing(8, 8, **options)
    assert str(raised.value) == sentence


@pytest.mark.parametrize("value", [{"height": 8}, {**Preprocessing(8, 8).to_dict(), "rotation": 3}])
def test_a_stored_preprocessing_that_is_not_known_is_refused(value):
    with pytest.raises(
        ModelError, match=r"the bundle's preprocessing is not one that this version knows .* lookalike\.$"
    ):
        Preprocessing.from_dict(value)
