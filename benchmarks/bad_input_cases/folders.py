"""Files and folders that could be skipped silently or misread."""

from __future__ import annotations

import shutil
from pathlib import Path

from bad_input_cases.case import SCENES, Kind, classes, cut, image, manifest, write

KIND = Kind("Files and folders that could be skipped or misread")
case, add = KIND.case, KIND.add

CHECK = "lookalike check data"
COUNTS = {"cat": 3, "coffee": 3}
SUMMARY = "python -c \"import lookalike as la; print(la.load_dataset('data'))\""
CLASSES = "python -c \"import lookalike as la; print(sorted({i.label for i in la.load_dataset('{}').items}, key=str))\""


@case(CHECK, SUMMARY, exit=0, says=["training", "validation", "2 classes"])
def train_and_val() -> None:
    """`train/<class>` and `val/<class>`, nothing else."""
    classes("data/train", COUNTS)
    classes("data/val", COUNTS, first=3)


@case(CHECK, SUMMARY, exit=0, says=["training", "validation", "2 classes"])
def split_names_in_capitals() -> None:
    """`TRAIN/<class>` and `Valid/<class>`."""
    classes("data/TRAIN", COUNTS)
    classes("data/Valid", COUNTS, first=3)


@case(CHECK, exit=1, says=["leak"])
def train_next_to_query_and_gallery() -> None:
    """`train/<class>` next to `test/query` and `test/gallery`, with a training image in the gallery."""
    classes("data/train", COUNTS)
    image("data/test/query/a.jpg", 3)
    image("data/test/gallery/b.jpg", 0)


@case(CHECK, exit=2, says=["two folders", "train"])
def two_training_folders() -> None:
    """`train/<class>` and `training/<class>`."""
    classes("data/train", COUNTS)
    classes("data/training", COUNTS, first=3)


@case(SUMMARY, exit=0, says=["training +6 images in 2 classes", "leave-one-out"])
def train_and_test_with_classes() -> None:
    """`train/<class>` and `test/<class>`."""
    classes("data/train", COUNTS)
    classes("data/test", COUNTS, first=3)


@case(CLASSES.replace("{}", "data"), exit=0, says=["cat.*test"])
def a_class_called_test() -> None:
    """Class folders `cat` and `test`."""
    classes("data", {"cat": 4, "test": 4})


@case(CHECK, exit=0, says=["query and gallery"])
def flat_test_folder() -> None:
    """`train/<class>` and a folder `test` of images."""
    classes("data/train", COUNTS)
    image("data/test/a.jpg", 4)


@case(CHECK, exit=0, says=["5 images of formats that are not read", r"\.cr2.*\.psd"])
def a_phones_folder() -> None:
    """Class folders with camera raw, JPEG XL, TGA, PSD and SVG files next to the JPEGs."""
    classes("data", COUNTS)
    for suffix in ("cr2", "jxl", "tga", "psd", "svg"):
        write(f"data/cat/x.{suffix}", "content")


@case("lookalike index data --model onnx --out x.index", uses=["onnx"], exit=0, says=["1 image of formats", "3 images"])
def index_of_a_phones_folder() -> None:
    """A folder of images with a camera raw file, for `index`."""
    classes("data", {"cat": 3})
    write("data/cat/x.nef", "content")


@case(CHECK, exit=0, says=["7 of 7 images readable"])
def heic_next_to_jpeg() -> None:
    """A HEIC image next to JPEGs; the extra `heif` is installed."""
    import pillow_heif

    pillow_heif.register_heif_opener()
    classes("data", COUNTS)
    image("data/cat/x.heic", 4)


@case(CHECK, exit=0, says=["@eaDir", "6 of 6 images readable"])
def folders_of_a_synology_device() -> None:
    """A folder `@eaDir` with thumbnails next to the class folders and in one of them."""
    classes("data", COUNTS)
    image("data/@eaDir/x.jpg/thumb.jpg", 4)
    image("data/cat/@eaDir/0.jpg/thumb.jpg", 4)


