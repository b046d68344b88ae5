"""Preprocessing: from a decoded image to the pixels that a backbone was trained on. Needs no torch."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from lookalike.errors import ModelError, OptionError, describe_error
from lookalike.types import Pixels

MAX_SIDE = 2048  # of an input; activations of larger ones take many gigabytes
_MIN_CROP_PCT = 0.1
_ANY_SIDE = 1 << 30  # no image is decoded smaller
CROP_MODES = ("center", "squash", "border")
PILLOW_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
# by interpolation: the name of the SIMD kernel and its support in pixels to either side
_SIMD_KERNELS = {"bicubic": ("catmull_rom", 2), "bilinear": ("bilinear", 1), "lanczos": ("lanczos3", 3)}
_thread_local = threading.local()


# What a crop returns: the part of the image, its box (left, top, right, bottom) in pixels, or None for all of it.
CropResult = Image.Image | Sequence[float] | None


class Crop(str):
    """The name of a crop, with the function that computes it: what is stored and compared is the name."""

    function: Callable[[Image.Image], CropResult]
    _lock: threading.Lock

    def __new__(cls, name: str, function: Callable[[Image.Image], CropResult]) -> Crop:
        """Join a name and a function.

        Args:
            name: changes whenever the crops change; part of a model's fingerprint.
            function: as in `Encoder.with_crop`.

        Raises:
            OptionError: `function` is not callable, or `name` is empty.
        """
        if not isinstance(name, str) or not name.strip():
            raise OptionError(f"`name` must be a text that is not empty, got {name!r}.", argument="name")
        if not callable(function):
            raise OptionError(f"`crop` must be callable, got {type(function).__name__}.", argument="crop")
        crop = super().__new__(cls, name)
        crop.function = function
        crop._lock = threading.Lock()
        return crop

    def __reduce__(self) -> tuple[Any, ...]:
        return Crop, (str(self), self.function)

    def __deepcopy__(self, _: dict[int, Any]) -> str:
        return str(self)  # what `dataclasses.asdict` stores

    def __call__(self, pixels: Pixels) -> Pixels:
        """Return the part of an image `(h, w, 3)`; one thread at a time calls the function."""
        image = Image.fromarray(pixels)
        try:
            with self._lock:
                result = self.function(image)
            if result is None:
                return pixels
            if not isinstance(result, Image.Image):
                left, top, right, bottom = (round(float(side)) for side in result)
                box = max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)
                if box[0] >= box[2] or box[1] >= box[3]:
                    raise ValueError(f"the box {(left, top, right, bottom)} is empty in {image.width} × {image.height}")
                result = image.crop(box)
            cropped: Pixels = np.array(result.convert("RGB"))
            if not cropped.size:
                raise ValueError(f"the image that it returned is of {result.width} × {result.height}")
        except Exception as error:  # of any kind: the function is the user's
            raise ModelError(
                f"the crop {str(self)!r} failed on an image of {image.width} × {image.height} "
                f"({describe_error(error)}); it must return an image, a box (left, top, right, bottom), or None."
            ) from error
        return cropped


def require_crop(name: str) -> Crop:
    """Return a crop with its function; raise `OptionError` for a name alone."""
    if not isinstance(name, Crop):
        raise OptionError(
            f"the function of the crop {name!r} is not stored; in Python, pass lookalike.Crop({name!r}, function).",
            argument="crop",
        )
    return name


@dataclass(frozen=True)
class Preprocessing:
    """Crop, resize, cut out the centre, scale to 0..1, subtract the mean, divide by the standard deviation.

    `center` resizes until the image covers that size, `squash` to exactly that size, `border` until it fits into that
    size, with borders of the mean colour.
    """

    height: int  # of the crop, in pixels
    width: int
    crop_pct: float = 0.875  # crop size divided by image size; the image is resized to `floor(size / crop_pct)`
    interpolation: str = "bicubic"  # a key of `PILLOW_FILTERS`
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    crop_mode: str = "center"
    crop: str = ""  # the name of what cuts out the part that counts first, a `Crop`; empty for the whole image

    def __post_init__(self) -> None:
        if self.interpolation not in PILLOW_FILTERS:
            raise ModelError(f"interpolation must be one of {', '.join(PILLOW_FILTERS)}, got {self.interpolation!r}.")
        if self.crop_mode not in CROP_MODES:
            raise ModelError(f"crop_mode must be one of {', '.join(CROP_MODES)}, got {self.crop_mode!r}.")
        sides = 1 <= self.height <= MAX_SIDE and 1 <= self.width <= MAX_SIDE
        if not (sides and _MIN_CROP_PCT <= self.crop_pct <= 1):
            raise ModelError(
                f"height and width must be between 1 and {MAX_SIDE} and crop_pct between {_MIN_CROP_PCT} and 1, "
                f"got {self.height}, {self.width} and {self.crop_pct}."
            )
        if not all(map(math.isfinite, self.mean)) or not all(0 < std < math.inf for std in self.std):
            raise ModelError(f"mean and std must be finite and std above 0, got {self.mean} and {self.std}.")

    @property
    def min_side(self) -> int:
        """Pixels of a shorter side worth decoding: twice the resized side, so that resizing still averages."""
        return _ANY_SIDE if self.crop else 2 * max(self._resized)

    def pixels(self, image: Pixels | Image.Image) -> Pixels:
        """Resize and crop an image `(h, w, 3)` to `(height, width, 3)` uint8, as timm's evaluation transform does."""
        return self.resized(self.cropped(np.asarray(image)))

    def cropped(self, pixels: Pixels) -> Pixels:
        """Return the part of an image `(h, w, 3)` that counts."""
        if isinstance(self.crop, Crop):
            return self.crop(pixels)
        if self.crop:
            raise ModelError(
                f"this model needs the crop {self.crop!r}, which is not stored with it; in Python, add it by "
                f"with_crop(function, name={self.crop!r})."
            )
        return pixels

    def resized(self, pixels: Pixels) -> Pixels:
        """Resize what counts of an image `(h, w, 3)` to `(height, width, 3)` uint8."""
        size = self._resized_size(pixels.shape[1], pixels.shape[0])
        width, height = min(self.width, size[0]), min(self.height, size[1])
        left, top = round((size[0] - width) / 2.0), round((size[1] - height) / 2.0)
        crop = resize(pixels, size, self.interpolation, (left, top, width, height))
        if (width, height) == (self.width, self.height):
            return crop
        canvas = np.empty((self.height, self.width, 3), np.uint8)
        canvas[:] = [round(255 * v) for v in self.mean]
        top, left = (self.height - height) // 2, (self.width - width) // 2
        canvas[top : top + height, left : left + width] = crop
        return canvas

    @property
    def _resized(self) -> tuple[int, int]:
        """Width and height that the image is resized to, before its aspect ratio counts."""
        return math.floor(self.width / self.crop_pct), math.floor(self.height / self.crop_pct)

    def _resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height before the crop; the rounding differs from mode to mode as it does in timm."""
        target_width, target_height = self._resized
        if self.crop_mode == "squash":
            return target_width, target_height
        if self.crop_mode == "center" and target_width == target_height:
            if width <= height:
                return target_width, int(target_width * height / width)
            return int(target_width * width / height), target_width
        pick = max if self.crop_mode == "border" else min
        ratio = pick(width / target_width, height / target_height)
        return max(1, round(width / ratio)), max(1, round(height / ratio))


def prepare_images(preprocessings: Sequence[Preprocessing], images: Sequence[Pixels]) -> tuple[Pixels, ...]:
    """Return one image for each preprocessing, from its own decoding; one crop of several is computed once."""
    cropped: dict[str, Pixels] = {}
    prepared = []
    for preprocessing, image in zip(preprocessings, images, strict=True):
        if not preprocessing.crop:
            prepared.append(preprocessing.resized(image))
            continue
        if preprocessing.crop not in cropped:
            cropped[preprocessing.crop] = preprocessing.cropped(image)
        prepared.append(preprocessing.resized(cropped[preprocessing.crop]))
    return tuple(prepared)


def resize(pixels: Pixels, size: tuple[int, int], interpolation: str, crop: tuple[int, int, int, int]) -> Pixels:
    """Resize an image as Pillow does, with antialiasing, and compute only what a crop keeps.

    Columns first, then rows, each rounded to uint8 as in Pillow; results differ from Pillow's by rounding in about one
    pixel of a hundred. A SIMD resizer makes it nine times as fast (benchmarks/decoding.py).

    `size` is width and height of the resized image, `crop` left, top, width and height in its pixels.
    """
    source_height, source_width = pixels.shape[:2]
    left, top, width, height = crop
    if size == (source_width, source_height):
        return np.array(pixels[top : top + height, left : left + width])
    if interpolation not in _SIMD_KERNELS:
        image = Image.fromarray(pixels).resize(size, PILLOW_FILTERS[interpolation])
        return np.array(image.crop((left, top, left + width, top + height)))
    from cykooz_resizer import CropBox, FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer

    if not hasattr(_thread_local, "resizer"):
        _thread_local.resizer = Resizer()  # reuses its buffers
    kernel, support = _SIMD_KERNELS[interpolation]
    x_scale, y_scale = source_width / size[0], source_height / size[1]
    # only the source rows that the crop's rows depend on
    margin = math.ceil(support * max(y_scale, 1)) + 1
    first = max(0, math.floor(top * y_scale) - margin)
    last = min(source_height, math.ceil((top + height) * y_scale) + margin)
    y_start = top * y_scale - first
    columns = CropBox(left * x_scale, 0, min(width * x_scale, source_width - left * x_scale), last - first)
    rows = CropBox(0, y_start, width, min(height * y_scale, last - first - y_start))
    source = ImageData(source_width, last - first, PixelType.U8x3, pixels[first:last].tobytes())
    narrowed = ImageData(width, last - first, PixelType.U8x3)
    output = ImageData(width, height, PixelType.U8x3)
    algorithm = ResizeAlg.convolution(FilterType[kernel])
    for before, after, box in ((source, narrowed, columns), (narrowed, output, rows)):
        _thread_local.resizer.resize(before, after, ResizeOptions(resize_alg=algorithm, use_alpha=False, crop_box=box))
    return np.array(np.frombuffer(output.get_buffer(), np.uint8)).reshape(height, width, 3)
