"""Reading one image as people have them, into plain RGB."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from lookalike.data.jpeg import decode_jpeg
from lookalike.data.quiet import quiet
from lookalike.errors import UnreadableImage

MAX_PIXELS = 178_956_970
"""An image that claims more pixels than this (a 0.5 GB decode) is taken for a decompression bomb."""

_FORMATS = {
    ".jpg": {"JPEG", "MPO"},
    ".jpeg": {"JPEG", "MPO"},
    ".jpe": {"JPEG", "MPO"},
    ".jfif": {"JPEG", "MPO"},
    ".png": {"PNG"},
    ".gif": {"GIF"},
    ".bmp": {"BMP", "DIB"},
    ".webp": {"WEBP"},
    ".avif": {"AVIF"},
    ".tif": {"TIFF"},
    ".tiff": {"TIFF"},
    ".ppm": {"PPM"},
    ".pgm": {"PPM"},
    ".jp2": {"JPEG2000"},
}
IMAGE_SUFFIXES = frozenset(_FORMATS)
"""File name endings, in lower case, that are taken for images."""

_WIDE_WHITE = 65535
"""The integer sample above 8 bits that is white."""


def read_image(path: Path | str) -> Image.Image:
    """Decode an image file into an RGB picture, upright, alpha blended onto white.

    Handles EXIF orientation, greyscale, palette, alpha, CMYK, 16-bit and float samples; an animation gives its first
    frame. White is 65535 in 16-bit greyscale, however dark a picture is, and in 32-bit integers as well, which have no
    white of their own: darker than 0 is black, brighter than white is white. In float samples white is 1 when none is
    above it, else 255.

    Raises:
        UnreadableImage: with the path and the cause: missing, empty, truncated, not an image, named as another
            format than it is, or larger than `MAX_PIXELS`.

    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise UnreadableImage(path, "the file is empty")
        with quiet(), Image.open(path) as image:
            _check_header(path, image)
            image.seek(0)
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except UnreadableImage:
        raise
    except FileNotFoundError as error:
        raise UnreadableImage(path, "there is no such file") from error
    except UnidentifiedImageError as error:
        raise UnreadableImage(path, "this is not an image that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage(path, f"it claims more than {MAX_PIXELS:,} pixels (a decompression bomb?)") from error
    except PermissionError as error:
        raise UnreadableImage(path, "its permissions do not allow reading it") from error
    except IsADirectoryError as error:
        raise UnreadableImage(path, "it is a folder, not a file") from error
    except (
        Exception
    ) as error:  # decoders fed with garbage raise what they like: struct.error, RuntimeError, KeyError, ...
        raise UnreadableImage(path, f"it cannot be decoded ({_first_line(error)})") from error


def read_pixels(path: Path | str, at_least: int | None = None) -> npt.NDArray[np.uint8]:
    """Decode an image file as `read_image` does, faster where it is a JPEG.

    Args:
        path: the file.
        at_least: pixels that the shorter side must keep; a larger JPEG may come at a half, a quarter or an eighth
            of its sides. None for all pixels.

    Returns:
        `(height, width, 3)` uint8.

    Raises:
        UnreadableImage: as `read_image`.

    """
    return read_scaled(path, [at_least])[0]


def read_scaled(path: Path | str, at_least: Sequence[int | None]) -> list[npt.NDArray[np.uint8]]:
    """Do what `read_pixels` does for several sizes at once: the file is read once, and decoded once a scale."""
    path = Path(path)
    if "JPEG" in _FORMATS.get(path.suffix.lower(), ("JPEG",)):
        with contextlib.suppress(OSError):
            found = decode_jpeg(path.read_bytes(), at_least, most=MAX_PIXELS)
            if found is not None:
                return found
    return [np.array(read_image(path))] * len(at_least)


def _check_header(path: Path, image: Image.Image) -> None:
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise UnreadableImage(path, f"it claims {pixels:,} pixels, more than {MAX_PIXELS:,} (a decompression bomb?)")
    allowed = _FORMATS.get(path.suffix.lower())
    if allowed is not None and image.format not in allowed:
        raise UnreadableImage(path, f"it is named {path.suffix} but holds {image.format}; rename it to match")


def _to_rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode.startswith("I;16") or mode in ("I", "F"):
        return _from_wide(np.asarray(image)).convert("RGB")
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if mode == "RGB" else image.convert("RGB")


def _from_wide(samples: np.ndarray) -> Image.Image:
    """Bring 16-bit, 32-bit integer or float grey samples to 8 bits, by the rule that `read_image` states."""
    values = np.nan_to_num(samples.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    if np.issubdtype(samples.dtype, np.floating):
        white = 1 if values.size and values.max() <= 1.0 else 255
    else:
        white = _WIDE_WHITE
    return Image.fromarray(np.clip(np.rint(values * (255 / white)), 0, 255).astype(np.uint8))


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image: a known ending, and not hidden."""
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
