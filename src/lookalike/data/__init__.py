"""Images on disk: reading them, finding the layout of a folder, cutting a validation part, checking it all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lookalike.lazy import lazy_names

if TYPE_CHECKING:
    from lookalike.data.catalogue import Dataset, Item, Split, contents
    from lookalike.data.folders import find_images
    from lookalike.data.images import IMAGE_SUFFIXES, read_image
    from lookalike.data.layouts import load_dataset
    from lookalike.data.leaks import require_no_leaks
    from lookalike.data.split import with_validation

_HOMES = {
    "IMAGE_SUFFIXES": "images",
    "Dataset": "catalogue",
    "Item": "catalogue",
    "Split": "catalogue",
    "contents": "catalogue",
    "find_images": "folders",
    "load_dataset": "layouts",
    "read_image": "images",
    "require_no_leaks": "leaks",
    "with_validation": "split",
}

__all__ = [
    "IMAGE_SUFFIXES",
    "Dataset",
    "Item",
    "Split",
    "contents",
    "find_images",
    "load_dataset",
    "read_image",
    "require_no_leaks",
    "with_validation",
]


if not TYPE_CHECKING:  # a type checker would take any name for known
    __getattr__ = lazy_names(__name__, _HOMES)  # so that a search needs only what reads its pictures
