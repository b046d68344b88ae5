"""What counts as the same image, and failures that are temporary."""

from __future__ import annotations

import os
import shutil
import unicodedata
from pathlib import Path

from bad_input_cases.case import SCENES, Kind, classes, image, manifest, write

KIND = Kind("Identity of an image")
TEMPORARY = Kind("Temporary failures, and updates")
case, add = KIND.case, KIND.add

INDEX = "lookalike index data --model onnx --out x.index"
SEARCH = "lookalike search x.index {}"
EVALUATE = "lookalike evaluate data --model onnx -k 1"


def spelled(first: str) -> None:
    """Write a manifest whose first path is spelled in an unusual way."""
    classes("data", {"cat": 3})
    manifest("data", [[path, "cat", "gallery"] for path in (first, "cat/1.jpg", "cat/2.jpg")])


@case(INDEX, SEARCH.format("data/cat/0.jpg"), uses=["onnx"], exit=0, silent=[r"1\.0000"])
def a_path_with_a_dot() -> None:
    """A manifest path `./cat/0.jpg`, then a search for that image."""
    spelled("./cat/0.jpg")


@case(INDEX, SEARCH.format("data/cat/0.jpg"), uses=["onnx"], exit=0, silent=[r"1\.0000"])
def a_path_with_two_slashes() -> None:
    """A manifest path `cat//0.jpg`."""
    spelled("cat//0.jpg")


@case(INDEX, SEARCH.format("data/cat/0.jpg"), uses=["onnx"], exit=0, silent=[r"1\.0000"])
def a_path_through_the_parent() -> None:
    """A manifest path `../data/cat/0.jpg`."""
    spelled("../data/cat/0.jpg")


@case("lookalike check data", says=["listed twice"])
def one_image_in_two_spellings() -> None:
    """A manifest that lists `cat/1.jpg` and `./cat//1.jpg`."""
    spelled("./cat//1.jpg")


@case(
    INDEX,
    SEARCH.format("data/cat/1.jpg"),
    uses=["onnx"],
    exit=0,
    says=[r"other/0\.jpg"],
    silent=["not exist", r"1\.0000"],
)
def absolute_and_relative_paths() -> None:
    """A manifest with an absolute path outside the folder and relative ones."""
    spelled(str(image("other/0.jpg", 5).absolute()))


def classes_of_two_scenes(folder: str) -> None:
    """Write classes in which an image and its nearest other one are never in the same class."""
    for number in range(3):
        for scene in SCENES[:2]:
            image(f"{folder}/{number}/{scene}.jpg", number, scene)


@case(EVALUATE, exit=0, uses=["onnx"], says=["also in the gallery|leave-one-out"], silent=[r"precision@1 +1\.0"])
def leave_one_out_by_a_manifest() -> None:
    """A manifest that lists each image as query and as gallery."""
    classes_of_two_scenes("data")
    paths = sorted(path.relative_to("data") for path in Path("data").rglob("*.jpg"))
    rows = [[str(path), path.parts[0], split] for path in paths for split in ("query", "gallery")]
    manifest("data", rows)


@case(EVALUATE, exit=0, uses=["onnx"], says=["also in the gallery|leave-one-out"], silent=[r"precision@1 +1\.0"])
def leave_one_out_by_links() -> None:
    """A gallery of links to the query images."""
    classes_of_two_scenes("data/test/query")
    for path in sorted(Path("data/test/query").rglob("*.jpg")):
        link = Path("data/test/gallery") / path.parent.name / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.absolute())


@case(EVALUATE, exit=0, uses=["onnx"], says=["also in the gallery|leave-one-out"], silent=[r"precision@1 +1\.0"])
def leave_one_out_by_hard_links() -> None:
    """A gallery of hard links to the query images."""
    classes_of_two_scenes("data/test/query")
    for path in sorted(Path("data/test/query").rglob("*.jpg")):
        link = Path("data/test/gallery") / path.parent.name / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, link)


