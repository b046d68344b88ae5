"""Leaks: the same pixels on both sides, whatever the file; nothing else."""

import pytest
from PIL import Image

from lookalike.data.layouts import load_dataset
from lookalike.data.leaks import find_leaks, require_no_leaks
from lookalike.errors import DataError


@pytest.fixture
def folder(photos, tmp_path):
    """Two classes of two training crops, and other crops in query and gallery."""
    root = tmp_path / "photos"
    for label in ("cat", "coffee"):
        for part, number in (("training", 0), ("training", 1), ("test/query", 2), ("test/gallery", 3)):
            place = root / part / label
            place.mkdir(parents=True, exist_ok=True)
            photos[label].crop((20 * number, 10, 20 * number + 64, 58)).save(place / f"{number}.png")
    return root


def found(root):
    return [tuple(i.id for i in group) for group in find_leaks(load_dataset(root))]


def test_other_pixels_of_the_same_size_are_no_leak(folder):
    assert found(folder) == []
    require_no_leaks(load_dataset(folder))


def test_copies_inside_training_are_no_leak(folder):
    (folder / "training/cat/copy.png").write_bytes((folder / "training/cat/0.png").read_bytes())
    assert found(folder) == []


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_the_same_pixels_in_another_file_and_class_are_a_leak(suffix, folder):
    with Image.open(folder / "training/cat/1.png") as image:
        image.save(folder / f"test/gallery/coffee/again{suffix}")
    assert found(folder) == [("training/cat/1.png", f"test/gallery/coffee/again{suffix}")]


def test_a_picture_that_is_turned_by_its_orientation_is_seen(folder):
    with Image.open(folder / "training/cat/1.png") as image:
        exif = Image.Exif()
        exif[0x0112] = 8  # to be turned by 90 degrees when shown
        image.transpose(Image.Transpose.ROTATE_270).save(folder / "test/query/cat/turned.png", exif=exif)
    assert found(folder) == [("training/cat/1.png", "test/query/cat/turned.png")]


def test_what_cannot_be_read_is_passed_over(folder):
    (folder / "training/cat/broken.png").write_bytes(b"no picture")
    whole = (folder / "training/cat/0.png").read_bytes()
    (folder / "test/query/cat/cut.png").write_bytes(whole[: len(whole) // 2])
    assert found(folder) == []


def test_the_sentence_names_the_images_and_the_ways_out(folder):
    for number in (0, 1):
        whole = (folder / f"training/cat/{number}.png").read_bytes()
        (folder / f"test/gallery/cat/same{number}.png").write_bytes(whole)
    with pytest.raises(DataError) as raised:
        require_no_leaks(load_dataset(folder))
    assert str(raised.value) == (
        "2 training images are in query or gallery too (training/cat/0.png = test/gallery/cat/same0.png, "
        "training/cat/1.png = test/gallery/cat/same1.png), which would flatter what is measured there; leave them out "
        f"with 'lookalike check {folder} --clean-manifest CLEAN/manifest.csv' and train on CLEAN, "
        "or allow it with --allow-leaks."
    )


def test_the_way_out_by_the_clean_manifest_works(folder, tmp_path):
    from lookalike.data.check import check

    (folder / "test/gallery/cat/same.png").write_bytes((folder / "training/cat/0.png").read_bytes())
    check(folder, clean_manifest=tmp_path / "clean" / "manifest.csv")
    require_no_leaks(load_dataset(tmp_path / "clean"))


def test_where_it_is_allowed_it_is_said(folder):
    class Listener:
        said: list[str] = []  # noqa: RUF012

        def step(self, *_args, **_more):
            pass

        def info(self, text):
            self.said.append(text)

    (folder / "test/gallery/cat/same.png").write_bytes((folder / "training/cat/0.png").read_bytes())
    listener = Listener()
    require_no_leaks(load_dataset(folder), allowed=True, progress=listener)
    assert listener.said == [
        "1 training image is in query or gallery too (training/cat/0.png = test/gallery/cat/same.png); "
        "as allowed, they stay, and what is measured there flatters the model"
    ]
