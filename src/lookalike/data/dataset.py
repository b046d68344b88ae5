"""Data sets: every image of a data folder with its id, label and split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from lookalike._files import digest, file_digest
from lookalike.errors import DataError
from lookalike.types import Skipped

T = TypeVar("T")


class Split(StrEnum):
    """The use of an item: training, validation, query or gallery."""

    TRAINING = "training"
    VALIDATION = "validation"
    QUERY = "query"
    GALLERY = "gallery"


@dataclass(frozen=True)
class Item:
    """An image of a data set.

    Attributes:
        id: its path relative to the data folder, with forward slashes; in a manifest, the path as written there.
        path: its file.
        label: its class, or None.
        split: its use.
        metadata: the other columns of a manifest.

    """

    id: str
    path: Path
    label: str | None
    split: Split
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """A data set; `load_dataset` loads one from a folder.

    Attributes:
        root: the data folder.
        layout: the detected layout, in words.
        items: all items, sorted by id inside each split.
        notes: remarks from loading, one sentence each.
        skipped: folders that could not be listed, so images may be missing.

    Raises:
        DataError: duplicate ids.

    """

    root: Path
    layout: str
    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    def __post_init__(self) -> None:
        duplicates = [name for name, count in Counter(item.id for item in self.items).items() if count > 1]
        if duplicates:
            raise DataError(
                f"{self.root} has {len(duplicates)} duplicate image ids (first: {duplicates[0]!r}); "
                "list each image once."
            )

    def __len__(self) -> int:
        return len(self.items)

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(self.split(split))} {split}" for split in Split if self.split(split))
        return f"<Dataset: {str(self.root)!r}, {self.layout}: {counts}>"

    def split(self, split: Split | str) -> tuple[Item, ...]:
        """Return the items of one split."""
        return tuple(item for item in self.items if item.split == split)

    def labels(self, split: Split | str) -> dict[str, str]:
        """Return the labels of one split by item id; items without a label are absent."""
        return {item.id: item.label for item in self.split(split) if item.label is not None}

    @cached_property
    def training(self) -> tuple[Item, ...]:
        """Items to train on."""
        return self.split(Split.TRAINING)

    @cached_property
    def validation(self) -> tuple[Item, ...]:
        """Items to select models by; if a manifest has none, `with_validation` cuts them from training."""
        return self.split(Split.VALIDATION)

    @cached_property
    def query(self) -> tuple[Item, ...]:
        """Items to search with."""
        return self.split(Split.QUERY)

    @cached_property
    def gallery(self) -> tuple[Item, ...]:
        """Items to search in."""
        return self.split(Split.GALLERY)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names of the training items, sorted."""
        return class_names(self.training)

    @property
    def test_is_labelled(self) -> bool:
        """Whether query and gallery have labels, so that they can be evaluated."""
        return any(item.label for item in self.query) and any(item.label for item in self.gallery)

    @property
    def test_classes_unseen(self) -> bool:
        """Whether most labelled queries belong to classes that no training image has."""
        trained = {item.label for item in (*self.training, *self.validation)}
        labels = [item.label for item in self.query if item.label]
        return bool(labels) and sum(label not in trained for label in labels) * 2 > len(labels)

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the training and validation images: ids, labels and the files' bytes.

        It does not depend on which of them are for validation.
        """
        items = sorted((*self.training, *self.validation), key=lambda item: item.id)
        hashes = content_hashes(items)
        return digest(*(f"{item.id}\t{item.label}\t{hashes.get(item.id, 'missing')}" for item in items))

    def replace_items(self, items: Iterable[Item]) -> Dataset:
        """Return the same data set with other items."""
        return replace(self, items=tuple(items))

    def summary(self, name: str = "") -> str:
        """Describe the data set in a few lines; `name` replaces the folder's path."""
        lines = [f"{name or self.root}: {self.layout}, {len(self.items)} images"]
        for split in Split:
            items = self.split(split)
            if not items:
                continue
            names = class_names(items)
            unlabelled = sum(item.label is None for item in items)
            text = f"  {split:<10} {len(items):>6} images"
            text += f" in {len(names)} {'class' if len(names) == 1 else 'classes'}" if names else ""
            text += f", {unlabelled} without a label" if unlabelled else ""
            lines.append(text)
        if self.test_classes_unseen:
            lines.append("  most queries are of classes that the training split does not have")
        lines.extend(f"  note: {note}" for note in self.notes)
        if self.skipped:
            count = f"{len(self.skipped)} folders" if len(self.skipped) > 1 else "1 folder"
            first = self.skipped[0]
            if name and first.path.is_relative_to(self.root):
                first = replace(first, path=name / first.path.relative_to(self.root))
            lines.append(f"  note: {count} skipped (first: {first})")
        return "\n".join(lines)


def sample_evenly(items: Sequence[T], limit: int, *, seed: int | None = None) -> Sequence[T]:
    """Return at most `limit` items, evenly spaced and in their order; a seed shifts them all by one offset."""
    if len(items) <= limit:
        return items
    offset = 0.0 if seed is None else np.random.default_rng(seed).random()
    return [items[int(position)] for position in (np.arange(limit) + offset) * (len(items) / limit)]


def content_hashes(items: Iterable[Item]) -> dict[str, str]:
    """Return the hash of each image's bytes by id; unreadable files are absent."""
    hashes = {}
    for item in items:
        with suppress(OSError):
            if item.path.is_file():
                hashes[item.id] = file_digest(item.path)
    return hashes


def class_names(items: Iterable[Item]) -> tuple[str, ...]:
    """Return the distinct labels of the items, sorted."""
    return tuple(sorted({item.label for item in items if item.label is not None}))


def by_class(items: Iterable[Item]) -> dict[str, list[Item]]:
    """Group labelled items by label, classes and ids sorted."""
    groups: dict[str, list[Item]] = {}
    for item in sorted(items, key=lambda item: item.id):
        if item.label is not None:
            groups.setdefault(item.label, []).append(item)
    return dict(sorted(groups.items()))
