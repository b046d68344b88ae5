"""Many strings, such as the ids of a million items, in little memory."""

from __future__ import annotations

import json
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import overload

import numpy as np
import numpy.typing as npt

_CHUNK = 4096  # strings encoded, parsed or written at a time
_STRIDE = 8  # `find` bisects every eighth string, and then compares the strings from there to the next one


class PackedStrings(Sequence[str]):
    """An immutable sequence of strings in one UTF-8 buffer: 8 bytes per string and its text; a `str` takes 50.

    Equal to any sequence of the same strings. Slices share the buffer.
    """

    def __init__(self, strings: Iterable[str] = ()) -> None:
        self._text = bytearray()
        self._ends = array("Q", [0])
        remaining = iter(strings)
        while chunk := [_encode(string) for string in islice(remaining, _CHUNK)]:
            self._ends.extend(islice(accumulate(map(len, chunk), initial=len(self._text)), 1, None))
            self._text += b"".join(chunk)
        self._range = range(len(self._ends) - 1)
        self._landmarks: list[bytes] = []

    def __len__(self) -> int:
        return len(self._range)

    @overload
    def __getitem__(self, position: int) -> str: ...
    @overload
    def __getitem__(self, position: slice) -> PackedStrings: ...
    def __getitem__(self, position: int | slice) -> str | PackedStrings:
        """Return one string, or a slice that shares the buffer."""
        if isinstance(position, slice):
            view = PackedStrings()
            view._text, view._ends, view._range = self._text, self._ends, self._range[position]
            return view
        return _decode(self._bytes(self._range[position]))

    def __iter__(self) -> Iterator[str]:
        return map(_decode, map(self._bytes, self._range))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        more = ", …" if len(self) > 3 else ""
        return f"<{len(self)} strings: {', '.join(map(repr, self[:3]))}{more}>"

    @property
    def is_sorted(self) -> bool:
        """Whether the strings are sorted and distinct."""
        previous: bytearray | None = None
        for current in map(self._bytes, self._range):
            if previous is not None and previous >= current:
                return False
            previous = current
        return True

    def take(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.object_]:
        """Return the strings at non-negative positions, as an object array of the same shape."""
        strings = np.empty(rows.size, dtype=object)
        strings[:] = [_decode(self._bytes(self._range[row])) for row in rows.ravel().tolist()]
        return strings.reshape(rows.shape)

    def find(self, string: str) -> int:
        """Return the position of a string in a sorted sequence, or -1 where it is absent."""
        if not self._landmarks:
            self._landmarks = [bytes(self._bytes(number)) for number in self._range[::_STRIDE]]
        key = _encode(string)  # UTF-8 sorts as the characters do
        start = max(0, _STRIDE * (bisect_right(self._landmarks, key) - 1))
        for position in range(start, min(start + _STRIDE, len(self))):
            if self._bytes(self._range[position]) == key:
                return position
        return -1

    def to_bytes(self) -> bytes:
        """Return the strings for `from_bytes`; not of a slice."""
        return b"".join([len(self).to_bytes(8, "little"), _little(self._ends).tobytes(), self._text])

    @classmethod
    def from_bytes(cls, data: bytes) -> PackedStrings:
        """Undo `to_bytes`, without a loop over the strings; `ValueError` for anything else."""
        strings = cls()
        start = 8 * (int.from_bytes(data[:8], "little") + 2)
        ends = array("Q")
        ends.frombytes(data[8:start])
        ends = _little(ends)
        if start > len(data) or ends[0] != 0 or ends[-1] != len(data) - start or (np.diff(ends) < 0).any():
            raise ValueError("it does not hold packed strings")
        strings._text, strings._ends, strings._range = bytearray(data[start:]), ends, range(len(ends) - 1)
        return strings

    def _bytes(self, number: int) -> bytearray:
        return self._text[self._ends[number] : self._ends[number + 1]]


def iter_json_lines(strings: Iterable[str]) -> Iterator[str]:
    """Yield the text of a JSON list in chunks, one string per line, escaped to ASCII."""
    prefix, remaining = "[\n", iter(strings)
    while chunk := list(islice(remaining, _CHUNK)):
        yield prefix + json.dumps(chunk, separators=(",\n", ":"))[1:-1]
        prefix = ",\n"
    yield "\n]" if prefix != "[\n" else "[\n]"


def read_json_lines(lines: Iterable[str]) -> PackedStrings:
    """Read what `iter_json_lines` wrote, in chunks: parsing the whole list at once takes several times the memory."""
    remaining = iter(lines)
    chunks = iter(lambda: list(islice(remaining, _CHUNK)), [])
    return PackedStrings(string for chunk in chunks for string in _parse(chunk))


def first_duplicate(strings: Sequence[str]) -> str | None:
    """Return the first string that occurs a second time, or None.

    Sorted hashes rule out duplicates in 8 bytes per string; only where two are equal the strings themselves are kept.
    """
    hashes = np.fromiter(map(hash, strings), np.int64, len(strings))
    hashes.sort()
    if (hashes[1:] != hashes[:-1]).all():
        return None
    seen: set[str] = set()
    for string in strings:
        if string in seen:
            return string
        seen.add(string)
    return None


def _little(numbers: array[int]) -> array[int]:
    """Return numbers in little-endian order, or back."""
    if sys.byteorder == "big":
        numbers = array("Q", numbers)
        numbers.byteswap()
    return numbers


def _encode(string: str) -> bytes:
    return string.encode("utf-8", "surrogatepass")  # a file name that is not valid UTF-8 holds lone surrogates


def _decode(text: bytearray) -> str:
    return text.decode("utf-8", "surrogatepass")


def _parse(lines: list[str]) -> list[str]:
    text = "".join(lines)
    values = json.loads("[" + text.strip().removeprefix("[").removesuffix("]").strip().strip(",") + "]")
    strings = [value for value in values if isinstance(value, str)]
    if len(strings) != len(values):
        raise ValueError("not all ids are text")
    if "\\u" in text:
        for string in strings:
            string.encode("utf-8", "surrogateescape")  # other lone surrogates are part of no file name
    return strings
