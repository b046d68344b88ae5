"""Splitting labelled images by a seed."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

from lookalike.data.dataset import Dataset, Item, Split, by_class
from lookalike.errors import DataError, OptionError

_VALIDATION_FRACTION = 0.15  # of the images of each class, or of the classes
_QUERY_FRACTION, _GALLERY_FRACTION = 0.12, 0.36  # of a class; the rest is training


def with_validation(data: Dataset, *, seed: int = 0, class_disjoint: bool | None = None) -> Dataset:
    """Return the data set with a validation split cut from training, never from the test split.

    A data set with a validation split, which a manifest can define, is returned unchanged.

    Args:
        data: the data set.
        seed: seed of the choice of images or classes.
        class_disjoint: cut whole classes; by default if the test classes are unseen in training.

    Raises:
        OptionError: `class_disjoint` contradicts the existing validation split.
        DataError: training has too few classes or images.

    """
    if data.validation:
        _require_agreement(data, class_disjoint)
        return data
    groups = by_class(data.training)
    if not groups:
        raise DataError(
            f"{data.root} has no labelled training images; put them in training/<class>/, with at least two classes, "
            "or list them in a manifest.csv."
        )
    disjoint = data.test_classes_unseen if class_disjoint is None else class_disjoint
    validation_ids = _whole_classes(groups, seed) if disjoint else _of_each_class(groups, seed)
    if not validation_ids:
        got = f"{len(groups)} {'class' if len(groups) == 1 else 'classes'} with {len(data.training)} images"
        needs = "a class of at least 5 images"
        if disjoint:
            needs = "at least 4 classes" if len(groups) < 4 else "two classes of at least 2 images"
            needs += ", because whole classes are cut"
        raise DataError(
            f"{data.root} has too few training images for a validation split: it needs {needs}, got {got}; add images."
        )
    items = [replace(item, split=Split.VALIDATION) if item.id in validation_ids else item for item in data.items]
    return data.replace_items(items)


def _require_agreement(data: Dataset, class_disjoint: bool | None) -> None:
    shared = {item.label for item in data.validation} & {item.label for item in data.training}
    if class_disjoint is None or class_disjoint == (not shared):
        return
    state, option = ("shares classes with", "class-disjoint") if shared else ("shares no class with", "stratified")
    raise OptionError(
        f"{data.root} already has a validation split, which {state} training, but {option} was requested; drop that "
        "option, or remove the validation split from the manifest.",
        argument="class_disjoint",
    )


def _shuffle(items: Iterable[Item], seed: int, salt: str) -> list[Item]:
    ordered = sorted(items, key=lambda item: item.id)
    random.Random(f"{seed}/{salt}").shuffle(ordered)
    return ordered


def _of_each_class(groups: dict[str, list[Item]], seed: int) -> set[str]:
    """Return the ids of a fraction of each class, enough for a precision@3 of one within validation.

    At least four images of a class of twelve or more, at least two of a smaller one; none of a class under five.
    """
    ids: set[str] = set()
    for label, items in groups.items():
        if len(items) >= 5:
            count = max(4 if len(items) >= 12 else 2, round(_VALIDATION_FRACTION * len(items)))
            ids.update(item.id for item in _shuffle(items, seed, label)[:count])
    return ids


def _whole_classes(groups: dict[str, list[Item]], seed: int) -> set[str]:
    """Return the ids of at least two whole classes; at least two remain for training."""
    labels = sorted(label for label, items in groups.items() if len(items) >= 2)
    random.Random(f"{seed}/classes").shuffle(labels)
    count = max(2, round(_VALIDATION_FRACTION * len(groups)))
    if len(groups) - count < 2 or len(labels) < 2:  # among images of one class every measure is perfect
        return set()
    return {item.id for label in labels[:count] for item in groups[label]}


def split_classes(items: Iterable[Item], *, seed: int, class_disjoint: bool) -> tuple[Item, ...]:
    """Split class folders into training, query and gallery.

    Stratified: 12 % of each class are queries and 36 % gallery, the rest is training; a class under 3 images is
    training. Class-disjoint: half of the classes are training; of each other class a quarter are queries.
    """
    groups = by_class(items)
    test_classes: set[str] = set()
    if class_disjoint:
        labels = sorted(groups)
        random.Random(f"{seed}/classes").shuffle(labels)
        test_classes = set(labels[: len(labels) // 2])
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
        shuffled = _shuffle(members, seed, label)
        result.extend(replace(item, split=split) for item, split in zip(shuffled, splits, strict=True))
    order = list(Split)
    return tuple(sorted(result, key=lambda item: (order.index(item.split), item.id)))
