"""Loading a data folder, whose layout is detected.

1. `training/<class>/*`, flat `test/query/*` and `test/gallery/*`, optional `labels.csv` (`path,label`).
2. The same with class folders inside query and gallery.
3. `manifest.csv` or `manifest.parquet` with `path,label,split`; other columns are metadata.
4. Class folders only: split by a seed, stratified or class-disjoint.
5. Images without labels: all of them are the gallery.
"""

from __future__ import annotations

import csv
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from lookalike.data.dataset import Dataset, Item, Split, sort_items, split_classes, with_validation
from lookalike.data.images import is_image_name
from lookalike.errors import DataError, MissingExtra
from lookalike.progress import count_noun
from lookalike.types import Skipped

_SPLIT_NAMES = {
    "training": Split.TRAINING,
    "train": Split.TRAINING,
    "validation": Split.VALIDATION,
    "val": Split.VALIDATION,
    "valid": Split.VALIDATION,
    "query": Split.QUERY,
    "gallery": Split.GALLERY,
}


def load_dataset(data: Path | str, *, seed: int = 0, class_disjoint: bool = False) -> Dataset:
    """Load a data folder of any of the five layouts; print the result to see what it contains.

    Folders inside it that cannot be listed are skipped and reported in `Dataset.skipped`.

    Args:
        data: the folder.
        seed: seed of the splits of layout 4.
        class_disjoint: in layout 4, give training and test different classes.

    Raises:
        DataError: the folder does not exist or contains no image, or a manifest or label file is wrong.

    """
    root = Path(data)
    require_folder(root, "data")
    for name in ("manifest.csv", "manifest.parquet"):
        if _may_be_file(root / name):
            return _from_manifest(root, root / name)
    if may_be_folder(root / "training") or may_be_folder(root / "test"):
        return _from_split_folders(root)
    skipped: list[Skipped] = []
    folders, loose = _list_folder(root, skipped)
    if skipped:
        raise _error(f"{skipped[0]}; make it readable, or use another folder.")
    in_folders = {folder.name: sorted(walk_images(folder, skipped)) for folder in folders}
    classes = {name: images for name, images in in_folders.items() if images}
    if len(classes) >= 2 and not loose:
        items = [_item(root, path, label, Split.GALLERY) for label, images in classes.items() for path in images]
        split = split_classes(items, seed=seed, class_disjoint=class_disjoint)
        kind = "class-disjoint" if class_disjoint else "stratified"
        return Dataset(root, f"class folders, split here ({kind}, seed {seed})", split, skipped=tuple(skipped))
    notes: tuple[str, ...] = ()
    if len(classes) >= 2:
        notes = (
            f"{count_noun(len(loose), 'loose image')} next to {len(classes)} folders (first: {min(loose).name}), so "
            "the folders are not used as classes; if they are classes, move the loose images elsewhere",
        )
    paths = sorted(chain(loose, *classes.values()))
    if not paths:
        raise _error(
            f"{root} contains no image{skipped_suffix(skipped)}; expected files such as .jpg, .png or .webp, or a "
            "manifest.csv."
        )
    unlabelled = tuple(_item(root, path, None, Split.GALLERY) for path in paths)
    return Dataset(root, "images without labels", unlabelled, notes, tuple(skipped))


def load_data_as_trained(data: Dataset | Path | str, options: Mapping[str, Any]) -> Dataset:
    """Load a data folder, class folders split as these training options say; a loaded data set is returned.

    Class folders are split each time they are loaded: by another seed a model would meet its training images.
    """
    if isinstance(data, Dataset):
        return data
    return load_dataset(data, seed=int(options.get("seed", 0)), class_disjoint=bool(options.get("class_disjoint")))


def load_training_splits(data: Dataset | Path | str, options: Mapping[str, Any]) -> Dataset:
    """Load data with the training and validation splits that these training options lead to."""
    loaded = load_data_as_trained(data, options)
    return with_validation(loaded, seed=int(options.get("seed", 0)), class_disjoint=options.get("class_disjoint"))


def _error(message: str) -> DataError:
    return DataError(message, argument="data")


def _from_split_folders(root: Path) -> Dataset:
    notes: list[str] = []
    skipped: list[Skipped] = []
    training, loose = _labelled_and_loose(root, root / "training", Split.TRAINING, skipped)
    if loose:
        notes.append(f"{count_noun(len(loose), 'image')} directly in training/, outside the class folders, skipped")
    labels = _read_labels(root)
    nested = False
    test: list[Item] = []
    for split in (Split.QUERY, Split.GALLERY):
        labelled, loose = _labelled_and_loose(root, root / "test" / split, split, skipped)
        nested = nested or bool(labelled)
        test.extend(labelled)
        test.extend(replace(item, label=labels.get(_nfc(item.id))) for item in loose)
    items = (*training, *test)
    if not items:
        raise _error(
            f"{root} has a training or test folder, but no image in training/<class>/, test/query or test/gallery"
            f"{skipped_suffix(skipped)}."
        )
    ids = {_nfc(item.id) for item in items}
    unmatched = [name for name in labels if name not in ids]
    if unmatched and len(unmatched) == len(labels) and not skipped:
        raise _error(
            f"none of the {len(labels)} paths in {root / 'labels.csv'} is an image of the test split "
            f"(first: {unmatched[0]!r}); write paths such as 'test/query/1.jpg'."
        )
    if unmatched:
        notes.append(f"labels.csv has {count_noun(len(unmatched), 'path')} without an image (first: {unmatched[0]})")
    if nested:
        layout = "training and test folders, class folders in the test split"
    elif labels:
        layout = "training and test folders, test split labelled by labels.csv"
    else:
        layout = "training and test folders, test split without labels"
    return Dataset(root, layout, items, tuple(notes), tuple(skipped))


