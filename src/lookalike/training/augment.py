"""Random views of a training picture, decided by seed, epoch, item and turn, so that a resumed run sees the same."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps

from lookalike.models.member import TrainableEncoder
from lookalike.models.preprocessing import Preprocessing
from lookalike.training.recipe import Recipe

_RATIO = (3 / 4, 4 / 3)
_ERASED = (0.02, 0.33)  # of the area
_ERASED_RATIO = (0.3, 3.3)


def training_view(member: TrainableEncoder, resolution: float) -> Preprocessing:
    """Return the preprocessing of training views: `resolution` of the sides in steps of 32, if the network takes it.

    A random resized crop shows things larger than the evaluation's centre crop does; training on fewer pixels evens
    that out and is faster (Touvron et al. 2019, "Fixing the train-test resolution discrepancy").
    """
    p = member.preprocessing
    if getattr(member.module, "pretrained_cfg", {}).get("fixed_input_size", True):
        return p
    height, width = (max(32, round(side * resolution / 32) * 32) for side in (p.height, p.width))
    return replace(p, height=min(height, p.height), width=min(width, p.width))


def resolution_at(recipe: Recipe, epoch: int, epochs: int) -> float:
    """Return the resolution of an epoch, counted from 0: from the first one's it rises evenly to the recipe's.

    Howard 2018 ("Training ImageNet in 3 hours"), Tan and Le 2021 ("EfficientNetV2").
    """
    if not recipe.first_resolution or epochs < 2:
        return recipe.resolution
    return recipe.first_resolution + (recipe.resolution - recipe.first_resolution) * min(1.0, epoch / (epochs - 1))


def augmented(
    image: Image.Image, preprocessing: Preprocessing, recipe: Recipe, *, seed: int, epoch: int, item_id: str, turn: int
) -> npt.NDArray[np.uint8]:
    """Return a view `(height, width, 3)` uint8: a random resized crop (Szegedy et al. 2015), mirrored or not.

    `turn` says how often the epoch has shown this item before: each time it is another view.
    """
    chance = random.Random(f"{seed}/{epoch}/{item_id}" + (f"/{turn}" if turn else ""))
    box = _crop_box(image.size, recipe.crop_scale, chance, own_shape=preprocessing.crop_mode == "squash")
    size = (preprocessing.width, preprocessing.height)
    view = image.resize(size, preprocessing.resampling, box=box, reducing_gap=2.0)
    if chance.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if recipe.rand_augment:
        for change in chance.sample(_CHANGES, 2):
            view = change(view, recipe.rand_augment / 10 * chance.choice((-1, 1)), preprocessing)
    if recipe.jitter:
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            view = enhance(view).enhance(1 + chance.uniform(-recipe.jitter, recipe.jitter))
    pixels = np.array(view, dtype=np.uint8)
    if recipe.erase and chance.random() < recipe.erase:
        _erase(pixels, chance)
    return pixels


Change = Callable[[Image.Image, float, Preprocessing], Image.Image]


def _affine(matrix: Callable[[float, float, float], tuple[float, ...]]) -> Change:
    def change(view: Image.Image, strength: float, preprocessing: Preprocessing) -> Image.Image:
        red, green, blue = (round(255 * v) for v in preprocessing.mean)
        coefficients = matrix(strength, view.width, view.height)
        resampling = Image.Resampling.BILINEAR
        return view.transform(view.size, Image.Transform.AFFINE, coefficients, resampling, fillcolor=(red, green, blue))

    return change


def _rotate(strength: float, width: float, height: float) -> tuple[float, ...]:
    angle = math.radians(30 * strength)
    cosine, sine, x, y = math.cos(angle), math.sin(angle), width / 2, height / 2
    return cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y


# Those of RandAugment that leave a thing the same thing: no inversion, no solarising.
_CHANGES: tuple[Change, ...] = (
    _affine(_rotate),
    _affine(lambda s, w, _h: (1, 0.3 * s, -0.15 * s * w, 0, 1, 0)),
    _affine(lambda s, _w, h: (1, 0, 0, 0.3 * s, 1, -0.15 * s * h)),
    _affine(lambda s, w, _h: (1, 0, 0.3 * s * w, 0, 1, 0)),
    _affine(lambda s, _w, h: (1, 0, 0, 0, 1, 0.3 * s * h)),
    lambda view, _s, _p: ImageOps.autocontrast(view),
    lambda view, _s, _p: ImageOps.equalize(view),
    lambda view, s, _p: ImageOps.posterize(view, 8 - round(4 * abs(s))),
    lambda view, s, _p: ImageEnhance.Sharpness(view).enhance(1 + 0.9 * s),
    lambda view, s, _p: ImageEnhance.Brightness(view).enhance(1 + 0.6 * s),
    lambda view, s, _p: ImageEnhance.Contrast(view).enhance(1 + 0.6 * s),
    lambda view, s, _p: ImageEnhance.Color(view).enhance(1 + 0.9 * s),
)


def _erase(pixels: npt.NDArray[np.uint8], chance: random.Random) -> None:
    """Put noise over a rectangle, in place."""
    height, width = pixels.shape[:2]
    area = height * width * chance.uniform(*_ERASED)
    ratio = math.exp(chance.uniform(math.log(_ERASED_RATIO[0]), math.log(_ERASED_RATIO[1])))
    w, h = min(width, round(math.sqrt(area * ratio))), min(height, round(math.sqrt(area / ratio)))
    left, top = chance.randint(0, width - w), chance.randint(0, height - h)
    noise = np.random.default_rng(chance.getrandbits(64)).integers(0, 256, (h, w, 3), dtype=np.uint8)
    pixels[top : top + h, left : left + w] = noise


def _crop_box(
    size: tuple[int, int], least: float, chance: random.Random, *, own_shape: bool = False
) -> tuple[float, float, float, float]:
    """Draw a rectangle; with `own_shape` it is about as wide for its height as the picture, else about a square."""
    width, height = size
    square = width / height if own_shape else 1.0
    for _ in range(10):
        area = width * height * chance.uniform(least, 1)
        ratio = square * math.exp(chance.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = chance.uniform(0, width - w), chance.uniform(0, height - h)
            return left, top, min(left + w, width), min(top + h, height)  # a sum may be rounded up past the edge
    if own_shape:
        return 0, 0, width, height
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side
