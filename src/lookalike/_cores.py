"""How many threads are ours to take."""

from __future__ import annotations

import os


def cores() -> int:
    """Return the number of processors that this process may use; OMP_NUM_THREADS, where it is set, allows no more."""
    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return max(1, min(free, int(allowed))) if allowed.isdigit() else free
