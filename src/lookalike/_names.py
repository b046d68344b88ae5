"""Many names, such as the ids of a million items, in little memory."""

from __future__ import annotations

import json
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import overload

import numpy as np
import numpy.typing as npt

_LINES = 4096
"""Names that are taken, parsed, or written, at once."""
_EVERY = 8
"""Of so many sorted names one is kept as it is, to look among them first."""


class Names(Sequence[str]):
    """Strings kept as one text: each takes eight bytes more than its characters, as a `str` of its own fifty more.

    Equal to any sequence of the same strings. A slice shares the text.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._text = bytearray()
        self._ends = array("Q", [0])
        left = iter(names)
        while some := [name.encode("utf-8", "surrogatepass") for name in islice(left, _LINES)]:
            ends = accumulate(map(len, some), initial=len(self._text))
            self._ends.extend(islice(ends, 1, None))
            self._text += b"".join(some)
        self._range = range(len(self._ends) - 1)
        self._some: list[bytes] = []

    def __len__(self) -> int:
        return len(self._range)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Names: ...
    def __getitem__(self, place: int | slice) -> str | Names:
        """Return a name, or some of the names."""
        if isinstance(place, slice):
            part = Names()
            part._text, part._ends, part._range = self._text, self._ends, self._range[place]
            return part
        return self._bytes(self._range[place]).decode("utf-8", "surrogatepass")

    def _bytes(self, number: int) -> bytearray:
        return self._text[self._ends[number] : self._ends[number + 1]]

    def take(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.object_]:
        """Return the names at these places, none of them negative, as an object array of the same shape."""
        text, ends, numbers = self._text, self._ends, self._range
        found = np.empty(places.size, dtype=object)
        found[:] = [
            text[ends[number] : ends[number + 1]].decode("utf-8", "surrogatepass")
            for number in map(numbers.__getitem__, places.ravel().tolist())
        ]
        return found.reshape(places.shape)

    def find(self, name: str) -> int:
        """Return where a name stands among these, which are sorted; -1 where it does not."""
        if not self._some:
            self._some = [bytes(self._bytes(number)) for number in self._range[::_EVERY]]
        wanted = name.encode("utf-8", "surrogatepass")  # in this encoding bytes are in the order of the characters
        start = _EVERY * (bisect_right(self._some, wanted) - 1)
        for place in range(max(0, start), min(start + _EVERY, len(self))):
            number = self._range[place]
            if self._text[self._ends[number] : self._ends[number + 1]] == wanted:
                return place
        return -1

    @property
    def increase(self) -> bool:
        """Whether each is after the one before it."""
        keys = map(self._bytes, self._range)
        before = next(keys, None)
        for key in keys:
            if before >= key:  # type: ignore[operator]  # there is one before it
                return False
            before = key
        return True

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        more = ", …" if len(self) > 3 else ""
        return f"<{len(self)} names: {', '.join(map(repr, self[:3]))}{more}>"


def lines_of(names: Iterable[str]) -> Iterator[str]:
    """Yield text that is together a JSON list of names, each in a line of its own, all but ASCII escaped."""
    before, left = "[\n", iter(names)
    while some := list(islice(left, _LINES)):
        yield before + json.dumps(some, separators=(",\n", ":"))[1:-1]
        before = ",\n"
    yield "\n]" if before != "[\n" else "[\n]"


def read_lines(lines: Iterable[str]) -> Names:
    """Read a JSON list of names, some lines at a time: all of them parsed at once would take several times the memory.

    Raises:
        ValueError: no list of strings.

    """
    left = iter(lines)
    return Names(name for some in iter(lambda: list(islice(left, _LINES)), []) for name in _parsed(some))


def _parsed(lines: list[str]) -> list[str]:
    found = json.loads("[" + "".join(lines).strip().removeprefix("[").removesuffix("]").strip().strip(",") + "]")
    if not all(isinstance(name, str) for name in found):
        raise ValueError("not all ids are text")
    return found  # type: ignore[no-any-return]


def repeated(names: Callable[[], Iterable[str]]) -> str | None:
    """Return the first name that stands more than once, or None.

    Args:
        names: gives them, once more where hashes, which take less memory than the names, do not rule it out.

    """
    hashes = np.fromiter(map(hash, names()), np.int64)
    if len(hashes) < 2:
        return None
    hashes.sort()
    if (hashes[1:] != hashes[:-1]).all():
        return None
    seen: set[str] = set()
    return next((i for i in names() if i in seen or seen.add(i)), None)  # type: ignore[func-returns-value]
