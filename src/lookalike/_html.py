"""The template environment of the HTML pages, and thumbnails as data URIs."""

from __future__ import annotations

import base64
import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from lookalike.data.images import image_in_turn, read_image
from lookalike.errors import UnreadableImage

if TYPE_CHECKING:
    from jinja2 import Environment


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


class Thumbnails:
    """Thumbnails with a longer side of `size` pixels as `data:image/jpeg` URIs; each file is decoded once."""

    def __init__(self, size: int = 256) -> None:
        self._size = size
        self._uris: dict[Path, str | None] = {}

    def uri(self, image: Path | Image.Image | None) -> str | None:
        """Return the thumbnail's URI; None without an image or if the file cannot be read (the page shows the id)."""
        if image is None:
            return None
        if isinstance(image, Image.Image):
            return self._encode(image.copy())
        if image not in self._uris:
            self._uris[image] = None
            with contextlib.suppress(UnreadableImage), image_in_turn(image):
                self._uris[image] = self._encode(read_image(image))
        return self._uris[image]

    def _encode(self, image: Image.Image) -> str:
        image.thumbnail((self._size, self._size))
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=80, optimize=True)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
