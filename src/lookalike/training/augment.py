"""Random views of a training picture, decided by seed, epoch and item alone, so that a resumed run sees the same."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

from lookalike.backbones import Member
from lookalike.backbones.preprocessing import Preprocessing

_SCALE = (0.3, 1.0)  # of the area
_RATIO = (3 / 4, 4 / 3)
_JITTER = 0.25


def training_view(member: Member, resolution: float) -> Preprocessing:
    """Return the preprocessing of training views: `resolution` of the sides in steps of 32, if the network takes it.

    A random resized crop shows things larger than the evaluation's centre crop does; training on fewer pixels evens
    that out and is faster (Touvron et al. 2019, "Fixing the train-test resolution discrepancy").
    """
    p = member.preprocessing
    if getattr(member.module, "pretrained_cfg", {}).get("fixed_input_size", True):
        return p
    height, width = (max(32, round(side * resolution / 32) * 32) for side in (p.height, p.width))
    return replace(p, height=min(height, p.height), width=min(width, p.width))


def augmented(
    image: Image.Image, preprocessing: Preprocessing, *, seed: int, epoch: int, item_id: str
) -> npt.NDArray[np.uint8]:
    """Random resized crop (Szegedy et al. 2015), mirror, change of light and colour; `(height, width, 3)` uint8."""
    chance = random.Random(f"{seed}/{epoch}/{item_id}")
    box = _crop_box(image.size, chance)
    size = (preprocessing.width, preprocessing.height)
    view = image.resize(size, preprocessing.resampling, box=box, reducing_gap=2.0)
    if chance.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        view = enhance(view).enhance(1 + chance.uniform(-_JITTER, _JITTER))
    return np.array(view, dtype=np.uint8)


def _crop_box(size: tuple[int, int], chance: random.Random) -> tuple[float, float, float, float]:
    width, height = size
    for _ in range(10):
        area = width * height * chance.uniform(*_SCALE)
        ratio = math.exp(chance.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = chance.uniform(0, width - w), chance.uniform(0, height - h)
            return left, top, min(left + w, width), min(top + h, height)  # a sum may be rounded up past the edge
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side
