"""Checking a data set: unreadable, duplicate, leaked and mislabelled images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lookalike._arguments import checked_arguments
from lookalike._files import require_free, write_csv, write_json
from lookalike._lock import locked
from lookalike.data.dataset import TEST_SPLITS, TRAINING_SPLITS, Dataset, Item, Split, by_class, class_names
from lookalike.data.duplicates import Scan, connected_groups, exact_groups, is_leak, near_pairs, scan
from lookalike.data.layouts import load_dataset
from lookalike.errors import DataError, OptionError
from lookalike.progress import Progress, resolve_progress
from lookalike.types import Skipped

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """A problem of a data set.

    Attributes:
        code: its kind, such as `unreadable`, `unlisted`, `contradiction`, `leak` or `near-duplicate`.
        severity: an error makes results wrong, a warning may.
        message: one sentence.
        ids: the items concerned.
    """

    code: str
    severity: Severity
    message: str
    ids: tuple[str, ...]


@dataclass(frozen=True)
class FindingKind:
    """All findings of one kind."""

    code: str  # as in `Finding`
    severity: Severity  # as in `Finding`
    count: int  # number of findings
    example: str  # the message of the first one


@dataclass(frozen=True)
class CheckReport:
    """The result of `check`.

    Attributes:
        data: the data set.
        findings: all findings, in the order of the checks.
        readable: number of images that can be read.
        dropped: the ids that a clean data set excludes, with the reasons.
        skipped: files and folders that could not be read; each is also among the findings.
    """

    data: Dataset
    findings: tuple[Finding, ...]
    readable: int
    dropped: Mapping[str, str]
    skipped: tuple[Skipped, ...] = ()

    def __repr__(self) -> str:
        counts = f"{len(self.errors)} errors, {len(self.warnings)} warnings"
        return f"<CheckReport: {self.readable} of {self.images} images readable, {counts}>"

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that make results wrong."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings that may be harmless."""
        return tuple(finding for finding in self.findings if finding.severity == "warning")

    @property
    def images(self) -> int:
        """Number of images in the data set, readable or not."""
        return len(self.data)

    @property
    def exit_code(self) -> int:
        """1 if there are errors, else 0."""
        return 1 if self.errors else 0

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {
            "data": str(self.data.root),
            "layout": self.data.layout,
            "images": self.images,
            "readable": self.readable,
            "errors": [asdict(finding) for finding in self.errors],
            "warnings": [asdict(finding) for finding in self.warnings],
            "dropped": dict(self.dropped),
        }

    @property
    def kinds(self) -> tuple[FindingKind, ...]:
        """The kinds of findings, errors first."""
        groups: dict[tuple[str, Severity], list[Finding]] = {}
        for finding in (*self.errors, *self.warnings):
            groups.setdefault((finding.code, finding.severity), []).append(finding)
        return tuple(FindingKind(*key, len(group), group[0].message) for key, group in groups.items())

    def clean_items(self) -> tuple[Item, ...]:
        """Return the items of the clean data set.

        It excludes unreadable images, identical images with contradictory labels, training copies of test or validation
        images, and all but the first of identical images with one label in one split.
        """
        return tuple(item for item in self.data.items if item.id not in self.dropped)

    @checked_arguments()
    def write_clean_manifest(self, path: Path | str) -> Path:
        """Write the clean data set as a manifest for `load_dataset`, and return its path.

        Args:
            path: a new `manifest.csv`, or the folder for it. Images below that folder are named relative to it, others
                by their absolute path; metadata columns are kept.

        Raises:
            OptionError: another file name, which `load_dataset` would not find.
            StorageError: the file exists or cannot be written.
            DataError: no image remains.
        """
        target = clean_manifest_path(path)
        items = self.clean_items()
        if not items:
            raise DataError(
                f"no image of {self.data.root} remains after cleaning, so there is no manifest to write.",
                argument="data",
            )
        folder = Path(os.path.abspath(target.parent))  # noqa: PTH100 - resolve() would follow links out of the folder
        columns = sorted({name for item in items for name in item.metadata})
        rows = [
            (_manifest_path(item, folder), item.label or "", item.split, *(item.metadata.get(c, "") for c in columns))
            for item in items
        ]
        write_csv(target, ("path", "label", "split", *columns), rows)
        return target


def clean_manifest_path(path: Path | str) -> Path:
    """Return the path of a clean manifest, which must be a new manifest.csv or the folder for it."""
    target = Path(path)
    if target.is_dir() or not target.suffix:
        target /= "manifest.csv"
    if target.name != "manifest.csv":
        raise OptionError(f"`clean_manifest` must be named manifest.csv, got {target.name}.", argument="clean_manifest")
    require_free(target, "clean_manifest", file=True)
    return target


