"""What a benchmark runs on: the machine and the versions that its times depend on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from lookalike.backbones.devices import device_name, threads

_PACKAGES = ("lookalike", "torch", "timm", "faiss-cpu", "numpy")
_LISTED = Path("/proc/cpuinfo")


def machine() -> dict[str, Any]:
    """Return the processor, its cores and the versions of Python and packages, as a report shows them."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def timing_setup() -> dict[str, Any]:
    """Return all that a measured time holds for: processor, device, threads, and the versions that compute."""
    return {
        "processor": _processor(),
        "device": device_name(),
        "cores": os.cpu_count(),  # decode
        "threads": threads(),
        **{name: importlib.metadata.version(name) for name in ("torch", "timm", "pillow")},
    }


def _processor() -> str:
    """Return the processor's name where the system tells it, else its kind."""
    lines = _LISTED.read_text(encoding="utf-8").splitlines() if _LISTED.is_file() else []
    names = (value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == "model name")
    return next(names, "") or platform.processor() or platform.machine()
