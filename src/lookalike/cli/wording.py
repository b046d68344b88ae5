"""How values read on a terminal: paths, durations, rates."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def printable(text: str) -> str:
    """Replace control characters, line ends among them, that a file name may hold."""
    return _CONTROL.sub("�", text)


def display_path(path: Path) -> str:
    """Return a path relative to the working directory when it lies inside."""
    try:
        # not resolve(): it would show where a link leads rather than its name
        return str(Path(os.path.abspath(path)).relative_to(Path.cwd()))  # noqa: PTH100
    except (ValueError, OSError):
        return str(path)


def typed_path(path: Path) -> str:
    """Return a path as it can be typed in a shell."""
    return shlex.quote(display_path(path))


def duration(seconds: float) -> str:
    """Return a time span in words: `8 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"


def rate(per_second: float) -> str:
    """Return a speed: `12.5/s`, or `4.0 s each` where it is below one a second."""
    return f"{per_second:.1f}/s" if per_second >= 1 else f"{1 / per_second:.1f} s each"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 error`, `2 errors`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
