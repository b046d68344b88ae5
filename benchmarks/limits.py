r"""What the machine can do at most: matrix products in every precision, and copying memory.

    python benchmarks/limits.py

Each is the best of several runs of half a second, by the libraries at hand, in three turns, as a machine that is
shared is slower for a minute and faster again: a limit is what was reached, and no share of it can be more than 1 but
by noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from contest import keep
from lookalike._system import cpu_count

SIDES = (1024, 2048, 4096)
"""Of the matrices; which is fastest differs from library to library."""
_SECONDS = 0.5
_RUNS = 3
_TURNS = 3


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


def products(turns: int = 1) -> dict[str, float]:
    """Return operations a second (a multiplication and an addition are two) by precision, in units of 10^9."""
    import torch

    found = {"float32": 0.0, "bfloat16": 0.0, "int8": 0.0}
    for side in SIDES * turns:
        work = 2.0 * side**3 / 1e9
        a, b = torch.rand(side, side), torch.rand(side, side)
        half_a, half_b = a.bfloat16(), b.bfloat16()
        whole_a, whole_b = (torch.randint(-127, 128, (side, side), dtype=torch.int8) for _ in range(2))
        x, y = a.numpy(), b.numpy()
        runs: list[tuple[str, Callable[[], object]]] = [
            ("float32", lambda a=a, b=b: a @ b),
            ("float32", lambda x=x, y=y: x @ y),
            ("float32", openvinos(y, "f32", x)),
            ("bfloat16", lambda a=half_a, b=half_b: a @ b),
            ("bfloat16", openvinos(y, "bf16", x)),
            ("int8", lambda a=whole_a, b=whole_b: torch._int_mm(a, b)),
        ]
        with torch.inference_mode():
            for precision, run in runs:
                found[precision] = max(found[precision], best(run, work))
    return found


def openvinos(weights: np.ndarray, precision: str, given: np.ndarray) -> Callable[[], object]:
    """Return a run of a product that OpenVINO computes."""
    import openvino as ov
    from openvino import opset13 as ops

    x = ops.parameter(list(given.shape), np.float32)
    # the product is not handed out, as writing it in float32 is not what is measured
    product = ops.reduce_max(ops.matmul(x, ops.constant(weights), False, False), ops.constant([0, 1]))
    config = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": cpu_count(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = ov.Core().compile_model(ov.Model([product], [x]), "CPU", config).create_infer_request()
    return lambda: request.infer({0: given}, share_inputs=True)


def copying() -> float:
    """Return bytes a second, read and written, in units of 10^9."""
    source = np.ones(2**28, np.uint8)
    target = np.empty_like(source)
    parts = list(zip(np.array_split(target, cpu_count()), np.array_split(source, cpu_count()), strict=True))
    with ThreadPoolExecutor(cpu_count()) as pool:
        return best(lambda: list(pool.map(lambda part: np.copyto(*part), parts)), 2 * source.nbytes / 1e9)


def main() -> None:
    from lookalike.benchmark.timing import machine

    found = {"machine": machine(), "gflops": products(_TURNS), "copy_gb_s": copying()}
    for name, rate in found["gflops"].items():
        print(f"matrix products in {name}: {rate:.0f} GFLOP/s")
    print(f"copying memory: {found['copy_gb_s']:.0f} GB/s")
    keep("limits", found, whole=True)


if __name__ == "__main__":
    main()
