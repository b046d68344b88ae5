"""From a decoded picture to the pixels a backbone was trained on; travels with the weights. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lookalike.errors import ModelError

_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side, crop the centre, scale to 0..1, subtract the mean, divide by the standard deviation.

    Attributes:
        height, width: of the crop, in pixels.
        crop_pct: crop over resized side; the shorter side is resized to `floor(size / crop_pct)`.
        interpolation: bicubic, bilinear, lanczos or nearest.
        mean, std: per channel.

    """

    height: int
    width: int
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.interpolation not in _FILTERS:
            raise ModelError(f"interpolation must be one of {', '.join(_FILTERS)}, got {self.interpolation!r}.")

    @property
    def resampling(self) -> Image.Resampling:
        """Pillow's filter."""
        return _FILTERS[self.interpolation]

    def pixels(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """Resize and crop an RGB picture to `(height, width, 3)` uint8, as timm's evaluation transform does."""
        short = math.floor(min(self.height, self.width) / self.crop_pct)
        w, h = image.size
        if w <= h:
            size = (short, max(int(short * h / w), self.height))
        else:
            size = (max(int(short * w / h), self.width), short)
        if size != image.size:
            image = image.resize(size, self.resampling)
        left = round((image.width - self.width) / 2.0)
        top = round((image.height - self.height) / 2.0)
        return np.array(image.crop((left, top, left + self.width, top + self.height)), dtype=np.uint8)

    def to_dict(self) -> dict[str, Any]:
        """Return a plain structure for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Preprocessing:
        """Undo `to_dict`."""
        try:
            return cls(**{**value, "mean": tuple(value["mean"]), "std": tuple(value["std"])})
        except (TypeError, KeyError) as error:
            raise ModelError(
                f"the preprocessing stored in the bundle is not one that this version knows: {error}."
            ) from error
