"""Data that cannot be used: one sentence, exit code 2, nothing on stdout, nothing written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

CLASSES = ("astronaut", "cat", "coffee", "rocket")
TRAIN = "train photos --backbone test_efficientnet --weights none --frozen --out new"


def file(name: str, text: str | bytes) -> Callable[[], None]:
    """Write a file."""

    def write() -> None:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())

    return write


def without(*names: str) -> Callable[[], None]:
    """Remove folders or files of `photos`."""

    def remove() -> None:
        for path in (Path("photos") / name for name in names):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def one_class() -> None:
    without(*(f"training/{name}" for name in CLASSES if name != "cat"))()
    Path("photos/labels.csv").write_text("path,label\ntest/query/cat0.jpg,cat\ntest/gallery/cat0.jpg,cat\n")


def corrupt() -> None:
    for path in Path("photos").rglob("*.jpg"):
        path.write_text("no picture")


def nothing() -> None:
    pass


NO_PICTURE = "not an image that Pillow can read"
CASES = {
    "no folder": (
        nothing,
        "check nowhere",
        "nowhere does not exist; give a folder of images, with class folders or a manifest.csv.",
    ),
    "an empty folder": (
        lambda: Path("void").mkdir(),
        "check void",
        "void holds no image; expected files such as .jpg, .png or .webp, or a manifest.csv.",
    ),
    "a file": (
        nothing,
        "check photos/labels.csv",
        "photos/labels.csv is a file; give the folder that holds the images or the manifest.",
    ),
    "an empty path": (
        nothing,
        "check ''",
        "invalid value for 'DATA': the path is empty; see 'lookalike check --help'.",
    ),
    "a manifest without a column": (
        file("m/manifest.csv", "path,label\na.jpg,cat\n"),
        "check m",
        "m/manifest.csv has the columns path, label, but needs path, label, split.",
    ),
    "a manifest with an unknown split": (
        file("m/manifest.csv", "path,label,split\na.jpg,cat,tset\n"),
        "check m",
        "m/manifest.csv line 2 has the split 'tset'; allowed are training, validation, query and gallery.",
    ),
    "a manifest without rows": (
        file("m/manifest.csv", "path,label,split\n"),
        "check m",
        "m/manifest.csv has a header but no row.",
    ),
    "an empty manifest": (
        file("m/manifest.csv", ""),
        "check m",
        "m/manifest.csv has the columns (none), but needs path, label, split.",
    ),
    "a manifest of files that are not there": (
        file("m/manifest.csv", "path,label,split\na.jpg,cat,query\n"),
        "check m",
        "none of the 1 files that m/manifest.csv names exists, the first is m/a.jpg.",
    ),
    "a manifest with a short row": (
        file("m/manifest.csv", "path,label,split\na.jpg,cat\n"),
        "check m",
        "m/manifest.csv line 2 has 2 fields, the header has 3.",
    ),
    "labels that match nothing": (
        file("photos/labels.csv", "path,label\ncat0.jpg,cat\n"),
        "evaluate photos --model model",
        "none of the 1 paths in photos/labels.csv is an image of the test part, the first is 'cat0.jpg'; "
        "write them like 'test/query/picture.jpg'.",
    ),
    "labels that contradict each other": (
        file("photos/labels.csv", "path,label\na.jpg,cat\na.jpg,dog\n"),
        "evaluate photos --model model",
        "photos/labels.csv line 3 gives a.jpg the label 'dog', an earlier line 'cat'.",
    ),
    "labels in another encoding": (
        file("photos/labels.csv", b"path,label\n\xff\xfe\n"),
        "evaluate photos --model model",
        "photos/labels.csv cannot be read as UTF-8 CSV: 'utf-8' codec can't decode byte 0xff in position 11: "
        "invalid start byte.",
    ),
    "no labels to evaluate by": (
        without("labels.csv"),
        "evaluate photos --model model",
        "photos has no labels for query and gallery; add labels.csv (path,label) or use 'lookalike submit'.",
    ),
    "no query part": (
        without("test/query"),
        "evaluate photos --model model",
        "photos has no query images; they are expected in test/query, or in a manifest's split column.",
    ),
    "no gallery part": (
        without("test/gallery"),
        "submit photos --model model --out s.json",
        "photos has no gallery images; they are expected in test/gallery, or in a manifest's split column.",
    ),
    "no training part": (
        without("training"),
        TRAIN,
        "photos has no labelled training images; put them in training/<class>/, in two class folders or more,"
        " or name them in a manifest.csv.",
    ),
    "no training part to benchmark with": (
        without("training"),
        "benchmark photos --bundle model --out new",
        "photos has no labelled training images, …; give training/<class>/ folders or a manifest.csv.",
    ),
    "one class": (
        one_class,
        TRAIN,
        "photos has training images of 1 class; fine-tuning needs at least 2, so add a class folder.",
    ),
    "too few images for a validation part": (
        without(*(f"training/{name}/{name}{n}.jpg" for name in CLASSES for n in range(3))),
        TRAIN,
        "photos has too few training images to cut a validation part: it needs a class of 5 images or more, "
        "got 4 classes with 12 images; add some.",
    ),
    "too few classes for a class-disjoint validation part": (
        without("training/cat"),
        f"{TRAIN} --class-disjoint",
        "photos has too few training images to cut a validation part: it needs at least 4 classes, as whole classes "
        "are cut, got 3 classes with 18 images; add some.",
    ),
    "only corrupt files to train on": (
        corrupt,
        TRAIN,
        "at least 2 readable images are needed to fit test_efficientnet, got 0 of 16.",
    ),
    "only corrupt files to embed": (
        corrupt,
        "embed photos --model model --out photos.emb2",
        f"none of the 44 images can be read, the first is photos/test/gallery/astronaut0.jpg: {NO_PICTURE}.",
    ),
    "only corrupt files to evaluate": (
        corrupt,
        "evaluate photos --model model",
        f"none of the 8 query images can be read, the first is photos/test/query/astronaut0.jpg: {NO_PICTURE}.",
    ),
    "only corrupt files to keep": (
        corrupt,
        "check photos --clean-manifest clean",
        "photos has no image left after cleaning, so there is no manifest to write.",
    ),
    "a file in place of a folder of images": (
        nothing,
        "embed photos/labels.csv --model model --out new",
        "photos/labels.csv is not a folder; give a folder of images.",
    ),
    "a query that does not exist": (
        nothing,
        "search photos.index cat.jpg",
        "cat.jpg cannot be searched for: the file does not exist; give another picture.",
    ),
    "a folder as query": (
        nothing,
        "search photos.index photos",
        "photos cannot be searched for: it is a folder, not a file; give another picture.",
    ),
    "more hits than the gallery has, measured": (
        nothing,
        "evaluate photos --model model -k 13",
        "precision@13 needs 13 hits, but the gallery has only 12 items; choose a smaller k or a larger gallery.",
    ),
    "more hits than the gallery has, submitted": (
        nothing,
        "submit photos --model model -k 13 --out s.json",
        "-k is 13, but the index has only 12 items; choose a smaller -k.",
    ),
    "more hits than the index has": (
        nothing,
        "search photos.index photos/test/query/cat0.jpg -k 13",
        "-k is 13, but the index has only 12 items; choose a smaller -k.",
    ),
    "more hits than the index has besides the query": (
        nothing,
        "search photos.index photos/test/gallery/cat0.jpg -k 12",
        "-k is 12, but the index has only 11 items besides the query itself; choose a smaller -k.",
    ),
}


@pytest.mark.parametrize(("arrange", "line", "sentence"), CASES.values(), ids=CASES)
def test_bad_data(arrange, line, sentence, world, refused):
    arrange()
    refused(line, sentence, grows="photos.emb2/")
