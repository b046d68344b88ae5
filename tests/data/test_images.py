"""Reading one image: every kind of file, every way in which it can be damaged, and the fast JPEG decoder."""

from __future__ import annotations

import io
import os
import struct
import threading
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import ExifTags, Image, ImageOps, features

from lookalike.data import images
from lookalike.data.images import decode_jpeg, image_in_turn, read_image, read_pixels, read_scaled
from lookalike.errors import UnreadableImage

Images = dict[str, Image.Image]


def pixels(path: Path) -> npt.NDArray[np.uint8]:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def cause(path: Path) -> str:
    with pytest.raises(UnreadableImage) as caught:
        read_image(path)
    assert caught.value.path == path
    assert str(caught.value) == f"{path}: {caught.value.cause}"
    return caught.value.cause


# How each EXIF orientation stores an upright image, from the table of the EXIF standard (row 0, column 0).
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_undone(sample_images: Images, tmp_path: Path, orientation: int) -> None:
    upright = np.asarray(sample_images["rocket"])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    stored.save(tmp_path / "p.png", exif=exif)
    stored.save(tmp_path / "p.jpg", exif=exif, quality=95, subsampling=0)
    np.testing.assert_array_equal(pixels(tmp_path / "p.png"), upright)
    from_jpeg = pixels(tmp_path / "p.jpg")
    assert from_jpeg.shape == upright.shape
    assert np.abs(from_jpeg.astype(int) - upright).mean() < 3


@pytest.mark.parametrize("name", ["p.png", "p.jpg", "p.bmp", "p.tif", "p.webp", "p.pgm", "P.PNG", "p.gif", "p.jp2"])
def test_greyscale_becomes_three_equal_channels(sample_images: Images, tmp_path: Path, name: str) -> None:
    grey = sample_images["cat"].convert("L")
    options = {"lossless": True} if name.endswith("webp") else {"quality": 95} if name.endswith("jpg") else {}
    grey.save(tmp_path / name, **options)
    read = pixels(tmp_path / name).astype(int)
    assert (read[..., 0] == read[..., 1]).all()
    assert (read[..., 1] == read[..., 2]).all()
    assert np.abs(read[..., 0] - np.asarray(grey)).max() <= (12 if name.endswith("jpg") else 0)


def test_bilevel_is_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "p.png")
    assert pixels(tmp_path / "p.png").tolist() == [[[255] * 3, [0] * 3]]


def test_palette_is_looked_up(sample_images: Images, tmp_path: Path) -> None:
    palette = sample_images["coffee"].quantize(32)
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(pixels(tmp_path / "p.png"), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"], ids=["index", "bytes"])
def test_transparent_palette_entry_is_white(tmp_path: Path, transparency: int | bytes) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])  # 0 is red, 1 is blue
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.png", transparency=transparency)
    assert pixels(tmp_path / "p.png").tolist() == [[[255, 255, 255], [0, 0, 255]]]


def test_transparent_colour_of_rgb_is_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8))
    image.save(tmp_path / "p.png", transparency=(255, 0, 0))
    assert pixels(tmp_path / "p.png").tolist() == [[[255, 255, 255], [0, 0, 255]]]


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_alpha_is_blended_onto_white(tmp_path: Path, suffix: str) -> None:
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 128], [0, 0, 0, 0]]], np.uint8)
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    Image.fromarray(rgba).save(tmp_path / f"p.{suffix}", **options)
    # 255 · (1 - 128 / 255) = 127
    assert pixels(tmp_path / f"p.{suffix}").tolist() == [[[255, 0, 0], [255, 127, 127], [255, 255, 255]]]


def test_grey_with_alpha_is_blended_onto_white(tmp_path: Path) -> None:
    image = Image.merge("LA", [Image.new("L", (1, 1), 0), Image.new("L", (1, 1), 128)])
    image.save(tmp_path / "p.png")
    assert pixels(tmp_path / "p.png").tolist() == [[[127, 127, 127]]]


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk(tmp_path: Path, suffix: str) -> None:
    inks = {(0, 0, 0, 0): [255, 255, 255], (255, 255, 0, 0): [0, 0, 255], (0, 0, 0, 255): [0, 0, 0]}
    for number, (ink, colour) in enumerate(inks.items()):
        path = tmp_path / f"{number}.{suffix}"
        Image.new("CMYK", (8, 8), ink).save(path)
        assert np.abs(pixels(path).astype(int) - colour).max() <= 3


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(np.array([[0, 100 * 257, 65535]], np.uint16)).save(tmp_path / f"p.{suffix}")
    assert pixels(tmp_path / f"p.{suffix}")[0, :, 0].tolist() == [0, 100, 255]