@case(CHECK, exit=0, says=[r"\$RECYCLE\.BIN", "6 of 6 images readable"])
def recycle_bin() -> None:
    """`$RECYCLE.BIN`, `lost+found` and `__MACOSX` next to the class folders."""
    classes("data", COUNTS)
    for name in ("$RECYCLE.BIN", "lost+found", "__MACOSX"):
        image(f"data/{name}/x.jpg", 4)


@case(
    "cp -r onnx data/model && touch data/model/curves.png",
    CHECK,
    uses=["onnx"],
    exit=0,
    says=["results of Lookalike", "6 of 6"],
)
def a_bundle_inside_the_data() -> None:
    """A bundle with its `curves.png` next to the class folders."""
    classes("data", COUNTS)


@case(
    "cp -r photos.index photos.emb data",
    CHECK,
    uses=["photos.index", "photos.emb"],
    exit=0,
    says=["results of Lookalike"],
)
def an_index_inside_the_data() -> None:
    """An index and embeddings next to the class folders."""
    classes("data", COUNTS)


add(
    "a-folder-that-is-not-mounted",
    "A folder of the embedded images is gone when `embed` updates.",
    "rm -r photos/cat && lookalike embed photos --out photos.emb",
    uses=["photos", "photos.emb"],
    says=["gone", "folder cat", "--allow-removals"],
)
add(
    "removals-that-are-allowed",
    "The same with `--allow-removals`.",
    "rm -r photos/cat && lookalike embed photos --allow-removals --out photos.emb",
    uses=["photos", "photos.emb"],
    exit=0,
    says=["6 images embedded", "gone and removed"],
)
add(
    "one-image-is-gone",
    "One embedded image is gone.",
    "rm photos/cat/0.jpg && lookalike embed photos --out photos.emb",
    uses=["photos", "photos.emb"],
    exit=0,
    says=["1 embedded image is gone", r"cat/0\.jpg"],
)
add(
    "all-images-are-gone",
    "The folder of the embedded images is empty.",
    "rm -r photos/* && lookalike embed photos --out photos.emb",
    uses=["photos", "photos.emb"],
    says=["no image"],
    files=["photos.emb/vectors.npy"],
)


@case(
    "lookalike embed photos --model onnx --out x.emb",
    uses=["photos", "onnx"],
    says=["manifest.csv", "rename"],
    no_files=["x.emb"],
)
def a_foreign_manifest_for_embed() -> None:
    """A `manifest.csv` that lists parcels inside a folder of images, for `embed`."""
    write("photos/manifest.csv", "parcel,weight\n17,2 kg\n")


@case(
    "lookalike index photos --model onnx --out x.index",
    uses=["photos", "onnx"],
    says=["manifest.csv", "rename"],
    no_files=["x.index"],
)
def a_foreign_manifest_for_index() -> None:
    """The same for `index`."""
    write("photos/manifest.csv", "parcel,weight\n17,2 kg\n")


def labelled(header: str, rows: list[list[str]] | None = None) -> None:
    classes("data", {"cat": 1, "coffee": 1})
    manifest("data", rows or [["cat/0.jpg", "cat", "gallery"], ["coffee/0.jpg", "coffee", "gallery"]], header)


@case(CHECK, says=["2 columns called 'label'"])
def a_column_twice() -> None:
    """A manifest with the columns `path,label,split,label`."""
    labelled("path,label,split,label", [["cat/0.jpg", "cat", "query", "dog"]])


@case(CHECK, says=["2 columns called 'path'"])
def a_column_twice_in_capitals() -> None:
    """A manifest with the columns `path,Path,label,split`."""
    labelled("path,Path,label,split", [["cat/0.jpg", "cat/0.jpg", "cat", "query"]])


