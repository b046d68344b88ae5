"""What the HTML pages share: the template environment and thumbnails as data URIs."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

from lookalike.data.images import read_image
from lookalike.errors import OptionError, UnreadableImage

if TYPE_CHECKING:
    from jinja2 import Environment

THUMBNAIL_PIXELS = 128
_QUALITY = 80


def page_environment() -> Environment:
    """Return the Jinja environment of all pages; autoescape is on."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("lookalike"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


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
