import itertools
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike._files import file_digest
from lookalike.data.dataset import Split
from lookalike.data.layouts import load_dataset
from lookalike.data.samples import DESCRIPTION, DIFFICULTY, SCENES, is_demo_folder, write_demo_images
from lookalike.errors import DataError, MissingExtra, OptionError, StorageError

N_SCENES = 18
SMALL = {"n_training": 2, "n_query": 1, "n_gallery": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_demo_images(tmp_path_factory.mktemp("demo") / "data", **SMALL)


def digests(root: Path) -> dict[str, str]:
    return {p.relative_to(root).as_posix(): file_digest(p) for p in sorted(root.rglob("*")) if p.is_file()}


def test_every_scene_is_in_every_split(folder):
    assert is_demo_folder(folder)
    data = load_dataset(folder)
    assert data.notes == ()
    assert len(SCENES) == N_SCENES
    for split, count in ((Split.TRAINING, 2), (Split.QUERY, 1), (Split.GALLERY, 2)):
        assert Counter(i.label for i in data.split(split)) == dict.fromkeys(SCENES, count)


def test_the_order_of_the_gallery_does_not_reveal_the_class(folder):
    gallery = load_dataset(folder).gallery
    assert [i.id for i in gallery] == [f"test/gallery/{n:03d}.jpg" for n in range(2 * N_SCENES)]
    neighbours = sum(a.label == b.label for a, b in itertools.pairwise(gallery))
    assert neighbours < N_SCENES / 2  # in scene order, all 18 pairs would be neighbours


def test_views_have_a_short_side_of_256_pixels_and_differ(folder):
    sizes = []
    for path in folder.rglob("*.jpg"):
        with Image.open(path) as image:
            assert image.mode == "RGB"
            sizes.append(image.size)
    assert {min(s) for s in sizes} == {256}
    assert max(max(s) for s in sizes) <= 342
    content = list(digests(folder).values())
    assert len(set(content)) == len(content) == 5 * N_SCENES + 1


def test_the_seed_decides_the_bytes(folder, tmp_path):
    assert digests(write_demo_images(tmp_path / "again", **SMALL)) == digests(folder)
    other = digests(write_demo_images(tmp_path / "other", seed=1, n_training=1, n_query=1, n_gallery=1))
    assert not set(other.values()) & set(digests(folder).values())


def test_without_rotation_and_relighting_a_view_is_a_crop(tmp_path):
    import skimage

    plain = replace(DIFFICULTY, scale=(0.5, 0.5), rotation_degrees=0.0, light=0.0, colour_cast=0.0, quality=(95, 95))
    out = write_demo_images(tmp_path / "plain", n_training=1, n_query=1, n_gallery=1, difficulty=plain)
    with Image.open(out / "training/moon/00.jpg") as image:
        view = np.asarray(image.convert("L"), dtype=float)
    with Image.open(Path(skimage.__file__).parent / "data/moon.png") as image:
        source = np.asarray(image, dtype=float)
    # The short side is half of 512 pixels, so one pixel of the view is one of the image: search where it fits best.
    rows, columns = view.shape
    probe = (slice(8, None, 61), slice(8, None, 61))
    corners = list(itertools.product(range(512 - rows + 1), range(512 - columns + 1)))
    errors = [np.abs(source[y : y + rows, x : x + columns][probe] - view[probe]).mean() for y, x in corners]
    y, x = corners[int(np.argmin(errors))]
    difference = np.abs(source[y : y + rows, x : x + columns] - view)
    assert difference.mean() < 2  # of 255: up to half a pixel of shift, and JPEG
    assert np.median(errors) > 3 * difference.mean()  # elsewhere it fits several times worse


@pytest.mark.parametrize("limits", [{}, {"scale": (0.9, 1.5), "rotation_degrees": 80.0}])
def test_a_rotated_view_stays_inside_the_image(tmp_path, monkeypatch, limits):
    import skimage

    (tmp_path / "data").mkdir()
    for name in itertools.chain(*SCENES.values()):
        Image.new("RGB", (300, 180), "white").save(tmp_path / "data" / name)  # outside it a view would be black
    monkeypatch.setattr(skimage, "__file__", str(tmp_path / "__init__.py"))
    difficulty = replace(DIFFICULTY, light=0.0, colour_cast=0.0, **limits)
    out = write_demo_images(tmp_path / "demo", n_training=1, n_query=1, n_gallery=1, difficulty=difficulty)
    views = list(out.rglob("*.jpg"))
    assert len(views) == 3 * N_SCENES
    for path in views:
        with Image.open(path) as image:
            assert all(darkest > 250 for darkest, _ in image.getextrema())  # JPEG may round


def test_the_description_has_the_right_numbers():
    assert "19 images" in DESCRIPTION
    assert "18 scenes" in DESCRIPTION
    assert sum(len(names) for names in SCENES.values()) == 19


def test_without_scikit_image_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(MissingExtra, match=r"scikit-image.*the extra demo"):
        write_demo_images(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_scikit_image_without_the_images_is_a_data_error(tmp_path, monkeypatch):
    import skimage

    monkeypatch.setattr(skimage, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(DataError, match=r"astronaut\.png"):
        write_demo_images(tmp_path / "x")


def test_wrong_counts_and_existing_folders_are_refused(tmp_path):
    with pytest.raises(OptionError) as caught:
        write_demo_images(tmp_path / "x", n_query=0)
    assert caught.value.argument == "n_query"
    (tmp_path / "existing").mkdir()
    (tmp_path / "existing/file").write_text("content")
    with pytest.raises(StorageError, match="already exists"):
        write_demo_images(tmp_path / "existing", **SMALL)
    assert (tmp_path / "existing/file").read_text() == "content"
