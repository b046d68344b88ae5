"""Data sets: splits, classes, the fingerprint of the training images, and cutting a validation split."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from lookalike.data.dataset import Dataset, Item, Split, by_class, class_names, sample_evenly
from lookalike.data.layouts import load_dataset
from lookalike.data.validation import with_validation
from lookalike.errors import DataError, OptionError


def item(name: str, label: str | None, split: Split) -> Item:
    return Item(name, Path(name), label, split)


def test_splits_and_classes() -> None:
    items = (
        item("b", "dog", Split.TRAINING),
        item("a", "cat", Split.TRAINING),
        item("v", "cat", Split.VALIDATION),
        item("q", None, Split.QUERY),
        item("g", "owl", Split.GALLERY),
    )
    data = Dataset(Path("data"), "written by hand", items, ("something odd",))
    assert [i.id for i in data.training] == ["b", "a"]
    assert [i.id for i in data.split("validation")] == ["v"]
    assert data.classes == ("cat", "dog")
    assert data.labels("training") == {"b": "dog", "a": "cat"}
    assert data.labels("query") == {}
    assert class_names(items) == ("cat", "dog", "owl")
    assert {label: [i.id for i in members] for label, members in by_class(items).items()} == {
        "cat": ["a", "v"],
        "dog": ["b"],
        "owl": ["g"],
    }
    assert not data.test_is_labelled  # no query has a label
    assert repr(data) == "<Dataset: 'data', written by hand: 2 training, 1 validation, 1 query, 1 gallery>"
    assert data.summary() == (
        "data: written by hand, 5 images\n"
        "  training        2 images in 2 classes\n"
        "  validation      1 images in 1 class\n"
        "  query           1 images, 1 without a label\n"
        "  gallery         1 images in 1 class\n"
        "  note: something odd"
    )


def test_the_other_gallery_items_with_the_file_of_a_query(tmp_path: Path) -> None:
    for name in ("q", "t", "g"):
        (tmp_path / name).touch()
    (tmp_path / "q2").symlink_to(tmp_path / "q")
    (tmp_path / "q3").hardlink_to(tmp_path / "q")
    (tmp_path / "t2").hardlink_to(tmp_path / "t")
    splits = {
        "query": ("q", "gone"),
        "test": ("t", "t2", "gone2"),
        "gallery": ("q2", "q3", "g", "gone3"),
        "training": ("q4",),
    }
    items = tuple(Item(name, tmp_path / name, None, Split(split)) for split, names in splits.items() for name in names)
    data = Dataset(tmp_path, "by hand", items)
    assert data.same_file_ids == {"q": {"q2", "q3"}, "t": {"t2"}, "t2": {"t"}}
    assert data.max_hits == 7 - 2 - 1
    both, by_file = data.leave_one_out_notes
    assert "leave-one-out: 3 of 5 queries" in both
    assert "leave-one-out by file: 3 of 5 queries" in by_file
    apart = data.replace_items(item for item in items if item.id in ("q", "g"))
    assert (apart.same_file_ids, apart.max_hits, apart.leave_one_out_notes) == ({}, 1, ())


def test_the_other_validation_images_with_the_file_of_one(tmp_path: Path) -> None:
    for name in ("a", "b", "g"):
        (tmp_path / name).touch()
    (tmp_path / "a2").symlink_to(tmp_path / "a")
    (tmp_path / "a3").hardlink_to(tmp_path / "a")
    names = {"validation": ("a", "a2", "b", "gone", "gone2"), "training": ("a3",), "query": ("b2",), "gallery": ("g",)}
    items = [Item(name, tmp_path / name, "cat", Split(split)) for split, ids in names.items() for name in ids]
    data = Dataset(tmp_path, "by hand", tuple(items))
    assert data.same_file_ids == {"a": {"a2"}, "a2": {"a"}}
    assert (data.validation_excluded, data.max_hits, data.leave_one_out_notes) == (2, 1, ())
    assert "leave-one-out by file: 2 of 5 validation images" in data.summary()


def test_test_classes_are_unseen_when_most_queries_say_so() -> None:
    training = item("t", "cat", Split.TRAINING)
    queries = [item(f"q{n}", label, Split.QUERY) for n, label in enumerate(("cat", "owl", "fox"))]
    assert Dataset(Path(), "", (training, *queries)).test_classes_unseen
    assert not Dataset(Path(), "", (training, *queries[:2])).test_classes_unseen
    assert not Dataset(Path(), "", (training,)).test_classes_unseen


def test_fingerprint_covers_the_training_images_only(data_folder: Path) -> None:
    data = load_dataset(data_folder)
    original = data.fingerprint
    assert with_validation(data).fingerprint == original
    (data_folder / "test/query/cat0.jpg").write_bytes(b"changed")
    assert load_dataset(data_folder).fingerprint == original
    (data_folder / "training/cat/cat0.jpg").write_bytes(b"changed")
    assert load_dataset(data_folder).fingerprint != original


def test_fingerprint_with_an_unreadable_file(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts as missing, since it is skipped in the same way."""

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("lookalike.data.dataset.file_digest", refuse)
        closed = load_dataset(data_folder).fingerprint
    data = load_dataset(data_folder)
    for one in data.training:
        one.path.unlink()
    assert data.fingerprint == closed


def test_sampling_evenly() -> None:
    assert sample_evenly("abcdefghij", 4) == ["a", "c", "f", "h"]
    assert sample_evenly("abc", 3) == "abc"
    items = list(range(10_000))
    sample = sample_evenly(items, 2000, seed=0)
    assert sample == sorted(set(sample))
    assert len(sample) == 2000
    assert {b - a for a, b in pairwise(sample)} <= {4, 5, 6}
    assert sample == sample_evenly(items, 2000, seed=0)
    assert sample != sample_evenly(items, 2000, seed=1)
    assert len(set(sample_evenly(items[:2001], 2000, seed=3))) == 2000


