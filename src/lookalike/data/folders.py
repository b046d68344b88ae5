"""Finding the images in folders, and recording what is skipped."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lookalike._files import file_identity
from lookalike.data.images import HEIF_SUFFIXES, has_heif, is_image_name
from lookalike.errors import DataError
from lookalike.progress import count_noun
from lookalike.types import Skipped

# folders that operating systems, storage devices and MLflow create
_SYSTEM_FOLDERS = {
    *("@eadir", "@recycle", "@recently-snapshot", "@sharebin", "@tmp", "#recycle", "#snapshot", "$recycle.bin"),
    *("recycler", "system volume information", "found.000", "lost+found", "__macosx", "mlruns"),
}

# files by which a folder is a result of Lookalike: a bundle, an index, embeddings, a benchmark
_RESULTS = (
    {"bundle.json"},
    {"index.json", "items.json"},
    {"index.json", "items.sqlite"},
    {"embeddings.json", "vectors.npy"},
    {"run.json", "trials"},
)

# suffixes of images that are not read
_UNSUPPORTED = {
    *HEIF_SUFFIXES,
    *(".jxl", ".tga", ".psd", ".xcf", ".svg", ".eps", ".exr", ".hdr", ".dds", ".ico"),
    *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"),
}

# first bytes of image files of any name: JPEG, PNG, GIF, WebP
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"RIFF")


class ImageFinder:
    """Lists folders and walks through them; hidden files and folders are not listed."""

    def __init__(self) -> None:
        self.skipped: list[Skipped] = []  # folders that could not be listed
        self.unsupported: Counter[str] = Counter()  # number of images of formats that are not read, by suffix
        self.without_suffix: list[Path] = []  # images whose names do not end in the suffix of an image
        self.hidden: list[Path] = []  # hidden images, and hidden folders with images
        self.excluded: list[Path] = []  # folders that are never data: those of the system, and results of Lookalike

    def list(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Return the folders, sorted, and the images in a folder, as far as it can be listed."""
        folders: list[Path] = []
        images: list[Path] = []
        names: set[str] = set()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    names.add(entry.name)
                    if is_image_name(entry.name) and not _is_folder(entry):
                        images.append(Path(entry.path))
                    elif self._may_hold_images(entry):
                        folders.append(Path(entry.path))
        except OSError as error:
            cause = f"the folder cannot be listed ({(error.strerror or str(error)).lower()})"
            self.skipped.append(Skipped(folder, cause))
        if any(names.issuperset(result) for result in _RESULTS):
            self.excluded.append(folder)
            return [], []
        suffixes = (Path(name).suffix.lower() for name in names if not name.startswith("."))
        unsupported = _UNSUPPORTED.difference(HEIF_SUFFIXES) if has_heif() else _UNSUPPORTED
        self.unsupported.update(suffix for suffix in suffixes if suffix in unsupported)
        return sorted(folders), images

    def _may_hold_images(self, entry: os.DirEntry[str]) -> bool:
        """Whether an entry is a folder to look into; record what looks like images and is not used."""
        path = Path(entry.path)
        if entry.name.startswith("."):
            if _hides_images(entry):
                self.hidden.append(path)
            return False
        if not _is_folder(entry):
            if _is_image_without_suffix(entry):
                self.without_suffix.append(path)
            return False
        if entry.name.lower() in _SYSTEM_FOLDERS:
            self.excluded.append(path)
            return False
        return not _is_loop(path)

    def walk(self, folder: Path, separate: Iterable[Path] = ()) -> Iterator[Path]:
        """Yield the images in a folder and below it, in any order; a folder that links lead to twice is read once.

        Links to the `separate` folders, which are walked for themselves, are not followed. One at a time: 100,000 paths
        take tens of megabytes.
        """
        visited: set[tuple[int, int]] = set()
        for other in separate:
            _is_new(other, visited)
        to_visit = [folder]
        while to_visit:
            folders, images = self.list(to_visit.pop())
            yield from images
            to_visit += [f for f in folders if _is_new(f, visited)]

    def notes(self) -> tuple[str, ...]:
        """Return a sentence for each kind of thing that is not used, without a full stop."""
        notes = []
        if self.unsupported:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(self.unsupported.items()))
            count = count_noun(self.unsupported.total(), "image")
            advice = "convert them to JPEG or PNG"
            if any(suffix in HEIF_SUFFIXES for suffix in self.unsupported):
                advice += ", or for HEIC install lookalike with the extra heif"
            notes.append(f"{count} of formats that are not read: {kinds}; {advice}")
        if self.without_suffix:
            count = count_noun(len(self.without_suffix), "image")
            first = self.without_suffix[0].name
            notes.append(f"{count} without the suffix of an image, not read (first: {first}); rename them")
        if self.hidden:
            names = _first_names(self.hidden)
            notes.append(f"hidden images and folders are not used: {names}; rename them if they are data")
        if self.excluded:
            names = _first_names(self.excluded)
            notes.append(f"folders of the system and results of Lookalike are not used: {names}")
        return tuple(notes)


