"""`Names` are a tuple of strings in less memory."""

from __future__ import annotations

import json
import operator
import sys
import tracemalloc

import numpy as np
import pytest

from lookalike._names import Names, lines_of, read_lines, repeated

ODD = ("a/\udcff.jpg", "", "ö/c.png", "\ud800", "line\nbreak", "a/\udcff.jpg")


def test_names_are_like_a_tuple() -> None:
    names = Names(iter(ODD))
    assert tuple(names) == ODD
    assert names == ODD
    assert operator.eq(ODD, names)
    assert hash(names) == hash(ODD)
    assert names != ODD[:-1]
    assert names != (*ODD[:-1], "b")
    assert Names("ab") != "ab"
    assert (len(names), names[-1], names.index("ö/c.png"), "x" in names) == (6, ODD[-1], 2, False)
    with pytest.raises(IndexError):
        names[6]


@pytest.mark.parametrize("cut", [slice(1, 3), slice(None, None, -2), slice(4, 100), slice(3, 3)])
def test_slices(cut: slice) -> None:
    part = Names(ODD)[cut]
    assert part == ODD[cut]
    assert part[::-1] == ODD[cut][::-1]
    with pytest.raises(IndexError):
        part[len(ODD[cut])]


def test_names_are_taken_by_place() -> None:
    found = Names(ODD).take(np.array([[3, 0], [2, 2]]))
    assert found.tolist() == [["\ud800", ODD[0]], ["ö/c.png", "ö/c.png"]]
    assert found.dtype == object
    assert Names(ODD).take(np.zeros((0, 3), np.int64)).shape == (0, 3)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 33, 100])
def test_sorted_names_are_found(count: int) -> None:
    made = sorted({*ODD, "\U0001f600", "\uffff", *(f"{n:03}.jpg" for n in range(count))})
    names = Names(made)
    assert names.increase
    assert [names.find(name) for name in made] == list(range(len(made)))
    assert {names.find(name) for name in ("!", "000.jpg ", "007", "~", "\U0010ffff")} == {-1}
    assert [names[3:].find(name) for name in made] == [-1] * min(3, len(made)) + list(range(len(made) - 3))


@pytest.mark.parametrize(("names", "so"), [("", True), ("a", True), ("ab", True), ("aa", False), ("acb", False)])
def test_whether_names_increase(names: str, so: bool) -> None:
    assert Names(names).increase is so


def test_nothing_is_among_no_names() -> None:
    assert Names().find("a") == -1


@pytest.mark.parametrize("names", [(), ("a",), ODD])
def test_lines_are_json_and_are_read_again(names: tuple[str, ...]) -> None:
    text = "".join(lines_of(names))
    assert json.loads(text) == list(names)
    assert len(text.splitlines()) == len(names) + 2
    assert read_lines(text.splitlines(keepends=True)) == names


def test_names_show_the_first_few() -> None:
    assert repr(Names("abcd")) == "<4 names: 'a', 'b', 'c', …>"
    assert repr(Names(["a"])) == "<1 names: 'a'>"


def test_names_take_half_of_what_strings_take() -> None:
    made = [f"group {n // 1000:03}/photograph {n:07}.jpg" for n in range(20_000)]
    tracemalloc.start()
    names = Names(made)
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(names) == 20_000
    assert taken * 1.9 < sum(map(sys.getsizeof, made)) + 8 * len(made)


@pytest.mark.parametrize(("names", "first"), [(ODD, ODD[0]), ("abc", None), ("", None), ("abcba", "b")])
def test_repeated(names: str | tuple[str, ...], first: str | None) -> None:
    assert repeated(lambda: names) == first
