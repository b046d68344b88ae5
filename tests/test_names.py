"""`Names` are a tuple of strings in less memory."""

from __future__ import annotations

import operator
import sys
import tracemalloc

import pytest

from lookalike.names import Names, repeated

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
