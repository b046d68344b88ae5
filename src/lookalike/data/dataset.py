"""The catalogue: every image of a data folder with its id, label and split."""

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
    """What an image is for."""

    TRAINING = "training"
    VALIDATION = "validation"
    QUERY = "query"
    GALLERY = "gallery"


@dataclass(frozen=True)
class Item:
    """One image.

    Attributes:
        id: its path relative to the data folder, with forward slashes (or the manifest's own text).
        path: where the file is.
        label: its class, or None where nobody said.
        split: what it is for.
        metadata: further columns of a manifest.

    """

    id: str
    path: Path
    label: str | None
    split: Split
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """A catalogue of images; the layouts are described in `lookalike.data.layouts`.

    Attributes:
        root: the data folder.
        layout: what the folder was recognised as, in words.
        items: all images, sorted by id inside each split.
        notes: what was noticed while loading, one sentence each.
        skipped: folders that could not be listed, so that images may be missing.

    """

    root: Path
    layout: str
    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    def __post_init__(self) -> None:
        counts = Counter(item.id for item in self.items)
        twice = [name for name, n in counts.items() if n > 1]
        if twice:
            raise DataError(
                f"{self.root} names {len(twice)} images more than once, the first is {twice[0]!r}; "
                "keep one row for each."
            )

    def __len__(self) -> int:
        return len(self.items)

    def __str__(self) -> str:
        return self.summary()

    def split(self, split: Split | str) -> tuple[Item, ...]:
        """Return the items of one split."""
        return tuple(item for item in self.items if item.split == split)

    def labels(self, split: Split | str) -> dict[str, str]:
        """Return the label of each labelled item of one split by its id."""
        return {item.id: item.label for item in self.split(split) if item.label is not None}

    @cached_property
    def training(self) -> tuple[Item, ...]:
        """Items to train on."""
        return self.split(Split.TRAINING)

    @cached_property
    def validation(self) -> tuple[Item, ...]:
        """Items to choose by; empty until `with_validation` cut them from training, unless a manifest names them."""
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
        """Return the class names of the training items, sorted."""
        return class_names(self.training)

    @property
    def test_is_labelled(self) -> bool:
        """Whether query and gallery carry labels, so that measures can be taken on them."""
        return any(i.label for i in self.query) and any(i.label for i in self.gallery)

    @property
    def test_classes_unseen(self) -> bool:
        """Whether most labelled queries belong to classes that no training image has."""
        known = {i.label for i in (*self.training, *self.validation)}
        labels = [i.label for i in self.query if i.label]
        return bool(labels) and sum(label not in known for label in labels) * 2 > len(labels)

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the training and validation images: ids, labels and the files' bytes.

        Whether an image is for training or validation is left out, so that cutting a validation part keeps it.
        """
        items = sorted((*self.training, *self.validation), key=lambda i: i.id)
        found = contents(items)
        return digest(*(f"{i.id}\t{i.label}\t{found.get(i.id, 'missing')}" for i in items))

    def replace_items(self, items: Iterable[Item]) -> Dataset:
        """Return the same data set with other items."""
        return replace(self, items=tuple(items))

    def summary(self, name: str = "") -> str:
        """Say what was found, in a few lines; `name` stands for the folder's path."""
        lines = [f"{name or self.root}: {self.layout}, {len(self.items)} images"]
        for split in Split:
            part = self.split(split)
            if not part:
                continue
            names = class_names(part)
            unlabelled = sum(i.label is None for i in part)
            text = f"  {split:<10} {len(part):>6} images"
            text += f" in {len(names)} {'class' if len(names) == 1 else 'classes'}" if names else ""
            text += f", {unlabelled} without a label" if unlabelled else ""
            lines.append(text)
        if self.test_classes_unseen:
            lines.append("  most queries are of classes that the training part does not have")
        lines.extend(f"  note: {note}" for note in self.notes)
        if self.skipped:
            many = f"{len(self.skipped)} folders were" if len(self.skipped) > 1 else "1 folder was"
            first = self.skipped[0]
            if name and first.path.is_relative_to(self.root):
                first = replace(first, path=name / first.path.relative_to(self.root))
            lines.append(f"  note: {many} skipped, the first is {first}")
        return "\n".join(lines)


def sample_evenly(items: Sequence[T], limit: int, *, seed: int | None = None) -> Sequence[T]:
    """Return at most `limit` items, evenly spaced and in their order; a seed shifts them all by one offset."""
    if len(items) <= limit:
        return items
    offset = 0.0 if seed is None else np.random.default_rng(seed).random()
    return [items[int(position)] for position in (np.arange(limit) + offset) * (len(items) / limit)]


def contents(items: Iterable[Item]) -> dict[str, str]:
    """Return the fingerprint of each image's bytes by id; one that cannot be read is skipped in all that follows."""
    found = {}
    for item in items:
        with suppress(OSError):
            if item.path.is_file():
                found[item.id] = file_digest(item.path)
    return found


def class_names(items: Iterable[Item]) -> tuple[str, ...]:
    """Return the distinct labels of the items, sorted; items without a label do not count."""
    return tuple(sorted({i.label for i in items if i.label is not None}))


def by_class(items: Iterable[Item]) -> dict[str, list[Item]]:
    """Group labelled items by label, classes and ids sorted."""
    groups: dict[str, list[Item]] = {}
    for item in sorted(items, key=lambda i: i.id):
        if item.label is not None:
            groups.setdefault(item.label, []).append(item)
    return dict(sorted(groups.items()))