def _manifest_path(item: Item, folder: Path) -> str:
    try:
        item.id.encode()
    except UnicodeEncodeError as error:
        name = os.fsencode(item.id).decode("utf-8", "backslashreplace")
        raise DataError(
            f"{name} is not valid Unicode, so a manifest cannot name it; rename the file.", argument="data"
        ) from error
    path = Path(os.path.abspath(item.path))  # noqa: PTH100 - as above
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()


@checked_arguments()
def check(
    data: Dataset | Path | str,
    *,
    out: Path | str | None = None,
    clean_manifest: Path | str | None = None,
    near: bool = True,
    progress: Progress | None = None,
) -> CheckReport:
    """Read every image of a data set once and report its problems.

    Args:
        data: a data set, or its folder.
        out: a new JSON file for the report.
        clean_manifest: a new `manifest.csv`, or the folder for it, with the images to keep; see
            `CheckReport.write_clean_manifest`.
        near: also look for near duplicates.
        progress: receives progress and messages; None shows a bar in a terminal or notebook, and logs elsewhere.

    Raises:
        DataError: the folder cannot be loaded, or no image remains for the clean manifest. Problems of single images
            are reported, not raised.
        OptionError: a clean manifest of another name.
        StorageError: a file exists, cannot be written, or is being written by another run.
    """
    with ExitStack() as locks:
        if out is not None:
            locks.enter_context(locked(Path(out)))
            require_free(Path(out), file=True)
        if clean_manifest is not None:
            manifest = clean_manifest_path(clean_manifest)  # fails before the work
            locks.enter_context(locked(manifest, "clean_manifest"))
        dataset = data if isinstance(data, Dataset) else load_dataset(data)
        report = _check(dataset, near=near, progress=resolve_progress(progress))
        if out is not None:
            write_json(Path(out), report.to_dict())
        if clean_manifest is not None:
            report.write_clean_manifest(clean_manifest)
    return report


def _check(dataset: Dataset, *, near: bool, progress: Progress) -> CheckReport:
    progress.info(str(dataset))
    scanned = scan(dataset.items, progress)
    by_id = {item.id: item for item in dataset.items}
    items = [by_id[name] for name in scanned.ids]  # row i of the scan
    groups = [[items[row] for row in rows] for rows in exact_groups(scanned)]
    findings = [
        *(Finding("unlisted", "error", f"{skipped}.", ()) for skipped in dataset.skipped),
        *(Finding("unreadable", "error", f"{name}: {file.cause}.", (name,)) for name, file in scanned.skipped.items()),
        *(finding for group in groups for finding in _exact(group)),
        *(_near(scanned, items) if near else ()),
        *_splits(dataset),
        *_classes(dataset, items),
        *(Finding("note", "warning", f"{note}.", ()) for note in dataset.notes),
    ]
    skipped = (*dataset.skipped, *scanned.skipped.values())
    return CheckReport(dataset, tuple(findings), len(items), _dropped(scanned, groups), skipped)


def _exact(group: Sequence[Item]) -> Iterator[Finding]:
    ids = tuple(item.id for item in group)
    labels = class_names(group)
    splits = {item.split for item in group}
    if is_leak(splits):
        yield Finding("leak", "error", f"{_join(ids)} are identical, in training and in test.", ids)
    if len(labels) > 1:
        yield Finding("contradiction", "error", f"{_join(ids)} are identical, with the labels {_join(labels)}.", ids)
        return  # none of them is kept, so that they are also copies does not matter
    for code, pair in (("validation-leak", TRAINING_SPLITS), ("query-in-gallery", (Split.QUERY, Split.GALLERY))):
        if splits.issuperset(pair):
            shared = tuple(item.id for item in group if item.split in pair)
            yield Finding(code, "warning", f"{_join(shared)} are identical, in {pair[0]} and in {pair[1]}.", shared)
    for split in Split:
        copies = tuple(item.id for item in group if item.split == split)
        if len(copies) > 1:
            both = "both" if len(copies) == 2 else "all"
            yield Finding("duplicate", "warning", f"{_join(copies)} are identical, {both} in {split}.", copies)


