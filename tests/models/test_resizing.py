"""Resizing gives what Pillow's does."""

import numpy as np
import pytest
from lookalike.models.resizing import FILTERS, resized
from PIL import Image

SIZES = [(64, 48), (300, 200), (160, 40), (97, 101), (900, 700)]


def off(found, expected):
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    return np.abs(found.astype(int) - expected)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", SIZES)
def test_it_resizes_as_pillow_does(photos, interpolation, size):
    picture = photos["coffee"]
    expected = np.asarray(picture.resize(size, FILTERS[interpolation]))
    difference = off(resized(np.array(picture), size, interpolation), expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.05


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", SIZES)
def test_a_crop_is_a_part_of_the_whole(photos, interpolation, size):
    picture = photos["coffee"]
    crop = (size[0] // 5, size[1] // 3, size[0] // 2, size[1] // 2)
    left, top, width, height = crop
    whole = np.asarray(picture.resize(size, FILTERS[interpolation]))
    difference = off(
        resized(np.array(picture), size, interpolation, crop), whole[top : top + height, left : left + width]
    )
    assert difference.max() <= 2
    assert difference.mean() < 0.05


@pytest.mark.parametrize("edge", ["left", "top", "right", "bottom"])
def test_a_crop_at_the_edge_takes_nothing_from_elsewhere(photos, edge):
    picture, size = photos["coffee"], (200, 150)
    crop = {"left": (0, 40, 50, 50), "top": (60, 0, 50, 50), "right": (150, 40, 50, 50), "bottom": (60, 100, 50, 50)}
    left, top, width, height = crop[edge]
    whole = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
    found = resized(np.array(picture), size, "bicubic", crop[edge])
    assert off(found, whole[top : top + height, left : left + width]).max() <= 2


def test_a_picture_of_the_size_is_only_cropped(photos):
    pixels = np.array(photos["coffee"])
    high, wide = pixels.shape[:2]
    found = resized(pixels, (wide, high), "bicubic", (7, 5, 30, 20))
    np.testing.assert_array_equal(found, pixels[5:25, 7:37])


def test_a_picture_that_lies_otherwise_in_memory(photos):
    pixels = np.array(photos["coffee"])
    turned = pixels.transpose(1, 0, 2)[::-1]
    np.testing.assert_array_equal(
        resized(turned, (50, 60), "bicubic"), resized(np.ascontiguousarray(turned), (50, 60), "bicubic")
    )
