"""The quick JPEG decoder against Pillow: equal pixels, upright, and scaled only as far as is allowed."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from lookalike.data.images import MAX_PIXELS, read_image, read_pixels, read_scaled
from lookalike.data.jpeg import decode_jpeg
from lookalike.errors import UnreadableImage


def decode(data, at_least=None, *, most=MAX_PIXELS):
    found = decode_jpeg(data, [at_least], most=most)
    return None if found is None else found[0]


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
    np.testing.assert_array_equal(decode(data), expected)


def test_grey_pictures_have_three_equal_channels(photos):
    grey = photos["coffee"].convert("L")
    found = decode(jpeg(grey))
    with Image.open(io.BytesIO(jpeg(grey))) as image:
        np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_pictures_are_upright(photos, turn, endian):
    data = turned(photos["rocket"], turn, endian)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(decode(data), expected)


def test_an_orientation_that_does_not_exist_changes_nothing(photos):
    data = turned(photos["rocket"], 9)
    assert decode(data).shape == (photos["rocket"].height, photos["rocket"].width, 3)


@pytest.mark.parametrize(
    ("at_least", "side"), [(None, 800), (401, 800), (400, 400), (201, 400), (200, 200), (100, 100), (1, 100)]
)
def test_a_side_is_halved_while_enough_of_it_is_left(photos, at_least, side):
    square = photos["coffee"].resize((800, 800))
    assert decode(jpeg(square), at_least).shape == (side, side, 3)


def test_odd_sides_are_rounded_up(photos):
    assert decode(jpeg(photos["coffee"].resize((803, 401))), 200).shape == (201, 402, 3)


def test_a_scaled_picture_is_the_averaged_one(photos):
    """Half of the sides without frequencies above a half: what a box filter gives, but for ringing."""
    large = photos["coffee"].resize((1024, 768), Image.Resampling.BICUBIC)
    found = decode(jpeg(large, quality=95), 384)
    expected = np.asarray(large.reduce(2))
    assert np.abs(found.astype(int) - expected).mean() < 1.0


def segment(marker, content):
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def after_start(data, *segments):
    return data[:2] + b"".join(segments) + data[2:]


def test_the_orientation_is_found_wherever_pillow_finds_it(photos, tmp_path):
    """Behind long segments of others, in XMP alone, and not in what merely looks like it."""
    image = photos["rocket"]
    other = segment(0xED, b"Photoshop 3.0\x00" + bytes(60_000))
    xmp = b"http://ns.adobe.com/xap/1.0/\x00<x:xmpmeta><r tiff:Orientation='6' tiff:X='1'/></x:xmpmeta>"
    exif = Image.Exif()
    exif[274] = 6
    files = {
        "behind.jpg": after_start(turned(image, 6), other, other),
        "xmp.jpg": after_start(jpeg(image), other, other, segment(0xE1, xmp.replace(b"'", b'"'))),
        "comment.jpg": after_start(jpeg(image), segment(0xFE, b"Exif\x00\x00" + exif.tobytes())),
        "nothing.jpg": after_start(jpeg(image), segment(0xE1, b"Exif\x00\x00")),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        expected = np.asarray(read_image(tmp_path / name))
        np.testing.assert_array_equal(read_pixels(tmp_path / name), expected, err_msg=name)


def test_each_size_is_decoded_as_if_it_were_asked_for_alone(photos, tmp_path):
    photos["coffee"].resize((1600, 1600)).save(tmp_path / "large.jpg")
    found = read_scaled(tmp_path / "large.jpg", [200, None, 700, 200])
    assert [f.shape for f in found] == [(200, 200, 3), (1600, 1600, 3), (800, 800, 3), (200, 200, 3)]
    for pixels, least in zip(found, [200, None, 700, 200], strict=True):
        np.testing.assert_array_equal(pixels, read_pixels(tmp_path / "large.jpg", least))


def test_a_sampling_that_only_pillow_knows(photos, tmp_path):
    """4:4:1, luma four times as high as colour: what turning a 4:1:1 picture without loss gives."""
    data = bytearray(jpeg(photos["coffee"].resize((64, 64)), subsampling=0))
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
    assert decode(data, most=100 if kind == "too large" else MAX_PIXELS) is None


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