def _near(scanned: Scan, items: Sequence[Item]) -> Iterator[Finding]:
    """Yield the near duplicates; of exact copies in one split only the first is compared."""
    first: dict[tuple[str, Split], int] = {}
    for row, (pixels, item) in enumerate(zip(scanned.pixels, items, strict=True)):
        first.setdefault((pixels, item.split), row)
    pairs = near_pairs(scanned, list(first.values()))
    order = list(Split)
    sides = np.array([order.index(item.split) for item in items], np.int64)[pairs]  # (m, 2)
    training = sides < len(TRAINING_SPLITS)
    same = sides[:, 0] == sides[:, 1]
    across = training[:, 0] != training[:, 1]
    kinds = (
        ("near-leak", across, "in training and in test"),
        ("near-validation-leak", training.all(axis=1) & ~same, "in training and in validation"),
        ("near-query-in-gallery", ~training.any(axis=1) & ~same, "in query and in gallery"),
        *(("near-duplicate", same & (sides[:, 0] == i), f"in {split}") for i, split in enumerate(order)),
    )
    for code, mask, where in kinds:
        for rows in connected_groups(pairs[mask]):
            group = [items[row] for row in rows]
            ids = tuple(item.id for item in group)
            labels = class_names(group)
            suffix = f", with the labels {_join(labels)}" if len(labels) > 1 else ""
            yield Finding(code, "warning", f"{_join(ids)} look nearly identical, {where}{suffix}.", ids)


def _splits(dataset: Dataset) -> Iterator[Finding]:
    """Yield the splits that are missing although there is one that needs them."""
    splits = {item.split for item in dataset.items}
    if Split.QUERY in splits and Split.GALLERY not in splits:
        yield Finding("no-gallery", "warning", "there are queries, but no gallery to search in.", ())
    if Split.VALIDATION in splits and Split.TRAINING not in splits:
        yield Finding("no-training", "warning", "there is a validation split, but no training split to learn from.", ())


def _classes(dataset: Dataset, readable: Sequence[Item]) -> Iterator[Finding]:
    """Yield the problems of classes; there are none without labels."""
    classes = {split: by_class(item for item in readable if item.split == split) for split in Split}
    training = classes[Split.TRAINING]
    for label, members in training.items():
        if len(members) == 1:
            text = f"the class {label!r} has 1 training image, too few for training and validation."
            yield Finding("single-image-class", "warning", text, (members[0].id,))
    if len(training) == 1:
        text = f"training has 1 class, {next(iter(training))!r}; fine-tuning needs at least 2."
        yield Finding("single-class", "warning", text, ())
    if dataset.test_is_labelled:
        alone = {label: members for label, members in classes[Split.TEST].items() if len(members) == 1}
        for label, members in (classes[Split.QUERY] | alone).items():
            if label not in classes[Split.GALLERY] and (label in alone or label not in classes[Split.TEST]):
                queries = "1 query" if len(members) == 1 else f"{len(members)} queries"
                text = f"{queries} of the class {label!r} will be excluded: the gallery has no image of it."
                yield Finding("query-without-match", "warning", text, tuple(item.id for item in members))
    trained = training | classes[Split.VALIDATION]
    test = by_class(item for item in readable if item.split in TEST_SPLITS)
    unseen = [label for label in test if trained and label not in trained]
    if unseen and len(unseen) == len(test):  # on purpose
        text = f"the test is class-disjoint: none of its {len(test)} classes is among the {len(trained)} of training."
        yield Finding("class-disjoint", "warning", text, ())
        return
    for label in unseen:
        text = f"the class {label!r} is in the test split ({len(test[label])} images), but not in training."
        yield Finding("unseen-class", "warning", text, tuple(item.id for item in test[label]))


def _dropped(scanned: Scan, groups: Sequence[Sequence[Item]]) -> dict[str, str]:
    """Return which images to drop, with the reasons; `groups` are of identical ones.

    Test keeps its copy before validation, and validation before training. Query and gallery may share an image.
    """
    dropped = {name: skipped.cause for name, skipped in scanned.skipped.items()}
    for group in groups:
        splits = {item.split for item in group}
        contradictory = len(class_names(group)) > 1
        first: dict[tuple[Split, str | None], str] = {}
        for item in group:
            if contradictory:
                dropped[item.id] = "identical images have different labels"
            elif item.split in TRAINING_SPLITS and splits & set(TEST_SPLITS):
                dropped[item.id] = "an identical image is in test"
            elif item.split == Split.TRAINING and Split.VALIDATION in splits:
                dropped[item.id] = "an identical image is in validation"
            elif (item.split, item.label) in first:
                dropped[item.id] = f"identical to {first[item.split, item.label]}"
            else:
                first[item.split, item.label] = item.id
    return dropped


def _join(names: Sequence[str]) -> str:
    if len(names) > 3:
        return f"{', '.join(names[:2])} and {len(names) - 2} more"
    return f"{', '.join(names[:-1])} and {names[-1]}"
