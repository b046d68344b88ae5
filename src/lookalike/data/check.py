"""Checking a data folder before a night is spent on it: unreadable, repeated, leaked and mislabelled images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lookalike._files import require_free, write_json
from lookalike.data.dataset import Dataset, Item, Split, by_class
from lookalike.data.duplicates import Rows, Scan, connected, exact_groups, near_links, scan
from lookalike.data.findings import CheckReport, Finding, clean_manifest_at
from lookalike.data.layouts import load_dataset
from lookalike.data.leaks import LEARNING, MEASURING, is_leak
from lookalike.progress import SILENT, Progress, counter


def check(
    data: Dataset | Path | str,
    *,
    out: Path | str | None = None,
    clean_manifest: Path | str | None = None,
    near: bool = True,
    progress: Progress = SILENT,
) -> CheckReport:
    """Read every image of a data set once and report what is wrong with it.

    Args:
        data: a data set, or its folder.
        out: a new file for the findings, as JSON.
        clean_manifest: a new `manifest.csv`, or the folder for it, that names the images to keep; see
            `CheckReport.write_clean_manifest`.
        near: also look for near duplicates, not only for exact ones.
        progress: is told what the data set is, and how many images are read.

    Raises:
        DataError: when the folder cannot be loaded, or nothing is left for the clean manifest; what is wrong with
            single images is reported, not raised.
        OptionError: when the clean manifest would have a name by which nothing finds it.
        StorageError: when a file exists or cannot be written.

    """
    if out is not None:
        require_free(Path(out))
    if clean_manifest is not None:
        clean_manifest_at(clean_manifest)  # better said now than when all is read
    dataset = data if isinstance(data, Dataset) else load_dataset(data)
    progress.info(str(dataset))
    report = _report(dataset, near, progress)
    if out is not None:
        write_json(Path(out), report.to_dict())
    if clean_manifest is not None:
        report.write_clean_manifest(clean_manifest)
    return report


def _report(dataset: Dataset, near: bool, progress: Progress) -> CheckReport:
    found = scan(dataset.items, progress=counter(progress, "checking"))
    by_id = {item.id: item for item in dataset.items}
    items = [by_id[name] for name in found.ids]  # row i of the scan
    groups = [[items[row] for row in rows] for rows in exact_groups(found)]
    findings = [
        *(Finding("unlisted", "error", f"{skipped}.", ()) for skipped in dataset.skipped),
        *_unreadable(found),
        *(finding for group in groups for finding in _exact(group)),
        *(_near(found, items) if near else ()),
        *_labels(dataset, items),
        *(Finding("note", "warning", note.rstrip(".") + ".", ()) for note in dataset.notes),
    ]
    return CheckReport(dataset, tuple(findings), len(items), _dropped(found, groups))


def _unreadable(found: Scan) -> Iterator[Finding]:
    for name, skipped in found.skipped.items():
        yield Finding("unreadable", "error", f"{name} cannot be used: {skipped.cause}.", (name,))


def _exact(group: Sequence[Item]) -> Iterator[Finding]:
    """Say what is wrong with one group of identical images: one finding for each kind."""
    ids = tuple(item.id for item in group)
    labels = _labels_of(group)
    splits = {item.split for item in group}
    if is_leak(splits):
        yield Finding("leak", "error", f"{_names(ids)} are the same picture, in training and in test.", ids)
    if len(labels) > 1:
        text = f"{_names(ids)} are the same picture, but carry the labels {_names(labels)}."
        yield Finding("contradiction", "error", text, ids)
        return  # none of them can stay, so that they are copies as well is no further news
    if splits.issuperset(LEARNING):
        yield _pair("validation-leak", "the same picture", group, LEARNING)
    if splits.issuperset(MEASURING):
        yield _pair("query-in-gallery", "the same picture", group, MEASURING)
    for split in Split:
        same = tuple(item.id for item in group if item.split == split)
        if len(same) > 1:
            both = "both" if len(same) == 2 else "all"
            yield Finding("duplicate", "warning", f"{_names(same)} are the same picture, {both} in {split}.", same)


def _pair(code: str, what: str, group: Sequence[Item], splits: tuple[Split, Split]) -> Finding:
    ids = tuple(item.id for item in group if item.split in splits)
    return Finding(code, "warning", f"{_names(ids)} are {what}, in {splits[0]} and in {splits[1]}.", ids)


def _near(found: Scan, items: Sequence[Item]) -> Iterator[Finding]:
    """Say which images are near duplicates; of exact copies in one split only the first is compared."""
    first = {
        (pixels, item.split): row
        for row, (pixels, item) in reversed(list(enumerate(zip(found.pixels, items, strict=True))))
    }
    links = near_links(found, list(first.values()))
    order = list(Split)
    sides = np.array([order.index(item.split) for item in items], np.int64)[links]  # (m, 2)
    training = sides < len(LEARNING)
    same = sides[:, 0] == sides[:, 1]
    across = training[:, 0] != training[:, 1]
    kinds = (
        ("near-leak", across, "in training and in test"),
        ("near-validation-leak", training.all(axis=1) & ~same, "in training and in validation"),
        ("near-query-in-gallery", ~training.any(axis=1) & ~same, "in query and in gallery"),
        *(("near-duplicate", same & (sides[:, 0] == i), f"inside {split}") for i, split in enumerate(order)),
    )
    for code, mask, where in kinds:
        yield from _near_groups(code, links[mask], where, items)


def _near_groups(code: str, links: Rows, where: str, items: Sequence[Item]) -> Iterator[Finding]:
    for rows in connected(links):
        group = [items[row] for row in rows]
        ids = tuple(item.id for item in group)
        labels = _labels_of(group)
        others = f", with the labels {_names(labels)}" if len(labels) > 1 else ""
        yield Finding(code, "warning", f"{_names(ids)} look nearly the same, {where}{others}.", ids)


def _labels(dataset: Dataset, readable: Sequence[Item]) -> Iterator[Finding]:
    """Say which classes cannot work; silent where nobody gave labels."""
    part = {split: by_class(item for item in readable if item.split == split) for split in Split}
    for label, members in part[Split.TRAINING].items():
        if len(members) == 1:
            text = f"the class {label!r} has one training image, too few to learn from and to validate with."
            yield Finding("single-image-class", "warning", text, (members[0].id,))
    if len(part[Split.TRAINING]) == 1:
        text = f"training is of one class, {next(iter(part[Split.TRAINING]))!r}, and fine-tuning needs at least two."
        yield Finding("single-class", "warning", text, ())
    if dataset.test_is_labelled:
        for label, members in part[Split.QUERY].items():
            if label not in part[Split.GALLERY]:
                who = "one query" if len(members) == 1 else f"{len(members)} queries"
                text = f"{who} of the class {label!r} will be left out: the gallery has no image of it."
                yield Finding("query-without-match", "warning", text, tuple(item.id for item in members))
    yield from _unseen(
        part[Split.TRAINING] | part[Split.VALIDATION], by_class(i for i in readable if i.split in MEASURING)
    )


def _unseen(trained: dict[str, list[Item]], tested: dict[str, list[Item]]) -> Iterator[Finding]:
    """Say which test classes training never shows; when it shows none, the test is meant to be class-disjoint."""
    unseen = [label for label in tested if label not in trained]
    if not trained or not unseen:
        return
    if len(unseen) == len(tested):
        text = f"the test is class-disjoint: none of its {len(tested)} classes is among the {len(trained)} of training."
        yield Finding("class-disjoint", "warning", text, ())
        return
    for label in unseen:
        text = f"the class {label!r} is in the test part ({len(tested[label])} images), but not in training."
        yield Finding("unseen-class", "warning", text, tuple(item.id for item in tested[label]))


def _dropped(found: Scan, groups: Sequence[Sequence[Item]]) -> dict[str, str]:
    """Return the ids that a clean data set leaves out, each with the reason."""
    dropped = {name: skipped.cause for name, skipped in found.skipped.items()}
    for group in groups:
        if len(_labels_of(group)) > 1:
            dropped.update({item.id: "the same picture carries several labels" for item in group})
            continue
        dropped.update(_copies(group))
    return dropped


def _copies(group: Sequence[Item]) -> dict[str, str]:
    """Choose which of identical images with no contradiction to leave out.

    The part that measures keeps its copy: test before validation before training. Query and gallery may share one.
    """
    splits = {item.split for item in group}
    out: dict[str, str] = {}
    kept: dict[tuple[Split, str | None], str] = {}
    for item in group:
        if item.split in LEARNING and splits & set(MEASURING):
            out[item.id] = "the same picture is in test"
        elif item.split == Split.TRAINING and Split.VALIDATION in splits:
            out[item.id] = "the same picture is in validation"
        elif (item.split, item.label) in kept:
            out[item.id] = f"the same picture as {kept[item.split, item.label]}"
        else:
            kept[item.split, item.label] = item.id
    return out


def _labels_of(group: Sequence[Item]) -> tuple[str, ...]:
    return tuple(sorted({item.label for item in group if item.label is not None}))


def _names(names: Sequence[str]) -> str:
    """Join up to three names to words."""
    if len(names) > 3:
        return f"{', '.join(names[:2])} and {len(names) - 2} more"
    return f"{', '.join(names[:-1])} and {names[-1]}"
