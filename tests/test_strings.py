"""`PackedStrings` behaves as a tuple of strings, in less memory."""

from __future__ import annotations

import json
import operator
import sys
import tracemalloc

import numpy as np
import pytest

from lookalike._strings import PackedStrings, first_duplicate, iter_json_lines, read_json_lines

ODD = ("a/\udcff.jpg", "", "ö/c.png", "\udc80", "line\nbreak", "a/\udcff.jpg")


def test_like_a_tuple() -> None:
    strings = PackedStrings(iter(ODD))
    assert tuple(strings) == ODD
    assert strings == ODD
    assert operator.eq(ODD, strings)
    assert hash(strings) == hash(ODD)
    assert strings != ODD[:-1]
    assert strings != (*ODD[:-1], "b")
    assert PackedStrings("ab") != "ab"
    assert (len(strings), strings[-1], strings.index("ö/c.png"), "x" in strings) == (6, ODD[-1], 2, False)
    with pytest.raises(IndexError):
        strings[6]


@pytest.mark.parametrize("cut", [slice(1, 3), slice(None, None, -2), slice(4, 100), slice(3, 3)])
def test_slices(cut: slice) -> None:
    view = PackedStrings(ODD)[cut]
    assert view == ODD[cut]
    assert view[::-1] == ODD[cut][::-1]
    with pytest.raises(IndexError):
        view[len(ODD[cut])]


def test_take() -> None:
    taken = PackedStrings(ODD).take(np.array([[3, 0], [2, 2]]))
    assert taken.tolist() == [["\udc80", ODD[0]], ["ö/c.png", "ö/c.png"]]
    assert taken.dtype == object
    assert PackedStrings(ODD).take(np.zeros((0, 3), np.int64)).shape == (0, 3)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 33, 100])
def test_find(count: int) -> None:
    ordered = sorted({*ODD, "\U0001f600", "\uffff", *(f"{n:03}.jpg" for n in range(count))})
    strings = PackedStrings(ordered)
    assert strings.is_sorted
    assert [strings.find(string) for string in ordered] == list(range(len(ordered)))
    assert {strings.find(string) for string in ("!", "000.jpg ", "007", "~", "\U0010ffff")} == {-1}
    positions = [strings[3:].find(string) for string in ordered]
    assert positions == [-1] * min(3, len(ordered)) + list(range(len(ordered) - 3))


def test_find_in_nothing() -> None:
    assert PackedStrings().find("a") == -1


@pytest.mark.parametrize(
    ("strings", "expected"), [("", True), ("a", True), ("ab", True), ("aa", False), ("acb", False)]
)
def test_is_sorted(strings: str, expected: bool) -> None:
    assert PackedStrings(strings).is_sorted is expected


@pytest.mark.parametrize("strings", [(), ("a",), ODD])
def test_json_lines(strings: tuple[str, ...]) -> None:
    text = "".join(iter_json_lines(strings))
    assert json.loads(text) == list(strings)
    assert len(text.splitlines()) == len(strings) + 2
    assert read_json_lines(text.splitlines(keepends=True)) == strings


def test_json_lines_of_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="text"):
        read_json_lines(["[\n", "1\n", "]\n"])


def test_repr_shows_the_first_three() -> None:
    assert repr(PackedStrings("abcd")) == "<4 strings: 'a', 'b', 'c', …>"
    assert repr(PackedStrings(["a"])) == "<1 strings: 'a'>"


def test_memory_is_half_of_a_list_of_str() -> None:
    ids = [f"group {n // 1000:03}/image number {n:07}.jpg" for n in range(20_000)]
    tracemalloc.start()
    strings = PackedStrings(ids)
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(strings) == 20_000
    assert taken * 1.9 < sum(map(sys.getsizeof, ids)) + 8 * len(ids)


@pytest.mark.parametrize(("strings", "duplicate"), [(ODD, ODD[0]), ("abc", None), ("", None), ("abcba", "b")])
def test_first_duplicate(strings: str | tuple[str, ...], duplicate: str | None) -> None:
    assert first_duplicate(strings) == duplicate
