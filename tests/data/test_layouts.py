"""The five layouts, and one sentence for each way to get them wrong."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from lookalike.data.dataset import Dataset, Split
from lookalike.data.layouts import load_dataset
from lookalike.errors import DataError, MissingExtra


def make(root: Path, *names: str) -> None:
    """Create files; loading looks at names only."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def manifest(root: Path, *lines: str, header: str = "path,label,split") -> Path:
    path = root / "manifest.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def found(data: Dataset) -> list[tuple[str, str | None, str]]:
    return [(item.id, item.label, item.split.value) for item in data.items]


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_dataset(root)
    return str(caught.value)


PARTS = ("training/cat/1.jpg", "training/dog/sub/2.png", "test/query/q.jpg", "test/gallery/g.webp")


def test_layout_1_with_labels(tmp_path: Path) -> None:
    make(tmp_path, *PARTS)
    (tmp_path / "labels.csv").write_text("path,label\ntest/query/q.jpg,cat\ntest/gallery/g.webp,dog\n")
    data = load_dataset(str(tmp_path))
    assert data.layout == "training and test folders, test part labelled by labels.csv"
    assert found(data) == [
        ("training/cat/1.jpg", "cat", "training"),
        ("training/dog/sub/2.png", "dog", "training"),
        ("test/query/q.jpg", "cat", "query"),
        ("test/gallery/g.webp", "dog", "gallery"),
    ]
    assert data.items[0].path == tmp_path / "training/cat/1.jpg"
    assert data.test_is_labelled
    assert data.notes == ()


def test_layout_1_without_labels(tmp_path: Path) -> None:
    make(tmp_path, *PARTS)
    data = load_dataset(tmp_path)
    assert data.layout == "training and test folders, test part without labels"
    assert [item.label for item in data.items] == ["cat", "dog", None, None]
    assert not data.test_is_labelled


def test_layout_1_notes_what_it_leaves_out(tmp_path: Path) -> None:
    make(tmp_path, *PARTS, "training/stray.jpg")
    (tmp_path / "labels.csv").write_text("path,label\ntest/query/q.jpg,cat\ntest/query/gone.jpg,cat\n")
    assert load_dataset(tmp_path).notes == (
        "1 images lie directly in training/, in no class folder, and are left out",
        "labels.csv names 1 images that are not there, the first is test/query/gone.jpg",
    )


def test_layout_1_of_the_builder(photo_folder: Path) -> None:
    data = load_dataset(photo_folder)
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
    assert data.layout == "training and test folders, class folders in the test part"
    assert [item.label for item in data.items] == ["cat", "owl", "owl"]
    assert data.test_classes_unseen
    assert "most queries are of classes that the training part does not have" in str(data)


