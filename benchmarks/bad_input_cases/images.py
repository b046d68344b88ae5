"""Image files: damaged, of odd formats, and those that would take too much memory or time."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import zlib
from pathlib import Path

from bad_input_cases.case import (
    SPARSE,
    Kind,
    black_png,
    claim_size,
    classes,
    cut,
    flip,
    image,
    png_chunk,
    sparse,
    write,
)

KIND = Kind("Image files")
LARGE = Kind("Files that take memory or never end")
case = KIND.case
large = LARGE.case

CHECK = "lookalike check data"
UNREADABLE = {"exit": 1, "says": ["unreadable", "6 of 7 images readable"]}
READABLE = {"exit": 0, "says": ["7 of 7 images readable"], "silent": ["unreadable"]}


def others() -> None:
    """Write six images that are read."""
    classes("data", {"cat": 3, "coffee": 3})


@case(CHECK, **UNREADABLE)
def an_empty_image() -> None:
    """An empty JPEG."""
    others()
    write("data/cat/x.jpg")


@case(CHECK, **UNREADABLE)
def a_text_named_jpg() -> None:
    """A web page named `.jpg`."""
    others()
    write("data/cat/x.jpg", "<html>404</html>")


@case(CHECK, **UNREADABLE)
def half_a_jpeg() -> None:
    """Half of a JPEG."""
    others()
    cut(image("data/cat/x.jpg", 5))


@case(CHECK, **READABLE)
def a_jpeg_without_its_end() -> None:
    """A JPEG that lacks its last two bytes."""
    others()
    path = image("data/cat/x.jpg", 5)
    os.truncate(path, path.stat().st_size - 2)


@case(CHECK, **READABLE)
def bytes_after_a_jpeg() -> None:
    """A JPEG with a zip archive behind its end."""
    others()
    with image("data/cat/x.jpg", 5).open("ab") as file:
        file.write(b"PK\x03\x04" + bytes(1000))


@case(CHECK, **UNREADABLE)
def half_a_png() -> None:
    """Half of a PNG."""
    others()
    cut(image("data/cat/x.png", 5))


@case(CHECK, **UNREADABLE)
def a_hundredth_of_a_png() -> None:
    """A PNG that holds a hundredth of its rows, with a valid end."""
    others()
    black_png("data/cat/x.png", 300, 300, rows=3)


@case(CHECK, **READABLE)
def nearly_all_of_a_png() -> None:
    """A PNG that holds all but three of its 300 rows, with a valid end."""
    others()
    black_png("data/cat/x.png", 300, 300, rows=297)


@case(CHECK, **UNREADABLE)
def a_png_with_a_wrong_checksum() -> None:
    """A PNG with a changed bit in its header."""
    others()
    flip(image("data/cat/x.png", 5), 18 / image("data/cat/x.png", 5).stat().st_size)


def png_with(kind: bytes, content: bytes) -> None:
    """Write a PNG with another chunk after its header."""
    others()
    path = image("data/cat/x.png", 5)
    data = path.read_bytes()
    write(path, data[:33] + png_chunk(kind, content) + data[33:])


@case(CHECK, **READABLE)
def a_png_with_a_large_text() -> None:
    """A PNG with a compressed text of 2 MB."""
    png_with(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2_000_000)))


@case(CHECK, **READABLE)
def a_png_with_a_large_profile() -> None:
    """A PNG with a colour profile of 2 MB."""
    png_with(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2_000_000)))


@case(CHECK, **READABLE, max_mb=700)
def a_png_with_a_text_bomb() -> None:
    """A PNG with a compressed text of 1 GB."""
    compressor = zlib.compressobj(9)
    text = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(1000)) + compressor.flush()
    png_with(b"iTXt", b"Comment\0\1\0\0\0" + text)


@case(CHECK, **UNREADABLE)
def a_png_named_jpg() -> None:
    """A PNG named `.jpg`."""
    others()
    image("x.png", 5).rename("data/cat/x.jpg")


@case(CHECK, **UNREADABLE)
def a_postscript_named_jpg() -> None:
    """PostScript named `.jpg`, which would start a program (Ghostscript)."""
    others()
    write("data/cat/x.jpg", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch ran) (w) file\n%%EOF\n")


@case(CHECK, **READABLE)
def a_cmyk_jpeg() -> None:
    """A CMYK JPEG."""
    from PIL import Image

    others()
    with Image.open(image("x.jpg", 5)) as opened:
        opened.convert("CMYK").save("data/cat/x.jpg")


@case(CHECK, **READABLE)
def a_16_bit_png() -> None:
    """A grey PNG with 16 bits per sample."""
    others()
    black_png("data/cat/x.png", 200, 200, bits=16, colour=0)


@case(CHECK, **READABLE)
def an_animation() -> None:
    """A GIF with three frames."""
    from PIL import Image

    others()
    frames = [Image.open(image(f"{number}.jpg", number)).copy() for number in (5, 4, 3)]
    frames[0].save("data/cat/x.gif", save_all=True, append_images=frames[1:])


@case(CHECK, **READABLE)
def a_float_tiff() -> None:
    """A TIFF of floats with NaN and infinity."""
    import numpy as np
    from PIL import Image

    others()
    values = np.linspace(0, 1, 40_000, dtype=np.float32).reshape(200, 200).copy()
    values[0, :2] = np.nan, np.inf
    Image.fromarray(values).save("data/cat/x.tiff")


@case(CHECK, **READABLE)
def an_image_of_one_pixel() -> None:
    """A PNG of one pixel."""
    others()
    black_png("data/cat/x.png", 1, 1)


@case("lookalike embed data --model onnx --out x.emb", uses=["onnx"], exit=0, says=["7 images embedded"])
def embedding_one_pixel() -> None:
    """The same for `embed`."""
    others()
    black_png("data/cat/x.png", 1, 1)


@case("lookalike embed data --model onnx --out x.emb", uses=["onnx"], exit=0, says=["7 images embedded"], max_mb=1200)
def embedding_a_long_image() -> None:
    """A PNG of 60,000 × 1, for `embed`."""
    others()
    black_png("data/cat/x.png", 60_000, 1)


@case(CHECK, exit=1, says=["unreadable", "20 images readable|of 26 images readable"])
def changed_bytes() -> None:
    """Twenty JPEGs, PNGs, GIFs, TIFFs and WebPs with changed bytes at their start."""
    others()
    for number in range(20):
        suffix = ("jpg", "png", "gif", "tiff", "webp")[number % 5]
        path = image(f"data/rocket/{number}.{suffix}", number % 6, "rocket")
        for byte in range(4):
            flip(path, (byte * (number + 1)) / 300)


for name, text, suffix in (
    ("avif", "Half of an AVIF.", "avif"),
    ("webp", "Half of a WebP.", "webp"),
    ("tiff", "Half of a TIFF.", "tiff"),
    ("bmp", "Half of a BMP.", "bmp"),
    ("jp2", "The first tenth of a JPEG 2000.", "jp2"),
    ("gif", "The first tenth of a GIF.", "gif"),
):

    def damaged(suffix: str = suffix) -> None:
        others()
        cut(image(f"data/cat/x.{suffix}", 5), 0.1 if suffix in ("jp2", "gif") else 0.5)

    damaged.__name__, damaged.__doc__ = f"half_a_{name}", text
    case(CHECK, **UNREADABLE)(damaged)


for suffix in ("png", "jpg", "webp", "tiff"):

    def piped(suffix: str = suffix) -> None:
        image(f"q.{suffix}", 5)

    piped.__name__, piped.__doc__ = f"a_{suffix}_through_a_pipe", f"A query through a pipe, as {suffix.upper()}."
    case(f"lookalike search photos.index <(cat q.{suffix})", uses=["photos", "photos.index"], exit=0, says=["cat/"])(
        piped
    )

SEARCH = "lookalike search photos.index "
INDEXED = ["photos", "photos.index"]
KIND.add("nothing-through-a-pipe", "An empty pipe as query.", SEARCH + "<(true)", uses=INDEXED, says=["empty"])
KIND.add(
    "a-text-through-a-pipe",
    "A text through a pipe as query.",
    SEARCH + "<(echo text)",
    uses=INDEXED,
    says=["not an image"],
)
KIND.add(
    "endless-pipe", "A pipe that never ends as query.", SEARCH + "<(yes)", uses=INDEXED, says=["bytes"], max_mb=1_800
)
KIND.add("a-folder-as-query", "A folder as query.", SEARCH + "photos", uses=INDEXED, says=["folder"])
KIND.add(
    "a-query-that-does-not-exist",
    "A query that does not exist.",
    SEARCH + "nowhere.jpg",
    uses=INDEXED,
    says=["nowhere.jpg"],
)
KIND.add(
    "one-of-two-queries",
    "Two queries, one of them damaged.",
    "echo text > x.jpg; " + SEARCH + "photos/cat/0.jpg x.jpg",
    uses=INDEXED,
    exit=0,
    says=["skipped", "cat/1"],
)

IN_MEMORY = """import io
import numpy as np
from PIL import Image
import lookalike as la

