"""Many names, such as the ids of a million items, in little memory."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import overload

import numpy as np


class Names(Sequence[str]):
    """Strings kept as one text: each takes eight bytes more than its characters, as a `str` of its own fifty more.

    Equal to any sequence of the same strings. A slice shares the text.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._text = bytearray()
        self._ends = array("Q", [0])
        for name in names:
            self._text += name.encode("utf-8", "surrogatepass")
            self._ends.append(len(self._text))
        self._range = range(len(self._ends) - 1)

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
        number = self._range[place]
        return self._text[self._ends[number] : self._ends[number + 1]].decode("utf-8", "surrogatepass")

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


def repeated(names: Callable[[], Iterable[str]]) -> str | None:
    """Return the first name that stands more than once, or None.

    Args:
        names: gives them, once more where hashes, which take less memory than the names, do not rule it out.

    """
    hashes = np.fromiter(map(hash, names()), np.int64)
    hashes.sort()
    if (hashes[1:] != hashes[:-1]).all():
        return None
    seen: set[str] = set()
    return next((i for i in names() if i in seen or seen.add(i)), None)  # type: ignore[func-returns-value]
