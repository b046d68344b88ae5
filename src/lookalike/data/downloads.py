"""Public data sets by name, through torchvision: downloaded, then written as a data folder of layout 2."""

from __future__ import annotations

import random
import re
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from lookalike._files import new_folder, require_free, storage_errors
from lookalike.errors import DataError, MissingExtra, OptionError


class LabelledImages(Protocol):
    """What a torchvision classification data set offers: pictures with the number of their class."""

    def __len__(self) -> int:
        """Return the number of pictures."""
        ...

    def __getitem__(self, index: int, /) -> tuple[Image.Image, int]:
        """Return one picture and the number of its class."""
        ...


@dataclass(frozen=True)
class Source:
    """One data set of torchvision.

    Attributes:
        name: the class in `torchvision.datasets`.
        training: the arguments that select its training part, one mapping for each piece.
        test: the same for its test part; empty where the data set has no parts of its own.

    """

    name: str
    training: tuple[Mapping[str, Any], ...] = ({"split": "train"},)
    test: tuple[Mapping[str, Any], ...] = ({"split": "test"},)


_WITH_VALIDATION = ({"split": "train"}, {"split": "val"})
_TRAINVAL = ({"split": "trainval"},)

SOURCES: dict[str, Source] = {
    source.name.lower(): source
    for source in (
        Source("CIFAR10", ({"train": True},), ({"train": False},)),
        Source("CIFAR100", ({"train": True},), ({"train": False},)),
        Source("Caltech101", ({},), ()),
        Source("DTD", _WITH_VALIDATION),
        Source("EuroSAT", ({},), ()),
        Source("FGVCAircraft", _TRAINVAL),
        Source("Flowers102", _WITH_VALIDATION),
        Source("Food101"),
        Source("OxfordIIITPet", _TRAINVAL),
        Source("STL10"),
    )
}
"""What can be asked for, by name in lower case; StanfordCars is not, since torchvision no longer downloads it."""

# The parts that the images of a class go to in turn, so that a class cut short by a limit still has some in each.
_SPLIT_TEST = ("gallery", "query", "gallery", "gallery")
_SPLIT_ALL = ("training", "gallery", "query", "training", "gallery", "training", "gallery", "training")

# No network, a dead link, a wrong checksum, a full disk, half an archive: torchvision lets them all through.
_DOWNLOAD_ERRORS = (
    *(OSError, RuntimeError, ValueError, EOFError, HTTPException),
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error),
)


def is_torchvision_name(name: str) -> bool:
    """Whether `torchvision_dataset` knows this name; upper and lower case are the same."""
    return name.lower() in SOURCES


def torchvision_dataset(
    name: str, out: Path, *, per_class: int | None = None, seed: int = 0, downloads: Path | None = None
) -> Path:
    """Download a public data set and write it as a data folder: class folders in training, query and gallery.

    A quarter of its test images are queries, the rest gallery. A data set without parts of its own is cut into half
    training, an eighth queries, the rest gallery.

    Args:
        name: a name in `SOURCES`; upper and lower case are the same.
        out: the folder to make; it appears only when complete.
        per_class: take at most this many images of a class, from training and from test each; by default all.
        seed: decides which images are taken and which are queries.
        downloads: where torchvision keeps, and looks for, its own files; by default a folder removed at the end.

    Returns:
        `out`, for `load_dataset`.

    Raises:
        OptionError: for a name that is not known or a limit below two.
        DataError: when the download is impossible here, or an image in it cannot be decoded.
        MissingExtra: when torchvision needs scipy to read the data set and it is not installed.
        StorageError: when `out` holds something or cannot be written.

    """
    if not is_torchvision_name(name):
        known = ", ".join(sorted((s.name for s in SOURCES.values()), key=str.lower))
        raise OptionError(
            f"{name!r} is no data set that can be downloaded; allowed are {known}, or give a folder of images."
        )
    _check_limit(per_class)
    out = Path(out)
    require_free(out)
    source = SOURCES[name.lower()]
    if downloads is not None:
        return _convert(source, Path(downloads), out, per_class, seed)
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=".lookalike-download-", dir=out.parent)
    with temporary as folder:
        return _convert(source, Path(folder), out, per_class, seed)


