r"""The limits of the machine: matrix products in every precision, and the rate of copying memory.

    python benchmarks/limits.py

Each is the maximum over several libraries and runs of half a second, repeated three times: a shared machine is slower
at times. A limit is what was reached, so a share of it exceeds 1 only by noise.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from contest import add_out_option, save_result
from lookalike._system import cpu_count

SIDES = (1024, 2048, 4096)  # of the matrices; which is fastest differs between libraries
_SECONDS = 0.5
_RUNS = 3
_REPEATS = 3


def max_rate(run: Callable[[], object], work: float) -> float:
    """Return the largest amount of work per second."""
    run()
    rate = 0.0
    for _ in range(_RUNS):
        done, clock = 0, time.perf_counter()
        while time.perf_counter() - clock < _SECONDS:
            run()
            done += 1
        rate = max(rate, done * work / (time.perf_counter() - clock))
    return rate


def products(repeats: int = 1, sides: tuple[int, ...] = SIDES) -> dict[str, float]:
    """Return operations per second by precision, in units of 10^9; a multiplication and an addition are two."""
    import torch

    rates = {"float32": 0.0, "bfloat16": 0.0, "int8": 0.0}
    for side in sides * repeats:
        work = 2.0 * side**3 / 1e9
        a, b = torch.rand(side, side), torch.rand(side, side)
        bf16_a, bf16_b = a.bfloat16(), b.bfloat16()
        int8_a, int8_b = (torch.randint(-127, 128, (side, side), dtype=torch.int8) for _ in range(2))
        x, y = a.numpy(), b.numpy()
        runs: list[tuple[str, Callable[[], object]]] = [
            ("float32", lambda a=a, b=b: a @ b),
            ("float32", lambda x=x, y=y: x @ y),
            ("float32", openvino_product(y, "f32", x)),
            ("bfloat16", lambda a=bf16_a, b=bf16_b: a @ b),
            ("bfloat16", openvino_product(y, "bf16", x)),
            ("int8", lambda a=int8_a, b=int8_b: torch._int_mm(a, b)),
        ]
        with torch.inference_mode():
            for precision, run in runs:
                rates[precision] = max(rates[precision], max_rate(run, work))
    return rates


def openvino_product(weights: np.ndarray, precision: str, matrix: np.ndarray) -> Callable[[], object]:
    """Return a function that computes the product with OpenVINO."""
    import openvino as ov
    from openvino import opset13 as ops

    x = ops.parameter(list(matrix.shape), np.float32)
    # only the maximum of the product is returned: writing the product in float32 is not what is measured
    product = ops.reduce_max(ops.matmul(x, ops.constant(weights), False, False), ops.constant([0, 1]))
    config = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": cpu_count(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = ov.Core().compile_model(ov.Model([product], [x]), "CPU", config).create_infer_request()
    return lambda: request.infer({0: matrix}, share_inputs=True)


def copy_rate() -> float:
    """Return bytes per second, read and written, in units of 10^9."""
    source = np.ones(2**28, np.uint8)
    target = np.empty_like(source)
    slices = list(zip(np.array_split(target, cpu_count()), np.array_split(source, cpu_count()), strict=True))
    with ThreadPoolExecutor(cpu_count()) as pool:
        return max_rate(lambda: list(pool.map(lambda pair: np.copyto(*pair), slices)), 2 * source.nbytes / 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, action="append", help="of the matrices; may be repeated")
    parser.add_argument("--repeats", type=int, default=_REPEATS)
    add_out_option(parser)
    args = parser.parse_args()
    from lookalike.benchmark.timing import machine

    rates = products(args.repeats, tuple(args.side or SIDES))
    result = {"machine": machine(), "gflops": rates, "copy_gb_s": copy_rate()}
    for name, rate in rates.items():
        print(f"matrix products in {name}: {rate:.0f} GFLOP/s")
    print(f"copying memory: {result['copy_gb_s']:.0f} GB/s")
    complete = args.repeats >= _REPEATS and not args.side
    save_result("limits", result, complete=complete, folder=args.out)


if __name__ == "__main__":
    main()
