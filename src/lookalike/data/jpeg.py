"""The quick way through the commonest kind of file: libjpeg-turbo, asked for no more pixels than are wanted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

_PLAIN = ("YCbCr", "Gray")
_HEAD = 65_536
"""Bytes of a file that are searched for its orientation: EXIF is in the first segments."""
_SCALES = (8, 4, 2)
"""Parts of a side that the inverse cosine transform can leave away by itself, as good as averaging."""


def decode_jpeg(data: bytes, at_least: int | None = None, *, most: int) -> npt.NDArray[np.uint8] | None:
    """Decode a JPEG file upright, with pixels equal to Pillow's where it is not scaled.

    Args:
        data: the file.
        at_least: pixels that the shorter side must keep; a larger picture may come at a half, a quarter or an eighth
            of its sides, decoded faster. None for all pixels.
        most: pixels; a picture that claims more is left to Pillow.

    Returns:
        `(height, width, 3)` uint8; None for what is no plain JPEG, or damaged: Pillow knows more kinds and says why.

    """
    import simplejpeg

    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in _PLAIN or height * width > most:
            return None
        turn = _orientation(data[:_HEAD])
        if turn is None:
            return None
        scale = 1
        if at_least is not None:
            scale = next((s for s in _SCALES if min(height, width) // s >= at_least), 1)
        pixels = simplejpeg.decode_jpeg(
            data, "RGB", min_height=-(-height // scale), min_width=-(-width // scale), min_factor=scale
        )
    except ValueError:
        return None
    return _upright(pixels, turn)


def _orientation(head: bytes) -> int | None:
    """Return the EXIF orientation, 1 to 8; None where Pillow has to look for it."""
    if b"tiff:Orientation" in head:
        return None
    start = head.find(b"Exif\x00\x00")
    if start < 0:
        return 1
    exif = Image.Exif()
    try:
        exif.load(head[start:])
        turn = exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged block raises what it likes
        return None
    return turn if turn in range(1, 9) else 1


def _upright(pixels: npt.NDArray[np.uint8], turn: int) -> npt.NDArray[np.uint8]:
    """Undo an orientation, as `PIL.ImageOps.exif_transpose` does."""
    if turn >= 5:
        pixels = pixels.transpose(1, 0, 2)
    rows, columns = (turn in (3, 4, 7, 8)), (turn in (2, 3, 6, 7))
    if rows or columns:
        pixels = pixels[:: -1 if rows else 1, :: -1 if columns else 1]
    return np.ascontiguousarray(pixels)
