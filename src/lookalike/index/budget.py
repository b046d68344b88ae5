"""What an index may cost: recall, memory, time."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from lookalike.errors import OptionError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_size(text: str | int) -> int:
    """Read a number of bytes: 500MB, 1.5GiB, 2g or 300000000.

    Raises:
        OptionError: anything else.

    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]?i?)b?\s*", str(text).lower())
    if found is None or found[2] not in _UNITS or float(found[1]) <= 0:
        raise OptionError(f"a size must be written like 500MB or 1.5GiB, got {text!r}.")
    return round(float(found[1]) * _UNITS[found[2]])


def size_words(size: float) -> str:
    """Return a number of bytes for people: 1.2 GB."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return "1 byte" if round(size) == 1 else f"{size:.0f} bytes"


@dataclass(frozen=True)
class Budget:
    """What is asked of an index.

    Attributes:
        min_recall: index recall@10: share of the exact 10 nearest that is found, on average over queries; 1 is exact.
        max_memory: bytes that its vectors may take; None for no limit.
        max_ms: milliseconds of one query, the median; None for no limit.

    Raises:
        OptionError: for a value outside what is allowed.

    """

    min_recall: float = 1.0
    max_memory: int | None = None
    max_ms: float | None = None

    @classmethod
    def of(cls, min_recall: float = 1.0, max_memory: int | str | None = None, max_ms: float | None = None) -> Budget:
        """Make one of what a user gives: the memory as bytes, or as text such as 500MB."""
        return cls(min_recall, None if max_memory is None else parse_size(max_memory), max_ms)

    def __post_init__(self) -> None:
        if not 0 < self.min_recall <= 1:
            raise OptionError(f"min_recall must be above 0 and at most 1, got {self.min_recall}.")
        if self.max_memory is not None and self.max_memory < 1:
            raise OptionError(f"max_memory must be at least 1 byte, got {self.max_memory}.")
        if self.max_ms is not None and not (self.max_ms > 0 and math.isfinite(self.max_ms)):
            raise OptionError(f"max_ms must be above 0, got {self.max_ms}.")

    @property
    def exact(self) -> bool:
        """Whether every one of the nearest must be found."""
        return self.min_recall == 1.0

    def __str__(self) -> str:
        parts = [f"recall of at least {self.min_recall:g}"]
        if self.max_memory is not None:
            parts.append(f"at most {size_words(self.max_memory)}")
        if self.max_ms is not None:
            parts.append(f"at most {self.max_ms:g} ms a query")
        return ", ".join(parts)