def _first_names(paths: Sequence[Path]) -> str:
    return ", ".join(path.name for path in paths[:3]) + (", ..." if len(paths) > 3 else "")


def require_folder(folder: Path, argument: str) -> None:
    """Raise `DataError` unless `folder` is a readable folder; `argument` is the argument that an error names."""
    if not may_be_folder(folder):
        cause = "is a file" if folder.exists() else "does not exist"
        cause += "; pass a folder of images, with class folders or a manifest.csv if labelled"
    elif not os.access(folder, os.R_OK | os.X_OK):
        cause = "cannot be read (permission denied); change its permissions or use another folder"
    else:
        return
    raise DataError(f"{folder} {cause}.", argument=argument)


def may_be_folder(path: Path) -> bool:
    """Whether a path is a folder, or cannot be examined: listing it gives the reason."""
    try:
        return path.is_dir()
    except OSError:
        return True


def may_be_file(path: Path) -> bool:
    """Whether a path is a file, or cannot be examined: reading it gives the reason."""
    try:
        return path.is_file()
    except OSError:
        return True


def may_exist(path: Path) -> bool:
    """Whether a path is anything, be it a link to nothing, or cannot be examined: reading it gives the reason."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def skipped_suffix(skipped: Sequence[Skipped]) -> str:
    """Return the part of a sentence that reports skipped files and folders, empty if there are none."""
    return f" (skipped: {len(skipped)}, first: {skipped[0]})" if skipped else ""


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle, or to where access is denied
        return not is_image_name(entry.name)  # listing or opening it gives the reason


def _hides_images(entry: os.DirEntry[str]) -> bool:
    """Whether a hidden entry is an image, or a folder with images; macOS's ._ files only describe images."""
    try:
        if entry.is_dir():
            with os.scandir(entry.path) as inner:
                return any(is_image_name(file.name) for file in inner)
        return not entry.name.startswith("._") and is_image_name(entry.name[1:])
    except OSError:
        return False


def _is_image_without_suffix(entry: os.DirEntry[str]) -> bool:
    """Whether a file is an image by its content, though its name has no suffix, or adds to that of an image."""
    suffixes = Path(entry.name).suffixes  # x.jpg_large, x.jpg.1
    if suffixes and not any(is_image_name(f"x{suffix[:end]}") for suffix in suffixes for end in (4, 5)):
        return False
    try:
        if not entry.is_file():
            return False
        with Path(entry.path).open("rb") as file:
            return file.read(8).startswith(_SIGNATURES)
    except OSError:
        return False


def _is_loop(folder: Path) -> bool:
    """Whether a folder is a link to one that contains it."""
    try:
        return folder.is_symlink() and any(folder.samefile(parent) for parent in folder.absolute().parents)
    except OSError:
        return False  # listing it gives the reason


def _is_new(folder: Path, visited: set[tuple[int, int]]) -> bool:
    """Whether a folder was not visited under another name; records it."""
    identity = file_identity(folder)
    if identity is None:
        return True  # listing it gives the reason
    if identity in visited:
        return False
    visited.add(identity)
    return True
