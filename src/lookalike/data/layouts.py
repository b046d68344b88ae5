"""Finding out what a data folder is, by looking: five layouts, one catalogue.

1. `training/<class>/*`, flat `test/query/*` and `test/gallery/*`, optional `labels.csv` (`path,label`).
2. The same with class folders inside query and gallery.
3. `manifest.csv` or `manifest.parquet` with `path,label,split`; further columns are kept as metadata.
4. Class folders only: split here by a seed, stratified, or class-disjoint on request.
5. Images without labels: everything is gallery.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lookalike.data.dataset import Dataset, Item, Split
from lookalike.data.folders import Skip, and_skipped, find_folders, find_images, may_be_folder, require_folder
from lookalike.data.split import split_classes
from lookalike.errors import DataError, MissingExtra
from lookalike.types import Skipped

_SPLIT_NAMES = {
    "training": Split.TRAINING,
    "train": Split.TRAINING,
    "validation": Split.VALIDATION,
    "val": Split.VALIDATION,
    "query": Split.QUERY,
    "gallery": Split.GALLERY,
}


def load_dataset(data: Path | str, *, seed: int = 0, class_disjoint: bool = False) -> Dataset:
    """Load a data folder of any of the five layouts into one catalogue; `print` it to see what was found.

    A folder inside it that cannot be listed is left out and stands in the catalogue's `skipped`.

    Args:
        data: the folder.
        seed: decides the split of layout 4.
        class_disjoint: in layout 4, give training and test different classes.

    Raises:
        DataError: when there is no such folder, no image in it, or a manifest or label file is wrong.

    """
    root = Path(data)
    _require_open(root)
    for name in ("manifest.csv", "manifest.parquet"):
        if _may_be_file(root / name):
            return _from_manifest(root, root / name)
    if may_be_folder(root / "training") or may_be_folder(root / "test"):
        return _from_parts(root)
    skipped: list[Skipped] = []
    classes = {p.name: find_images(p, skip=skipped.append) for p in find_folders(root, skipped.append)}
    classes = {name: images for name, images in classes.items() if images}
    beside = find_images(root, recursive=False)
    if len(classes) >= 2 and not beside:
        return _from_classes(root, classes, skipped, seed, class_disjoint)
    notes = (_not_classes(len(classes), beside),) if len(classes) >= 2 else ()
    return _from_images(root, notes)


def _require_open(root: Path) -> None:
    if not may_be_folder(root):
        if root.exists():
            raise DataError(f"{root} is a file; give the folder that holds the images or the manifest.")
        raise DataError(f"{root} does not exist; give a folder of images, with class folders or a manifest.csv.")
    require_folder(root)


def _item(root: Path, path: Path, label: str | None, split: Split) -> Item:
    return Item(path.relative_to(root).as_posix(), path, label, split)


def _not_classes(folders: int, beside: Sequence[Path]) -> str:
    are = "images lie" if len(beside) > 1 else "image lies"
    return (
        f"{len(beside)} {are} beside the {folders} folders, the first is {beside[0].name}, so these are not taken for "
        "classes; move what has no class elsewhere if they are"
    )


def _from_images(root: Path, notes: tuple[str, ...] = ()) -> Dataset:
    skipped: list[Skipped] = []
    images = find_images(root, skip=skipped.append)
    if not images:
        raise DataError(
            f"{root} holds no image{and_skipped(skipped)}; expected files such as .jpg, .png or .webp, or a "
            "manifest.csv."
        )
    items = tuple(_item(root, p, None, Split.GALLERY) for p in images)
    return Dataset(root, "images without labels", items, notes, tuple(skipped))


def _from_classes(
    root: Path, classes: Mapping[str, list[Path]], skipped: Sequence[Skipped], seed: int, class_disjoint: bool
) -> Dataset:
    items = [_item(root, p, label, Split.GALLERY) for label, images in classes.items() for p in images]
    how = "class-disjoint" if class_disjoint else "stratified"
    split = split_classes(items, seed=seed, class_disjoint=class_disjoint)
    return Dataset(root, f"class folders, split here ({how}, seed {seed})", split, skipped=tuple(skipped))


def _from_parts(root: Path) -> Dataset:
    items: list[Item] = []
    notes: list[str] = []
    skipped: list[Skipped] = []
    training = root / "training"
    if may_be_folder(training):
        items.extend(_labelled_by_folder(root, training, Split.TRAINING, skipped.append))
        flat = find_images(training, recursive=False, skip=skipped.append)
        if flat:
            notes.append(f"{len(flat)} images lie directly in training/, in no class folder, and are left out")
    labels = _read_labels(root)
    nested = False
    for split in (Split.QUERY, Split.GALLERY):
        folder = root / "test" / split
        if not may_be_folder(folder):
            continue
        by_folder = _labelled_by_folder(root, folder, split, skipped.append)
        flat_items = [_item(root, p, None, split) for p in find_images(folder, recursive=False, skip=skipped.append)]
        nested = nested or bool(by_folder)
        items.extend(by_folder)
        items.extend(Item(i.id, i.path, labels.get(i.id), split) for i in flat_items)
    if not items:
        raise DataError(
            f"{root} has a training or test folder, but no image in training/<class>/, test/query or test/gallery"
            f"{and_skipped(skipped)}."
        )
    if labels:
        notes.extend(_unmatched_labels(root, labels, items, skipped))
    if nested:
        layout = "training and test folders, class folders in the test part"
    elif labels:
        layout = "training and test folders, test part labelled by labels.csv"
    else:
        layout = "training and test folders, test part without labels"
    once = dict.fromkeys(skipped)  # a folder is listed for its folders, then for its images
    return Dataset(root, layout, tuple(items), tuple(notes), tuple(once))


def _labelled_by_folder(root: Path, folder: Path, split: Split, skip: Skip) -> list[Item]:
    return [_item(root, p, c.name, split) for c in find_folders(folder, skip) for p in find_images(c, skip=skip)]


def _read_labels(root: Path) -> dict[str, str]:
    path = root / "labels.csv"
    if not path.is_file():
        return {}
    labels: dict[str, str] = {}
    for line, row in _rows(path, ("path", "label")):
        name = row["path"]
        if labels.get(name, row["label"]) != row["label"]:
            raise DataError(
                f"{path} line {line} gives {name} the label {row['label']!r}, an earlier line {labels[name]!r}."
            )
        if row["label"]:
            labels[name] = row["label"]
    return labels


def _unmatched_labels(
    root: Path, labels: Mapping[str, str], items: Sequence[Item], skipped: Sequence[Skipped]
) -> Iterator[str]:
    known = {i.id for i in items}
    lost = [name for name in labels if name not in known]
    if len(lost) == len(labels) and not skipped:
        raise DataError(
            f"none of the {len(labels)} paths in {root / 'labels.csv'} is an image of the test part, "
            f"the first is {lost[0]!r}; write them like 'test/query/picture.jpg'."
        )
    if lost:
        yield f"labels.csv names {len(lost)} images that are not there, the first is {lost[0]}"


def _from_manifest(root: Path, path: Path) -> Dataset:
    items: list[Item] = []
    for line, row in _rows(path, ("path", "label", "split")):
        name, label, split = row["path"], row["label"], row["split"].lower()
        if not name:
            raise DataError(f"{path} line {line} has no path.")
        if split not in _SPLIT_NAMES:
            raise DataError(
                f"{path} line {line} has the split {split!r}; allowed are training, validation, query and gallery."
            )
        metadata = {k: v for k, v in row.items() if k not in ("path", "label", "split")}
        items.append(Item(name, root / name, label or None, _SPLIT_NAMES[split], metadata))
    if not items:
        raise DataError(f"{path} has a header but no row.")
    missing = [i for i in items if not _may_be_file(i.path)]
    if len(missing) == len(items):
        raise DataError(f"none of the {len(items)} files that {path} names exists, the first is {missing[0].path}.")
    notes = (
        (f"{len(missing)} files named in {path.name} do not exist, the first is {missing[0].id}",) if missing else ()
    )
    order = list(Split)
    items.sort(key=lambda i: (order.index(i.split), i.id))
    return Dataset(root, f"manifest ({path.name})", tuple(items), notes)


def _may_be_file(path: Path) -> bool:
    """Whether a path is a file, or what nobody may look at: reading it says so."""
    try:
        return path.is_file()
    except OSError:
        return True


def _rows(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a CSV or Parquet table as text, with their line numbers; checks the columns."""
    table = _parquet_rows(path) if path.suffix == ".parquet" else _csv_rows(path)
    header = next(table)
    absent = [name for name in needed if name not in header]
    if absent:
        raise DataError(f"{path} has the columns {', '.join(header) or '(none)'}, but needs {', '.join(needed)}.")
    for line, values in enumerate(table, start=2):
        if not values:
            continue
        if len(values) != len(header):
            raise DataError(f"{path} line {line} has {len(values)} fields, the header has {len(header)}.")
        yield line, dict(zip(header, (v.strip() for v in values), strict=True))


def _csv_rows(path: Path) -> Iterator[list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle)
            yield [name.strip().lower() for name in next(reader, [])]
            yield from reader
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as UTF-8 CSV: {error}.") from error


def _parquet_rows(path: Path) -> Iterator[list[str]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "parquet", f"reading {path.name}") from error
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}.") from error
    yield [str(name).strip().lower() for name in table.column_names]
    for row in table.to_pylist():
        yield ["" if v is None else str(v) for v in row.values()]
