import itertools
import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike._files import file_digest
from lookalike.data.builtin import DESCRIPTION, DIFFICULTY, SCENES, _cut, make_builtin
from lookalike.data.dataset import Split
from lookalike.data.layouts import load_dataset
from lookalike.errors import DataError, MissingExtra, OptionError, StorageError

N_SCENES = 18
SMALL = {"n_training": 2, "n_query": 1, "n_gallery": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_builtin(tmp_path_factory.mktemp("builtin") / "data", **SMALL)


def digests(root: Path) -> dict[str, str]:
    return {p.relative_to(root).as_posix(): file_digest(p) for p in sorted(root.rglob("*")) if p.is_file()}


def test_it_is_a_labelled_data_folder_with_every_scene_in_every_part(folder):
    data = load_dataset(folder)
    assert data.layout == "training and test folders, test part labelled by labels.csv"
    assert data.notes == ()
    assert len(SCENES) == N_SCENES
    for split, count in ((Split.TRAINING, 2), (Split.QUERY, 1), (Split.GALLERY, 2)):
        assert Counter(i.label for i in data.split(split)) == dict.fromkeys(SCENES, count)


def test_the_test_part_is_flat_and_its_order_does_not_give_the_class_away(folder):
    gallery = load_dataset(folder).gallery
    assert [i.id for i in gallery] == [f"test/gallery/{n:03d}.jpg" for n in range(2 * N_SCENES)]
    neighbours = sum(a.label == b.label for a, b in itertools.pairwise(gallery))
    assert neighbours < N_SCENES / 2  # in scene order, all 18 pairs would stand together


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


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(folder, tmp_path):
    assert digests(make_builtin(tmp_path / "again", **SMALL)) == digests(folder)
    other = digests(make_builtin(tmp_path / "other", seed=1, n_training=1, n_query=1, n_gallery=1))
    assert not set(other.values()) & set(digests(folder).values())


def test_without_turning_or_relighting_a_view_is_a_cut_of_the_photograph(tmp_path):
    import skimage

    plain = replace(DIFFICULTY, scale=(0.5, 0.5), rotation_degrees=0.0, light=0.0, colour_cast=0.0, quality=(95, 95))
    out = make_builtin(tmp_path / "plain", n_training=1, n_query=1, n_gallery=1, difficulty=plain)
    with Image.open(out / "training/moon/00.jpg") as image:
        view = np.asarray(image.convert("L"), dtype=float)
    with Image.open(Path(skimage.__file__).parent / "data/moon.png") as image:
        source = np.asarray(image, dtype=float)
    # The short side is half of 512 pixels, so one pixel of the view is one of the photograph: look where it fits best.
    rows, columns = view.shape
    probe = (slice(8, None, 61), slice(8, None, 61))
    places = list(itertools.product(range(512 - rows + 1), range(512 - columns + 1)))
    errors = [np.abs(source[y : y + rows, x : x + columns][probe] - view[probe]).mean() for y, x in places]
    y, x = places[int(np.argmin(errors))]
    difference = np.abs(source[y : y + rows, x : x + columns] - view)
    assert difference.mean() < 2  # of 255: up to half a pixel of shift, and JPEG
    assert np.median(errors) > 3 * difference.mean()  # elsewhere it fits several times worse


def test_a_turned_view_never_reaches_outside_the_photograph():
    white = Image.new("RGB", (300, 180), "white")  # outside of it, a view would be filled with black
    rng = random.Random(0)
    for limits in (DIFFICULTY, replace(DIFFICULTY, scale=(0.9, 1.5), rotation_degrees=80.0)):
        assert all(_cut(white, rng, limits).getextrema() == ((255, 255),) * 3 for _ in range(40))


def test_the_description_counts_what_is_there():
    assert "19 photographs" in DESCRIPTION
    assert "18 scenes" in DESCRIPTION
    assert sum(len(names) for names in SCENES.values()) == 19


def test_without_scikit_image_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(MissingExtra, match=r"scikit-image.*lookalike\[demo\]"):
        make_builtin(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_scikit_image_without_the_photographs_is_a_data_error(tmp_path, monkeypatch):
    import skimage

    monkeypatch.setattr(skimage, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(DataError, match=r"does not ship the photograph astronaut\.png"):
        make_builtin(tmp_path / "x")


def test_wrong_counts_and_taken_places_are_refused(tmp_path):
    with pytest.raises(OptionError, match="n_query must be at least 1, got 0"):
        make_builtin(tmp_path / "x", n_query=0)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").write_text("kept")
    with pytest.raises(StorageError, match="already exists"):
        make_builtin(tmp_path / "taken", **SMALL)
    assert (tmp_path / "taken/file").read_text() == "kept"