@case(CLASSES.replace("{}", "data"), exit=0, says=[r"\[None, 'cat'\]"], silent=["nan"])
def nan_in_parquet() -> None:
    """A Parquet manifest with NaN and null as labels."""
    import pyarrow as pa
    from pyarrow import parquet

    classes("data", {"cat": 3})
    paths = [f"cat/{number}.jpg" for number in range(3)]
    labels = pa.array(["cat", None, None])
    parquet.write_table(pa.table({"path": paths, "label": labels, "split": ["gallery"] * 3}), "data/manifest.parquet")


@case(CLASSES.replace("{}", "data"), exit=0, says=[r"\['1\.0', '2\.0', None\]"], silent=["nan"])
def float_labels_in_parquet() -> None:
    """A Parquet manifest whose labels are integers and NaN, stored as floats."""
    import pyarrow as pa
    from pyarrow import parquet

    classes("data", {"cat": 3})
    paths = [f"cat/{number}.jpg" for number in range(3)]
    table = pa.table({"path": paths, "label": [1.0, 2.0, float("nan")], "split": ["gallery"] * 3})
    parquet.write_table(table, "data/manifest.parquet")


def round_trip(name: str) -> None:
    """Compare the classes of a folder with those of the manifest that `check` writes of it."""
    counts = {name: 3, "coffee": 3}
    for label, count in counts.items():
        for number in range(count):
            image(f"data/{label}/{number}.jpg", number, "cat" if label == name else "coffee")


ROUND_TRIP = (
    "lookalike check data --clean-manifest clean/manifest.csv",
    CLASSES.replace("{}", "data") + " > before && " + CLASSES.replace("{}", "clean") + " > after && cmp before after",
)


@case(*ROUND_TRIP, exit=0)
def a_class_with_a_leading_blank() -> None:
    """A class folder ` hat`; the manifest that `check` wrote is read back."""
    round_trip(" hat")


@case(*ROUND_TRIP, exit=0)
def a_class_with_a_trailing_blank() -> None:
    """A class folder `hat ` next to it."""
    round_trip("hat ")


@case(*ROUND_TRIP, exit=0)
def a_class_with_commas_and_quotes() -> None:
    """A class folder `hat, "red"`."""
    round_trip('hat, "red"')


@case(*ROUND_TRIP, exit=0)
def a_class_with_a_line_break() -> None:
    """A class folder whose name has a line break and a tab."""
    round_trip("hat\n\tred")


@case(*ROUND_TRIP, exit=0)
def a_class_like_a_formula() -> None:
    """A class folder `=cmd|'x'!A1`."""
    round_trip("=cmd|'x'!A1")


@case(*ROUND_TRIP, exit=0)
def a_class_like_a_number() -> None:
    """Class folders `007`, `nan` and `None`."""
    for number, label in enumerate(("007", "nan", "None")):
        classes("data", {label: 2}, first=2 * number)


EVALUATE = "lookalike evaluate data --model onnx"


@case(EVALUATE, uses=["onnx"], says=["3 images"])
def one_image_per_class() -> None:
    """`evaluate` on class folders with one image each."""
    classes("data", dict.fromkeys(SCENES, 1))


@case(EVALUATE, uses=["onnx"], says=["3 images"])
def two_images_per_class() -> None:
    """`evaluate` on class folders with two images each."""
    classes("data", dict.fromkeys(SCENES, 2))


@case(CHECK, exit=0, says=["3 images without the suffix"])
def images_without_a_suffix() -> None:
    """Images called `x`, `x.jpg_large` and `x.jpg.1`."""
    classes("data", COUNTS)
    for number, name in enumerate(("x", "x.jpg_large", "x.jpg.1")):
        shutil.copy(image(f"{number}.jpg", 3 + number % 3), f"data/cat/{name}")


@case(CHECK, exit=0, says=["hidden images"])
def hidden_images() -> None:
    """A hidden image and a hidden folder of images."""
    classes("data", COUNTS)
    image("data/cat/.x.jpg", 4)
    image("data/.thumbnails/x.jpg", 4)


