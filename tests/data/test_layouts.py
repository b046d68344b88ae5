"""The five layouts, the errors of wrong ones, and the listing of folders."""

from __future__ import annotations

import os
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from lookalike.data import tables
from lookalike.data.dataset import Dataset, Split
from lookalike.data.layouts import load_data_as_trained, load_dataset
from lookalike.errors import DataError, MissingExtra


def make(root: Path, *names: str) -> None:
    """Create files; loading only reads names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def manifest(root: Path, *lines: str, header: str = "path,label,split") -> Path:
    path = root / "manifest.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def rows(data: Dataset) -> list[tuple[str, str | None, str]]:
    return [(item.id, item.label, item.split.value) for item in data.items]


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_dataset(root)
    assert caught.value.argument in ("data", "items")  # items: `Dataset` refuses duplicate ids
    return str(caught.value)


def assert_facts(text: str, *facts: str) -> None:
    assert [fact for fact in facts if fact not in text] == []


SPLITS = ("training/cat/1.jpg", "training/dog/sub/2.png", "test/query/q.jpg", "test/gallery/g.webp")


def test_layout_1_with_labels(tmp_path: Path) -> None:
    make(tmp_path, *SPLITS)
    (tmp_path / "labels.csv").write_text("path,label\ntest/query/q.jpg,cat\ntest/gallery/g.webp,dog\n")
    data = load_dataset(str(tmp_path))
    assert data.layout == "training and test folders, test split labelled by labels.csv"
    assert rows(data) == [
        ("training/cat/1.jpg", "cat", "training"),
        ("training/dog/sub/2.png", "dog", "training"),
        ("test/query/q.jpg", "cat", "query"),
        ("test/gallery/g.webp", "dog", "gallery"),
    ]
    assert data.items[0].path == tmp_path / "training/cat/1.jpg"
    assert data.test_is_labelled
    assert data.notes == ()


def test_layout_1_without_labels(tmp_path: Path) -> None:
    make(tmp_path, *SPLITS)
    data = load_dataset(tmp_path)
    assert data.layout == "training and test folders, test split without labels"
    assert [item.label for item in data.items] == ["cat", "dog", None, None]
    assert not data.test_is_labelled


def test_layout_1_notes_what_it_skips(tmp_path: Path) -> None:
    make(tmp_path, *SPLITS, "training/stray.jpg")
    (tmp_path / "labels.csv").write_text("path,label\ntest/query/q.jpg,cat\ntest/query/gone.jpg,cat\n")
    assert load_dataset(tmp_path).notes == (
        "1 image directly in training/, outside the class folders, skipped",
        "labels.csv has 1 path without an image (first: test/query/gone.jpg)",
    )


def test_layout_1_of_the_builder(data_folder: Path) -> None:
    data = load_dataset(data_folder)
    assert data.classes == ("astronaut", "cat", "coffee", "rocket")
    assert Counter((item.split, item.label) for item in data.items) == {
        (split, label): count
        for label in data.classes
        for split, count in ((Split.TRAINING, 6), (Split.QUERY, 2), (Split.GALLERY, 3))
    }
    assert data.summary().splitlines()[1:] == [
        "  training       24 images in 4 classes",
        "  query           8 images in 4 classes",
        "  gallery        12 images in 4 classes",
    ]


def test_layout_2(tmp_path: Path) -> None:
    make(tmp_path, "training/cat/1.jpg", "test/query/owl/q.jpg", "test/gallery/owl/g.jpg")
    data = load_dataset(tmp_path)
    assert data.layout == "training and test folders, class folders in the test split"
    assert [item.label for item in data.items] == ["cat", "owl", "owl"]
    assert data.test_classes_unseen
    assert "most queries are of classes that the training split does not have" in str(data)


def test_layout_3(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg", "sub/c.jpg", "d.jpg", "e.jpg")
    outside = tmp_path / "d.jpg"
    manifest(
        tmp_path,
        "sub/c.jpg, cat,train,Rome",
        "b.jpg,,Gallery,",
        "",
        f"{outside},dog,val,Oslo",
        "e.jpg,dog,query,Bern",
        "a.jpg,dog,training,Bonn",
        header="\ufeffPath,Label,split,City",
    )
    data = load_dataset(tmp_path)
    assert data.layout == "manifest (manifest.csv)"
    assert rows(data) == [
        ("a.jpg", "dog", "training"),
        ("sub/c.jpg", "cat", "training"),
        ("d.jpg", "dog", "validation"),
        ("e.jpg", "dog", "query"),
        ("b.jpg", None, "gallery"),
    ]
    assert data.items[1].metadata == {"city": "Rome"}
    assert data.items[2].path == outside


def test_layout_3_notes_missing_files(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    manifest(tmp_path, "a.jpg,cat,training", "z.jpg,cat,training")
    data = load_dataset(tmp_path)
    assert data.notes == ("manifest.csv names 1 missing file (first: z.jpg)",)
    assert len(data) == 2


def test_layout_3_as_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    make(tmp_path, "a.jpg", "b.jpg")
    columns = {"path": ["a.jpg", "b.jpg"], "label": ["cat", None], "split": ["query", "gallery"], "year": [2020, 2021]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "manifest.parquet")
    data = load_dataset(tmp_path)
    assert data.layout == "manifest (manifest.parquet)"
    assert rows(data) == [("a.jpg", "cat", "query"), ("b.jpg", None, "gallery")]
    assert data.items[0].metadata == {"year": "2020"}


def test_layout_4_stratified(tmp_path: Path) -> None:
    make(
        tmp_path,
        *(f"{label}/{n}.jpg" for label in ("cat", "dog") for n in range(25)),
        ".cache/x.jpg",
        "empty/notes.txt",
    )
    data = load_dataset(tmp_path, seed=3)
    assert data.layout == "class folders, split here (stratified, seed 3)"
    # 12 % and 36 % of 25 images are 3 and 9; the rest is training
    assert Counter((item.label, item.split.value) for item in data.items) == {
        ("cat", "training"): 13,
        ("cat", "query"): 3,
        ("cat", "gallery"): 9,
        ("dog", "training"): 13,
        ("dog", "query"): 3,
        ("dog", "gallery"): 9,
    }
    assert load_dataset(tmp_path, seed=3).items == data.items
    assert load_dataset(tmp_path, seed=4).items != data.items


def test_layout_4_class_disjoint(tmp_path: Path) -> None:
    make(tmp_path, *(f"{label}/{n}.jpg" for label in "abcd" for n in range(8)))
    data = load_dataset(tmp_path, class_disjoint=True)
    assert data.layout == "class folders, split here (class-disjoint, seed 0)"
    trained = set(data.classes)
    tested = {item.label for item in (*data.query, *data.gallery)}
    assert len(trained) == len(tested) == 2
    assert trained.isdisjoint(tested)
    assert Counter(item.split.value for item in data.items) == {"training": 16, "query": 4, "gallery": 12}
    assert data.test_classes_unseen


def test_layout_4_uses_tiny_classes_for_training(tmp_path: Path) -> None:
    make(tmp_path, "few/1.jpg", "few/2.jpg", "three/1.jpg", "three/2.jpg", "three/3.jpg")
    counts = Counter((item.label, item.split.value) for item in load_dataset(tmp_path).items)
    assert counts == {("few", "training"): 2, ("three", "training"): 1, ("three", "query"): 1, ("three", "gallery"): 1}


@pytest.mark.parametrize("names", [("a.jpg", "sub/b.png"), ("one/a.jpg", "one/b.jpg")], ids=["flat", "one folder"])
def test_layout_5(tmp_path: Path, names: Iterable[str]) -> None:
    make(tmp_path, *names)
    data = load_dataset(tmp_path)
    assert data.layout == "images without labels"
    assert rows(data) == [(name, None, "gallery") for name in names]


def test_a_loose_image_next_to_class_folders_is_noted(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "cover.jpg")
    data = load_dataset(tmp_path)
    assert {item.label for item in data.items} == {None}
    assert data.notes == (
        "1 loose image next to 2 folders (first: cover.jpg), so the folders are not used as classes; "
        "if they are classes, move the loose images elsewhere",
    )


def test_a_summary_with_a_name_does_not_contain_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "training/cat/1.jpg", "test/query/1.jpg", "test/gallery/2.jpg", "labels.csv")
    (tmp_path / "labels.csv").write_text("path,label\ntest/query/1.jpg,cat\ntest/gallery/2.jpg,cat\n")
    monkeypatch.chdir(tmp_path)
    first = load_dataset(Path()).summary("photos").splitlines()[0]
    assert first == "photos: training and test folders, test split labelled by labels.csv, 3 images"


@pytest.mark.parametrize(
    ("files", "root", "fact"),
    [
        ([], "none", "none does not exist"),
        (["a.jpg"], "a.jpg", "a.jpg is a file"),
        (["root/notes.txt"], "root", "root contains no image;"),
        (["root/training/cat/notes.txt"], "root", "no image in training/<class>/, test/query or test/gallery."),
    ],
)
def test_no_images(tmp_path: Path, files: list[str], root: str, fact: str) -> None:
    make(tmp_path, *files)
    assert_facts(refusal(tmp_path / root), str(tmp_path / root), fact)


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("path,label\ntest/query/q.jpg,cat\ntest/query/q.jpg,dog\n", ("line 3", "test/query/q.jpg", "'dog'", "'cat'")),
        ("path,label\nq.jpg,cat\n", ("none of the 1 paths", "'q.jpg'")),
        ("file,class\nq.jpg,cat\n", ("'file', 'class'", "path, label")),
    ],
    ids=["contradiction", "other images", "columns"],
)
def test_wrong_labels(tmp_path: Path, text: str, facts: tuple[str, ...]) -> None:
    make(tmp_path, *SPLITS)
    (tmp_path / "labels.csv").write_text(text)
    assert_facts(refusal(tmp_path), str(tmp_path / "labels.csv"), *facts)


@pytest.mark.parametrize(
    ("lines", "facts"),
    [
        ([",cat,query"], ("manifest.csv line 2", "no path")),
        (["a.jpg,cat,query", "b.jpg,cat,dev"], ("manifest.csv line 3", "'dev'", "training, validation, query")),
        ([], ("manifest.csv", "no row")),
        (["y.jpg,,query", "z.jpg,,query"], ("none of the 2 files", "manifest.csv", "y.jpg")),
        (["a.jpg,cat"], ("manifest.csv line 2", "2 fields", "3")),
        (["a.jpg,cat,query", "./a.jpg,dog,gallery"], ("line 3", "a.jpg is listed twice, as query and as gallery")),
        (["a.jpg,cat,query", "b.jpg,cat,gallery", "x/../a.jpg,cat,query"], ("line 4", "a.jpg is listed twice")),
    ],
    ids=["no path", "split", "no row", "no file", "fields", "labels", "duplicate"],
)
def test_wrong_manifest(tmp_path: Path, lines: list[str], facts: tuple[str, ...]) -> None:
    make(tmp_path, "a.jpg", "b.jpg")
    manifest(tmp_path, *lines)
    assert_facts(refusal(tmp_path), str(tmp_path), *facts)


@pytest.mark.parametrize(
    ("content", "columns"),
    [("path,label\na.jpg,cat\n", "'path', 'label'"), ("path;label;split\n", "'path;label;split'"), ("", "(none)")],
)
def test_manifest_without_the_columns(tmp_path: Path, content: str, columns: str) -> None:
    path = tmp_path / "manifest.csv"
    path.write_text(content)
    assert_facts(refusal(tmp_path), str(path), columns, "path, label, split")


def test_manifest_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    path.write_bytes("path,label,split\nä.jpg,cat,query\n".encode("latin-1"))
    assert_facts(refusal(tmp_path), str(path), "UTF-8", "0xe4")


def test_damaged_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "manifest.parquet").write_bytes(b"not parquet")
    assert refusal(tmp_path).startswith(f"{tmp_path / 'manifest.parquet'} cannot be read as Parquet: ")


def test_parquet_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manifest.parquet").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtra, match=r"pyarrow.*the extra parquet"):
        load_dataset(tmp_path)


CLOSED = "the folder cannot be listed (permission denied)"
CloseFolder = Callable[[Path], None]


@pytest.mark.parametrize(
    ("closed", "ids"),
    [
        ("training/cat", ["training/dog/sub/2.png", "test/query/q.jpg", "test/gallery/g.webp"]),
        ("training/dog/sub", ["training/cat/1.jpg", "test/query/q.jpg", "test/gallery/g.webp"]),
        ("training", ["test/query/q.jpg", "test/gallery/g.webp"]),
        ("test/query", ["training/cat/1.jpg", "training/dog/sub/2.png", "test/gallery/g.webp"]),
    ],
)
def test_split_folders_with_a_closed_folder(
    tmp_path: Path, close_folder: CloseFolder, closed: str, ids: list[str]
) -> None:
    make(tmp_path, *SPLITS)
    close_folder(tmp_path / closed)
    data = load_dataset(tmp_path)
    assert [item.id for item in data.items] == ids
    assert [(s.path, s.cause) for s in data.skipped] == [(tmp_path / closed, CLOSED)]
    assert data.notes == ()
    line = f"  note: 1 folder skipped (first: {tmp_path / closed}: {CLOSED})"
    assert str(data).splitlines()[-1] == line


def test_labels_of_closed_folders_are_accepted(tmp_path: Path, close_folder: CloseFolder) -> None:
    make(tmp_path, *SPLITS)
    (tmp_path / "labels.csv").write_text("path,label\ntest/query/q.jpg,cat\ntest/gallery/g.webp,dog\n")
    for split in ("query", "gallery"):
        close_folder(tmp_path / "test" / split)
    data = load_dataset(tmp_path)
    assert len(data.training) == 2
    assert len(data.skipped) == 2
    assert data.notes == ("labels.csv has 2 paths without an image (first: test/query/q.jpg)",)


def test_class_folders_with_a_closed_one(tmp_path: Path, close_folder: CloseFolder) -> None:
    make(tmp_path, *(f"{label}/{n}.jpg" for label in ("a", "b", "c") for n in range(4)))
    close_folder(tmp_path / "b")
    data = load_dataset(tmp_path)
    assert data.layout == "class folders, split here (stratified, seed 0)"
    assert {item.label for item in data.items} == {"a", "c"}
    assert [(s.path, s.cause) for s in data.skipped] == [(tmp_path / "b", CLOSED)]


def test_images_without_labels_and_a_closed_folder(tmp_path: Path, close_folder: CloseFolder) -> None:
    make(tmp_path, "a.jpg", "inside/b.jpg")
    close_folder(tmp_path / "inside")
    data = load_dataset(tmp_path)
    assert rows(data) == [("a.jpg", None, "gallery")]
    assert [(s.path, s.cause) for s in data.skipped] == [(tmp_path / "inside", CLOSED)]


@pytest.mark.parametrize(
    ("name", "fact"),
    [("inside/b.jpg", "contains no image"), ("training/inside/b.jpg", "no image in training/<class>/")],
)
def test_nothing_but_closed_folders(tmp_path: Path, close_folder: CloseFolder, name: str, fact: str) -> None:
    make(tmp_path, name)
    close_folder((tmp_path / name).parent)
    assert_facts(refusal(tmp_path), fact, "skipped: 1", f"{(tmp_path / name).parent}: {CLOSED}")


def test_a_root_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.jpg")
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    assert_facts(refusal(tmp_path), str(tmp_path), "permission denied")


def test_a_manifest_of_files_in_a_closed_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.jpg", "closed/b.jpg")
    manifest(tmp_path, "a.jpg,cat,query", "closed/b.jpg,cat,gallery", "c.jpg,cat,gallery")
    is_file = Path.is_file

    def guarded(path: Path) -> bool:
        if path.parent.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", guarded)
    data = load_dataset(tmp_path)
    assert [item.id for item in data.items] == ["a.jpg", "c.jpg", "closed/b.jpg"]
    assert data.notes == ("manifest.csv names 1 missing file (first: c.jpg)",)


@pytest.mark.parametrize(
    ("name", "layout", "counts"),
    [
        ("clothing", "training and test folders, test split labelled by labels.csv", (1822, 372, 1587)),
        ("caltech", "training and test folders, class folders in the test split", (2109, 446, 1334)),
        ("trashnet", "manifest (manifest.csv)", (1263, 265, 999)),
    ],
)
def test_shared_data_sets(shared_data: Path, name: str, layout: str, counts: tuple[int, int, int]) -> None:
    data = load_dataset(shared_data / name)
    assert data.layout == layout
    assert (len(data.training), len(data.query), len(data.gallery)) == counts
    assert data.test_is_labelled
    assert data.test_classes_unseen == (name == "caltech")


def test_class_folders_are_split_as_for_the_training(data_folder):
    """With another seed, `evaluate` on class folders would meet training images."""
    class_folders = data_folder / "training"
    options = {"seed": 3, "class_disjoint": True}
    split = load_data_as_trained(class_folders, options)
    assert split.items == load_dataset(class_folders, **options).items
    assert split.items != load_dataset(class_folders).items
    assert load_data_as_trained(class_folders, {}).items == load_dataset(class_folders).items
    assert load_data_as_trained(split, {}) is split


# ---------------------------------------------------------------- names of splits


def test_splits_have_their_names_in_any_case(tmp_path: Path) -> None:
    make(tmp_path, "Train/cat/1.jpg", "VAL/cat/2.jpg", "Test/Query/3.jpg", "Test/Gallery/4.jpg")
    data = load_dataset(tmp_path)
    assert data.layout == "training, validation and test folders, test split without labels"
    assert rows(data) == [
        ("Train/cat/1.jpg", "cat", "training"),
        ("VAL/cat/2.jpg", "cat", "validation"),
        ("Test/Query/3.jpg", None, "query"),
        ("Test/Gallery/4.jpg", None, "gallery"),
    ]


def test_training_and_validation_without_a_test(tmp_path: Path) -> None:
    make(tmp_path, "train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg")
    data = load_dataset(tmp_path)
    assert data.layout == "training and validation folders, no test split"
    assert [item.split.value for item in data.items] == ["training", "training", "validation"]
    assert data.classes == ("cat", "dog")


def test_class_folders_in_test_are_searched_leave_one_out(tmp_path: Path) -> None:
    make(tmp_path, "train/cat/1.jpg", "test/owl/2.jpg", "test/owl/3.jpg")
    data = load_dataset(tmp_path)
    assert [item.id for item in data.query] == ["test/owl/2.jpg", "test/owl/3.jpg"]
    assert data.query == data.gallery == data.test
    assert data.labels("gallery") == {"test/owl/2.jpg": "owl", "test/owl/3.jpg": "owl"}
    assert str(data).splitlines()[2:4] == [
        "  test            2 images in 1 class",
        "  leave-one-out: each test image is searched in the other test images",
    ]


def test_query_and_gallery_without_a_test_folder(tmp_path: Path) -> None:
    make(tmp_path, "query/1.jpg", "gallery/2.jpg", "train/cat/3.jpg")
    assert [item.split.value for item in load_dataset(tmp_path).items] == ["training", "query", "gallery"]


def test_a_class_with_the_name_of_a_split(tmp_path: Path) -> None:
    make(tmp_path, *(f"{label}/{n}.jpg" for label in ("train", "bus", "Query") for n in range(4)))
    data = load_dataset(tmp_path)
    assert data.layout.startswith("class folders")
    assert {item.label for item in data.items} == {"train", "bus", "Query"}


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "train/cat/1.jpg", "Training/cat/2.jpg")
    assert_facts(refusal(tmp_path), "two folders of the training split", "Training and train", "merge them")


def test_images_next_to_the_splits_are_noted(tmp_path: Path) -> None:
    make(tmp_path, *SPLITS, "extra/deep/1.jpg", "loose.jpg", "docs/notes.txt", "test/other/2.jpg", "IMG_1.CR2")
    assert load_dataset(tmp_path).notes == (
        "1 folder with images next to those of the splits, not used (first: extra)",
        "1 image next to the folders of the splits, not used (first: loose.jpg)",
        "1 folder with images next to those of the splits, not used (first: test/other)",
        "1 image of formats that are not read: 1 .cr2; convert them to JPEG or PNG",
    )


# ---------------------------------------------------------------- the identity of an image


@pytest.mark.parametrize(
    "name", ["./sub/c.jpg", "sub//c.jpg", "sub/x/../c.jpg", "sub\\c.jpg", " sub/c.jpg ", "{}/sub/c.jpg"]
)
def test_a_manifest_path_is_normalised(tmp_path: Path, name: str) -> None:
    make(tmp_path, "sub/c.jpg")
    manifest(tmp_path, f"{name.format(tmp_path)},cat,gallery")
    (item,) = load_dataset(tmp_path).items
    assert (item.id, item.path) == ("sub/c.jpg", tmp_path / "sub/c.jpg")


def test_a_manifest_path_outside_the_folder_is_absolute(tmp_path: Path) -> None:
    make(tmp_path, "data/a.jpg", "other/b.jpg")
    manifest(tmp_path / "data", "a.jpg,cat,query", "../other/b.jpg,cat,gallery")
    assert [item.id for item in load_dataset(tmp_path / "data").items] == [
        "a.jpg",
        (tmp_path / "other/b.jpg").as_posix(),
    ]


def test_blanks_of_a_path_that_exists_are_kept(tmp_path: Path) -> None:
    make(tmp_path, " hat/a.jpg", " hat/b.jpg", " hat/c.jpg", "cap/d.jpg")
    manifest(tmp_path, '" hat/a.jpg"," hat",gallery', "cap/d.jpg, cap,gallery")
    assert rows(load_dataset(tmp_path)) == [(" hat/a.jpg", " hat", "gallery"), ("cap/d.jpg", "cap", "gallery")]


def test_an_image_listed_as_query_and_as_gallery_is_both(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    manifest(tmp_path, "a.jpg,cat,query", "./a.jpg,cat,gallery", "b.jpg,cat,gallery", "c.jpg,cat,Test")
    data = load_dataset(tmp_path)
    assert rows(data) == [("b.jpg", "cat", "gallery"), ("a.jpg", "cat", "test"), ("c.jpg", "cat", "test")]
    assert [item.id for item in data.query] == ["a.jpg", "c.jpg"]
    assert [item.id for item in data.gallery] == ["b.jpg", "a.jpg", "c.jpg"]


def test_a_manifest_with_a_column_twice(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    manifest(tmp_path, "a.jpg,cat,dog,gallery", header="path,label,Label,split")
    assert_facts(refusal(tmp_path), "manifest.csv", "2 columns called 'label'")


def test_nan_in_parquet_means_no_label(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    make(tmp_path, "a.jpg", "b.jpg")
    columns = {"path": ["a.jpg", "b.jpg"], "label": [float("nan"), 2.5], "split": ["gallery", "gallery"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "manifest.parquet")
    assert [item.label for item in load_dataset(tmp_path).items] == [None, "2.5"]


def test_folders_without_an_image_are_noted(tmp_path: Path) -> None:
    for folder in ("split/training", "classes"):
        make(tmp_path / folder, "a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg")
        (tmp_path / folder / "empty" / "inner").mkdir(parents=True)
    assert load_dataset(tmp_path / "split").notes == (
        "1 folder without an image, so not a class (first: training/empty)",
    )
    assert load_dataset(tmp_path / "classes").notes == ("1 folder without an image, so not a class (first: empty)",)


def test_a_flat_test_folder_is_noted_with_what_it_needs(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "test/3.jpg")
    (note,) = load_dataset(tmp_path).notes
    assert "first: test" in note and "query and gallery" in note


def test_labels_written_on_windows(tmp_path: Path) -> None:
    make(tmp_path, "training/a/1.jpg", "test/query/2.jpg", "test/gallery/3.jpg")
    (tmp_path / "labels.csv").write_text("path,label\ntest\\query\\2.jpg,cat\n./test/gallery/3.jpg,dog\n")
    data = load_dataset(tmp_path)
    assert {item.id: item.label for item in data.items if item.split != Split.TRAINING} == {
        "test/query/2.jpg": "cat",
        "test/gallery/3.jpg": "dog",
    }


def test_a_parquet_manifest_of_too_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    column = pyarrow.array(["a.jpg"] * 20)
    parquet.write_table(pyarrow.table(dict.fromkeys(("path", "label", "split"), column)), tmp_path / "manifest.parquet")
    monkeypatch.setattr(tables, "_MAX_ROWS", 19)
    assert "20 rows, more than 19" in refusal(tmp_path)
    monkeypatch.setattr(tables, "_MAX_ROWS", 20)
    assert "a.jpg" in refusal(tmp_path)  # read: the split is not one


def test_a_csv_manifest_of_too_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "manifest.csv").write_text("path,label,split\na.jpg,cat,training\nb.jpg,dog,training\n")
    monkeypatch.setattr(tables, "_MAX_ROWS", 2)
    assert len(load_dataset(tmp_path).items) == 2
    monkeypatch.setattr(tables, "_MAX_ROWS", 1)
    assert "more than 1 rows" in refusal(tmp_path)


def write_parquet_manifest(root: Path, rows: int, **options: Any) -> None:
    """Write a manifest with a column `note`, one text for all rows."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    make(root, *(f"{row}.jpg" for row in range(rows)))
    columns = {
        "path": [f"{row}.jpg" for row in range(rows)],
        "label": ["cat"] * rows,
        "split": ["training"] * rows,
        "note": ["x" * 5000] * rows,
    }
    parquet.write_table(pyarrow.table(columns), root / "manifest.parquet", **options)


