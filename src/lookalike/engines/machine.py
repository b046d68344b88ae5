"""The processor that times hold for."""

from __future__ import annotations

import platform
from pathlib import Path

_LISTED = Path("/proc/cpuinfo")


def abilities() -> str:
    """Return the instructions that the processor has, where the system tells them; one name stands for several."""
    lines = _LISTED.read_text(encoding="utf-8").splitlines() if _LISTED.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(("flags", "Features"))), "")


def processor() -> str:
    """Return the processor's name where the system tells it, else its kind."""
    lines = _LISTED.read_text(encoding="utf-8").splitlines() if _LISTED.is_file() else []
    names = (value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == "model name")
    return next(names, "") or platform.processor() or platform.machine()
