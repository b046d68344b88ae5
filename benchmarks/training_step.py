r"""Time the training step of a backbone: images a second, memory, and the share of what the device computes at most.

    python benchmarks/training_step.py                                       a small size, for two cores
    python benchmarks/training_step.py --backbone vit_b_16 --backbone resnet50 --backbone efficientnet_b0 \
        --batch-size 128 --steps 30 --compile --out step.json                for a GPU

Weights are random and so are the pictures: neither decides the time; statistics of batch norms stay as they are, as
with weights that were trained. Every backbone runs in turn as the recipe has it, in float32, without channels_last,
and with --compile compiled, so that one run shows what each is worth; a line is printed for each with its ratio to
float32. The share is of the fastest matrix product found in the same precision.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from lookalike.backbones import family_of
from lookalike.backbones.devices import default_device, device_name
from lookalike.bench.machine import machine
from lookalike.files import write_json
from lookalike.training.one_backbone import fresh_member
from lookalike.training.options import TrainingOptions
from lookalike.training.precision import is_lowered
from lookalike.training.trainee import Trainee

CLASSES = 100
KINDS: dict[str, dict[str, Any]] = {
    "float32": {"precision": "float32"},
    "recipe": {},
    "no channels_last": {"channels_last": False},
    "compiled": {"compile": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", action="append")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    kinds = [k for k in KINDS if k != "compiled" or given.compile]
    rows = []
    for backbone in given.backbone or ["efficientnet_lite0", "resnet50"]:
        plain = 0.0
        for kind in kinds:
            row = {"backbone": backbone, "kind": kind, **measure(backbone, given.batch_size, given.steps, KINDS[kind])}
            plain = plain or row["images_per_second"]
            rows.append({**row, "ratio": row["images_per_second"] / plain})
            print(
                f"{backbone}, {kind}: {row['images_per_second']:.1f} images/s, {rows[-1]['ratio']:.2f} of float32, "
                f"{row['share_of_peak']:.0%} of {row['peak_gflops']:.0f} GFLOP/s, {row['memory_mb']:.0f} MB, "
                f"first step {row['first_step_s']:.1f} s",
                flush=True,
            )
            if given.out:
                write_json(given.out, {"machine": machine(), "device": device_name(), "rows": rows})


def measure(backbone: str, batch_size: int, steps: int, changes: dict[str, Any]) -> dict[str, float]:
    """Train some steps and return what they took."""
    options = TrainingOptions(batch_size=batch_size, **changes)
    member, recipe = fresh_member(backbone, "none", options, unseen=False)
    member.head.set(
        np.random.default_rng(0).normal(0, 0.02, (512, member.features_width)).astype(np.float32),
        np.zeros(512, np.float32),
    )
    trainee = Trainee(member, CLASSES, recipe)
    trainee.keep_statistics = recipe.frozen_statistics
    p = member.preprocessing
    pixels = np.random.default_rng(0).integers(0, 256, (batch_size, p.height, p.width, 3), dtype=np.uint8)
    targets = torch.arange(batch_size) % CLASSES
    device = default_device()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def step() -> float:
        clock = time.perf_counter()
        trainee.step(trainee.loss(pixels, targets))
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - clock

    with trainee.training():
        first = step()
        step()
        median = statistics.median(step() for _ in range(steps))
    operations = count_operations(trainee, pixels, targets)
    peak = matrix_rate(torch.bfloat16 if is_lowered(device, recipe.precision) else torch.float32)
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else _resident()
    return {
        "family": family_of(member.module),
        "side": p.height,
        "images_per_second": batch_size / median,
        "gflop_per_image": operations / batch_size / 1e9,
        "peak_gflops": peak / 1e9,
        "share_of_peak": operations / median / peak,
        "memory_mb": memory / 2**20,
        "first_step_s": first,
    }


def count_operations(trainee: Trainee, pixels: np.ndarray, targets: torch.Tensor) -> int:
    """Return the operations of convolutions and products in one step: three times those of the pass forward.

    Counted backwards they would be too many: the counter takes depthwise convolutions for dense ones there.
    """
    plain = Trainee(trainee.member, CLASSES, replace(trainee.recipe, compile=False))
    with plain.training(), FlopCounterMode(display=False) as counter:
        plain.loss(pixels, targets)
    return 3 * int(counter.get_total_flops())


def matrix_rate(kind: torch.dtype, side: int = 2048) -> float:
    """Return the best rate of a product of two square matrices, in operations a second."""
    device = default_device()
    a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        clock = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - clock)
    return 2 * side**3 / best


def _resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


if __name__ == "__main__":
    main()