def test_big_endian_sixteen_bit_tiff(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 100 * 257, 65535]], ">u2")).save(tmp_path / "p.tif")
    assert pixels(tmp_path / "p.tif")[0, :, 1].tolist() == [0, 100, 255]


@pytest.mark.parametrize(("name", "kind"), [("p.png", "<u2"), ("p.tif", "<u2"), ("p.tiff", ">u2")])
def test_a_dark_sixteen_bit_image_is_scaled_like_any_other(tmp_path: Path, name: str, kind: str) -> None:
    Image.fromarray(np.array([[0, 128, 129, 255]], kind)).save(tmp_path / name)
    assert pixels(tmp_path / name)[0, :, 0].tolist() == [0, 0, 1, 1]  # of 257: 0.498, 0.502 and 0.992


@pytest.mark.parametrize(("largest", "expected"), [(65535, [0, 2, 4]), (1023, [0, 128, 255])])
def test_pgm_with_more_than_eight_bits(tmp_path: Path, largest: int, expected: list[int]) -> None:
    """512 of 65535 is 512 / 257 = 1.99 of 255, of 1023 it is 127.6; 1023 of 65535 is 3.98."""
    (tmp_path / "p.pgm").write_bytes(b"P5 3 1 %d\n" % largest + struct.pack(">3H", 0, 512, 1023))
    assert pixels(tmp_path / "p.pgm")[0, :, 0].tolist() == expected


def test_white_of_32_bit_integers_is_that_of_16_bits(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-300, 0, 255, 25700, 65535, 70000]], np.int32)).save(tmp_path / "p.tif")
    with Image.open(tmp_path / "p.tif") as image:
        assert image.mode == "I"
    assert pixels(tmp_path / "p.tif")[0, :, 0].tolist() == [0, 0, 1, 100, 255, 255]


@pytest.mark.parametrize(("white", "expected"), [(1.0, [0, 128, 255]), (255.0, [0, 128, 255])])
def test_float_samples(tmp_path: Path, white: float, expected: list[int]) -> None:
    Image.fromarray(np.array([[0, 0.5 * white, white]], np.float32)).save(tmp_path / "p.tif")
    assert pixels(tmp_path / "p.tif")[0, :, 0].tolist() == expected


