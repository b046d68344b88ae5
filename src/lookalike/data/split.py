"""Cutting a set of labelled images in parts, by a seed."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

from lookalike.data.dataset import Dataset, Item, Split, by_class
from lookalike.errors import DataError, OptionError

VALIDATION_FRACTION = 0.15
_TEST_FRACTIONS = (0.12, 0.36)  # of a class: queries, gallery; the rest is training


def with_validation(
    data: Dataset, *, seed: int = 0, fraction: float = VALIDATION_FRACTION, class_disjoint: bool | None = None
) -> Dataset:
    """Return the data set with a validation part cut from training, never from the test part.

    Args:
        data: left alone when it already has a validation part (a manifest may name one).
        seed: decides which images, or classes, are cut.
        fraction: of the training images of each class, or of the training classes when class-disjoint.
        class_disjoint: cut whole classes; by default exactly when the test classes are unseen in training.

    Raises:
        OptionError: for a fraction outside 0 to 0.5, or a way of cutting that the present validation part is not of.
        DataError: when training has too few classes or images to cut from.

    """
    if not 0 < fraction <= 0.5:
        raise OptionError(f"the validation fraction must be above 0 and at most 0.5, got {fraction}.")
    if data.validation:
        _require_cut(data, class_disjoint)
        return data
    groups = by_class(data.training)
    if not groups:
        raise DataError(
            f"{data.root} has no labelled training images; "
            "put them in training/<class>/, in two class folders or more, or name them in a manifest.csv."
        )
    disjoint = data.test_classes_unseen if class_disjoint is None else class_disjoint
    chosen = _whole_classes(groups, fraction, seed) if disjoint else _from_each_class(groups, fraction, seed)
    if not chosen:
        got = f"{len(groups)} {'class' if len(groups) == 1 else 'classes'} with {len(data.training)} images"
        needs = "a class of 5 images or more"
        if disjoint:
            few = "at least 4 classes, as whole classes are cut"
            needs = few if len(groups) < 4 else "two classes of 2 images or more, as whole classes are cut"
        raise DataError(
            f"{data.root} has too few training images to cut a validation part: it needs {needs}, got {got}; add some."
        )
    items = [replace(i, split=Split.VALIDATION) if i.id in chosen else i for i in data.items]
    return data.replace_items(items)


def _require_cut(data: Dataset, class_disjoint: bool | None) -> None:
    """Raise `OptionError` when validation, which is there already, is not of classes of its own, or is, as asked."""
    shared = {i.label for i in data.validation} & {i.label for i in data.training}
    if class_disjoint is None or class_disjoint == (not shared):
        return
    told, wanted = ("shares classes with", "class-disjoint") if shared else ("has no class of", "stratified")
    raise OptionError(
        f"the validation part of {data.root} is there already and {told} training; "
        f"leave out {wanted}, or leave the part out of the manifest, so that one is cut."
    )


def _shuffled(items: Iterable[Item], seed: int, salt: str) -> list[Item]:
    ordered = sorted(items, key=lambda i: i.id)
    random.Random(f"{seed}/{salt}").shuffle(ordered)
    return ordered


def _from_each_class(groups: dict[str, list[Item]], fraction: float, seed: int) -> set[str]:
    """Take a share of each class, with enough of it that precision@3 within validation can reach one.

    At least four of a class of twelve or more, at least two of a smaller one; classes under five images stay whole.
    """
    chosen: set[str] = set()
    for label, items in groups.items():
        if len(items) >= 5:
            count = max(4 if len(items) >= 12 else 2, round(fraction * len(items)))
            chosen.update(i.id for i in _shuffled(items, seed, label)[:count])
    return chosen


def _whole_classes(groups: dict[str, list[Item]], fraction: float, seed: int) -> set[str]:
    """Take whole classes, at least two, and leave at least two for training."""
    labels = sorted(label for label, items in groups.items() if len(items) >= 2)
    random.Random(f"{seed}/classes").shuffle(labels)
    count = max(2, round(fraction * len(groups)))
    if len(groups) - count < 2 or len(labels) < 2:  # among images of one class every measure is perfect
        return set()
    return {i.id for label in labels[:count] for i in groups[label]}


def split_classes(items: Iterable[Item], *, seed: int, class_disjoint: bool) -> tuple[Item, ...]:
    """Split class folders into training, query and gallery.

    Stratified: of each class 12 % queries and 36 % gallery, the rest training. Class-disjoint: half of the classes are
    training; of the other half a quarter of each class are queries. A class with fewer than 3 images is all training,
    since it cannot have a query, a gallery image and a training image.
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
        if class_disjoint:
            if label not in test_classes or n < 2:
                n_query = n_gallery = 0
            else:
                n_query = max(1, n // 4)
                n_gallery = n - n_query
        elif n < 3:
            n_query = n_gallery = 0
        else:
            n_query = max(1, round(_TEST_FRACTIONS[0] * n))
            n_gallery = max(1, round(_TEST_FRACTIONS[1] * n))
        for rank, item in enumerate(_shuffled(members, seed, label)):
            split = Split.QUERY if rank < n_query else Split.GALLERY if rank < n_query + n_gallery else Split.TRAINING
            result.append(replace(item, split=split))
    order = list(Split)
    return tuple(sorted(result, key=lambda i: (order.index(i.split), i.id)))