@case(CHECK, exit=0, says=["7 of 7 images readable"])
def suffixes_in_capitals() -> None:
    """An image called `X.JPG` next to files of macOS (`._x.jpg`, `.DS_Store`, `Thumbs.db`)."""
    classes("data", COUNTS)
    image("data/cat/X.JPG", 4)
    for name in ("._x.jpg", ".DS_Store", "Thumbs.db"):
        write(f"data/cat/{name}", "x")


@case(CHECK, exit=0, says=["loose image", "not used as classes"])
def a_loose_image() -> None:
    """A loose image next to class folders."""
    classes("data", COUNTS)
    image("data/x.jpg", 4)


@case(CHECK, exit=0, says=["without an image"])
def an_empty_class() -> None:
    """An empty class folder, and one with a text file only."""
    classes("data", COUNTS)
    Path("data/empty").mkdir()
    write("data/notes/x.txt", "text")


@case(CHECK, exit=0, says=["manifest.parquet is not used"])
def two_manifests() -> None:
    """A `manifest.csv` and a damaged `manifest.parquet`."""
    labelled("path,label,split")
    write("data/manifest.parquet", "PAR1")


@case(CHECK, exit=0, says=["labels.csv is not used"])
def labels_of_class_folders() -> None:
    """A `labels.csv` next to class folders."""
    classes("data", COUNTS)
    write("data/labels.csv", "path,label\ncat/0.jpg,dog\n")


def split_folders() -> None:
    classes("data/training", COUNTS)
    image("data/test/query/1.jpg", 3)
    image("data/test/gallery/2.jpg", 4)


@case(CHECK, says=["none of the 2 paths", "test/query"])
def labels_of_other_images() -> None:
    """A `labels.csv` whose paths are not those of the test images."""
    split_folders()
    write("data/labels.csv", "path,label\n1.jpg,cat\n2.jpg,cat\n")


@case(CHECK, exit=0, says=["1 path without an image"])
def a_label_without_an_image() -> None:
    """A `labels.csv` with one path too many."""
    split_folders()
    write("data/labels.csv", "path,label\ntest/query/1.jpg,cat\ntest/gallery/2.jpg,cat\ntest/gallery/3.jpg,cat\n")


@case(CHECK, says=["line 3", "'dog'"])
def contradicting_labels() -> None:
    """A `labels.csv` with two labels for one image."""
    split_folders()
    write("data/labels.csv", "path,label\ntest/query/1.jpg,cat\ntest/query/1.jpg,dog\n")


@case(SUMMARY, exit=0, says=["labelled by labels.csv"], silent=["without an image"])
def labels_from_windows() -> None:
    """A `labels.csv` with backslashes, line ends of Windows and a byte order mark."""
    split_folders()
    write("data/labels.csv", "\ufeffpath,label\r\ntest\\query\\1.jpg,cat\r\ntest\\gallery\\2.jpg,cat\r\n")


@case(CHECK, says=["UTF-8"])
def a_manifest_in_utf_16() -> None:
    """A manifest in UTF-16, as Excel writes it."""
    classes("data", {"cat": 1})
    write("data/manifest.csv", "path,label,split\ncat/0.jpg,cat,gallery\n".encode("utf-16"))


@case(CHECK, says=["UTF-8"])
def a_manifest_in_latin_1() -> None:
    """A manifest with an umlaut in Latin-1."""
    classes("data", {"cat": 1})
    write("data/manifest.csv", "path,label,split\ncat/0.jpg,kätzchen,gallery\n".encode("latin-1"))


@case(CHECK, says=["separated by commas"])
def a_manifest_with_semicolons() -> None:
    """A manifest with semicolons."""
    classes("data", {"cat": 1})
    write("data/manifest.csv", "path;label;split\ncat/0.jpg;cat;gallery\n")


@case(CHECK, says=["columns"])
def an_empty_manifest() -> None:
    """An empty `manifest.csv`."""
    classes("data", {"cat": 1})
    write("data/manifest.csv")


