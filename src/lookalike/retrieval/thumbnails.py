"""Small pictures that live inside an HTML page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from lookalike.data import read_image
from lookalike.errors import OptionError, UnreadableImage

THUMBNAIL_PIXELS = 128
_QUALITY = 80


def thumbnail_data_uri(path: Path | str, size: int = THUMBNAIL_PIXELS) -> str:
    """Return an image as a `data:image/jpeg` URI whose longer side has at most `size` pixels.

    Raises:
        UnreadableImage: when the file cannot be decoded.
        OptionError: when `size` is below 1.

    """
    if size < 1:
        raise OptionError(f"the size of a thumbnail must be at least 1 pixel, got {size}.")
    image = read_image(path)
    image.thumbnail((size, size))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


class Thumbnails:
    """Thumbnails of one page; a picture that stands in it many times is decoded once.

    Args:
        size: pixels of the longer side.

    """

    def __init__(self, size: int = THUMBNAIL_PIXELS) -> None:
        self._size = size
        self._made: dict[Path, str | None] = {}

    def uri(self, path: Path | None) -> str | None:
        """Return the picture's URI; None without a path or where the file cannot be read, so that the page names it."""
        if path is None:
            return None
        if path not in self._made:
            try:
                self._made[path] = thumbnail_data_uri(path, self._size)
            except UnreadableImage:
                self._made[path] = None
        return self._made[path]
