"""Two ways of resizing, one definition."""

import sys

import numpy as np
import pytest
from PIL import Image

from lookalike.encoding.resizing import FILTERS, MANY, by_pillow, by_torch, resize_for


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", [(64, 48), (300, 200), (160, 40), (97, 101)])
def test_torch_resizes_as_pillow_does(photos, interpolation, size):
    pixels = np.array(photos["coffee"])
    expected = by_pillow(pixels, size, interpolation)
    found = by_torch(pixels, size, interpolation)
    assert found.dtype == np.uint8
    assert found.shape == expected.shape == (size[1], size[0], 3)
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.02


def test_pillows_way_is_pillow(photos):
    found = by_pillow(np.array(photos["coffee"]), (50, 60), "lanczos")
    np.testing.assert_array_equal(found, np.asarray(photos["coffee"].resize((50, 60), Image.Resampling.LANCZOS)))


def test_torch_is_imported_for_many_pictures_only(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    assert resize_for(MANY - 1) is by_pillow
    assert resize_for(MANY) is by_torch
    monkeypatch.setitem(sys.modules, "torch", object())
    assert resize_for(1) is by_torch
