from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from lookalike.benchmark.demo import BACKBONES, OPTIONS, demo
from lookalike.data.builtin import DESCRIPTION, SCENES, make_builtin
from lookalike.data.layouts import load_dataset
from lookalike.data.split import with_validation
from lookalike.errors import DataError, StorageError


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    """The built-in set with as many training views as the demo has, but a smaller test part."""
    return make_builtin(tmp_path_factory.mktemp("views") / "views", n_query=1, n_gallery=3)


class Bench:
    """Stands in for the benchmark and keeps how it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[Path, dict]] = []

    def __call__(self, data, backbones, **given):
        assert backbones == BACKBONES and given.pop("options") is OPTIONS
        self.calls.append((data, given))
        return given["out"]


@pytest.fixture
def bench(monkeypatch):
    stand_in = Bench()
    monkeypatch.setattr("lookalike.benchmark.demo.benchmark", stand_in)
    monkeypatch.setattr(
        "lookalike.benchmark.demo.make_builtin", lambda out: make_builtin(out, n_training=1, n_query=1, n_gallery=1)
    )
    return stand_in


def test_validation_of_the_built_in_set_can_reach_a_precision_at_3_of_one(views):
    """Each of the four images of a class has three others to find."""
    data = with_validation(load_dataset(views), seed=OPTIONS.seed)
    assert Counter(i.label for i in data.validation) == dict.fromkeys(SCENES, 4)
    assert Counter(i.label for i in data.training) == dict.fromkeys(SCENES, 12)


def test_the_demo_cuts_photographs_says_what_they_are_and_measures(bench, tmp_path, listener):
    heard = listener()
    out = tmp_path / "demo"
    demo(out, progress=heard)
    assert DESCRIPTION in heard.said
    ((folder, given),) = bench.calls
    assert folder == out / "photographs" and len(load_dataset(folder)) == 3 * len(SCENES)
    assert given["out"] == out / "benchmark" and given["notes"] == (DESCRIPTION,)
    assert given["title"].startswith("The demo")


def test_the_demo_goes_on_in_its_folder(bench, tmp_path, listener):
    demo(tmp_path / "demo")
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "demo").rglob("*")}
    heard = listener()
    demo(tmp_path / "demo", progress=heard)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "demo").rglob("*")} == kept
    assert heard.said == [DESCRIPTION]
    assert len(bench.calls) == 2


def test_killed_while_the_photographs_were_cut_it_starts_over_and_sweeps_up(bench, tmp_path):
    out = tmp_path / "demo"
    half = out / ".photographs.x1y2" / "training"  # what a kill leaves no time to remove
    half.mkdir(parents=True)
    (half / "00.jpg").touch()
    demo(out)
    assert [p.name for p in out.iterdir()] == ["photographs"]


def test_a_folder_with_other_things_is_refused(bench, tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(StorageError, match="already exists and is left as it is"):
        demo(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(StorageError, match="already exists"):
        demo(tmp_path / "thesis.txt")
    assert not bench.calls


def test_pictures_of_another_s_are_not_taken_for_the_demo_s(bench, photo_folder, tmp_path):
    (tmp_path / "demo").mkdir()
    photo_folder.rename(tmp_path / "demo" / "photographs")
    with pytest.raises(StorageError, match=r"photographs holds other pictures than the demo's; choose another --out"):
        demo(tmp_path / "demo")
    assert not bench.calls


def test_a_folder_of_one_s_own(bench, photo_folder, tmp_path):
    demo(tmp_path / "demo", data=photo_folder)
    ((folder, given),) = bench.calls
    assert folder == photo_folder
    assert given["out"] == tmp_path / "demo" / "benchmark-photos"  # the built-in set's lies beside it
    assert given["title"] == "Which model finds best in photos?"
    assert given["notes"] == ()


def test_a_data_set_by_name_is_downloaded_once(bench, photo_folder, tmp_path, monkeypatch):
    fetched = []

    def fetch(name, out, per_class):
        fetched.append((name, per_class))
        photo_folder.rename(out)

    monkeypatch.setattr("lookalike.benchmark.demo.torchvision_dataset", fetch)
    out = tmp_path / "demo"
    out.mkdir()
    (out / ".lookalike-download-ab12").mkdir()
    for _ in range(2):
        demo(out, data="CIFAR10")
    assert fetched == [("CIFAR10", 60)]
    assert [folder for folder, _ in bench.calls] == [out / "cifar10"] * 2
    assert [p.name for p in out.iterdir()] == ["cifar10"]


def test_a_download_that_fails_says_so_and_leaves_nothing(bench, tmp_path, monkeypatch):
    def fetch(name, out, per_class):
        raise DataError(f"{name} cannot be downloaded here (no network); download it by hand.")

    monkeypatch.setattr("lookalike.benchmark.demo.torchvision_dataset", fetch)
    with pytest.raises(DataError, match="STL10 cannot be downloaded here"):
        demo(tmp_path / "demo", data="STL10")
    assert not (tmp_path / "demo").exists() and not bench.calls


def test_neither_a_folder_nor_a_name(bench, tmp_path):
    with pytest.raises(
        DataError, match=r"phtos is neither a folder nor the name .*; the names are Caltech101, CIFAR10, "
    ):
        demo(tmp_path / "demo", data="phtos")
    assert not bench.calls