encoder = la.load_encoder("onnx")
path = "photos/cat/0.jpg"
image = Image.open(path)
inputs = [path, image, np.asarray(image), open(path, "rb").read(), io.BytesIO(open(path, "rb").read())]
vectors = encoder.embed(inputs).vectors
print(len(vectors), "vectors, lowest cosine", round(float((vectors @ vectors[0]).min()), 4))
"""


@case("python memory.py", uses=["photos", "onnx"], exit=0, says=[r"5 vectors, lowest cosine (1\.0|0\.999)"])
def images_in_memory() -> None:
    """A path, a PIL image, an array, bytes and BytesIO for `encoder.embed`."""
    write("memory.py", IN_MEMORY)


WRONG = """import lookalike as la
encoder = la.load_encoder("onnx")
for images in (3, [3], [None], ["nowhere.jpg"], [b""], "photos"):
    try:
        result = encoder.embed(images)
        print(f"{len(result)} embedded, {len(result.skipped)} skipped" if result.skipped else "accepted")
    except la.LookalikeError as error:
        print(type(error).__name__)
"""


@case("python wrong.py", uses=["photos", "onnx"], exit=0, silent=["accepted", "TypeError", "AttributeError"])
def what_is_not_an_image_in_memory() -> None:
    """Numbers, None, empty bytes, a missing file and a folder for `encoder.embed`."""
    write("wrong.py", WRONG)


KIND.skip("Camera raw, JPEG XL and MPO files of real devices", "there are none here")

# ---------------------------------------------------------------- memory and time

BOMB = {"exit": 1, "says": ["unreadable", "6 of 7 images readable"], "max_mb": 700}


@large(CHECK, **BOMB)
def a_pipe_named_jpg() -> None:
    """A FIFO named `.jpg`."""
    others()
    os.mkfifo("data/cat/x.jpg")


@large(CHECK, **BOMB)
def a_device_named_jpg() -> None:
    """A link to `/dev/zero` named `.jpg`."""
    others()
    Path("data/cat/x.jpg").symlink_to("/dev/zero")


@large(CHECK, **BOMB)
def a_socket_named_jpg() -> None:
    """A socket named `.jpg`."""
    others()
    socket.socket(socket.AF_UNIX).bind("data/cat/x.jpg")


@large(CHECK, **BOMB)
def a_sparse_file() -> None:
    """A file of 3 GB of zeros named `.jpg`."""
    others()
    sparse("data/cat/x.jpg")


@large(CHECK, **BOMB)
def a_jpeg_of_3_gb() -> None:
    """A JPEG that is extended to 3 GB."""
    others()
    sparse("data/cat/x.jpg", start=image("x.jpg", 5).read_bytes())


@large(
    "lookalike embed data --model onnx --out x.emb",
    uses=["onnx"],
    exit=0,
    says=["6 images embedded", "skipped"],
    max_mb=1_000,
)
def large_files_for_embed() -> None:
    """A FIFO, a link to `/dev/zero`, a 3 GB file and a 3 GB JPEG, for `embed`."""
    others()
    os.mkfifo("data/cat/a.jpg")
    Path("data/cat/b.jpg").symlink_to("/dev/zero")
    sparse("data/cat/c.jpg")
    sparse("data/cat/d.jpg", start=image("x.jpg", 5).read_bytes())


@large("lookalike search photos.index x.jpg", uses=INDEXED, says=["bytes"], max_mb=700)
def a_sparse_query() -> None:
    """A query of 3 GB."""
    sparse("x.jpg")


@large(CHECK, **BOMB)
def a_bomb_of_50_000_squared() -> None:
    """A PNG that claims 50,000 × 50,000 pixels."""
    others()
    black_png("data/cat/x.png", 50_000, 50_000, rows=1)


@large(CHECK, exit=1, says=["unreadable", r"6 of \d+ images readable"], max_mb=700)
def bombs_of_other_formats() -> None:
    """GIF, BMP, PPM, TIFF, WebP and JPEG files that claim the largest sides of their format."""
    others()
    folder = Path("data/cat")
    write(
        folder / "a.gif",
        b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\2\0;",
    )
    header = struct.pack("<IiiHHIIiiII", 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0)
    write(folder / "b.bmp", b"BM" + struct.pack("<IHHI", 99, 0, 0, 54) + header + bytes(99))
    write(folder / "c.ppm", b"P6 200000 200000 255\n" + bytes(99))
    tags = ((256, 10**6), (257, 10**6), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 10**6), (279, 9))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    write(folder / "d.tiff", b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4))
    path = image(folder / "e.jpg", 5)
    claim_size(path, 65_500, 65_500)


@large(CHECK, **{**BOMB, "max_mb": 1_500})
def a_png_of_170_million_pixels_in_a_row() -> None:
    """A valid PNG of 170,000,000 × 1."""
    others()
    black_png("data/cat/x.png", 170_000_000, 1, bits=1, colour=0)


EMBED = "lookalike embed data --model onnx --out x.emb"


@large(EMBED, uses=["onnx"], exit=0, says=["[67] images embedded"], max_mb=2_500)
def embedding_170_million_pixels_in_a_row() -> None:
    """A valid RGB PNG of 170,000,000 × 1, for `embed`."""
    others()
    black_png("data/cat/x.png", 170_000_000, 1)


@large(EMBED, uses=["onnx"], exit=0, says=["[67] images embedded"], max_mb=2_500)
def embedding_170_million_pixels_in_a_column() -> None:
    """A valid grey PNG of 1 × 170,000,000, for `embed`."""
    others()
    black_png("data/cat/x.png", 1, 170_000_000, colour=0)


@large(EMBED, uses=["onnx"], exit=0, says=["images embedded"], max_mb=2_500)
def six_images_below_the_limit() -> None:
    """Six JPEGs of a few kilobytes that claim 13,300 × 13,300 pixels, for `embed`."""
    others()
    path = image("x.jpg", 5)
    claim_size(path, 13_300, 13_300)
    for number in range(6):
        shutil.copy(path, f"data/cat/x{number}.jpg")


@large(CHECK, exit=None, says=["images readable"], max_mb=2_500)
def six_images_below_the_limit_for_check() -> None:
    """The same for `check`."""
    others()
    path = image("x.jpg", 5)
    claim_size(path, 13_300, 13_300)
    for number in range(6):
        shutil.copy(path, f"data/cat/x{number}.jpg")


@large(EMBED, uses=["onnx"], exit=0, says=["images embedded"], max_mb=2_500)
def six_16_bit_images_below_the_limit() -> None:
    """Six valid PNGs of 10,500 × 10,500 with 16 bits and alpha, for `embed`."""
    others()
    black_png("x.png", 10_500, 10_500, bits=16, colour=6)
    for number in range(6):
        shutil.copy("x.png", f"data/cat/x{number}.png")


def parquet_of(rows: int, group: int) -> None:
    """Write a Parquet manifest that repeats one row."""
    import pyarrow as pa
    from pyarrow import parquet

    classes("data", {"cat": 1})
    columns = {
        name: pa.array([text] * group).dictionary_encode()
        for name, text in (("path", "cat/0.jpg"), ("label", "cat"), ("split", "gallery"))
    }
    table = pa.table(columns)
    with parquet.ParquetWriter("data/manifest.parquet", table.schema, compression="zstd") as writer:
        for _ in range(rows // group):
            writer.write_table(table)


@large(CHECK, says=["20,000,000 rows"], max_mb=700)
def a_manifest_of_20_million_rows() -> None:
    """A small Parquet manifest with 20 million rows."""
    parquet_of(20_000_000, 1_000_000)


@large(CHECK, says=["listed twice"], max_mb=1_500)
def a_manifest_of_9_million_rows() -> None:
    """A small Parquet manifest with 9 million rows of one path."""
    parquet_of(9_000_000, 1_000_000)


@large(CHECK, says=["bytes"], max_mb=700)
def a_manifest_of_3_gb() -> None:
    """A `manifest.csv` of 3 GB of zeros."""
    classes("data", {"cat": 1})
    sparse("data/manifest.csv")


@large(CHECK, says=["manifest.csv"], max_mb=1_500)
def a_manifest_without_line_ends() -> None:
    """A `manifest.csv` of one line of 100 MB."""
    classes("data", {"cat": 1})
    write("data/manifest.csv", "x" * 100_000_000)


for name, text in (
    ("manifest.csv", "manifest"),
    ("manifest.parquet", "Parquet manifest"),
    ("labels.csv", "label file"),
):

    def pipe(name: str = name) -> None:
        classes("data/training", {"cat": 3, "coffee": 3})
        image("data/test/query/1.jpg", 3)
        image("data/test/gallery/1.jpg", 4)
        os.mkfifo(f"data/{name}")

    pipe.__name__, pipe.__doc__ = f"a_pipe_as_{name.replace('.', '_')}", f"A FIFO as {text}."
    large(CHECK, says=[name, "pipe"])(pipe)

for folder, name, command in (
    ("photos.emb", "vectors.npy", "lookalike index photos.emb --out x"),
    ("photos.emb", "ids.json", "lookalike index photos.emb --out x"),
    ("photos.emb", "embeddings.json", "lookalike index photos.emb --out x"),
    ("photos.index", "items.json", "lookalike search photos.index photos/cat/0.jpg"),
    ("photos.index", "index.faiss", "lookalike search photos.index photos/cat/0.jpg"),
    ("photos.index", "index.json", "lookalike search photos.index photos/cat/0.jpg"),
    ("onnx", "bundle.json", "lookalike embed photos --model onnx --out x"),
    ("model", "model.safetensors", "lookalike embed photos --model model --runtime torch --out x"),
):
    for kind, make in (("a pipe", "mkfifo"), ("a link to /dev/zero", "ln -s /dev/zero"), ("3 GB", "truncate -s 3G")):
        file = f"{folder}/{name}"
        LARGE.add(
            f"{kind.split('/')[-1].replace(' ', '-')}-as-{name.replace('.', '-')}",
            f"{kind.capitalize()} as `{name}`.",
            f"rm {file} && {make} {file} && {command}",
            uses=["photos", folder],
            says=[folder.replace(".", r"\.")],
            max_mb=1_500,
        )

LARGE.skip(f"A file larger than the memory that is not sparse (more than {SPARSE:,} bytes)", "the disk is too small")
