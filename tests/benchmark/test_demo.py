from __future__ import annotations

import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from lookalike.benchmark.demo import DEMO_BACKBONES, DEMO_OPTIONS, demo
from lookalike.data.dataset import with_validation
from lookalike.data.layouts import load_dataset
from lookalike.data.samples import DESCRIPTION, SCENES, write_demo_images
from lookalike.errors import StorageError


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    """The built-in set with as many training views as the demo has, but a smaller test part."""
    return write_demo_images(tmp_path_factory.mktemp("views") / "views", n_query=1, n_gallery=3)


class Bench:
    """Stands in for the benchmark and keeps how it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[Path, dict]] = []

    def __call__(self, data, backbones, **given):
        assert backbones == DEMO_BACKBONES and given.pop("options") is DEMO_OPTIONS
        self.calls.append((data, given))
        return given["out"]


@pytest.fixture
def bench(monkeypatch):
    stand_in = Bench()
    module = sys.modules["lookalike.benchmark.demo"]  # `lookalike.benchmark` is the function
    monkeypatch.setattr(module, "benchmark", stand_in)
    monkeypatch.setattr(module, "write_demo_images", partial(write_demo_images, n_training=1, n_query=1, n_gallery=1))
    return stand_in


def test_validation_can_reach_a_precision_at_3_of_one(views):
    """Each of the four images of a class has three others to find."""
    data = with_validation(load_dataset(views), seed=DEMO_OPTIONS.seed)
    assert Counter(i.label for i in data.validation) == dict.fromkeys(SCENES, 4)
    assert Counter(i.label for i in data.training) == dict.fromkeys(SCENES, 12)


def test_the_demo_writes_images_and_benchmarks(bench, tmp_path, listener):
    recording_progress = listener()
    out = tmp_path / "demo"
    demo(out, progress=recording_progress)
    assert DESCRIPTION in recording_progress.messages
    ((folder, given),) = bench.calls
    assert folder == out / "images" and len(load_dataset(folder)) == 3 * len(SCENES)
    assert given["out"] == out / "benchmark" and given["notes"] == (DESCRIPTION,)
    assert given["title"].startswith("The demo")


def test_the_demo_resumes_in_its_folder(bench, tmp_path, listener):
    demo(tmp_path / "demo")
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "demo").rglob("*")}
    recording_progress = listener()
    demo(tmp_path / "demo", progress=recording_progress)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "demo").rglob("*")} == kept
    assert recording_progress.messages == [DESCRIPTION]
    assert len(bench.calls) == 2


def test_partial_images_of_an_interrupted_demo_are_removed(bench, tmp_path):
    out = tmp_path / "demo"
    half = out / ".images.x1y2" / "training"  # what a kill leaves no time to remove
    half.mkdir(parents=True)
    (half / "00.jpg").touch()
    demo(out)
    assert [p.name for p in out.iterdir()] == ["images"]


def test_a_folder_with_other_things_is_refused(bench, tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(StorageError, match="already exists"):
        demo(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(StorageError, match="already exists"):
        demo(tmp_path / "thesis.txt")
    assert not bench.calls


def test_other_images_are_not_taken_for_the_demos(bench, photo_folder, tmp_path):
    (tmp_path / "demo").mkdir()
    photo_folder.rename(tmp_path / "demo" / "images")
    with pytest.raises(StorageError, match="images"):
        demo(tmp_path / "demo")
    assert not bench.calls


def test_a_folder_of_the_user(bench, photo_folder, tmp_path):
    demo(tmp_path / "demo", data=photo_folder)
    ((folder, given),) = bench.calls
    assert folder == photo_folder
    assert given["out"] == tmp_path / "demo" / "benchmark-photos"  # the built-in set's lies beside it
    assert given["title"] == "Which model finds best in photos?"
    assert given["notes"] == ()
