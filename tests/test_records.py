"""Records are built from JSON that anyone may have written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pytest

from lookalike._records import read_record


@dataclass(frozen=True)
class Inner:
    name: str
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    count: int
    flag: bool
    kind: Literal["a", "b"]
    inner: Inner
    best: Inner | None
    triple: tuple[float, float, float]
    inners: tuple[Inner, ...]
    by_name: Mapping[str, int]
    options: Mapping[str, Any]


OUTER = Outer(3, True, "a", Inner("x"), None, (0.1, 2.0, 3.0), (Inner("y", 1.0),), {"k": 1}, {"any": [1, "two"]})
VALUE = json.loads(json.dumps(asdict(OUTER)))


def test_a_record_is_read_as_it_was_written() -> None:
    assert read_record(Outer, VALUE) == OUTER
    assert read_record(Outer, {**VALUE, "best": {"name": "z", "share": 1}}).best == Inner("z", 1.0)
    assert read_record(Inner, {"name": "x"}) == Inner("x")  # the rest has defaults


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"count": "3"}, "count is '3', expected int"),
        ({"count": 3.0}, "count is 3.0"),
        ({"count": True}, "count is True"),
        ({"count": math.inf}, "count is inf"),
        ({"count": None}, "count is None"),
        ({"flag": 1}, "flag is 1"),
        ({"kind": "c"}, "kind is 'c', expected 'a' or 'b'"),
        ({"kind": ["a"]}, "kind is"),
        ({"inner": "x"}, "inner is 'x', not an object"),
        ({"inner": None}, "inner is None, not an object"),
        ({"inner": {}}, "inner has no 'name'"),
        ({"inner": {"name": 3}}, "name is 3"),
        ({"best": []}, r"best is \[\]"),
        ({"triple": [0.1, 0.2]}, "triple is"),
        ({"triple": 3}, "triple is 3"),
        ({"inners": {}}, "inners is"),
        ({"inners": [{"name": "y", "share": "much"}]}, "share is 'much'"),
        ({"by_name": {"k": "v"}}, "by_name 'k' is 'v'"),
        ({"options": 3}, "options is 3"),
        ({"more": 1}, "unknown 'more'"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], fact: str) -> None:
    with pytest.raises(ValueError, match=fact):
        read_record(Outer, {**VALUE, **change})


@pytest.mark.parametrize("value", [None, [], "x", 3])
def test_something_else_than_an_object(value: object) -> None:
    with pytest.raises(ValueError, match="not an object"):
        read_record(Outer, value)


def test_a_long_value_is_cut() -> None:
    with pytest.raises(ValueError, match="x") as caught:
        read_record(Inner, {"name": ["x" * 10_000]})
    assert len(str(caught.value)) < 100
