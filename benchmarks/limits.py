r"""What the machine can do at most: matrix products in every precision, and copying memory.

    python benchmarks/limits.py

Each is the best of several runs of half a second, by the libraries at hand: a limit is what was reached, and no share
of it can be more than 1 but by noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from contest import keep

SIDE = 4096
"""Of the matrices, as large as keep all caches busy."""
_SECONDS = 0.5
_RUNS = 5


def best(run: Callable[[], object], work: float) -> float:
    """Return the most work a second that was reached."""
    run()
    found = 0.0
    for _ in range(_RUNS):
        done, clock = 0, time.perf_counter()
        while time.perf_counter() - clock < _SECONDS:
            run()
            done += 1
        found = max(found, done * work / (time.perf_counter() - clock))
    return found


def products() -> dict[str, float]:
    """Return operations a second (a multiplication and an addition are two) by precision, in units of 10^9."""
    import torch

    work = 2.0 * SIDE**3 / 1e9
    a, b = torch.rand(SIDE, SIDE), torch.rand(SIDE, SIDE)
    half_a, half_b = a.bfloat16(), b.bfloat16()
    whole_a, whole_b = (torch.randint(-127, 128, (SIDE, SIDE), dtype=torch.int8) for _ in range(2))
    with torch.inference_mode():
        return {
            "float32": best(lambda: a @ b, work),
            "bfloat16": best(lambda: half_a @ half_b, work),
            "int8": best(lambda: torch._int_mm(whole_a, whole_b), work),
        }


def copying() -> float:
    """Return bytes a second, read and written, in units of 10^9."""
    source = np.ones(2**28, np.uint8)
    target = np.empty_like(source)
    return best(lambda: np.copyto(target, source), 2 * source.nbytes / 1e9)


def main() -> None:
    from lookalike.bench.machine import machine

    found = {"machine": machine(), "gflops": products(), "copy_gb_s": copying()}
    for name, rate in found["gflops"].items():
        print(f"matrix products in {name}: {rate:.0f} GFLOP/s")
    print(f"copying memory: {found['copy_gb_s']:.0f} GB/s")
    keep("limits", found, whole=True)


if __name__ == "__main__":
    main()
