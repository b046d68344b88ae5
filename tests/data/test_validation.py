"""Cutting a validation split in the shape of the test split; the older cases are in test_dataset."""

import pytest

from lookalike.data.dataset import Dataset, Item, Split
from lookalike.data.validation import with_validation
from lookalike.errors import DataError


def make_data(
    tmp_path, training=("drawing", "painting"), query="drawing", gallery=("cartoon", "sketch"), column="style"
):
    """Return six images of each of three classes in every style of every split."""
    styles = {Split.TRAINING: training, Split.QUERY: ("drawing",), Split.GALLERY: gallery}
    items = [
        Item(f"{split}/{label}/{style}{n}.jpg", tmp_path / f"{split}{label}{style}{n}", label, split, {"style": style})
        for split, names in styles.items()
        for label in "abc"
        for style in names
        for n in range(6)
    ]
    return Dataset(tmp_path, "manifest", tuple(items))


def test_a_style_is_cut_where_those_of_the_gallery_are_unseen(tmp_path):
    data = with_validation(make_data(tmp_path))

    assert {i.metadata["style"] for i in data.training} == {"drawing"}
    assert {i.metadata["style"] for i in data.validation_gallery} == {"painting"}
    assert {i.metadata["style"] for i in data.validation_query} == {"drawing"}
    assert len(data.validation_gallery) == 18
    assert len(data.validation_query) == 6  # a quarter of six images of each class, rounded to two
    assert len(data.training) == 12
    assert "gallery of 'painting'" in data.notes[-1]


@pytest.mark.parametrize(
    "changes",
    [
        {"gallery": ("drawing", "cartoon")},  # a style of the gallery is in training
        {"training": ("drawing",)},
        {"gallery": ("", "cartoon")},  # unknown for some images
        {"training": tuple(f"artist {n}" for n in range(25))},  # more like an identity than a style
    ],
)
def test_otherwise_images_of_each_class_are_cut(tmp_path, changes):
    data = with_validation(make_data(tmp_path, **changes))

    assert not data.validation_query_ids
    assert data.validation_query == data.validation_gallery == data.validation


def test_a_stratified_validation_can_be_requested(tmp_path):
    assert not with_validation(make_data(tmp_path), class_disjoint=False).validation_query_ids


def test_the_queries_depend_on_the_seed(tmp_path):
    first, second = (with_validation(make_data(tmp_path), seed=seed).validation_query_ids for seed in (0, 1))

    assert first != second
    assert first == with_validation(make_data(tmp_path), seed=0).validation_query_ids


def make_classes(tmp_path, sizes):
    """Return a data set with these numbers of training images per class, and two test images of each class."""
    items = [
        Item(f"{split}/{label}/{n}.jpg", tmp_path / f"{split}{label}{n}", f"class {label}", split)
        for split, numbers in ((Split.TRAINING, sizes), (Split.QUERY, [2] * len(sizes)))
        for label, number in enumerate(numbers)
        for n in range(number)
    ]
    return Dataset(tmp_path, "splits", tuple(items))


@pytest.mark.parametrize("size", [2, 4])
def test_whole_classes_are_cut_where_all_are_small(tmp_path, size):
    """200 classes of four images, as in a course competition: 15 % of the classes."""
    data = with_validation(make_classes(tmp_path, [size] * 200))

    assert data.validation_classes_unseen
    assert not data.test_classes_unseen
    assert len(data.validation) == 30 * size
    assert len(data.training) == 170 * size
    assert "whole classes" in data.notes[-1] and "5 images" in data.notes[-1]


def test_whole_classes_are_cut_where_validation_would_have_one_class(tmp_path):
    data = with_validation(make_classes(tmp_path, [9, 4, 4, 4, 4]))

    assert len({item.label for item in data.validation}) == 2
    assert data.validation_classes_unseen


def test_images_of_each_class_are_cut_where_two_classes_have_enough(tmp_path):
    data = with_validation(make_classes(tmp_path, [5, 5, 4, 4]))

    assert len(data.validation) == 4
    assert not data.notes


def test_small_classes_are_not_cut_where_that_is_excluded(tmp_path):
    data = make_classes(tmp_path, [4] * 200)

    with pytest.raises(DataError, match="needs a class of at least 5 images, because none is cut as a whole, got 200"):
        with_validation(data, class_disjoint=False)