def _labelled_and_loose(
    root: Path, folder: Path, split: Split, skipped: list[Skipped]
) -> tuple[list[Item], list[Item]]:
    """Return the items in class folders, then those directly in the folder, without a label; none if it is absent."""
    if not may_be_folder(folder):
        return [], []
    classes, loose = _list_folder(folder, skipped)
    labelled = [
        _item(root, path, class_folder.name, split)
        for class_folder in classes
        for path in sorted(walk_images(class_folder, skipped))
    ]
    return labelled, [_item(root, path, None, split) for path in sorted(loose)]


def _item(root: Path, path: Path, label: str | None, split: Split) -> Item:
    return Item(path.relative_to(root).as_posix(), path, None if label is None else _nfc(label), split)


def _nfc(text: str) -> str:
    """Return the normal form in which names and labels are compared: macOS stores file names in another one."""
    return unicodedata.normalize("NFC", text)


def _read_labels(root: Path) -> dict[str, str]:
    path = root / "labels.csv"
    if not path.is_file():
        return {}
    labels: dict[str, str] = {}
    for line, row in _rows(path, ("path", "label")):
        name, label = _nfc(row["path"]), _nfc(row["label"])
        if labels.get(name, label) != label:
            raise _error(f"{path} line {line}: the label of {name} is {label!r}, but {labels[name]!r} further up.")
        if label:
            labels[name] = label
    return labels


def _from_manifest(root: Path, path: Path) -> Dataset:
    items: list[Item] = []
    for line, row in _rows(path, ("path", "label", "split")):
        name, label, split = row["path"], row["label"], row["split"].lower()
        if not name:
            raise _error(f"{path} line {line} has no path.")
        if split not in _SPLIT_NAMES:
            raise _error(f"{path} line {line} has the split {split!r}; use training, validation, query or gallery.")
        metadata = {key: value for key, value in row.items() if key not in ("path", "label", "split")}
        items.append(Item(name, root / name, _nfc(label) or None, _SPLIT_NAMES[split], metadata))
    if not items:
        raise _error(f"{path} has a header but no row.")
    missing = [item for item in items if not _may_be_file(item.path)]
    if len(missing) == len(items):
        raise _error(f"none of the {len(items)} files in {path} exists (first: {missing[0].path}).")
    notes: tuple[str, ...] = ()
    if missing:
        notes = (f"{path.name} names {count_noun(len(missing), 'missing file')} (first: {missing[0].id})",)
    return Dataset(root, f"manifest ({path.name})", sort_items(items), notes)


def _rows(path: Path, required: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line number and cells of each row of a CSV or Parquet table."""
    table = _parquet_rows(path) if path.suffix == ".parquet" else _csv_rows(path)
    header = next(table)
    if any(name not in header for name in required):
        raise _error(f"{path} has the columns {', '.join(header) or '(none)'}, but needs {', '.join(required)}.")
    for line, values in enumerate(table, start=2):
        if not values:
            continue
        if len(values) != len(header):
            raise _error(f"{path} line {line} has {len(values)} fields, the header has {len(header)}.")
        yield line, dict(zip(header, (value.strip() for value in values), strict=True))


def _csv_rows(path: Path) -> Iterator[list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle)
            yield [name.strip().lower() for name in next(reader, [])]
            yield from reader
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _error(f"{path} cannot be read as UTF-8 CSV: {error}.") from error


def _parquet_rows(path: Path) -> Iterator[list[str]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "parquet", f"reading {path.name}") from error
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError) as error:
        raise _error(f"{path} cannot be read as Parquet: {error}.") from error
    yield [str(name).strip().lower() for name in table.column_names]
    for row in table.to_pylist():
        yield ["" if value is None else str(value) for value in row.values()]


def walk_images(folder: Path, skipped: list[Skipped]) -> Iterator[Path]:
    """Yield the image files in a folder in any order, without hidden files and folders.

    One at a time: 100,000 paths take tens of megabytes. Folders that cannot be listed are appended to `skipped`.
    """
    folders, images = _list_folder(folder, skipped)
    yield from images
    for subfolder in folders:
        yield from walk_images(subfolder, skipped)


def require_folder(folder: Path, argument: str) -> None:
    """Raise `DataError` for anything but a readable folder; `argument` is where it came from."""
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


def skipped_suffix(skipped: Sequence[Skipped]) -> str:
    """Return the part of a sentence that reports skipped files and folders, empty if there are none."""
    return f" (skipped: {len(skipped)}, first: {skipped[0]})" if skipped else ""


def _may_be_file(path: Path) -> bool:
    """Whether a path is a file, or cannot be examined: reading it gives the reason."""
    try:
        return path.is_file()
    except OSError:
        return True


def _list_folder(folder: Path, skipped: list[Skipped]) -> tuple[list[Path], list[Path]]:
    """Return the folders, sorted, and the images in a folder, without hidden ones, as far as it can be listed."""
    folders: list[Path] = []
    images: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = Path(entry.path)
                if _is_folder(entry):
                    if not _is_loop(path):
                        folders.append(path)
                elif is_image_name(entry.name):
                    images.append(path)
    except OSError as error:
        cause = f"the folder cannot be listed ({(error.strerror or str(error)).lower()})"
        skipped.append(Skipped(folder, cause))
    return sorted(folders), images


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle, or to where access is denied
        return not is_image_name(entry.name)  # listing or opening it gives the reason


def _is_loop(folder: Path) -> bool:
    """Whether a folder is a link to one that contains it, in which a walk would never end."""
    try:
        return folder.is_symlink() and any(folder.samefile(parent) for parent in folder.absolute().parents)
    except OSError:
        return False  # listing it gives the reason
