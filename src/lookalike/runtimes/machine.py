"""The processor that times hold for."""

from __future__ import annotations

import platform
from pathlib import Path

_LISTED = Path("/proc/cpuinfo")


def processor() -> str:
    """Return the processor's name where the system tells it, else its kind."""
    return _listed("model name") or platform.processor() or platform.machine()


def abilities() -> str:
    """Return the instructions that the processor has, where the system tells them; one name stands for several."""
    return _listed("flags", "Features")


def _listed(*keys: str) -> str:
    """Return what the system lists first under one of these keys, or nothing; it reads no further than that."""
    if not _LISTED.is_file():
        return ""
    with _LISTED.open(encoding="utf-8") as lines:
        pairs = (line.partition(":") for line in lines)
        return next((value.strip() for key, _, value in pairs if key.strip() in keys), "")
