"""The machine: processor, cores, cache folder, installed versions."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
NO_CACHE = Path(os.devnull) / "lookalike"  # nothing can be written there


def cpu_count() -> int:
    """Return the number of processors that this process may use, at most OMP_NUM_THREADS where it is set."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return max(1, min(usable, int(limit))) if limit.isdigit() else usable


def cpu_name() -> str:
    """Return the processor's name where the system lists it, else its architecture."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Return the instruction sets of the processor where the system lists them."""
    return frozenset(_cpuinfo("flags", "Features").split())


@functools.cache
def _cpuinfo(*keys: str) -> str:
    """Return the first value of one of these keys in /proc/cpuinfo, or an empty string."""
    try:
        with _CPUINFO.open(encoding="utf-8") as lines:
            pairs = (line.partition(":") for line in lines)
            return next((value.strip() for key, _, value in pairs if key.strip() in keys), "")
    except OSError:
        return ""


def cache_folder() -> Path:
    """Return the cache folder: LOOKALIKE_CACHE, else `lookalike` in the user's cache folder. It may be removed.

    `NO_CACHE` for a user without a home folder, as in some containers.
    """
    folder = os.environ.get("LOOKALIKE_CACHE")
    if folder:
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "lookalike"
    except RuntimeError:
        return NO_CACHE


def keep_freed_memory() -> None:
    """Make glibc keep freed memory, which the kernel would otherwise have to map again for every layer of a network.

    Training steps are 1.4 times as fast on a CPU (docs/log.md). It changes the whole process, so only commands call it,
    never the library. On other C libraries it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # malloc.h
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_max, 0)
    mallopt(arena_max, 1)


def disable_telemetry() -> None:
    """Switch off what packages send to their makers; call it before they are imported.

    ONNX Runtime looks up a host and writes a device id, MLflow and Weights & Biases report their use. Nothing else of
    the environment is changed, and what the user has set stays.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")


def installed_versions(*packages: str) -> dict[str, str]:
    """Return the versions of the packages that are installed, by name."""
    from importlib.metadata import PackageNotFoundError, version  # a tenth of the imports that a search needs

    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