add(
    "a-moved-gallery",
    "The folder of an index was renamed.",
    "mv photos/ elsewhere && lookalike search photos.index elsewhere/cat/0.jpg",
    uses=["photos", "photos.index"],
    exit=0,
    says=["not exist.*root"],
)
add(
    "a-moved-gallery-with-its-root",
    "The same with `--root`.",
    "mv photos/ elsewhere && lookalike search photos.index elsewhere/cat/0.jpg --root elsewhere",
    uses=["photos", "photos.index"],
    exit=0,
    says=["elsewhere/cat/1"],
    silent=["not exist", r"1\.0000"],
)
add(
    "a-deleted-image",
    "An image of the index was deleted.",
    "rm photos/cat/1.jpg && lookalike search photos.index photos/cat/0.jpg --html x.html",
    uses=["photos", "photos.index"],
    exit=0,
    says=["not exist|gone|missing"],
    files=["x.html"],
)
add(
    "a-root-that-does-not-exist",
    "`--root` with a folder that does not exist.",
    "lookalike search photos.index photos/cat/0.jpg --root nowhere",
    uses=["photos", "photos.index"],
    says=["nowhere"],
)
add(
    "a-query-through-a-link",
    "A query that is a link to an image of the index.",
    "ln -s photos/cat/0.jpg q.jpg && lookalike search photos.index q.jpg",
    uses=["photos", "photos.index"],
    exit=0,
    silent=[r"1\.0000"],
)
add(
    "a-query-through-a-hard-link",
    "A query that is a hard link to an image of the index.",
    "ln photos/cat/0.jpg q.jpg && lookalike search photos.index q.jpg",
    uses=["photos", "photos.index"],
    exit=0,
    silent=[r"1\.0000"],
)
add(
    "a-copied-query",
    "A query that is a copy of an image of the index: another file.",
    "cp photos/cat/0.jpg q.jpg && lookalike search photos.index q.jpg -k 1",
    uses=["photos", "photos.index"],
    exit=0,
    says=[r"1\.0000.*cat/0\.jpg"],
)
add(
    "the-same-query-twice",
    "The same query twice.",
    "lookalike search photos.index photos/cat/0.jpg ./photos/cat/0.jpg -k 1",
    uses=["photos", "photos.index"],
    exit=0,
    silent=[r"1\.0000"],
)


def decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@case("lookalike check data", exit=0, says=["labelled by labels.csv"], silent=["unseen", "without an image"])
def class_folders_in_nfd() -> None:
    """Class folders named in NFD, as macOS writes them, and a `labels.csv` in NFC."""
    for label in ("kätzchen", "café"):
        for number in range(3):
            image(f"data/training/{decomposed(label)}/{number}.jpg", number, "cat" if label == "kätzchen" else "coffee")
    image("data/test/query/q.jpg", 3)
    image("data/test/gallery/g.jpg", 4)
    write("data/labels.csv", "path,label\ntest/query/q.jpg,kätzchen\ntest/gallery/g.jpg,kätzchen\n")


@case("lookalike check data", exit=0, says=["labelled by labels.csv"], silent=["unseen", "without an image"])
def file_names_in_nfd() -> None:
    """Test images named in NFD and a `labels.csv` in NFC."""
    classes("data/training", {"cat": 3, "coffee": 3})
    image(f"data/test/query/{decomposed('ü')}.jpg", 3)
    image(f"data/test/gallery/{decomposed('é')}.jpg", 4)
    write("data/labels.csv", "path,label\ntest/query/ü.jpg,cat\ntest/gallery/é.jpg,cat\n")


@case(INDEX, SEARCH.format("data/a.jpg") + " -k 1", uses=["onnx"], exit=0, says=[r"1\.0000.*A\.jpg"])
def names_that_differ_in_case() -> None:
    """`a.jpg` and its copy `A.jpg`."""
    for name in ("a.jpg", "A.jpg"):
        image(f"data/{name}", 0)
    image("data/b.jpg", 1)


@case("lookalike check data", exit=1, says=["contradiction"])
def one_image_in_two_classes() -> None:
    """The same image in two class folders."""
    classes("data", {"cat": 3, "coffee": 3})
    shutil.copy("data/cat/0.jpg", "data/coffee/x.jpg")


KIND.skip("Names on a file system that stores NFD itself (macOS)", "not on this machine")

# ---------------------------------------------------------------- temporary failures, updates

EMBED = "lookalike embed data --model onnx --out x.emb"


@TEMPORARY.case(f"{EMBED} && chmod 644 data/cat/0.jpg", EMBED, uses=["onnx"], exit=0, says=["3 images embedded"])
def a_closed_image_is_tried_again() -> None:
    """An image without permission when it is first embedded."""
    classes("data", {"cat": 3})
    Path("data/cat/0.jpg").chmod(0)


