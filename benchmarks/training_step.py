r"""The training step of a backbone: images a second, memory, and the share of what the device computes at most.

    python benchmarks/training_step.py                                       a small size, for two cores
    python benchmarks/training_step.py --backbone vit_b_16 --backbone resnet50 --backbone efficientnet_b0 \
        --batch-size 128 --steps 30 --compile --out steps                    for a GPU

Ours runs as the recipe has it, in float32, without channels_last, and with --compile compiled; beside it a plain loop
over timm's model with a linear classifier, cross-entropy and AdamW, in float32 and in bfloat16 by autocast. Each runs
in a process of its own, all in turn in each round; ratios are to the plain loop in float32. Weights are random and so
are the pictures: neither decides the time; of ours, statistics of batch norms stay as they are, as with weights that
were trained. The figure is that of the median step after the second. The share is of the fastest matrix product found
in the same precision, a step forward and back counted as three times the operations of the pass forward.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from contest import answer, contest, keep

CLASSES = 100
ENOUGH_STEPS, ENOUGH_ROUNDS = 5, 3
"""Fewer are for a look only."""
OURS: dict[str, dict[str, Any]] = {
    "ours, as the recipe": {},
    "ours, float32": {"precision": "float32"},
    "ours, no channels_last": {"channels_last": False},
    "ours, compiled": {"compile": True},
}
AGAINST = "timm, float32"
THEIRS = {AGAINST: False, "timm, bfloat16": True}
"""By name, whether bfloat16 is computed in."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", action="append")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path, help="folder for the results, in place of where the page is made from")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    given = parser.parse_args()
    backbones = given.backbone or ["efficientnet_lite0"]
    if given.contender:
        measure(given.contender, backbones[0], given.batch_size, given.steps)
        return
    for backbone in backbones:
        result = contest(
            __file__,
            [*THEIRS, *(name for name in OURS if given.compile or name != "ours, compiled")],
            given.rounds,
            arguments=["--backbone", backbone, "--batch-size", str(given.batch_size), "--steps", str(given.steps)],
            against=AGAINST,
            facts={"backbone": backbone, "batch_size": given.batch_size},
        )
        whole = given.out is not None or (given.steps >= ENOUGH_STEPS and given.rounds >= ENOUGH_ROUNDS)
        keep(f"training-step-{backbone}", result, whole=whole, place=given.out)


def measure(contender: str, backbone: str, batch_size: int, steps: int) -> None:
    """Train some steps and end with what they took."""
    inside, run, side, operations, lowered, device = (
        ours(OURS[contender], backbone, batch_size)
        if contender in OURS
        else theirs(THEIRS[contender], backbone, batch_size)
    )

    def step() -> float:
        clock = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - clock

    with inside:
        first = step()
        step()
        median = statistics.median(step() for _ in range(steps))
    memory = {"device_memory_mb": torch.cuda.max_memory_allocated() / 1e6} if device.type == "cuda" else {}
    peak = matrix_rate(torch.bfloat16 if lowered else torch.float32, device)
    answer(
        per_second=batch_size / median,
        first_step_s=first,
        share_of_products=3 * operations() / median / peak,
        side=side,
        **memory,
    )


Measured = tuple[AbstractContextManager[None], Callable[[], object], int, Callable[[], int], bool, torch.device]
"""Inside which steps are done, what does a step, the side of its pictures, what counts the operations of a pass
forward, whether it computes in bfloat16, and where."""


def ours(changes: dict[str, Any], backbone: str, batch_size: int) -> Measured:
    from dataclasses import replace

    from lookalike.models.devices import default_device

    from lookalike.training.config import TrainingOptions
    from lookalike.training.state import TrainState, resolve_precision
    from lookalike.training.train_backbone import fresh_encoder

    encoder, recipe = fresh_encoder(backbone, "none", TrainingOptions(batch_size=batch_size, **changes), unseen=False)
    encoder.head.set(
        np.random.default_rng(0).normal(0, 0.02, (512, encoder.features_width)).astype(np.float32),
        np.zeros(512, np.float32),
    )
    state = TrainState(encoder, CLASSES, recipe)
    state.keep_statistics = recipe.frozen_statistics
    pixels = pictures(batch_size, encoder.preprocessing.height)
    targets = torch.arange(batch_size) % CLASSES

    def run() -> None:
        state.step(pixels, targets)

    def operations() -> int:
        plain = TrainState(encoder, CLASSES, replace(recipe, compile=False))
        with plain.training():
            return counted(lambda: plain.loss(pixels, targets))

    device = default_device()
    lowered = resolve_precision(device, recipe.precision) != "float32"
    return state.training(), run, encoder.preprocessing.height, operations, lowered, device


def theirs(lowered: bool, backbone: str, batch_size: int) -> Measured:
    import timm

    from lookalike.models.registry import find_row  # imports nothing that changes how the process keeps memory

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = timm.create_model(find_row(backbone).timm_name, num_classes=CLASSES).to(device).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    side = model.default_cfg["input_size"][-1]
    pixels = torch.from_numpy(pictures(batch_size, side)).permute(0, 3, 1, 2).contiguous()
    targets = (torch.arange(batch_size) % CLASSES).to(device)

    def loss() -> torch.Tensor:
        shown = pixels.to(device).float().div_(127.5).sub_(1)
        with torch.autocast(device.type, torch.bfloat16, enabled=lowered):
            return torch.nn.functional.cross_entropy(model(shown), targets)

    def run() -> None:
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()

    return nullcontext(), run, side, lambda: counted(loss), lowered, device


def pictures(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def counted(forward: Callable[[], object]) -> int:
    """Return the operations of convolutions and products in a pass forward.

    Counted backwards they would be too many: the counter takes depthwise convolutions for dense ones there.
    """
    with FlopCounterMode(display=False) as counter:
        forward()
    return int(counter.get_total_flops())


def matrix_rate(kind: torch.dtype, device: torch.device, side: int = 2048) -> float:
    """Return the best rate of a product of two square matrices, in operations a second."""
    a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        clock = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - clock)
    return 2 * side**3 / best


if __name__ == "__main__":
    main()