def test_layout_3(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg", "sub/c.jpg", "d.jpg", "e.jpg")
    outside = tmp_path / "d.jpg"
    manifest(
        tmp_path,
        "sub/c.jpg, cat ,train,Rome",
        "b.jpg,,Gallery,",
        "",
        f"{outside},dog,val,Oslo",
        "e.jpg,dog,query,Bern",
        "a.jpg,dog,training,Bonn",
        header="\ufeffPath,Label,split,City",
    )
    data = load_dataset(tmp_path)
    assert data.layout == "manifest (manifest.csv)"
    assert found(data) == [
        ("a.jpg", "dog", "training"),
        ("sub/c.jpg", "cat", "training"),
        (str(outside), "dog", "validation"),
        ("e.jpg", "dog", "query"),
        ("b.jpg", None, "gallery"),
    ]
    assert data.items[1].metadata == {"city": "Rome"}
    assert data.items[2].path == outside


def test_layout_3_notes_missing_files(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    manifest(tmp_path, "a.jpg,cat,training", "z.jpg,cat,training")
    data = load_dataset(tmp_path)
    assert data.notes == ("1 files named in manifest.csv do not exist, the first is z.jpg",)
    assert len(data) == 2


def test_layout_3_as_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    make(tmp_path, "a.jpg", "b.jpg")
    columns = {"path": ["a.jpg", "b.jpg"], "label": ["cat", None], "split": ["query", "gallery"], "year": [2020, 2021]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "manifest.parquet")
    data = load_dataset(tmp_path)
    assert data.layout == "manifest (manifest.parquet)"
    assert found(data) == [("a.jpg", "cat", "query"), ("b.jpg", None, "gallery")]
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


def test_layout_4_keeps_tiny_classes_for_training(tmp_path: Path) -> None:
    make(tmp_path, "few/1.jpg", "few/2.jpg", "three/1.jpg", "three/2.jpg", "three/3.jpg")
    counts = Counter((item.label, item.split.value) for item in load_dataset(tmp_path).items)
    assert counts == {("few", "training"): 2, ("three", "training"): 1, ("three", "query"): 1, ("three", "gallery"): 1}


@pytest.mark.parametrize("names", [("a.jpg", "sub/b.png"), ("one/a.jpg", "one/b.jpg")], ids=["flat", "one folder"])
def test_layout_5(tmp_path: Path, names: Iterable[str]) -> None:
    make(tmp_path, *names)
    data = load_dataset(tmp_path)
    assert data.layout == "images without labels"
    assert found(data) == [(name, None, "gallery") for name in names]


def test_a_picture_beside_class_folders_is_told_of(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "cover.jpg")
    data = load_dataset(tmp_path)
    assert {item.label for item in data.items} == {None}
    assert data.notes == (
        "1 image lies beside the 2 folders, the first is cover.jpg, so these are not taken for classes; "
        "move what has no class elsewhere if they are",
    )


def test_a_summary_under_another_name_holds_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "training/cat/1.jpg", "test/query/1.jpg", "test/gallery/2.jpg", "labels.csv")
    (tmp_path / "labels.csv").write_text("path,label\ntest/query/1.jpg,cat\ntest/gallery/2.jpg,cat\n")
    monkeypatch.chdir(tmp_path)
    first = load_dataset(Path()).summary("photos").splitlines()[0]
    assert first == "photos: training and test folders, test part labelled by labels.csv, 3 images"


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    root = tmp_path / "none"
    assert refusal(root) == f"{root} does not exist; give a folder of images, with class folders or a manifest.csv."


def test_file_instead_of_a_folder(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    root = tmp_path / "a.jpg"
    assert refusal(root) == f"{root} is a file; give the folder that holds the images or the manifest."


def test_folder_without_images(tmp_path: Path) -> None:
    make(tmp_path, "notes.txt")
    wanted = f"{tmp_path} holds no image; expected files such as .jpg, .png or .webp, or a manifest.csv."
    assert refusal(tmp_path) == wanted


def test_parts_without_images(tmp_path: Path) -> None:
    make(tmp_path, "training/cat/notes.txt")
    wanted = f"{tmp_path} has a training or test folder, but no image in training/<class>/, test/query or test/gallery."
    assert refusal(tmp_path) == wanted


def test_labels_that_contradict_each_other(tmp_path: Path) -> None:
    make(tmp_path, *PARTS)
    path = tmp_path / "labels.csv"
    path.write_text("path,label\ntest/query/q.jpg,cat\ntest/query/q.jpg,dog\n")
    assert refusal(tmp_path) == f"{path} line 3 gives test/query/q.jpg the label 'dog', an earlier line 'cat'."


def test_labels_of_other_images(tmp_path: Path) -> None:
    make(tmp_path, *PARTS)
    (tmp_path / "labels.csv").write_text("path,label\nq.jpg,cat\n")
    assert refusal(tmp_path) == (
        f"none of the 1 paths in {tmp_path / 'labels.csv'} is an image of the test part, "
        "the first is 'q.jpg'; write them like 'test/query/picture.jpg'."
    )


def test_labels_without_the_columns(tmp_path: Path) -> None:
    make(tmp_path, *PARTS)
    (tmp_path / "labels.csv").write_text("file,class\nq.jpg,cat\n")
    assert refusal(tmp_path) == f"{tmp_path / 'labels.csv'} has the columns file, class, but needs path, label."


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([",cat,query"], "{path} line 2 has no path."),
        (
            ["a.jpg,cat,query", "b.jpg,cat,test"],
            "{path} line 3 has the split 'test'; allowed are training, validation, query and gallery.",
        ),
        ([], "{path} has a header but no row."),
        (["y.jpg,,query", "z.jpg,,query"], "none of the 2 files that {path} names exists, the first is {root}/y.jpg."),
        (["a.jpg,cat"], "{path} line 2 has 2 fields, the header has 3."),
        (
            ["a.jpg,cat,query", "a.jpg,cat,gallery"],
            "{root} names 1 images more than once, the first is 'a.jpg'; keep one row for each.",
        ),
    ],
    ids=["no path", "split", "no row", "no file", "fields", "twice"],
)
def test_wrong_manifest(tmp_path: Path, lines: list[str], sentence: str) -> None:
    make(tmp_path, "a.jpg", "b.jpg")
    path = manifest(tmp_path, *lines)
    assert refusal(tmp_path) == sentence.format(path=path, root=tmp_path)


@pytest.mark.parametrize(("content", "columns"), [("path,label\na.jpg,cat\n", "path, label"), ("", "(none)")])
def test_manifest_without_the_columns(tmp_path: Path, content: str, columns: str) -> None:
    path = tmp_path / "manifest.csv"
    path.write_text(content)
    assert refusal(tmp_path) == f"{path} has the columns {columns}, but needs path, label, split."