@TEMPORARY.case(f"(ulimit -n 40; {EMBED}); true", EMBED, uses=["onnx"], exit=0, says=["6 images embedded"])
def too_many_open_files() -> None:
    """A first run with at most 40 open files, then one without that limit."""
    classes("data", {"cat": 3, "coffee": 3})


@TEMPORARY.case(f"(ulimit -v 900000; {EMBED}); true", EMBED, uses=["onnx"], exit=0, says=["6 images embedded"])
def too_little_memory() -> None:
    """A first run with at most 0.9 GB of address space, then one without that limit."""
    classes("data", {"cat": 3, "coffee": 3})


@TEMPORARY.case(
    f"chmod 0 data/coffee; {EMBED}", f"chmod 755 data/coffee; {EMBED}", uses=["onnx"], exit=0, says=["6 images"]
)
def a_closed_folder_is_tried_again() -> None:
    """A folder without permission when it is first embedded."""
    classes("data", {"cat": 3, "coffee": 3})


@TEMPORARY.case(
    f"{EMBED} && cp data/cat/1.jpg data/cat/0.jpg", EMBED, uses=["onnx"], exit=0, says=["3 images embedded"]
)
def a_repaired_image() -> None:
    """A damaged image that is repaired after the first run."""
    classes("data", {"cat": 3})
    write("data/cat/0.jpg", "not an image")


@TEMPORARY.case(EMBED, EMBED, uses=["onnx"], exit=0, says=["skipped", r"cat/0\.jpg", "up to date"])
def a_damaged_image_stays_reported() -> None:
    """A damaged image: the second run reports it again, and does nothing else."""
    classes("data", {"cat": 3})
    write("data/cat/0.jpg", "not an image")


# overwritten by zeros with the same size and time: that they are not skipped shows that they were not embedded again
OVERWRITE = (
    "for f in data/*/*.jpg; do touch -r $f time; head -c $(stat -c %s $f) /dev/zero > $f; touch -r time $f; done; "
)


@TEMPORARY.case(
    EMBED,
    OVERWRITE + "cp new.jpg data/a.jpg; " + EMBED,
    uses=["onnx"],
    exit=0,
    says=["7 images embedded"],
    silent=["skipped"],
)
def one_image_that_sorts_first() -> None:
    """One image is added that sorts before six others, whose files are overwritten."""
    classes("data", {"cat": 3, "coffee": 3})
    image("new.jpg", 5)


@TEMPORARY.case(
    EMBED,
    OVERWRITE + "rm data/cat/0.jpg; " + EMBED,
    uses=["onnx"],
    exit=0,
    says=["5 images embedded"],
    silent=["skipped"],
)
def one_image_that_is_removed() -> None:
    """One of six images is removed; the files of the others are overwritten."""
    classes("data", {"cat": 3, "coffee": 3})


@TEMPORARY.case(
    EMBED,
    OVERWRITE + "cp new.jpg data/cat/0.jpg; " + EMBED,
    uses=["onnx"],
    exit=0,
    says=["6 images embedded"],
    silent=["skipped"],
)
def one_image_that_is_changed() -> None:
    """One of six images is written again; the files of the others are overwritten."""
    classes("data", {"cat": 3, "coffee": 3})
    image("new.jpg", 5)


@TEMPORARY.case(
    "(timeout -s KILL 1.5 lookalike embed data --model onnx --out x.emb); true",
    EMBED,
    uses=["onnx"],
    exit=0,
    says=["6 images embedded"],
)
def a_killed_embedding() -> None:
    """A run of `embed` that is killed after 1.5 s."""
    classes("data", {"cat": 3, "coffee": 3})


@TEMPORARY.case(
    f"{EMBED} && mkdir y.emb && cp -r x.emb/model y.emb",
    "lookalike embed data --out y.emb && cmp x.emb/vectors.npy y.emb/vectors.npy && cmp x.emb/ids.json y.emb/ids.json",
    uses=["onnx"],
    exit=0,
)
def only_the_model_is_left() -> None:
    """A folder of embeddings in which only the model is left."""
    classes("data", {"cat": 3})


TEMPORARY.skip("An I/O error of a disk", "needs a failing device; covered by tests/data/test_images.py")
