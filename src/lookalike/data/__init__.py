"""Images on disk: reading them, finding the layout of a folder, cutting a validation part, checking it all."""

from lookalike.data.catalogue import Dataset, Item, Split, contents
from lookalike.data.folders import find_images
from lookalike.data.images import IMAGE_SUFFIXES, read_image
from lookalike.data.layouts import load_dataset
from lookalike.data.leaks import require_no_leaks
from lookalike.data.split import with_validation

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