def test_float_samples_that_are_nan_are_black(tmp_path: Path) -> None:
    Image.fromarray(np.array([[np.nan, 1.0]], np.float32)).save(tmp_path / "p.tif")
    assert pixels(tmp_path / "p.tif")[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_animation_gives_its_first_frame(tmp_path: Path, suffix: str) -> None:
    first, second = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    options = {"lossless": True} if suffix == "webp" else {}
    path = tmp_path / f"p.{suffix}"
    first.save(path, save_all=True, append_images=[second], duration=100, **options)
    with Image.open(path) as image:
        assert image.n_frames == 2  # type: ignore[attr-defined]
    assert pixels(path)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow does not read AVIF")
def test_avif(sample_images: Images, tmp_path: Path) -> None:
    sample_images["cat"].save(tmp_path / "p.avif", quality=90)
    assert np.abs(pixels(tmp_path / "p.avif").astype(int) - np.asarray(sample_images["cat"])).mean() < 4


@pytest.fixture
def heic(sample_images: Images, tmp_path: Path) -> Path:
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(sample_images["cat"]).save(tmp_path / "p.heic", quality=90)
    return tmp_path / "p.heic"


def test_heic(sample_images: Images, heic: Path) -> None:
    formats = dict(Image.registered_extensions())
    assert np.abs(pixels(heic).astype(int) - np.asarray(sample_images["cat"])).mean() < 4
    np.testing.assert_array_equal(read_pixels(heic), pixels(heic))
    (memory,) = images.read_in_memory("image 0", heic.read_bytes(), [None])
    np.testing.assert_array_equal(memory, pixels(heic))
    assert Image.registered_extensions() == formats


def test_heic_without_its_package_names_the_extra(heic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "has_heif", lambda: False)
    assert cause(heic) == "HEIC needs the package pillow-heif; install lookalike with the extra heif"


@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_damaged_heic(heic: Path, damage: str) -> None:
    data = heic.read_bytes()
    heic.write_bytes(data[: len(data) // 2] if damage == "cut" else data[:16] + bytes(len(data) - 16))
    assert cause(heic)


def test_heic_named_jpg(heic: Path) -> None:
    assert cause(heic.rename(heic.with_suffix(".jpg"))) == "it is named .jpg but contains HEIF; rename it"


def test_truncated_jpeg(sample_images: Images, tmp_path: Path) -> None:
    path = tmp_path / "p.jpg"
    sample_images["cat"].save(path)
    path.write_bytes(path.read_bytes()[:2000])
    assert cause(path).startswith("it cannot be decoded (image file is truncated")


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "p.jpg").touch()
    assert cause(tmp_path / "p.jpg") == "the file is empty"


def test_text_named_jpg(tmp_path: Path) -> None:
    (tmp_path / "p.jpg").write_text("not an image")
    assert cause(tmp_path / "p.jpg") == "not an image that Pillow can read"


def test_png_named_jpg(sample_images: Images, tmp_path: Path) -> None:
    sample_images["cat"].save(tmp_path / "p.jpg", format="PNG")
    assert cause(tmp_path / "p.jpg") == "it is named .jpg but contains PNG; rename it"


def test_unknown_suffix_is_read_by_content(sample_images: Images, tmp_path: Path) -> None:
    sample_images["cat"].save(tmp_path / "upload", format="PNG")
    np.testing.assert_array_equal(pixels(tmp_path / "upload"), np.asarray(sample_images["cat"]))


def test_missing_file(tmp_path: Path) -> None:
    assert cause(tmp_path / "p.jpg") == "the file does not exist"


def test_folder_named_jpg(tmp_path: Path) -> None:
    (tmp_path / "p.jpg").mkdir()
    assert cause(tmp_path / "p.jpg") == "it is a folder, not a file"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission(sample_images: Images, tmp_path: Path) -> None:
    sample_images["cat"].save(tmp_path / "p.png")
    (tmp_path / "p.png").chmod(0)
    assert cause(tmp_path / "p.png") == "permission denied"


def test_permission_refused_by_the_system(
    sample_images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample_images["cat"].save(tmp_path / "p.png")

    def refuse(path: Path) -> Image.Image:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(images, "open_image", refuse)
    assert cause(tmp_path / "p.png") == "permission denied"


def png_header(width: int, height: int) -> bytes:
    """Write a valid PNG header with no pixels behind it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize(("rows", "readable"), [(1, False), (50, False), (95, True), (100, True)])
def test_a_png_with_a_part_of_its_rows(tmp_path: Path, rows: int, readable: bool) -> None:
    width, height = 40, 100
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8 bits of grey
    rows_data = zlib.compress((b"\0" + b"\xc8" * width) * rows)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows_data) + png_chunk(b"IEND", b"")
    (tmp_path / "p.png").write_bytes(png_header(1, 1)[:8] + chunks)
    if readable:
        assert pixels(tmp_path / "p.png")[:rows].tolist() == [[[200] * 3] * width] * rows
    else:
        assert cause(tmp_path / "p.png") == "more than a tenth of its rows are missing"


def test_a_png_that_is_all_black_is_complete(tmp_path: Path) -> None:
    for mode in ("1", "L", "P", "RGB", "RGBA", "I;16", "LA"):
        Image.new(mode, (31, 17)).save(tmp_path / "p.png")
        assert pixels(tmp_path / "p.png").shape == (17, 31, 3)


@pytest.mark.parametrize("kind", ["text", "profile", "text behind the pixels"])
def test_a_png_with_large_metadata(sample_images: Images, tmp_path: Path, kind: str) -> None:
    large = zlib.compress(bytes(3_000_000))
    sample_images["cat"].save(tmp_path / "p.png")
    data = (tmp_path / "p.png").read_bytes()
    chunk = png_chunk(b"iCCP" if kind == "profile" else b"zTXt", b"name\0\0" + large)
    start = len(data) - 12 if "behind" in kind else 33
    (tmp_path / "p.png").write_bytes(data[:start] + chunk + data[start:])
    np.testing.assert_array_equal(pixels(tmp_path / "p.png"), np.asarray(sample_images["cat"]))


@pytest.mark.parametrize("missing", [1, 2])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": Image.Exif()}])
def test_a_jpeg_without_its_end_mark(
    sample_images: Images, tmp_path: Path, missing: int, options: dict[str, Any]
) -> None:
    data = jpeg(sample_images["coffee"], **options)
    (tmp_path / "whole.jpg").write_bytes(data)
    (tmp_path / "p.jpg").write_bytes(data[:-missing])
    np.testing.assert_array_equal(pixels(tmp_path / "p.jpg"), pixels(tmp_path / "whole.jpg"))
    np.testing.assert_array_equal(read_pixels(tmp_path / "p.jpg"), pixels(tmp_path / "whole.jpg"))


def test_decompression_bomb(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(png_header(60_000, 60_000))
    expected = "it claims 3,600,000,000 pixels, more than 178,956,970 (a decompression bomb?)"
    assert cause(tmp_path / "p.png") == expected


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp", "ppm", "jp2", "tif"])
def test_the_limit_of_pillow_neither_warns_nor_decides(
    sample_images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    image = sample_images["cat"]
    image.save(tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as expected:
        expected_pixels = np.asarray(expected.convert("RGB"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", image.width * image.height * 2 // 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (pixels(tmp_path / f"a.{suffix}") == expected_pixels).all()
        assert read_pixels(tmp_path / f"a.{suffix}").shape == expected_pixels.shape


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_tiff_is_read_without_a_warning(
    sample_images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str | None, orientation: int
) -> None:
    image, exif = sample_images["rocket"], Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(tmp_path / "p.tif", compression=compression, exif=exif)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = pixels(tmp_path / "p.tif")
    assert (read == np.rot90(np.asarray(image), k=-1 if orientation == 6 else 0)).all()


# bytes of a pixel: as stored, a copy if it is turned upright, and as RGB unless it is that
@pytest.mark.parametrize(
    ("mode", "suffix", "orientation", "size"),
    [
        ("RGB", "png", 1, 4),
        ("RGB", "png", 3, 8),
        ("L", "png", 1, 1 + 4),
        ("P", "png", 1, 1 + 4),
        ("RGBA", "png", 1, 4 + 4),
        ("RGBA", "png", 8, 4 + 4 + 4),
        ("LA", "png", 1, 4 + 4),
        ("I;16", "png", 1, 2 + 4),
        ("I;16", "tif", 1, 2 + 4),
        ("F", "tif", 1, 4 + 4),
        ("CMYK", "jpg", 1, 4 + 4),
    ],
)
def test_the_memory_of_decoding_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, suffix: str, orientation: int, size: int
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new(mode, (40, 10)).save(tmp_path / f"p.{suffix}", exif=exif)
    is_turned = orientation != 1
    pointers = (1 + is_turned + (mode != "RGB")) * (40 if is_turned else 10)  # one per row of each copy
    total = 400 * size + 8 * pointers
    monkeypatch.setattr(images, "MAX_DECODED_BYTES", total)
    assert pixels(tmp_path / f"p.{suffix}").size == 3 * 400
    monkeypatch.setattr(images, "MAX_DECODED_BYTES", total - 1)
    text = cause(tmp_path / f"p.{suffix}")
    assert mode in text and f"{total:,} bytes" in text


def test_the_rows_of_a_tall_image_take_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (1, 1000)).save(tmp_path / "tall.png")
    Image.new("L", (1000, 1)).save(tmp_path / "wide.png")
    monkeypatch.setattr(images, "MAX_DECODED_BYTES", 20_000)
    assert pixels(tmp_path / "wide.png").shape == (1, 1000, 3)  # 1,000 × (1 + 4) bytes and 2 pointers
    assert "21,000 bytes" in cause(tmp_path / "tall.png")  # and 2 × 1,000 pointers


@pytest.mark.parametrize(
    ("error", "temporary"),
    [(OSError(24, "Too many open files"), True), (OSError("truncated"), False), (MemoryError(), True)],
    ids=["system", "content", "memory"],
)
def test_whether_reading_may_succeed_later(
    sample_images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, temporary: bool
) -> None:
    sample_images["cat"].save(tmp_path / "p.png")

    def fail(path: Path) -> Image.Image:
        raise error

    monkeypatch.setattr(images, "open_image", fail)
    with pytest.raises(UnreadableImage) as caught:
        read_image(tmp_path / "p.png")
    assert caught.value.temporary == temporary


@pytest.mark.parametrize("error", [RuntimeError, struct.error, KeyError, ZeroDivisionError, MemoryError])
def test_whatever_a_decoder_raises_is_one_unreadable_image(
    sample_images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    sample_images["cat"].save(tmp_path / "p.png")

    def fail(path: Path) -> Image.Image:
        raise error("bad\nsecond line")

    monkeypatch.setattr(images, "open_image", fail)
    expected = "it takes too much memory" if error is MemoryError else "it cannot be decoded ("
    assert cause(tmp_path / "p.png").startswith(expected)
    assert "\n" not in cause(tmp_path / "p.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tif", "bmp"])
def test_damaged_bytes_end_in_pixels_or_one_error(sample_images: Images, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p.{suffix}"
    sample_images["rocket"].resize((40, 30)).save(path)
    good = np.frombuffer(path.read_bytes(), np.uint8)
    chance = np.random.default_rng(3)
    unreadable = 0
    for _ in range(60):
        bad = good.copy()
        bad[chance.integers(0, min(len(bad), 300), 4)] = chance.integers(0, 256, 4)
        path.write_bytes(bad.tobytes())
        try:
            assert read_image(path).mode == "RGB"
        except UnreadableImage:
            unreadable += 1
    assert unreadable > 0


def test_many_threads_read_the_same(sample_images: Images, tmp_path: Path) -> None:
    sample_images["cat"].quantize(8).save(tmp_path / "p.png", transparency=bytes(range(8)))
    filters, threads = list(warnings.filters), threading.active_count()
    with ThreadPoolExecutor(4) as pool:
        read = [image.tobytes() for image in pool.map(read_image, [tmp_path / "p.png"] * 40)]
    assert len(set(read)) == 1
    assert warnings.filters == filters
    assert threading.active_count() == threads


def decode(data, min_side=None):
    decoded = decode_jpeg(data, [min_side])
    return None if decoded is None else decoded[0]


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


def rotated(image, orientation, endian="<"):
    exif = Image.Exif()
    exif.endian = endian
    exif[274] = orientation
    return jpeg(image, exif=exif)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2}, {"quality": 30}]
)
def test_jpeg_pixels_are_pillows(sample_images, options):
    data = jpeg(sample_images["coffee"], **options)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode(data), expected)


def test_grey_jpegs_have_three_equal_channels(sample_images):
    grey = sample_images["coffee"].convert("L")
    decoded = decode(jpeg(grey))
    with Image.open(io.BytesIO(jpeg(grey))) as image:
        np.testing.assert_array_equal(decoded, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpegs_are_upright(sample_images, orientation, endian):
    data = rotated(sample_images["rocket"], orientation, endian)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(decode(data), expected)


def test_an_orientation_that_does_not_exist_changes_nothing(sample_images):
    data = rotated(sample_images["rocket"], 9)
    assert decode(data).shape == (sample_images["rocket"].height, sample_images["rocket"].width, 3)


@pytest.mark.parametrize(
    ("min_side", "side"), [(None, 800), (401, 800), (400, 400), (201, 400), (200, 200), (100, 100), (1, 100)]
)
def test_a_jpeg_is_halved_while_its_shorter_side_stays_large_enough(sample_images, min_side, side):
    square = sample_images["coffee"].resize((800, 800))
    assert decode(jpeg(square), min_side).shape == (side, side, 3)


def test_odd_sides_are_rounded_up(sample_images):
    assert decode(jpeg(sample_images["coffee"].resize((803, 401))), 200).shape == (201, 402, 3)


def test_a_scaled_jpeg_is_averaged(sample_images):
    """Half of the sides without frequencies above a half: a box filter, except for ringing."""
    large = sample_images["coffee"].resize((1024, 768), Image.Resampling.BICUBIC)
    decoded = decode(jpeg(large, quality=95), 384)
    expected = np.asarray(large.reduce(2))
    assert np.abs(decoded.astype(int) - expected).mean() < 1.0


def segment(marker, content):
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def insert_segments(data, *segments):
    return data[:2] + b"".join(segments) + data[2:]


def test_the_orientation_is_read_where_pillow_reads_it(sample_images, tmp_path):
    """Behind other long segments, in XMP alone, and not in what merely looks like it."""
    image = sample_images["rocket"]
    other = segment(0xED, b"Photoshop 3.0\x00" + bytes(60_000))
    xmp = b"http://ns.adobe.com/xap/1.0/\x00<x:xmpmeta><r tiff:Orientation='6' tiff:X='1'/></x:xmpmeta>"
    exif = Image.Exif()
    exif[274] = 6
    files = {
        "behind.jpg": insert_segments(rotated(image, 6), other, other),
        "xmp.jpg": insert_segments(jpeg(image), other, other, segment(0xE1, xmp.replace(b"'", b'"'))),
        "comment.jpg": insert_segments(jpeg(image), segment(0xFE, b"Exif\x00\x00" + exif.tobytes())),
        "nothing.jpg": insert_segments(jpeg(image), segment(0xE1, b"Exif\x00\x00")),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        expected = np.asarray(read_image(tmp_path / name))
        np.testing.assert_array_equal(read_pixels(tmp_path / name), expected, err_msg=name)


def test_several_sizes_are_decoded_as_each_alone(sample_images, tmp_path):
    sample_images["coffee"].resize((1600, 1600)).save(tmp_path / "large.jpg")
    arrays = read_scaled(tmp_path / "large.jpg", [200, None, 700, 200])
    assert [a.shape for a in arrays] == [(200, 200, 3), (1600, 1600, 3), (800, 800, 3), (200, 200, 3)]
    for array, min_side in zip(arrays, [200, None, 700, 200], strict=True):
        np.testing.assert_array_equal(array, read_pixels(tmp_path / "large.jpg", min_side))


def test_a_sampling_that_only_pillow_knows(sample_images, tmp_path):
    """4:4:1, luma four times as high as colour, as in a 4:1:1 image that was rotated without loss."""
    data = bytearray(jpeg(sample_images["coffee"].resize((64, 64)), subsampling=0))
    start = data.index(b"\xff\xc0")
    data[start + 11] = 0x14
    (tmp_path / "odd.jpg").write_bytes(bytes(data))
    assert decode(bytes(data)) is None
    try:
        expected = np.asarray(read_image(tmp_path / "odd.jpg"))
    except UnreadableImage:
        with pytest.raises(UnreadableImage):
            read_pixels(tmp_path / "odd.jpg")
    else:
        np.testing.assert_array_equal(read_pixels(tmp_path / "odd.jpg"), expected)


@pytest.mark.parametrize("kind", ["CMYK", "PNG", "cut", "too large", "nothing"])
def test_files_that_are_left_to_pillow(sample_images, monkeypatch, kind):
    image = sample_images["coffee"]
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = {
        "CMYK": jpeg(image.convert("CMYK")),
        "PNG": buffer.getvalue(),
        "cut": jpeg(image)[:-500],
        "too large": jpeg(image),
        "nothing": b"",
    }[kind]
    monkeypatch.setattr(images, "MAX_PIXELS", 100 if kind == "too large" else images.MAX_PIXELS)
    assert decode(data) is None


def test_read_pixels_agrees_with_read_image(sample_images, tmp_path):
    image = sample_images["astronaut"]
    saved = {
        "plain.jpg": image.save,
        "cmyk.jpg": lambda p: image.convert("CMYK").save(p),
        "clear.png": lambda p: image.convert("RGBA").save(p),
        "lossless.webp": lambda p: image.save(p, lossless=True),
    }
    for name, save in saved.items():
        save(tmp_path / name)
        array = read_pixels(tmp_path / name)
        np.testing.assert_array_equal(array, np.asarray(read_image(tmp_path / name)))
        assert array.flags.writeable


@pytest.mark.parametrize("name", ["cut.jpg", "disguised.png", "empty.jpg", "absent.jpg"])
def test_read_pixels_has_the_causes_of_read_image(sample_images, tmp_path, name):
    data = {
        "cut.jpg": jpeg(sample_images["coffee"])[:-900],
        "disguised.png": jpeg(sample_images["coffee"]),
        "empty.jpg": b"",
    }
    if name in data:
        (tmp_path / name).write_bytes(data[name])
    causes = []
    for read in (read_image, read_pixels):
        with pytest.raises(UnreadableImage) as raised:
            read(tmp_path / name)
        causes.append(str(raised.value))
    assert causes[0] == causes[1]


@pytest.mark.skipif(os.name == "nt", reason="no such files")
def test_what_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    assert cause(tmp_path / "pipe.jpg") == "it is a pipe, not a file"
    assert cause(tmp_path / "zero.png") == "it is a device, not a file"
    with pytest.raises(UnreadableImage, match="a pipe"):
        read_scaled(tmp_path / "pipe.jpg", [64])


def test_a_file_larger_than_any_image_is_not_read(sample_images: Images, tmp_path: Path) -> None:
    sample_images["cat"].save(tmp_path / "extended.jpg")
    with (tmp_path / "extended.jpg").open("r+b") as file:
        file.truncate(3_000_000_000)
    assert "3,000,000,000 bytes" in cause(tmp_path / "extended.jpg")
    with pytest.raises(UnreadableImage, match="bytes"):
        read_scaled(tmp_path / "extended.jpg", [64])


def test_a_lack_of_memory_makes_one_image_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="memory") as caught, image_in_turn(tmp_path / "x.png"):
        raise MemoryError
    assert caught.value.temporary


def test_large_images_wait_for_each_other(
    sample_images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_LARGE_PIXELS", 160 * 100)
    large, small = sample_images["cat"], sample_images["cat"].resize((40, 30))
    files = [tmp_path / f"{number}.{suffix}" for number in range(4) for suffix in ("png", "jpg")]
    for file in files:
        large.save(file)
    small.save(tmp_path / "small.png")
    inside, most = [0], [0]

    def use(file: Path) -> None:
        with image_in_turn(file):
            read_scaled(file, [64])
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            read_scaled(tmp_path / "small.png", [16])
            inside[0] -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, files))
    assert most == [1]
    read_scaled(files[0], [64])  # alone, outside of `image_in_turn`
    with pytest.raises(UnreadableImage), image_in_turn(files[0]):
        read_scaled(files[0], [64])
        raise UnreadableImage(files[0], "x")
    use(files[1])  # the lock was released


def test_large_images_are_blended_in_bands_and_reduced(
    sample_images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = sample_images["rocket"].copy()
    image.putalpha(sample_images["rocket"].convert("L"))
    image.save(tmp_path / "p.png")
    whole = pixels(tmp_path / "p.png")
    monkeypatch.setattr(images, "_TILE_PIXELS", image.width * 7)
    assert (pixels(tmp_path / "p.png") == whole).all()
    monkeypatch.setattr(images, "_LARGE_PIXELS", 100)
    full, half = read_scaled(tmp_path / "p.png", [None, min(image.size) // 2])
    assert (full == whole).all()
    assert half.shape[:2] == (-(-image.height // 2), -(-image.width // 2))


@pytest.mark.parametrize("tile", [7, 160 * 9])
@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F", "RGBA", "LA", "PA"])
def test_the_tiles_of_an_image_do_not_show(
    sample_images: Images, monkeypatch: pytest.MonkeyPatch, mode: str, tile: int
) -> None:
    image = sample_images["cat"].crop((0, 0, 40, 12)).convert("L")
    if mode.startswith("I"):
        kind = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
        samples = np.asarray(image).astype(kind) * 257
        image = Image.frombytes(mode, image.size, samples.astype(kind).tobytes())
    else:
        image = image.convert(mode)
    whole = np.asarray(images.to_rgb(image))
    monkeypatch.setattr(images, "_TILE_PIXELS", tile)
    np.testing.assert_array_equal(np.asarray(images.to_rgb(image)), whole)


def test_float_samples_have_one_white_in_all_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_TILE_PIXELS", 2)
    samples = np.array([[0.5, 1.0, np.nan, np.inf, 1.0, 100.0]], np.float32)
    assert np.asarray(images.to_rgb(Image.fromarray(samples)))[0, :, 0].tolist() == [0, 1, 0, 0, 1, 100]


def test_large_samples_are_converted_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.full((1000, 1000), 257, np.uint16)).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "_TILE_PIXELS", 1000)
    tracemalloc.start()
    image = read_image(tmp_path / "a.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert image.getextrema() == ((1, 1),) * 3
    assert peak < 1_000_000  # one copy in float64 takes 8 MB; the pixels of Pillow are not counted
