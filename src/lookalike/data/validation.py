"""Cut a validation split from training, similar to the test split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from lookalike.data.dataset import Dataset, Item, Split, by_class, shuffled
from lookalike.errors import DataError, OptionError

_FRACTION = 0.15  # of the images of each class, or of the classes
_MIN_IMAGES = 5  # of a class, to cut some of them
_QUERY_FRACTION = 0.25  # of the images of the query style, where whole styles are cut
_MAX_STYLES = 20


def with_validation(data: Dataset, *, seed: int = 0, class_disjoint: bool | None = None) -> Dataset:
    """Return the data set with a validation split cut from training, never from the test split.

    It resembles the test split: whole classes where the test classes are unseen in training; a style as the
    gallery, with queries of another, where a column of the manifest shows that the styles of the gallery are unseen;
    else a few images of each class. Where classes are too small for that, whole classes are cut, with a note. A
    validation split that a manifest defines is returned unchanged.

    The labels of the test queries decide nothing but whether the test classes are unseen, and no test image is used.
    `class_disjoint` cuts whole classes; by default that depends on the data.
    """
    if data.validation:
        shared = {item.label for item in data.validation} & {item.label for item in data.training}
        if class_disjoint is not None and class_disjoint == bool(shared):
            state, option = ("shares classes", "class-disjoint") if shared else ("shares no class", "stratified")
            raise OptionError(
                f"{data.root} already has a validation split, which {state} with training, but {option} was requested; "
                "drop that option, or remove the validation split from the manifest.",
                argument="class_disjoint",
            )
        return data
    groups = by_class(data.training)
    if not groups:
        raise DataError(
            f"{data.root} has no labelled training images; put them in training/<class>/, with at least two classes, "
            "or list them in a manifest.csv.",
            argument="data",
        )
    disjoint = data.test_classes_unseen if class_disjoint is None else class_disjoint
    styles = _find_styles(data) if class_disjoint is None and not disjoint else None
    if styles is not None and (cut := _cut_styles(data, styles, seed)) is not None:
        return cut
    # in a validation split of one class every measure is perfect
    small = class_disjoint is None and not disjoint and sum(len(g) >= _MIN_IMAGES for g in groups.values()) < 2
    validation_ids = _whole_classes(groups, seed) if disjoint or small else set()
    notes = data.notes
    if validation_ids and small:
        notes += (
            "validation consists of whole classes, which training then lacks, because fewer than two classes have the "
            f"{_MIN_IMAGES} images that are needed to cut some of each",
        )
    elif not disjoint:
        validation_ids = _of_each_class(groups, seed)
    if not validation_ids:
        got = f"{len(groups)} {'class' if len(groups) == 1 else 'classes'} with {len(data.training)} images"
        whole = "at least 4 classes" if len(groups) < 4 else "two classes of at least 2 images"
        if disjoint:
            needs = f"{whole}, because whole classes are cut"
        else:
            needs = f"a class of at least {_MIN_IMAGES} images"
            needs += f", or {whole} to cut whole classes" if small else ", because none is cut as a whole"
        raise DataError(
            f"{data.root} has too few training images for a validation split: it needs {needs}, got {got}; add images.",
            argument="data",
        )
    items = [replace(item, split=Split.VALIDATION) if item.id in validation_ids else item for item in data.items]
    return replace(data, items=tuple(items), notes=notes)


def _of_each_class(groups: dict[str, list[Item]], seed: int) -> set[str]:
    """Return the ids of a fraction of each class, enough for a precision@3 of one within validation.

    At least four images of a class of twelve or more, at least two of a smaller one; none of a class under five.
    """
    ids: set[str] = set()
    for label, items in groups.items():
        if len(items) >= _MIN_IMAGES:
            count = max(4 if len(items) >= 12 else 2, round(_FRACTION * len(items)))
            ids.update(item.id for item in shuffled(items, f"{seed}/{label}")[:count])
    return ids


def _whole_classes(groups: dict[str, list[Item]], seed: int) -> set[str]:
    """Return the ids of at least two whole classes; at least two remain for training."""
    labels = shuffled((label for label, items in groups.items() if len(items) >= 2), f"{seed}/classes")
    count = max(2, round(_FRACTION * len(groups)))
    if len(groups) - count < 2 or len(labels) < 2:  # among images of one class every measure is perfect
        return set()
    return {item.id for label in labels[:count] for item in groups[label]}


@dataclass(frozen=True)
class _Styles:
    """A column of the manifest whose values differ between training and gallery, and what is cut because of it."""

    column: str
    query: str  # training style from which validation queries are taken
    gallery: str  # training style that becomes the validation gallery


def _find_styles(data: Dataset) -> _Styles | None:
    """Return the styles to cut, if no style of the gallery occurs in training, which has at least two of them.

    Validation queries have a style of the test queries where training has one; the validation gallery has the other
    style with the most images.
    """
    columns = sorted({column for item in data.training for column in item.metadata})
    for column in columns:
        training, query, gallery = (_values(data.split(split), column) for split in ("training", "query", "gallery"))
        complete = all("" not in values for values in (training, query, gallery)) and bool(gallery)
        if not complete or len(training) < 2 or len({*training, *gallery}) > _MAX_STYLES or training.keys() & gallery:
            continue
        largest_first = sorted(training, key=lambda style: (-training[style], style))
        query_style = next((style for style in largest_first if style in query), largest_first[-1])
        return _Styles(column, query_style, next(style for style in largest_first if style != query_style))
    return None


def _values(items: tuple[Item, ...], column: str) -> Counter[str]:
    return Counter(item.metadata.get(column, "") for item in items)


def _cut_styles(data: Dataset, styles: _Styles, seed: int) -> Dataset | None:
    """Move one style of training, and queries of another, to validation; None if that leaves too few classes."""
    labelled = by_class(data.training)
    query_ids: set[str] = set()
    gallery_ids: set[str] = set()
    for label, items in labelled.items():
        by_style: Mapping[str, list[str]] = {
            style: [item.id for item in items if item.metadata[styles.column] == style]
            for style in (styles.query, styles.gallery)
        }
        count = round(_QUERY_FRACTION * len(by_style[styles.query]))
        query_ids.update(shuffled(by_style[styles.query], f"{seed}/{label}/styles")[:count])
        gallery_ids.update(by_style[styles.gallery])
    items_after = [
        replace(item, split=Split.VALIDATION) if item.id in query_ids | gallery_ids else item for item in data.items
    ]
    note = (
        f"validation has queries of the {styles.column} {styles.query!r} and a gallery of {styles.gallery!r}, which the"
        f" other training images lack, because no {styles.column} of the test gallery is in training"
    )
    cut = replace(data, items=tuple(items_after), notes=(*data.notes, note), validation_query_ids=frozenset(query_ids))
    searchable = {i.label for i in cut.validation_query} & {i.label for i in cut.validation_gallery}
    return cut if len(searchable) >= 2 and len(by_class(cut.training)) >= 2 else None
