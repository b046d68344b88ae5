"""Resizing as Pillow does it: with antialiasing, on uint8. By Pillow itself, or five times as fast by torch."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from PIL import Image

from lookalike.types import Pixels

Resize = Callable[[Pixels, tuple[int, int], str], Pixels]
"""Takes `(h, w, 3)` pixels, the new width and height, and a filter of FILTERS."""

FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
_BY_TORCH = ("bicubic", "bilinear")
MANY = 3000
"""From so many pictures on, importing torch for its resizing pays."""


def by_pillow(pixels: Pixels, size: tuple[int, int], interpolation: str) -> Pixels:
    """Resize with Pillow."""
    return np.asarray(Image.fromarray(pixels).resize(size, FILTERS[interpolation]))


def by_torch(pixels: Pixels, size: tuple[int, int], interpolation: str) -> Pixels:
    """Resize with torch, where it knows the filter; differs from Pillow by rounding, at most a few grey levels."""
    if interpolation not in _BY_TORCH:
        return by_pillow(pixels, size, interpolation)
    import torch

    width, height = size
    with torch.inference_mode():
        x = torch.from_numpy(np.require(pixels, requirements="W")).permute(2, 0, 1)[None]
        x = torch.nn.functional.interpolate(x, size=(height, width), mode=interpolation, antialias=True)
        out: Pixels = x[0].permute(1, 2, 0).contiguous().numpy()
    return out


def resize_for(count: int) -> Resize:
    """Return the quickest way for so many pictures: torch where it is loaded anyway, or will have been worth it."""
    return by_torch if "torch" in sys.modules or count >= MANY else by_pillow
