import urllib.error
import urllib.request
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from lookalike.data.downloads import SOURCES, is_torchvision_name, torchvision_dataset, write_labelled_images
from lookalike.data.layouts import load_dataset
from lookalike.errors import DataError, MissingExtra, OptionError, StorageError


class Pictures:
    """Crops of real photographs with class numbers, in the form of a torchvision data set."""

    classes = ("cat", "coffee/cup", "Rocket")
    files = ("chelsea.png", "coffee.png", "rocket.jpg")

    def __init__(self, per_class, side=96):
        self.per_class, self.side, self.decoded = per_class, side, 0

    def __len__(self):
        return 3 * self.per_class

    def __getitem__(self, index):
        import skimage

        self.decoded += 1
        number, label = divmod(index, 3)
        with Image.open(Path(skimage.__file__).parent / "data" / self.files[label]) as image:
            left = 3 * number
            return image.crop((left, 0, left + self.side, self.side)), label


def counts(data):
    return {str(s): sorted(Counter(i.label for i in data.split(s)).items()) for s in ("training", "query", "gallery")}


def each(n):
    return [("Rocket", n), ("cat", n), ("coffee_cup", n)]


def test_training_and_test_parts_become_class_folders(tmp_path):
    out = write_labelled_images([Pictures(3), Pictures(2)], [Pictures(8)], tmp_path / "out")
    data = load_dataset(out)
    assert data.layout == "training and test folders, class folders in the test part"
    assert counts(data) == {"training": each(5), "query": each(2), "gallery": each(6)}


def test_a_data_set_without_parts_is_cut_in_three(tmp_path):
    data = load_dataset(write_labelled_images([Pictures(8)], [], tmp_path / "out"))
    assert counts(data) == {"training": each(4), "query": each(1), "gallery": each(3)}
    assert len({i.path.read_bytes() for i in data.items}) == 24  # no picture twice, none lost


def test_the_picture_stays_the_same_and_under_its_own_class(tmp_path):
    source = Pictures(1, side=64)
    out = write_labelled_images([source], [Pictures(2, side=64)], tmp_path / "out")
    for label, folder in enumerate(("cat", "coffee_cup", "Rocket")):
        (path,) = (out / "training" / folder).iterdir()
        assert path.suffix == ".png"  # small pictures lose nothing
        with Image.open(path) as written:
            assert np.array_equal(np.asarray(written), np.asarray(source[label][0].convert("RGB")))


def test_a_limit_holds_for_every_class_and_saves_decoding(tmp_path):
    training, test = Pictures(60), Pictures(4)
    data = load_dataset(write_labelled_images([training], [test], tmp_path / "out", per_class=2))
    assert counts(data) == {"training": each(2), "query": each(1), "gallery": each(1)}
    assert training.decoded < 90  # of 180


def test_the_seed_decides_what_is_taken(tmp_path):
    def taken(name, seed):
        out = write_labelled_images([Pictures(9)], [], tmp_path / name, per_class=2, seed=seed)
        return {p.read_bytes() for p in out.rglob("*.jpg")}

    assert taken("a", 0) == taken("b", 0) != taken("c", 1)


def test_class_names_that_would_fall_together_stay_apart(tmp_path):
    class Alike(Pictures):
        classes = ("F/A", "f a", "..")

    out = write_labelled_images([Alike(1)], [Alike(2)], tmp_path / "out")
    assert sorted(p.name for p in (out / "training").iterdir()) == ["F_A_0", "class", "f_a_1"]


def test_an_undecodable_picture_is_a_data_error_and_leaves_nothing(tmp_path):
    class Broken(Pictures):
        def __getitem__(self, index):
            raise OSError("image file is truncated")

    with pytest.raises(
        DataError, match=r"image \d of the data set Broken cannot be decoded \(image file is truncated\)"
    ):
        write_labelled_images([Broken(1)], [], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_names_are_known_in_any_case_and_exist_in_torchvision():
    assert is_torchvision_name("CIFAR10")
    assert is_torchvision_name("oxfordiiitpet")
    assert not is_torchvision_name("ImageNet")
    assert not is_torchvision_name("data/CIFAR10")
    for source in SOURCES.values():
        assert hasattr(torchvision.datasets, source.name)


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(
        OptionError, match=r"'cifar11' is no data set .* Caltech101, CIFAR10, CIFAR100, .* STL10, or give a folder"
    ):
        torchvision_dataset("cifar11", tmp_path / "out")


@pytest.mark.parametrize("name", ["CIFAR10", "eurosat", "Flowers102", "DTD"])
def test_without_network_the_error_is_one_sentence_with_the_next_step(tmp_path, monkeypatch, name):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(
        DataError, match=rf"(?i){name} cannot be downloaded here \(.*\); download it by hand and give its folder"
    ) as e:
        torchvision_dataset(name, tmp_path / "out")
    assert "\n" not in str(e.value)
    assert list(tmp_path.iterdir()) == []  # neither half a data set nor half a download


def test_a_broken_archive_and_a_missing_package_have_their_own_sentences(tmp_path, monkeypatch):
    def broken(**arguments):
        raise zipfile.BadZipFile("File is not a zip file")

    def unread(**arguments):
        raise ModuleNotFoundError("No module named 'scipy'", name="scipy")

    monkeypatch.setattr(torchvision.datasets, "Food101", broken)
    monkeypatch.setattr(torchvision.datasets, "Flowers102", unread)
    with pytest.raises(DataError, match=r"Food101 cannot be downloaded here \(File is not a zip file\)"):
        torchvision_dataset("Food101", tmp_path / "out")
    with pytest.raises(MissingExtra, match="reading Flowers102 needs the package scipy"):
        torchvision_dataset("Flowers102", tmp_path / "out")


def test_the_pieces_of_a_data_set_are_asked_for_and_written(tmp_path, monkeypatch):
    asked = []

    def opened(*, root, download, split):
        asked.append((Path(root).name, download, split))
        return Pictures(4)

    monkeypatch.setattr(torchvision.datasets, "DTD", opened)
    out = torchvision_dataset("dtd", tmp_path / "out", per_class=4, downloads=tmp_path / "kept")
    assert asked == [("kept", True, "train"), ("kept", True, "val"), ("kept", True, "test")]
    assert counts(load_dataset(out)) == {"training": each(4), "query": each(1), "gallery": each(3)}


def test_a_limit_too_small_and_a_taken_place_are_refused_before_any_download(tmp_path):
    with pytest.raises(OptionError, match=r"per_class must be at least 2, .* got 1"):
        torchvision_dataset("CIFAR10", tmp_path / "out", per_class=1)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(StorageError, match="already exists"):
        torchvision_dataset("CIFAR10", tmp_path)
