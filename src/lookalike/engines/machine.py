"""The processor that times hold for."""

from __future__ import annotations

import platform
from pathlib import Path

_LISTED = Path("/proc/cpuinfo")


def processor() -> str:
    """Return the processor's name where the system tells it, else its kind."""
    lines = _LISTED.read_text(encoding="utf-8").splitlines() if _LISTED.is_file() else []
    names = (value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == "model name")
    return next(names, "") or platform.processor() or platform.machine()
