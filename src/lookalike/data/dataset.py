"""Data sets: every image of a data folder with its id, label and split; cutting splits by a seed."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from lookalike._files import digest, file_digest, file_identity
from lookalike.errors import DataError
from lookalike.types import Skipped

T = TypeVar("T")

_QUERY_FRACTION, _GALLERY_FRACTION = 0.12, 0.36  # of a class; the rest is training


class Split(StrEnum):
    """The use of an item; an image of `test` is both query and gallery, and never its own hit (leave-one-out)."""

    TRAINING = "training"
    VALIDATION = "validation"
    QUERY = "query"
    GALLERY = "gallery"
    TEST = "test"


TRAINING_SPLITS = (Split.TRAINING, Split.VALIDATION)
TEST_SPLITS = (Split.QUERY, Split.GALLERY, Split.TEST)


@dataclass(frozen=True)
class Item:
    """An image of a data set.

    Attributes:
        id: its path relative to the data folder, with forward slashes; outside that folder, its absolute path.
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
        items: all items, in a fixed order inside each split.
        notes: remarks from loading, one sentence each.
        skipped: folders that could not be listed, so images may be missing.
        validation_query_ids: ids of the validation items that are searched in the others; empty where each is searched
            in all others (leave-one-out).

    Raises:
        DataError: duplicate ids.
    """

    root: Path
    layout: str
    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    validation_query_ids: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        duplicates = [name for name, count in Counter(item.id for item in self.items).items() if count > 1]
        if duplicates:
            raise DataError(
                f"{self.root} has {len(duplicates)} duplicate image ids (first: {duplicates[0]!r}); "
                "list each image once.",
                argument="items",
            )

    def __len__(self) -> int:
        return len(self.items)

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {split}" for split, count in Counter(item.split for item in self.items).items())
        return f"<Dataset: {str(self.root)!r}, {self.layout}: {counts}>"

    def split(self, split: Split | str) -> tuple[Item, ...]:
        """Return the items of one split; query and gallery include those of `test`."""
        splits = (split, Split.TEST) if split in (Split.QUERY, Split.GALLERY) else (split,)
        return tuple(item for item in self.items if item.split in splits)

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

    @property
    def validation_query(self) -> tuple[Item, ...]:
        """Validation items to search with."""
        selected = self.validation_query_ids
        return tuple(item for item in self.validation if not selected or item.id in selected)

    @property
    def validation_gallery(self) -> tuple[Item, ...]:
        """Validation items to search in."""
        return tuple(item for item in self.validation if item.id not in self.validation_query_ids)

    @cached_property
    def query(self) -> tuple[Item, ...]:
        """Items to search with."""
        return self.split(Split.QUERY)

    @cached_property
    def gallery(self) -> tuple[Item, ...]:
        """Items to search in."""
        return self.split(Split.GALLERY)

    @cached_property
    def test(self) -> tuple[Item, ...]:
        """Items of query and gallery, each once."""
        return tuple(item for item in self.items if item.split in TEST_SPLITS)

    @cached_property
    def same_file_ids(self) -> dict[str, frozenset[str]]:
        """Other gallery items with a query's file, as links have, by the query's id; they are never its hits.

        Also of each validation image, the others in that split: there each one is a query.
        """
        return _same_file_ids(self.query, self.gallery) | _same_file_ids(self.validation, self.validation)

    @property
    def max_hits(self) -> int:
        """Number of hits that every query can have: the gallery without the query itself and its file."""
        itself = any(item.split == Split.TEST for item in self.items)
        return len(self.gallery) - itself - self._most_of_one_file(self.query)

    @property
    def validation_excluded(self) -> int:
        """Largest number of validation images that are never hits of a query: the queries, and those with its file."""
        return (len(self.validation_query_ids) or 1) + self._most_of_one_file(self.validation)

    def _most_of_one_file(self, queries: Iterable[Item]) -> int:
        return max((len(self.same_file_ids.get(query.id, ())) for query in queries), default=0)

    @property
    def leave_one_out_notes(self) -> tuple[str, ...]:
        """Remarks that queries are in the gallery too, where none is its own hit."""
        both = [item for item in self.query if item.split == Split.TEST]
        itself = ""
        if both and self.query == self.gallery:
            itself = "leave-one-out: each test image is searched in the other test images"
        elif both:
            count = f"{len(both)} of {len(self.query)} queries"
            itself = f"leave-one-out: {count} are in the gallery too, where they are not hits (first: {both[0].id})"
        return tuple(filter(None, (itself, self._same_file_note(self.query, "queries are in the gallery"))))

    def _same_file_note(self, queries: Sequence[Item], what: str) -> str:
        ids = [query.id for query in queries if query.id in self.same_file_ids]
        if not ids:
            return ""
        return (
            f"leave-one-out by file: {len(ids)} of {len(queries)} {what} under another path too, which is not a hit "
            f"(first: {ids[0]})"
        )

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

    @property
    def validation_classes_unseen(self) -> bool:
        """Whether no validation class occurs in training."""
        return bool(self.validation) and not set(class_names(self.validation)) & set(class_names(self.training))

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
            items = [item for item in self.items if item.split == split]
            if not items:
                continue
            names = class_names(items)
            unlabelled = sum(item.label is None for item in items)
            text = f"  {split:<10} {len(items):>6} images"
            text += f" in {len(names)} {'class' if len(names) == 1 else 'classes'}" if names else ""
            text += f", {unlabelled} without a label" if unlabelled else ""
            lines.append(text)
        validation_note = self._same_file_note(self.validation, "validation images are in that split")
        lines.extend(f"  {note}" for note in (validation_note, *self.leave_one_out_notes) if note)
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


def _same_file_ids(queries: Iterable[Item], gallery: Iterable[Item]) -> dict[str, frozenset[str]]:
    """Return the other gallery items with a query's file, by the query's id, for the queries that have some."""
    by_file = defaultdict(set)
    for item in gallery:
        by_file[file_identity(item.path)].add(item.id)
    by_file.pop(None, None)  # files that do not exist
    same = {query.id: frozenset(by_file.get(file_identity(query.path), set()) - {query.id}) for query in queries}
    return {query: ids for query, ids in same.items() if ids}


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


def shuffled(items: Iterable[T], salt: str) -> list[T]:
    """Return the items in an order that the salt decides."""
    result = list(items)
    random.Random(salt).shuffle(result)
    return result


def split_classes(items: Iterable[Item], *, seed: int, class_disjoint: bool) -> tuple[Item, ...]:
    """Split class folders into training, query and gallery.

    Stratified: 12 % of each class are queries and 36 % gallery, the rest is training; a class with fewer than 3
    images stays in training. Class-disjoint: half of the classes are training; a quarter of each other class are
    queries.
    """
    groups = by_class(items)
    test_classes = shuffled(groups, f"{seed}/classes")[: len(groups) // 2]  # where they are class-disjoint
    result: list[Item] = []
    for label, members in groups.items():
        n = len(members)
        n_query = n_gallery = 0
        if class_disjoint:
            if label in test_classes and n >= 2:
                n_query = max(1, n // 4)
                n_gallery = n - n_query
        elif n >= 3:
            n_query = max(1, round(_QUERY_FRACTION * n))
            n_gallery = max(1, round(_GALLERY_FRACTION * n))
        splits = [Split.QUERY] * n_query + [Split.GALLERY] * n_gallery
        splits += [Split.TRAINING] * (n - len(splits))
        order = shuffled(members, f"{seed}/{label}")
        result.extend(replace(item, split=split) for item, split in zip(order, splits, strict=True))
    return sort_items(result)


def sort_items(items: Iterable[Item]) -> tuple[Item, ...]:
    """Return the items by split, then by id."""
    order = list(Split)
    return tuple(sorted(items, key=lambda item: (order.index(item.split), item.id)))
