"""Preprocessing against timm's evaluation transform, and resizing against Pillow."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

from lookalike._records import read_record
from lookalike.errors import ModelError
from lookalike.models.preprocessing import PILLOW_FILTERS, Preprocessing, resize
from lookalike.models.torch_backbone import normalize_pixels

SHAPES = {  # width, height
    "landscape": (317, 211),
    "portrait": (203, 331),
    "very wide": (640, 37),
    "very tall": (29, 500),
    "tiny": (9, 7),
    "one pixel": (1, 1),
    "size of the crop": (96, 96),
    "size before the crop": (109, 109),
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


def timm_transform(p):
    return timm.data.create_transform(
        input_size=(3, p.height, p.width),
        is_training=False,
        interpolation=p.interpolation,
        mean=p.mean,
        std=p.std,
        crop_pct=p.crop_pct,
        crop_mode=p.crop_mode,
    )


def to_input(p, image):
    return normalize_pixels(p.pixels(image)[None], p, torch.device("cpu"))[0]


@pytest.mark.parametrize("p", CONFIGURATIONS, ids=lambda p: f"{p.crop_mode}-{p.height}x{p.width}-{p.crop_pct}")
@pytest.mark.parametrize("shape", SHAPES)
def test_the_input_is_that_of_timms_evaluation_transform(p, shape, sample_images):
    image = sample_images["coffee"].resize(SHAPES[shape], Image.Resampling.BOX)
    expected = timm_transform(p)(image)
    x = to_input(p, image)
    assert x.shape == expected.shape == (3, p.height, p.width)
    grey_level = 1 / (255 * min(p.std))
    assert (x - expected).abs().max() < 4.01 * grey_level  # half of it unless the image shrinks a lot
    assert (x - expected).abs().mean() < 0.25 * grey_level


def test_the_tolerance_notices_a_shift_by_one_pixel(sample_images):
    p = CONFIGURATIONS[1]
    image = sample_images["coffee"].resize(SHAPES["landscape"])
    shifted = np.roll(p.pixels(image), 1, axis=1)[None]
    x = normalize_pixels(shifted, p, torch.device("cpu"))[0]
    assert (x - timm_transform(p)(image)).abs().max() > 0.1


def test_pixels_and_pil_images_are_prepared_alike(sample_images):
    p = CONFIGURATIONS[1]
    np.testing.assert_array_equal(p.pixels(sample_images["cat"]), p.pixels(np.array(sample_images["cat"])))


def test_twice_the_size_before_the_crop_is_worth_decoding():
    assert Preprocessing(224, 224, 0.875).min_side == 2 * 256
    assert Preprocessing(64, 96, 1.0).min_side == 2 * 96


@pytest.mark.parametrize("p", CONFIGURATIONS)
def test_a_preprocessing_survives_json(p):
    assert read_record(Preprocessing, json.loads(json.dumps(asdict(p)))) == p


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"interpolation": "cubic"}, "'cubic'"),
        ({"crop_mode": "corner"}, "'corner'"),
        ({"crop_pct": 0.0}, "0.0"),
        ({"crop_pct": 1.1}, "1.1"),
        ({"height": 0}, "got 0, 8"),
    ],
)
def test_invalid_values_are_refused(options, value):
    with pytest.raises(ModelError, match=value):
        replace(Preprocessing(8, 8), **options)


# ---------------------------------------------------------------- resizing

SIZES = [(64, 48), (300, 200), (160, 40), (97, 101), (900, 700)]


def differences(pixels, expected):
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.shape
    return np.abs(pixels.astype(int) - expected)


@pytest.mark.parametrize("interpolation", PILLOW_FILTERS)
@pytest.mark.parametrize("size", SIZES)
def test_resizing_equals_pillows(sample_images, interpolation, size):
    image = sample_images["coffee"]
    expected = np.asarray(image.resize(size, PILLOW_FILTERS[interpolation]))
    difference = differences(resize(np.array(image), size, interpolation, (0, 0, *size)), expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.05


@pytest.mark.parametrize("interpolation", PILLOW_FILTERS)
@pytest.mark.parametrize("size", SIZES)
def test_a_crop_equals_that_part_of_the_resized_image(sample_images, interpolation, size):
    image = sample_images["coffee"]
    crop = (size[0] // 5, size[1] // 3, size[0] // 2, size[1] // 2)
    left, top, width, height = crop
    whole = np.asarray(image.resize(size, PILLOW_FILTERS[interpolation]))
    difference = differences(
        resize(np.array(image), size, interpolation, crop), whole[top : top + height, left : left + width]
    )
    assert difference.max() <= 2
    assert difference.mean() < 0.05


@pytest.mark.parametrize("edge", ["left", "top", "right", "bottom"])
def test_a_crop_at_the_edge(sample_images, edge):
    image, size = sample_images["coffee"], (200, 150)
    crop = {"left": (0, 40, 50, 50), "top": (60, 0, 50, 50), "right": (150, 40, 50, 50), "bottom": (60, 100, 50, 50)}
    left, top, width, height = crop[edge]
    whole = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    cropped = resize(np.array(image), size, "bicubic", crop[edge])
    assert differences(cropped, whole[top : top + height, left : left + width]).max() <= 2


def test_an_image_of_the_right_size_is_only_cropped(sample_images):
    pixels = np.array(sample_images["coffee"])
    height, width = pixels.shape[:2]
    np.testing.assert_array_equal(resize(pixels, (width, height), "bicubic", (7, 5, 30, 20)), pixels[5:25, 7:37])


def test_the_memory_layout_does_not_matter(sample_images):
    turned = np.array(sample_images["coffee"]).transpose(1, 0, 2)[::-1]
    first, second = (
        resize(array, (50, 60), "bicubic", (0, 0, 50, 60)) for array in (turned, np.ascontiguousarray(turned))
    )
    np.testing.assert_array_equal(first, second)