@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [
        ("_MAX_CELL", 4999, "a cell has 5,000 characters, more than 4,999"),
        ("_MAX_TEXT", 10_000, "more than 10,000 characters"),
        ("_MAX_GROUP", 4000, "expands to"),
    ],
)
def test_a_parquet_manifest_that_expands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, words: str, dictionary: bool
) -> None:
    write_parquet_manifest(tmp_path, 3, use_dictionary=dictionary, compression="gzip")
    (item, *_) = load_dataset(tmp_path).items
    assert item.metadata["note"] == "x" * 5000
    monkeypatch.setattr(tables, limit, value)
    assert words in refusal(tmp_path)


def test_a_text_that_many_rows_of_a_parquet_manifest_repeat_is_held_once(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1000), pyarrow.array(["x" * 100_000]))
    parquet.write_table(pyarrow.table(dict.fromkeys(("path", "label", "split"), column)), tmp_path / "manifest.parquet")
    before = pyarrow.default_memory_pool().max_memory()
    assert "a cell has 100,000 characters" in refusal(tmp_path)
    assert pyarrow.default_memory_pool().max_memory() < max(before, 20_000_000)  # 300 MB for each row its own


@pytest.mark.parametrize("kind", ["string", "binary"])
def test_a_huge_text_in_a_parquet_manifest_is_refused_before_it_is_copied(tmp_path: Path, kind: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    column = pyarrow.array(["x" * 10_000_000]).cast(kind)
    parquet.write_table(pyarrow.table(dict.fromkeys(("path", "label", "split"), column)), tmp_path / "manifest.parquet")
    tracemalloc.start()
    try:
        assert "a cell has 10,000,000 bytes" in refusal(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_lists_in_a_parquet_manifest(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"path": ["a.jpg"], "label": ["cat"], "split": ["training"], "tags": [["a", "b"]]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "manifest.parquet")
    assert "tags" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["manifest.csv", "manifest.parquet"])
def test_a_manifest_larger_than_any_is_not_read(tmp_path: Path, name: str) -> None:
    pytest.importorskip("pyarrow")
    with (tmp_path / name).open("wb") as file:
        file.truncate(3_000_000_000)
    assert "3,000,000,000 bytes" in refusal(tmp_path)


def test_a_manifest_without_line_ends(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("path,label,split\n" + "x" * 5_000_000)
    assert "manifest.csv" in refusal(tmp_path)


def test_folders_that_may_have_been_meant_otherwise_are_noted(tmp_path: Path) -> None:
    make(tmp_path / "flat", "train/1.jpg", "train/2.jpg", "test/3.jpg")
    (note,) = load_dataset(tmp_path / "flat").notes
    assert "test, train are used as classes" in note
    make(tmp_path / "deep", "images/train/a/1.jpg", "images/test/a/2.jpg", "labels.csv")
    notes = load_dataset(tmp_path / "deep").notes
    assert "all images are in images" in notes[0] and "labels.csv is not used" in notes[1]


def test_links_between_class_folders_are_read_once(tmp_path: Path) -> None:
    make(tmp_path, "a/1.jpg", "b/2.jpg", "c/3.jpg")
    for folder, target in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / folder / "link").symlink_to(tmp_path / target)
    assert sorted(item.id for item in load_dataset(tmp_path).items) == ["a/1.jpg", "b/2.jpg", "c/3.jpg"]


def link_to_nothing(path: Path) -> None:
    path.symlink_to("missing")


@pytest.mark.parametrize("name", ["manifest.csv", "manifest.parquet", "labels.csv"])
@pytest.mark.parametrize(
    ("create", "cause"),
    [(os.mkfifo, "a pipe"), (Path.mkdir, "folder"), (link_to_nothing, "a link to nothing")],
    ids=["pipe", "folder", "link"],
)
def test_a_table_that_is_not_a_file_is_refused(
    tmp_path: Path, name: str, create: Callable[[Path], None], cause: str
) -> None:
    make(tmp_path, *SPLITS)
    create(tmp_path / name)
    assert_facts(refusal(tmp_path), name, cause)


def test_a_second_manifest_is_noted(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    manifest(tmp_path, "a.jpg,cat,gallery")
    (tmp_path / "manifest.parquet").touch()
    assert_facts("; ".join(load_dataset(tmp_path).notes), "manifest.parquet is not used")


@pytest.mark.parametrize("create", [os.mkfifo, Path.mkdir, link_to_nothing, Path.touch])
def test_labels_of_class_folders_are_noted(tmp_path: Path, create: Callable[[Path], None]) -> None:
    make(tmp_path, "cat/1.jpg", "dog/2.jpg")
    create(tmp_path / "labels.csv")
    assert_facts("; ".join(load_dataset(tmp_path).notes), "labels.csv is not used")