def test_manifest_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    path.write_bytes("path,label,split\nä.jpg,cat,query\n".encode("latin-1"))
    text = refusal(tmp_path)
    assert text.startswith(f"{path} cannot be read as UTF-8 CSV: 'utf-8' codec can't decode byte 0xe4")
    assert text.endswith(".")


def test_parquet_that_is_none(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "manifest.parquet").write_bytes(b"not parquet")
    assert refusal(tmp_path).startswith(f"{tmp_path / 'manifest.parquet'} cannot be read as Parquet: ")


def test_parquet_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manifest.parquet").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra) as caught:
        load_dataset(tmp_path)
    assert str(caught.value) == (
        "reading manifest.parquet needs the package pyarrow, which is not installed; "
        "run: pip install 'lookalike[parquet]'"
    )


CLOSED = "the folder cannot be listed (permission denied)"
CloseFolder = Callable[[Path], None]


@pytest.mark.parametrize(
    ("closed", "left"),
    [
        ("training/cat", ["training/dog/sub/2.png", "test/query/q.jpg", "test/gallery/g.webp"]),
        ("training/dog/sub", ["training/cat/1.jpg", "test/query/q.jpg", "test/gallery/g.webp"]),
        ("training", ["test/query/q.jpg", "test/gallery/g.webp"]),
        ("test/query", ["training/cat/1.jpg", "training/dog/sub/2.png", "test/gallery/g.webp"]),
    ],
)
def test_parts_with_a_closed_folder(tmp_path: Path, close_folder: CloseFolder, closed: str, left: list[str]) -> None:
    make(tmp_path, *PARTS)
    close_folder(tmp_path / closed)
    data = load_dataset(tmp_path)
    assert [item.id for item in data.items] == left
    assert [(s.path, s.cause) for s in data.skipped] == [(tmp_path / closed, CLOSED)]
    assert data.notes == ()
    line = f"  note: 1 folder was skipped, the first is {tmp_path / closed}: {CLOSED}"
    assert str(data).splitlines()[-1] == line


def test_labels_of_closed_folders_are_no_error(tmp_path: Path, close_folder: CloseFolder) -> None:
    make(tmp_path, *PARTS)
    (tmp_path / "labels.csv").write_text("path,label\ntest/query/q.jpg,cat\ntest/gallery/g.webp,dog\n")
    for split in ("query", "gallery"):
        close_folder(tmp_path / "test" / split)
    data = load_dataset(tmp_path)
    assert len(data.training) == 2
    assert len(data.skipped) == 2
    assert data.notes == ("labels.csv names 2 images that are not there, the first is test/query/q.jpg",)


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
    assert found(data) == [("a.jpg", None, "gallery")]
    assert [(s.path, s.cause) for s in data.skipped] == [(tmp_path / "inside", CLOSED)]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (
            ("inside/b.jpg",),
            "{root} holds no image, and folders in it were skipped, the first is {root}/inside: {closed}; expected "
            "files such as .jpg, .png or .webp, or a manifest.csv.",
        ),
        (
            ("training/inside/b.jpg",),
            "{root} has a training or test folder, but no image in training/<class>/, test/query or test/gallery, and "
            "folders in it were skipped, the first is {root}/training/inside: {closed}.",
        ),
    ],
)
def test_nothing_but_closed_folders(
    tmp_path: Path, close_folder: CloseFolder, names: tuple[str, ...], sentence: str
) -> None:
    make(tmp_path, *names)
    close_folder((tmp_path / names[0]).parent)
    assert refusal(tmp_path) == sentence.format(root=tmp_path, closed=CLOSED)


def test_a_root_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.jpg")
    monkeypatch.setattr("lookalike.data.folders.os.access", lambda _path, _mode: False)
    wanted = f"the permissions of {tmp_path} do not allow reading it; change them, or give another folder."
    assert refusal(tmp_path) == wanted


def test_a_manifest_that_names_files_where_nobody_may_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert data.notes == ("1 files named in manifest.csv do not exist, the first is c.jpg",)


@pytest.mark.parametrize(
    ("name", "layout", "counts"),
    [
        ("clothing", "training and test folders, test part labelled by labels.csv", (1822, 372, 1587)),
        ("caltech", "training and test folders, class folders in the test part", (2109, 446, 1334)),
        ("trashnet", "manifest (manifest.csv)", (1263, 265, 999)),
    ],
)
def test_shared_data_sets(shared_data: Path, name: str, layout: str, counts: tuple[int, int, int]) -> None:
    data = load_dataset(shared_data / name)
    assert data.layout == layout
    assert (len(data.training), len(data.query), len(data.gallery)) == counts
    assert data.test_is_labelled
    assert data.test_classes_unseen == (name == "caltech")
