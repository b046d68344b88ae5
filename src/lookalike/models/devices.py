"""Where the arithmetic happens."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path

import torch

_CPUINFO = Path("/proc/cpuinfo")


def default_device() -> torch.device:
    """Return the first accelerator, else the CPU."""
    if torch.accelerator.is_available():
        found = torch.accelerator.current_accelerator()
        if found is not None:
            return found
    return torch.device("cpu")


def device_name() -> str:
    """Return what the first accelerator is called, else cpu."""
    device = default_device()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@functools.cache
def keep_freed_memory() -> None:
    """Tell glibc to keep the memory of freed activations instead of giving it back to the kernel after every layer.

    Without it each forward pass faults its pages in anew; benchmarks/allocator.py measures what that costs.
    Does nothing on other C libraries, or when LOOKALIKE_MALLOC=default.
    """
    if not sys.platform.startswith("linux") or os.environ.get("LOOKALIKE_MALLOC") == "default":
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # malloc.h
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_max, 0)
    mallopt(arena_max, 1)


def computes_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is native there, so that mixed precision is faster."""
    if device.type == "cpu":
        return "avx512_bf16" in _cpu_flags() or "amx_bf16" in _cpu_flags()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _cpu_flags() -> frozenset[str]:
    try:
        with _CPUINFO.open(encoding="utf-8") as handle:
            line = next((text for text in handle if text.startswith("flags")), "")
    except OSError:
        return frozenset()
    return frozenset(line.partition(":")[2].split())


def threads() -> int:
    """Return how many threads one operation of a model may use on the CPU."""
    return torch.get_num_threads()
