"""Loading a data folder, whose layout is detected.

1. `training/<class>/*`, `validation/<class>/*`, flat `test/query/*` and `test/gallery/*`, optional `labels.csv`
   (`path,label`).
2. The same with class folders inside query and gallery, or with `test/<class>/*`, where each image is a query that is
   searched in the others.
3. `manifest.csv` or `manifest.parquet` with `path,label,split`; other columns are metadata.
4. Class folders only: split by a seed, stratified or class-disjoint.
5. Images without labels: all of them are the gallery.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from lookalike._arguments import checked_arguments
from lookalike.data.dataset import TEST_SPLITS, TRAINING_SPLITS, Dataset, Item, Split, sort_items, split_classes
from lookalike.data.folders import ImageFinder, may_be_file, may_exist, require_folder, skipped_suffix
from lookalike.data.tables import read_rows
from lookalike.data.validation import with_validation
from lookalike.errors import DataError
from lookalike.progress import count_noun

# names of splits in folders and manifests, in any case
_SPLIT_NAMES = {
    "training": Split.TRAINING,
    "train": Split.TRAINING,
    "validation": Split.VALIDATION,
    "val": Split.VALIDATION,
    "valid": Split.VALIDATION,
    "query": Split.QUERY,
    "queries": Split.QUERY,
    "gallery": Split.GALLERY,
    "test": Split.TEST,
}
_LABELS = "labels.csv"
_MANIFESTS = ("manifest.csv", "manifest.parquet")


@checked_arguments()
def load_dataset(data: Path | str, *, seed: int = 0, class_disjoint: bool = False) -> Dataset:
    """Load a data folder of any of the five layouts; print the result to see what it contains.

    What is not used is reported: in `Dataset.skipped`, folders that cannot be listed; in `Dataset.notes`, the rest.

    Args:
        data: the folder.
        seed: seed of the splits of layout 4.
        class_disjoint: in layout 4, give training and test different classes.

    Raises:
        DataError: the folder does not exist or contains no image, or a manifest or label file is wrong.
    """
    root = Path(data)
    require_folder(root, "data")
    manifest = find_manifest(root)
    if manifest is not None:
        return _from_manifest(root, manifest)
    splits = find_split_folders(root)
    if splits:
        return _from_split_folders(root, splits)
    finder = ImageFinder()
    folders, loose = finder.list(root)
    if finder.skipped:
        raise _error(f"{finder.skipped[0]}; make it readable, or use another folder.")
    in_folders = {folder.name: sorted(finder.walk(folder, folders)) for folder in folders}
    classes = {name: images for name, images in in_folders.items() if images}
    skipped, notes = tuple(finder.skipped), (*_unclear_folders(root, classes), *finder.notes())
    empty = [folder for folder in folders if folder.name not in classes]
    if classes:
        notes = (*_empty_folders(empty, root, finder), *notes)
    if len(classes) >= 2 and not loose:
        items = [_item(root, path, label, Split.GALLERY) for label, images in classes.items() for path in images]
        split = split_classes(items, seed=seed, class_disjoint=class_disjoint)
        kind = "class-disjoint" if class_disjoint else "stratified"
        return Dataset(root, f"class folders, split here ({kind}, seed {seed})", split, notes, skipped)
    if len(classes) >= 2:
        notes = (
            f"{count_noun(len(loose), 'loose image')} next to {len(classes)} folders (first: {min(loose).name}), so "
            "the folders are not used as classes; if they are classes, move the loose images elsewhere",
            *notes,
        )
    paths = sorted(chain(loose, *classes.values()))
    if not paths:
        excluded = f" ({'; '.join(notes)})" if notes else ""
        raise _error(
            f"{root} contains no image{skipped_suffix(skipped)}{excluded}; expected files such as .jpg, .png or "
            ".webp, in training/<class>/, test/query and test/gallery if it is a data set, or a manifest.csv."
        )
    unlabelled = tuple(_item(root, path, None, Split.GALLERY) for path in paths)
    return Dataset(root, "images without labels", unlabelled, notes, skipped)


def _unclear_folders(root: Path, classes: Collection[str]) -> Iterator[str]:
    """Yield a note where folders that are not splits may have been meant to be."""
    if len(classes) > 1 and all(name.lower() in _SPLIT_NAMES for name in classes):
        names = ", ".join(sorted(classes))
        yield f"the folders {names} are used as classes; splits have class folders inside, or query and gallery"
    elif len(classes) == 1 and len(ImageFinder().list(root / min(classes))[0]) > 1:
        yield f"all images are in {min(classes)}, whose folders are not used as classes or splits; if they are, pass it"
    if may_exist(root / _LABELS):
        yield f"{_LABELS} is not used: it labels images in test/query and test/gallery"


def find_manifest(root: Path) -> Path | None:
    """Return the manifest of a folder, or None; one that is not a file is an error when it is read."""
    return next((root / name for name in _MANIFESTS if may_exist(root / name)), None)


def find_split_folders(root: Path) -> dict[Split, Path]:
    """Return the folders of a data folder that are splits by their names, in any case.

    Query and gallery are in `test`, or both next to it. The others hold class folders: a folder of images alone is a
    class, such as one called train.
    """
    named = _named_folders(root)
    if not {Split.QUERY, Split.GALLERY} <= set(named):
        named = {split: folders for split, folders in named.items() if split not in (Split.QUERY, Split.GALLERY)}
    for test in named.get(Split.TEST, []):
        inside = _named_folders(test)
        for split in (Split.QUERY, Split.GALLERY):
            named.setdefault(split, []).extend(inside.get(split, []))
    if named.get(Split.QUERY) or named.get(Split.GALLERY):
        named.pop(Split.TEST, None)
    result = {}
    for split, folders in named.items():
        usable = [f for f in folders if split in (Split.QUERY, Split.GALLERY) or _has_folder(f)]
        if len(usable) > 1:
            names = " and ".join(f.relative_to(root).as_posix() for f in usable)
            raise _error(f"{root} has two folders of the {split} split, {names}; merge them, or rename one.")
        if usable:
            result[split] = usable[0]
    return result


def _named_folders(folder: Path) -> dict[Split, list[Path]]:
    named: dict[Split, list[Path]] = {}
    for inner in ImageFinder().list(folder)[0]:
        split = _SPLIT_NAMES.get(inner.name.lower())
        if split is not None:
            named.setdefault(split, []).append(inner)
    return named


def _has_folder(folder: Path) -> bool:
    """Whether a folder holds folders, or cannot be listed: listing it again gives the reason."""
    finder = ImageFinder()
    return bool(finder.list(folder)[0] or finder.skipped)


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


def _from_split_folders(root: Path, folders: Mapping[Split, Path]) -> Dataset:
    finder = ImageFinder()
    notes: list[str] = []
    labels = _read_labels(root)
    items: list[Item] = []
    nested = False
    empty: list[Path] = []
    for split in Split:
        if split not in folders:
            continue
        folder = folders[split]
        labelled, loose, without = _labelled_and_loose(root, folder, split, finder)
        items += labelled
        empty += without
        if split in TRAINING_SPLITS:
            if loose:
                count = count_noun(len(loose), "image")
                notes.append(f"{count} directly in {folder.name}/, outside the class folders, skipped")
            continue
        nested = nested or bool(labelled)
        items += [replace(item, label=labels.get(_nfc(item.id))) for item in loose]
    notes += _empty_folders(empty, root, finder)
    notes += _unused(root, set(folders.values()), finder)
    notes += finder.notes()
    if not items:
        raise _error(
            f"{root} has folders for splits, but no image in training/<class>/, test/query or test/gallery"
            f"{skipped_suffix(finder.skipped)}."
        )
    ids = {_nfc(item.id) for item in items}
    unmatched = [name for name in labels if name not in ids]
    if unmatched and len(unmatched) == len(labels) and not finder.skipped:
        raise _error(
            f"none of the {len(labels)} paths in {root / 'labels.csv'} is an image of the test split "
            f"(first: {unmatched[0]!r}); write paths such as 'test/query/1.jpg'."
        )
    if unmatched:
        notes.append(f"labels.csv has {count_noun(len(unmatched), 'path')} without an image (first: {unmatched[0]})")
    layout = _describe_layout({item.split for item in items}, nested=nested, labelled=bool(labels))
    return Dataset(root, layout, tuple(items), tuple(notes), tuple(finder.skipped))


def _describe_layout(splits: Collection[Split], *, nested: bool, labelled: bool) -> str:
    names = [str(split) for split in TRAINING_SPLITS if split in splits]
    tested = [split for split in TEST_SPLITS if split in splits]
    names += ["test"] if tested else []
    layout = f"{', '.join(names[:-1])} and {names[-1]} folders" if len(names) > 1 else f"{names[0]} folder"
    if not tested:
        return f"{layout}, no test split"
    how = "class folders in the test split" if nested else "test split without labels"
    if labelled and not nested:
        how = "test split labelled by labels.csv"
    return f"{layout}, {how}"


def _unused(root: Path, used: Collection[Path], finder: ImageFinder) -> Iterator[str]:
    """Yield a note for images next to the folders of splits: in other folders, or loose."""
    parents = {root, *(folder.parent for folder in used)}
    for parent in sorted(parents):
        folders, loose = finder.list(parent)
        others = [f for f in folders if f not in used and f not in parents and any(True for _ in finder.walk(f))]
        if others:
            count = count_noun(len(others), "folder")
            note = f"{count} with images next to those of the splits, not used (first: {others[0].relative_to(root)})"
            if any(_SPLIT_NAMES.get(folder.name.lower()) == Split.TEST for folder in others):
                note += "; a test split needs folders called query and gallery, or class folders, inside test"
            yield note
        if loose:
            first = min(loose).relative_to(root)
            yield f"{count_noun(len(loose), 'image')} next to the folders of the splits, not used (first: {first})"


def _empty_folders(folders: Sequence[Path], root: Path, finder: ImageFinder) -> Iterator[str]:
    """Yield a note for folders without an image, unless they could not be listed, which is reported elsewhere."""
    empty = [f for f in folders if not any(file.path.is_relative_to(f) for file in finder.skipped)]
    if empty:
        count = count_noun(len(empty), "folder")
        yield f"{count} without an image, so not a class (first: {empty[0].relative_to(root)})"


def _labelled_and_loose(
    root: Path, folder: Path, split: Split, finder: ImageFinder
) -> tuple[list[Item], list[Item], list[Path]]:
    """Return the items in class folders, those directly in the folder, without a label, and folders without images."""
    folders, loose = finder.list(folder)
    classes = {class_folder: sorted(finder.walk(class_folder, folders)) for class_folder in folders}
    labelled = [
        _item(root, path, class_folder.name, split) for class_folder, paths in classes.items() for path in paths
    ]
    empty = [class_folder for class_folder, paths in classes.items() if not paths]
    return labelled, [_item(root, path, None, split) for path in sorted(loose)], empty


def _item(root: Path, path: Path, label: str | None, split: Split) -> Item:
    return Item(path.relative_to(root).as_posix(), path, None if label is None else _nfc(label), split)


def _nfc(text: str) -> str:
    """Return the normal form in which names and labels are compared: macOS stores file names in another one."""
    return unicodedata.normalize("NFC", text)


def _read_labels(root: Path) -> dict[str, str]:
    path = root / _LABELS
    if not may_exist(path):
        return {}
    labels: dict[str, str] = {}
    for line, row in read_rows(path, ("path", "label")):
        name, label = _nfc(os.path.normpath(row["path"].strip())), _nfc(row["label"])
        if "/" not in name:  # written on Windows
            name = name.replace("\\", "/")
        if labels.get(name, label) != label:
            raise _error(f"{path} line {line}: the label of {name} is {label!r}, but {labels[name]!r} further up.")
        if label:
            labels[name] = label
    return labels


def _from_manifest(root: Path, path: Path) -> Dataset:
    items: dict[str, Item] = {}
    for line, row in read_rows(path, ("path", "label", "split")):
        name, label, split = row["path"], row["label"], row["split"].strip().lower()
        if not name.strip():
            raise _error(f"{path} line {line} has no path.")
        if split not in _SPLIT_NAMES:
            raise _error(
                f"{path} line {line} has the split {split!r}; use training, validation, query, gallery, or test for "
                "images that are both query and gallery."
            )
        metadata = {key: value for key, value in row.items() if key not in ("path", "label", "split")}
        item = _manifest_item(root, name, _nfc(label) or None, _SPLIT_NAMES[split], metadata)
        earlier = items.get(item.id)
        if earlier is not None:
            if {earlier.split, item.split} != {Split.QUERY, Split.GALLERY} or earlier.label != item.label:
                raise _error(
                    f"{path} line {line}: {item.id} is listed twice, as {earlier.split} and as {item.split}; list each "
                    "image once. Only an image with one label can be listed as query and as gallery."
                )
            item = replace(item, split=Split.TEST)
        items[item.id] = item
    if not items:
        raise _error(f"{path} has a header but no row.")
    missing = [item for item in items.values() if not may_be_file(item.path)]
    if len(missing) == len(items):
        raise _error(f"none of the {len(items)} files in {path} exists (first: {missing[0].path}).")
    unused = [name for name in _MANIFESTS if name != path.name and may_exist(root / name)]
    notes = [f"{name} is not used: {path.name} lists the images with their labels" for name in unused]
    if missing:
        notes.append(f"{path.name} names {count_noun(len(missing), 'missing file')} (first: {missing[0].id})")
    return Dataset(root, f"manifest ({path.name})", sort_items(items.values()), tuple(notes))


def _manifest_item(root: Path, name: str, label: str | None, split: Split, metadata: Mapping[str, str]) -> Item:
    """Return an item whose id is its path relative to the data folder; outside it, the absolute path."""
    folder = Path(os.path.abspath(root))  # noqa: PTH100 - resolve() would follow links out of the folder
    # as written, without blanks around it, with the slashes of Windows
    spellings = (name, name.strip(), name.strip().replace("\\", "/"))
    paths = [Path(os.path.normpath(folder / spelling)) for spelling in spellings]
    path = next((path for path in paths if os.path.lexists(path)), paths[0])
    item_id = (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()
    return Item(item_id, root / item_id, label, split, metadata)