def _convert(source: Source, downloads: Path, out: Path, per_class: int | None, seed: int) -> Path:
    training = [_open(source, arguments, downloads) for arguments in source.training]
    test = [_open(source, arguments, downloads) for arguments in source.test]
    return write_labelled_images(training, test, out, per_class=per_class, seed=seed)


def _open(source: Source, arguments: Mapping[str, Any], downloads: Path) -> LabelledImages:
    """Construct one piece of a data set with torchvision, downloading it unless its files are there."""
    from torchvision import datasets

    try:
        downloads.mkdir(parents=True, exist_ok=True)
        opened: LabelledImages = getattr(datasets, source.name)(root=str(downloads), download=True, **arguments)
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "scipy", "demo", f"reading {source.name}") from error
    except _DOWNLOAD_ERRORS as error:
        raise DataError(
            f"{source.name} cannot be downloaded here ({_cause(error)}); download it by hand and give its folder "
            "of images with one folder for each class."
        ) from error
    return opened


def _cause(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def write_labelled_images(
    training: Sequence[LabelledImages],
    test: Sequence[LabelledImages],
    out: Path,
    *,
    per_class: int | None = None,
    seed: int = 0,
) -> Path:
    """Write labelled pictures as a data folder of layout 2; without a test part, one is cut from `training`.

    Pictures up to 64 pixels are written as PNG, larger ones as JPEG of quality 95.

    Raises:
        OptionError: for a limit below two.
        DataError: for an image that cannot be decoded, or classes without names.
        StorageError: when `out` holds something or cannot be written.

    """
    _check_limit(per_class)
    names = _folder_names(training[0])
    with new_folder(Path(out)) as folder:
        for part, pieces, order in (
            ("training", training, ("training",) if test else _SPLIT_ALL),
            ("test", test, _SPLIT_TEST),
        ):
            taken: Counter[int] = Counter()
            for image, label in _shuffled(pieces, len(names), per_class, f"{seed}/{part}"):
                split = order[taken[label] % len(order)]
                parent = folder / ("training" if split == "training" else f"test/{split}") / names[label]
                _save(image, parent, f"{taken[label]:05d}")
                taken[label] += 1
    return Path(out)


def _check_limit(per_class: int | None) -> None:
    if per_class is not None and per_class < 2:
        raise OptionError(f"per_class must be at least 2, a query and something to find, got {per_class}.")


def _shuffled(
    pieces: Sequence[LabelledImages], n_classes: int, per_class: int | None, seed: str
) -> Iterator[tuple[Image.Image, int]]:
    """Yield pictures in random order, at most `per_class` of each class; stops as soon as every class is full.

    Labels are known only by decoding, so that a small sample of a large data set decodes little more than it needs.
    """
    order = [(piece, index) for piece in pieces for index in range(len(piece))]
    random.Random(seed).shuffle(order)
    taken: Counter[int] = Counter()
    full = 0
    for piece, index in order:
        if full == n_classes:
            return
        image, label = _decode(piece, index)
        if per_class is not None and taken[label] >= per_class:
            continue
        taken[label] += 1
        full += taken[label] == per_class
        yield image, label


def _decode(piece: LabelledImages, index: int) -> tuple[Image.Image, int]:
    try:
        return piece[index]
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise DataError(
            f"image {index} of the data set {type(piece).__name__} cannot be decoded ({_cause(error)}); "
            "remove the download and start again."
        ) from error


def _folder_names(images: LabelledImages) -> list[str]:
    """Return the class names as distinct folder names."""
    given: Sequence[str] | None = getattr(images, "classes", None) or getattr(images, "categories", None)
    if given is None:
        raise DataError(
            f"the data set {type(images).__name__} has no names for its classes; give a folder of images instead."
        )
    names = [re.sub(r"[^\w.-]+", "_", str(name)).strip("._") or "class" for name in given]
    counts = Counter(name.lower() for name in names)  # some file systems take upper and lower case for the same
    return [f"{name}_{number}" if counts[name.lower()] > 1 else name for number, name in enumerate(names)]


def _save(image: Image.Image, parent: Path, stem: str) -> None:
    parent.mkdir(parents=True, exist_ok=True)
    picture = image.convert("RGB")
    if max(picture.size) <= 64:
        picture.save(parent / f"{stem}.png")
    else:
        picture.save(parent / f"{stem}.jpg", quality=95)
