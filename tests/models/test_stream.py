"""Decoding ahead: order, a bounded number of image_files in memory, and errors."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from lookalike.models.stream import File, Files, batches, map_ahead, map_groups_ahead

from lookalike.errors import OptionError, UnreadableImage
from lookalike.models import stream
from lookalike.models.preprocessing import Preprocessing
from lookalike.types import Skipped


class Counted:
    """Counts calls, from any thread."""

    def __init__(self) -> None:
        self.calls = 0
        self._lock = threading.Lock()

    def __call__(self, value: int) -> int:
        with self._lock:
            self.calls += 1
        time.sleep(0.001 * (value % 3))
        return value * value


def test_results_come_in_the_order_of_the_sources_and_in_batches():
    found = list(map_ahead(range(10), Counted(), 4))
    assert [len(batch) for batch in found] == [4, 4, 2]
    assert [pair for batch in found for pair in batch] == [(i, i * i) for i in range(10)]


@pytest.mark.parametrize("ahead", [1, 3])
def test_never_more_than_so_many_batches_are_worked_on_ahead(ahead):
    work = Counted()
    stream = map_ahead(range(100), work, 5, ahead=ahead)
    for taken in range(1, 5):
        next(stream)
        time.sleep(0.05)  # time enough for all that was submitted
        assert work.calls == 5 * (taken + ahead)
    stream.close()
    assert work.calls == 5 * (4 + ahead)


def test_as_many_threads_as_there_are_processors(monkeypatch):
    monkeypatch.setattr(stream, "cores", lambda: 3)
    everyone = threading.Barrier(3)  # passed by three at once, and by nobody else
    used = set()

    def work(_):
        everyone.wait(60)
        used.add(threading.get_ident())

    assert len(list(map_ahead(range(9), work, 3))) == 3
    assert len(used) == 3


def test_nothing_starts_before_somebody_asks():
    work = Counted()
    map_ahead(range(10), work, 2)
    assert work.calls == 0


def test_an_error_is_raised_where_it_belongs_and_the_rest_is_given_up():
    def fails_at_seven(value):
        if value == 7:
            raise ZeroDivisionError("seven")
        return value

    before = set(threading.enumerate())
    stream = map_ahead(range(1000), fails_at_seven, 4)
    assert next(stream) == [(i, i) for i in range(4)]
    with pytest.raises(ZeroDivisionError, match="seven"):
        next(stream)
    assert not set(threading.enumerate()) - before


def test_an_unreadable_image_takes_the_place_of_its_result():
    def prepare(value):
        if value == 1:
            raise UnreadableImage("b.jpg", "the file is empty")
        return value

    assert list(map_ahead(range(3), prepare, 3)) == [[(0, 0), (1, Skipped(Path("b.jpg"), "the file is empty")), (2, 2)]]


def test_no_sources_give_no_batches():
    assert list(map_ahead([], Counted(), 4)) == []


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(OptionError) as raised:
        next(map_ahead([1], Counted(), 0))
    assert str(raised.value) == "the batch size must be at least 1, got 0."


def test_each_file_is_decoded_once_whatever_the_number_of_preprocessings(image_files, monkeypatch):
    opened = []

    def reading(path, at_least, read=stream.read_scaled):
        opened.append(path)
        return read(path, at_least)

    monkeypatch.setattr(stream, "read_scaled", reading)
    small, large = Preprocessing(32, 32), Preprocessing(64, 48)
    sources = [File(p.name, p) for p in image_files]
    found = list(batches([sources], [small, large, small], 4))
    assert sorted(opened) == sorted(image_files)
    assert [b.done for b in found] == [4, 8, 9]
    assert [tuple(p.shape for p in b.pixels) for b in found[:1]] == [((4, 32, 32, 3), (4, 64, 48, 3), (4, 32, 32, 3))]
    assert found[0].pixels[0] is found[0].pixels[2]
    assert found[0].pixels[0].dtype == np.uint8
    assert [name for b in found for name in b.ids] == [p.name for p in image_files]


def test_a_batch_whose_files_are_all_unreadable_is_still_reported(image_files, tmp_path):
    missing = [File(str(n), tmp_path / f"{n}.jpg") for n in range(2)]
    found = list(batches([[*missing, File("good", image_files[0])]], [Preprocessing(32, 32)], 2))
    assert [(b.ids, len(b.pixels), len(b.skipped), b.done) for b in found] == [((), 0, 2, 2), (("good",), 1, 0, 3)]


def test_files_are_kept_as_text_and_made_when_they_are_looked_at(tmp_path):
    names = ["a/\udcff.jpg", "b.jpg", "ö/c.png", ""]
    files = Files(tmp_path, iter(names))
    assert list(files) == [File(name, tmp_path / name) for name in names]
    assert (len(files), files[-2].id, len(Files(tmp_path, []))) == (4, "ö/c.png", 0)
    assert [f.id for f in files[1:][:2]] == names[1:3]
    assert [f.id for f in files[::-2]] == names[::-2]
    with pytest.raises(IndexError):
        files[4]
    with pytest.raises(IndexError):
        files[1:2][1]


def test_a_batch_is_of_one_group():
    groups = [[1, 2, 3], [4], [5, 6]]
    found = list(map_groups_ahead(groups, lambda n: -n, 2))
    assert found == [[(1, -1), (2, -2)], [(3, -3)], [(4, -4)], [(5, -5), (6, -6)]]
