"""Data sets: splits, classes and the fingerprint of the training images."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from lookalike.data.dataset import Dataset, Item, Split, by_class, class_names, sample_evenly
from lookalike.data.layouts import load_dataset
from lookalike.data.split import with_validation


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


def test_test_classes_are_unseen_when_most_queries_say_so() -> None:
    training = item("t", "cat", Split.TRAINING)
    queries = [item(f"q{n}", label, Split.QUERY) for n, label in enumerate(("cat", "owl", "fox"))]
    assert Dataset(Path(), "", (training, *queries)).test_classes_unseen
    assert not Dataset(Path(), "", (training, *queries[:2])).test_classes_unseen
    assert not Dataset(Path(), "", (training,)).test_classes_unseen


def test_fingerprint_covers_the_training_images_only(photo_folder: Path) -> None:
    data = load_dataset(photo_folder)
    original = data.fingerprint
    assert with_validation(data).fingerprint == original
    (photo_folder / "test/query/cat0.jpg").write_bytes(b"changed")
    assert load_dataset(photo_folder).fingerprint == original
    (photo_folder / "training/cat/cat0.jpg").write_bytes(b"changed")
    assert load_dataset(photo_folder).fingerprint != original


def test_fingerprint_with_an_unreadable_file(photo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts as missing, since it is skipped in the same way."""

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("lookalike.data.dataset.file_digest", refuse)
        closed = load_dataset(photo_folder).fingerprint
    data = load_dataset(photo_folder)
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