def dataset(training: dict[str, int], test: dict[str, int]) -> Dataset:
    """Make a data set with these numbers of images per class; nothing is read from disk."""
    items = [
        Item(f"{split}/{label}/{n}.jpg", Path(f"{split}/{label}/{n}.jpg"), label, split)
        for split, classes in ((Split.TRAINING, training), (Split.QUERY, test), (Split.GALLERY, test))
        for label, count in classes.items()
        for n in range(count)
    ]
    return Dataset(Path("data"), "made by hand", tuple(items))


SEEN = dataset({"cat": 10, "dog": 20, "owl": 4}, {"cat": 3, "dog": 3})
UNSEEN = dataset(dict.fromkeys("abcdefghij", 4), {"x": 3, "y": 3})


def test_stratified_takes_a_share_of_each_class() -> None:
    cut = with_validation(SEEN)
    assert Counter(item.label for item in cut.validation) == {"cat": 2, "dog": 4}  # a fifth; owl has under five
    assert Counter(item.label for item in cut.training) == {"cat": 8, "dog": 16, "owl": 4}


def test_at_least_two_of_a_class_so_that_each_has_a_partner() -> None:
    cut = with_validation(dataset({"cat": 5, "dog": 5}, {}))
    assert Counter(item.label for item in cut.validation) == {"cat": 2, "dog": 2}


def test_class_disjoint_when_the_test_classes_are_unseen() -> None:
    cut = with_validation(UNSEEN)
    held_out = {item.label for item in cut.validation}
    assert len(held_out) == 2  # a fifth of ten classes
    assert held_out.isdisjoint(item.label for item in cut.training)
    assert len(cut.validation) == 8


@pytest.mark.parametrize(("data", "disjoint"), [(SEEN, False), (UNSEEN, True)], ids=["seen", "unseen"])
def test_the_way_of_cutting_can_be_chosen(data: Dataset, disjoint: bool) -> None:
    assert with_validation(data, class_disjoint=disjoint) == with_validation(data)
    other = with_validation(dataset(dict.fromkeys("abcde", 10), {"a": 2}), class_disjoint=True)
    assert {item.label for item in other.validation}.isdisjoint(item.label for item in other.training)


@pytest.mark.parametrize("data", [SEEN, UNSEEN], ids=["stratified", "class-disjoint"])
def test_only_training_is_cut_and_nothing_is_lost(data: Dataset) -> None:
    cut = with_validation(data, seed=5)
    assert (cut.query, cut.gallery) == (data.query, data.gallery)
    assert {item.id for item in (*cut.training, *cut.validation)} == {item.id for item in data.training}
    assert {item.id for item in cut.training}.isdisjoint(item.id for item in cut.validation)
    assert all(item.id.startswith("training/") for item in cut.validation)


@pytest.mark.parametrize("data", [SEEN, UNSEEN], ids=["stratified", "class-disjoint"])
def test_the_seed_decides(data: Dataset) -> None:
    assert with_validation(data, seed=1).validation == with_validation(data, seed=1).validation
    assert len({frozenset(i.id for i in with_validation(data, seed=s).validation) for s in range(8)}) > 1


def test_the_order_of_the_items_does_not_matter() -> None:
    backwards = SEEN.replace_items(reversed(SEEN.items))
    expected = {item.id for item in with_validation(SEEN).validation}
    assert {item.id for item in with_validation(backwards).validation} == expected


def test_an_existing_validation_split_is_kept() -> None:
    cut = with_validation(SEEN)
    assert with_validation(cut, seed=9) is cut
    assert with_validation(cut, class_disjoint=False) is cut


@pytest.mark.parametrize(
    ("data", "class_disjoint", "state"),
    [(SEEN, True, "shares classes"), (UNSEEN, False, "shares no class")],
    ids=["seen", "unseen"],
)
def test_an_existing_validation_split_of_another_kind_is_refused(
    data: Dataset, class_disjoint: bool, state: str
) -> None:
    with pytest.raises(OptionError, match=state) as caught:
        with_validation(with_validation(data), class_disjoint=class_disjoint)
    assert caught.value.argument == "class_disjoint"


@pytest.mark.parametrize(
    ("training", "test", "needs"),
    [
        (
            {"cat": 4, "dog": 4},
            {"cat": 2},
            "a class of at least 5 images, or at least 4 classes to cut whole classes, got 2 classes with 8 images",
        ),
        (
            {"a": 9, "b": 9, "c": 9},
            {"x": 2},
            "at least 4 classes, because whole classes are cut, got 3 classes with 27 images",
        ),
        ({"a": 9}, {"x": 2}, "at least 4 classes, because whole classes are cut, got 1 class with 9 images"),
        (
            {"a": 9, "b": 1, "c": 1, "d": 1},
            {"x": 2},
            "two classes of at least 2 images, because whole classes are cut, got 4 classes with 12 images",
        ),
    ],
    ids=["few images", "few classes", "one class", "single images"],
)
def test_too_little_to_cut_from(training: dict[str, int], test: dict[str, int], needs: str) -> None:
    with pytest.raises(DataError) as caught:
        with_validation(dataset(training, test))
    assert needs in str(caught.value)


def test_nothing_to_cut_from() -> None:
    with pytest.raises(DataError, match="no labelled training images"):
        with_validation(dataset({}, {"cat": 2}))
