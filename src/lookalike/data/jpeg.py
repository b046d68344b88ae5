"""The quick way through the commonest kind of file: libjpeg-turbo, asked for no more pixels than are wanted."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from lookalike.data.quiet import quiet

_PLAIN = ("YCbCr", "Gray")
_SCALES = (8, 4, 2)
"""Parts of a side that the inverse cosine transform can leave away by itself, as good as averaging."""

_APP1, _SCAN = 0xE1, 0xDA
"""Second bytes of JPEG's markers."""

Pixels = npt.NDArray[np.uint8]


def decode_jpeg(data: bytes, at_least: Sequence[int | None], *, most: int) -> list[Pixels] | None:
    """Decode a JPEG file upright, with pixels equal to Pillow's where it is not scaled.

    Args:
        data: the file.
        at_least: pixels that the shorter side must keep, for each array that is wanted; a larger picture may come at a
            half, a quarter or an eighth of its sides, decoded faster. None for all pixels.
        most: pixels; a picture that claims more is left to Pillow.

    Returns:
        `(height, width, 3)` each; None for what is no plain JPEG, or damaged: Pillow knows more kinds and says why.

    """
    import simplejpeg

    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in _PLAIN or height * width > most:
            return None
        turn = _orientation(data)
        scales = [_scale(min(height, width), least) for least in at_least]
        found = {
            scale: simplejpeg.decode_jpeg(
                data, "RGB", min_height=-(-height // scale), min_width=-(-width // scale), min_factor=scale
            )
            for scale in dict.fromkeys(scales)
        }
    except Exception:  # a file that is odd raises what it likes, KeyError for a sampling that it does not know
        return None
    return [_upright(found[scale], turn) for scale in scales]


def _scale(side: int, least: int | None) -> int:
    return 1 if least is None else next((s for s in _SCALES if side // s >= least), 1)


def _orientation(data: bytes) -> int:
    """Return the EXIF orientation, 1 to 8, as Pillow reads it, which need not look at what can hold none."""
    if not _may_be_turned(data):
        return 1
    with quiet(), Image.open(io.BytesIO(data)) as image:
        turn = image.getexif().get(ExifTags.Base.Orientation, 1)
    return turn if turn in range(1, 9) else 1


def _may_be_turned(data: bytes) -> bool:
    """Whether a segment before the picture is of the kind that EXIF and XMP come in, or the segments are odd."""
    place = 2
    while data[place : place + 1] == b"\xff":
        kind = data[place + 1]
        if kind in (_APP1, _SCAN):
            return kind == _APP1
        place += 2 + int.from_bytes(data[place + 2 : place + 4])
    return True


def _upright(pixels: Pixels, turn: int) -> Pixels:
    """Undo an orientation, as `PIL.ImageOps.exif_transpose` does."""
    if turn >= 5:
        pixels = pixels.transpose(1, 0, 2)
    rows, columns = (turn in (3, 4, 7, 8)), (turn in (2, 3, 6, 7))
    if rows or columns:
        pixels = pixels[:: -1 if rows else 1, :: -1 if columns else 1]
    return np.ascontiguousarray(pixels)
