"""What a benchmark runs on: the machine and the versions that its times depend on."""

from __future__ import annotations

import os
import platform
from typing import Any

from lookalike._versions import versions_of
from lookalike.models.devices import device_name, threads
from lookalike.runtimes.machine import processor

_PACKAGES = ("lookalike", "torch", "timm", "openvino", "faiss-cpu", "numpy")


def machine() -> dict[str, Any]:
    """Return the processor, its cores and the versions of Python and packages, as a report shows them."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **versions_of(*_PACKAGES),
    }


def timing_setup() -> dict[str, Any]:
    """Return all that a measured time holds for: processor, device, threads, and the versions that compute."""
    return {
        "processor": processor(),
        "device": device_name(),
        "cores": os.cpu_count(),  # decode
        "threads": threads(),
        **versions_of("torch", "timm", "pillow", "openvino"),
    }
