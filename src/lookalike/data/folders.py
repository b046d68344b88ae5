"""Finding the image files in a folder; what cannot be listed is told, and ends nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from lookalike.data.images import is_image_name
from lookalike.errors import DataError
from lookalike.types import Skipped

Skip = Callable[[Skipped], None]
"""Is told of a folder that was left out."""


def find_images(folder: Path | str, *, recursive: bool = True, skip: Skip | None = None) -> list[Path]:
    """List the image files in a folder by name, sorted; hidden files and folders are passed over.

    Args:
        folder: where to look.
        recursive: look into the folders in it, too.
        skip: is told of every folder that cannot be listed, the given one included, so that the others are; without it
            such a folder is an error.

    Raises:
        DataError: without `skip`, when the folder does not exist, or one cannot be listed.

    """
    folder = Path(folder)
    if skip is None:
        require_folder(folder)
    return sorted(_walk(folder, recursive, skip or _refuse))


def walk_images(folder: Path, skip: Skip) -> Iterator[Path]:
    """Yield the same images in any order, one at a time: a hundred thousand paths take tens of megabytes."""
    return _walk(folder, True, skip)


def find_folders(folder: Path, skip: Skip) -> list[Path]:
    """List the folders in a folder by name, sorted; hidden ones are passed over, `skip` is as in `find_images`."""
    return sorted(_listing(folder, skip)[0])


def require_folder(folder: Path) -> None:
    """Raise `DataError` for what is no folder, or one that nobody may look into."""
    if not may_be_folder(folder):
        raise DataError(f"{folder} is not a folder; give a folder of images.")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(f"the permissions of {folder} do not allow reading it; change them, or give another folder.")


def may_be_folder(path: Path) -> bool:
    """Whether a path is a folder, or what nobody may look at: listing it says so."""
    try:
        return path.is_dir()
    except OSError:
        return True


def and_skipped(skipped: Sequence[Skipped]) -> str:
    """Return what to add to a sentence that says that there is nothing, when some folders could not be listed."""
    return f", and folders in it were skipped, the first is {skipped[0]}" if skipped else ""


def _walk(folder: Path, recursive: bool, skip: Skip) -> Iterator[Path]:
    folders, images = _listing(folder, skip)
    yield from images
    for inside in folders if recursive else ():
        yield from _walk(inside, recursive, skip)


def _listing(folder: Path, skip: Skip) -> tuple[list[Path], list[Path]]:
    """Return the folders and the images in a folder, as far as it can be listed."""
    folders: list[Path] = []
    images: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = Path(entry.path)
                if _is_folder(entry):
                    if not _leads_back(path):  # what is behind it is found without it
                        folders.append(path)
                elif is_image_name(entry.name):
                    images.append(path)
    except OSError as error:
        skip(Skipped(folder, f"the folder cannot be listed ({(error.strerror or str(error)).lower()})"))
    return folders, images


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to where nobody may look, or in a circle
        return not is_image_name(entry.name)  # opening it says why


def _leads_back(folder: Path) -> bool:
    """Whether a folder is a link to one that holds it, in which a walk would go round and round."""
    try:
        return folder.is_symlink() and any(folder.samefile(above) for above in folder.absolute().parents)
    except OSError:
        return False  # listing it says why


def _refuse(skipped: Skipped) -> NoReturn:
    raise DataError(f"{skipped}; change that, or give another folder.")