@case(CHECK, says=["no row"])
def a_manifest_without_rows() -> None:
    """A manifest with a header only."""
    classes("data", {"cat": 1})
    manifest("data", [])


@case(CHECK, says=["line 2", "'holdout'"])
def a_split_that_does_not_exist() -> None:
    """A manifest with the split `holdout`."""
    labelled("path,label,split", [["cat/0.jpg", "cat", "holdout"]])


@case(CHECK, says=["line 2 has 2 fields"])
def a_row_that_is_too_short() -> None:
    """A manifest with a row of two cells."""
    labelled("path,label,split", [["cat/0.jpg", "cat"]])


@case(CHECK, says=["line 2 has no path"])
def a_row_without_a_path() -> None:
    """A manifest with an empty path."""
    labelled("path,label,split", [["", "cat", "query"]])


@case(CHECK, says=["none of the 1 files"])
def a_manifest_of_missing_files() -> None:
    """A manifest whose files do not exist."""
    labelled("path,label,split", [["cat/9.jpg", "cat", "query"]])


@case(CHECK, says=["Parquet"])
def a_damaged_parquet_manifest() -> None:
    """Half of a Parquet manifest."""
    import pyarrow as pa
    from pyarrow import parquet

    classes("data", {"cat": 1})
    table = pa.table({"path": ["cat/0.jpg"] * 9, "label": ["cat"] * 9, "split": ["gallery"] * 9})
    parquet.write_table(table, "data/manifest.parquet")
    cut("data/manifest.parquet")


@case(CHECK, says=["no image"])
def an_empty_folder() -> None:
    """An empty folder."""
    Path("data").mkdir()


@case(CHECK, says=["no image"])
def a_folder_of_texts() -> None:
    """A folder of text files."""
    write("data/x/a.txt", "text")


add("a-folder-that-does-not-exist", "A folder that does not exist.", CHECK, says=["does not exist"])
add("a-file-as-data", "A file in the place of the data folder.", "touch data", CHECK, says=["is a file"])


@case(CHECK, exit=1, says=["unlisted", "permission denied"])
def a_closed_class_folder() -> None:
    """A class folder without permission."""
    classes("data", {**COUNTS, "rocket": 3})
    Path("data/rocket").chmod(0)


@case(CHECK, exit=1, says=["unreadable", "permission denied"])
def a_closed_image() -> None:
    """An image without permission."""
    classes("data", COUNTS)
    Path("data/cat/0.jpg").chmod(0)


@case(CHECK, exit=1, says=["unreadable", "does not exist"])
def a_link_to_nothing() -> None:
    """An image that is a link to nothing."""
    classes("data", COUNTS)
    Path("data/cat/x.jpg").symlink_to("nowhere.jpg")


@case(CHECK, exit=1, says=["unreadable", "symbolic links"])
def a_link_to_itself() -> None:
    """An image that is a link to itself."""
    classes("data", COUNTS)
    Path("data/cat/x.jpg").symlink_to("x.jpg")


@case(CHECK, exit=0, says=["6 of 6 images readable"])
def a_folder_called_jpg() -> None:
    """A class folder called `cat.jpg`."""
    classes("data", COUNTS)
    Path("data/cat").rename("data/cat.jpg")


@case(CHECK, exit=0, says=["6 of 6 images readable"])
def folders_linked_in_a_ring() -> None:
    """Three class folders with links to each other in a ring."""
    classes("data", {"cat": 2, "coffee": 2, "rocket": 2})
    for name, other in (("cat", "coffee"), ("coffee", "rocket"), ("rocket", "cat")):
        Path(f"data/{name}/link").symlink_to(f"../{other}")


@case(CHECK, exit=0, says=["6 of 6 images readable"])
def a_link_to_the_parent() -> None:
    """A class folder with a link to the data folder."""
    classes("data", COUNTS)
    Path("data/cat/link").symlink_to("../../data")


KIND.skip(
    "File systems that ignore case (macOS, Windows), network disks that vanish while they are read",
    "not on this machine",
)
