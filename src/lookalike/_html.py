"""The template environment of the HTML pages, and thumbnails as data URIs."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from lookalike.data.images import read_image
from lookalike.errors import OptionError, UnreadableImage

if TYPE_CHECKING:
    from jinja2 import Environment

THUMBNAIL_PIXELS = 128
_QUALITY = 80


def page_environment() -> Environment:
    """Return the Jinja environment of all pages, with autoescaping."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("lookalike"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def thumbnail_data_uri(image: Path | str | Image.Image, size: int = THUMBNAIL_PIXELS) -> str:
    """Return an image as a `data:image/jpeg` URI.

    Args:
        image: a file, or an RGB image, which is not changed.
        size: pixels of the longer side; a smaller image is not enlarged.

    Raises:
        UnreadableImage: the file cannot be decoded.
        OptionError: `size` is below 1.

    """
    if size < 1:
        raise OptionError(f"`size` of a thumbnail must be at least 1 pixel, got {size}.", argument="size")
    thumbnail = image.copy() if isinstance(image, Image.Image) else read_image(image)
    thumbnail.thumbnail((size, size))
    buffer = io.BytesIO()
    thumbnail.save(buffer, format="JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


class Thumbnails:
    """The thumbnails of one page; each file is decoded once.

    Args:
        size: pixels of the longer side.

    """

    def __init__(self, size: int = THUMBNAIL_PIXELS) -> None:
        self._size = size
        self._uris: dict[Path, str | None] = {}

    def uri(self, image: Path | Image.Image | None) -> str | None:
        """Return the thumbnail's URI; None without an image or if the file cannot be read (the page shows the id)."""
        if image is None:
            return None
        if isinstance(image, Image.Image):
            return thumbnail_data_uri(image, self._size)
        if image not in self._uris:
            try:
                self._uris[image] = thumbnail_data_uri(image, self._size)
            except UnreadableImage:
                self._uris[image] = None
        return self._uris[image]
