"""The quick JPEG decoder against Pillow: equal pixels, upright, and scaled only as far as is allowed."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from lookalike.data.images import MAX_PIXELS, read_image, read_pixels
from lookalike.data.jpeg import decode_jpeg
from lookalike.errors import UnreadableImage


def jpeg(image, **how):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 90, **how})
    return buffer.getvalue()


def turned(image, turn, endian="<"):
    exif = Image.Exif()
    exif.endian = endian
    exif[274] = turn
    return jpeg(image, exif=exif)


@pytest.mark.parametrize("how", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2}, {"quality": 30}])
def test_pixels_are_pillows(photos, how):
    data = jpeg(photos["coffee"], **how)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode_jpeg(data, most=MAX_PIXELS), expected)


def test_grey_pictures_have_three_equal_channels(photos):
    grey = photos["coffee"].convert("L")
    found = decode_jpeg(jpeg(grey), most=MAX_PIXELS)
    with Image.open(io.BytesIO(jpeg(grey))) as image:
        np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_pictures_are_upright(photos, turn, endian):
    data = turned(photos["rocket"], turn, endian)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(decode_jpeg(data, most=MAX_PIXELS), expected)


def test_an_orientation_that_does_not_exist_changes_nothing(photos):
    data = turned(photos["rocket"], 9)
    assert decode_jpeg(data, most=MAX_PIXELS).shape == (photos["rocket"].height, photos["rocket"].width, 3)


@pytest.mark.parametrize(
    ("at_least", "side"), [(None, 800), (401, 800), (400, 400), (201, 400), (200, 200), (100, 100), (1, 100)]
)
def test_a_side_is_halved_while_enough_of_it_is_left(photos, at_least, side):
    square = photos["coffee"].resize((800, 800))
    assert decode_jpeg(jpeg(square), at_least, most=MAX_PIXELS).shape == (side, side, 3)


def test_odd_sides_are_rounded_up(photos):
    assert decode_jpeg(jpeg(photos["coffee"].resize((803, 401))), 200, most=MAX_PIXELS).shape == (201, 402, 3)


def test_a_scaled_picture_is_the_averaged_one(photos):
    """Half of the sides without frequencies above a half: what a box filter gives, but for ringing."""
    large = photos["coffee"].resize((1024, 768), Image.Resampling.BICUBIC)
    found = decode_jpeg(jpeg(large, quality=95), 384, most=MAX_PIXELS)
    expected = np.asarray(large.reduce(2))
    assert np.abs(found.astype(int) - expected).mean() < 1.0


@pytest.mark.parametrize("kind", ["CMYK", "PNG", "cut", "too large", "nothing"])
def test_what_is_left_to_pillow(photos, kind):
    image = photos["coffee"]
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = {
        "CMYK": jpeg(image.convert("CMYK")),
        "PNG": buffer.getvalue(),
        "cut": jpeg(image)[:-500],
        "too large": jpeg(image),
        "nothing": b"",
    }[kind]
    assert decode_jpeg(data, most=100 if kind == "too large" else MAX_PIXELS) is None


def test_every_file_comes_out_as_read_image_has_it(photos, tmp_path):
    image = photos["astronaut"]
    saved = {
        "plain.jpg": image.save,
        "cmyk.jpg": lambda p: image.convert("CMYK").save(p),
        "clear.png": lambda p: image.convert("RGBA").save(p),
        "lossless.webp": lambda p: image.save(p, lossless=True),
    }
    for name, save in saved.items():
        save(tmp_path / name)
        found = read_pixels(tmp_path / name)
        np.testing.assert_array_equal(found, np.asarray(read_image(tmp_path / name)))
        assert found.flags.writeable


@pytest.mark.parametrize("name", ["cut.jpg", "disguised.png", "empty.jpg", "absent.jpg"])
def test_the_causes_are_read_images(photos, tmp_path, name):
    data = {"cut.jpg": jpeg(photos["coffee"])[:-900], "disguised.png": jpeg(photos["coffee"]), "empty.jpg": b""}
    if name in data:
        (tmp_path / name).write_bytes(data[name])
    causes = []
    for read in (read_image, read_pixels):
        with pytest.raises(UnreadableImage) as raised:
            read(tmp_path / name)
        causes.append(str(raised.value))
    assert causes[0] == causes[1]
