"""From a decoded picture to the pixels a backbone was trained on; travels with the weights. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from lookalike.errors import ModelError
from lookalike.models.resizing import FILTERS, resized
from lookalike.types import Pixels

CROP_MODES = ("center", "squash", "border")


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop the centre, scale to 0..1, subtract the mean, divide by the standard deviation.

    Attributes:
        height, width: of the crop, in pixels.
        crop_pct: crop over resized picture; the picture is resized to `floor(size / crop_pct)`.
        interpolation: bicubic, bilinear, lanczos or nearest.
        mean, std: per channel.
        crop_mode: `center` resizes until the picture covers that size, `squash` to exactly that size, `border` until
            it fits into that size, with borders of the mean colour.

    """

    height: int
    width: int
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        if self.interpolation not in FILTERS:
            raise ModelError(f"interpolation must be one of {', '.join(FILTERS)}, got {self.interpolation!r}.")
        if self.crop_mode not in CROP_MODES:
            raise ModelError(f"crop_mode must be one of {', '.join(CROP_MODES)}, got {self.crop_mode!r}.")
        if not (self.height >= 1 and self.width >= 1 and 0 < self.crop_pct <= 1):
            raise ModelError(
                "height and width must be at least 1 and crop_pct above 0 and at most 1, "
                f"got {self.height}, {self.width} and {self.crop_pct}."
            )

    @property
    def resampling(self) -> Image.Resampling:
        """Pillow's filter."""
        return FILTERS[self.interpolation]

    @property
    def at_least(self) -> int:
        """Pixels of a shorter side that are worth decoding: twice what resizing leaves, so that it averages."""
        return 2 * max(self._wide, self._high)

    def pixels(self, picture: Pixels | Image.Image) -> Pixels:
        """Resize and crop a picture `(h, w, 3)` to `(height, width, 3)` uint8, as timm's evaluation transform does."""
        pixels: Pixels = np.asarray(picture)
        high, wide = pixels.shape[:2]
        size = self._resized(wide, high)
        width, height = min(self.width, size[0]), min(self.height, size[1])
        left, top = round((size[0] - width) / 2.0), round((size[1] - height) / 2.0)
        seen = resized(pixels, size, self.interpolation, (left, top, width, height))
        return seen if (width, height) == (self.width, self.height) else self._bordered(seen)

    @property
    def _wide(self) -> int:
        return math.floor(self.width / self.crop_pct)

    @property
    def _high(self) -> int:
        return math.floor(self.height / self.crop_pct)

    def _resized(self, w: int, h: int) -> tuple[int, int]:
        """Width and height before the crop; the rounding differs from case to case as it does in timm."""
        wide, high = self._wide, self._high
        if self.crop_mode == "squash":
            return wide, high
        if self.crop_mode == "center" and wide == high:
            return (wide, int(wide * h / w)) if w <= h else (int(wide * w / h), wide)
        ratio = (max if self.crop_mode == "border" else min)(w / wide, h / high)
        return max(1, round(w / ratio)), max(1, round(h / ratio))

    def _bordered(self, pixels: Pixels) -> Pixels:
        """Put a picture in the middle of a canvas of the mean colour."""
        high, wide = pixels.shape[:2]
        canvas = np.empty((self.height, self.width, 3), np.uint8)
        canvas[:] = [round(255 * v) for v in self.mean]
        top, left = (self.height - high) // 2, (self.width - wide) // 2
        canvas[top : top + high, left : left + wide] = pixels
        return canvas

    def to_dict(self) -> dict[str, Any]:
        """Return a plain structure for JSON; the usual crop mode is left out, so that fingerprints keep their value."""
        value = asdict(self)
        if self.crop_mode == "center":
            del value["crop_mode"]
        return value

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Preprocessing:
        """Undo `to_dict`."""
        try:
            return cls(**{**value, "mean": tuple(value["mean"]), "std": tuple(value["std"])})
        except (TypeError, KeyError) as error:
            raise ModelError(
                f"the bundle's preprocessing is not one that this version knows ({error}); update lookalike."
            ) from error
