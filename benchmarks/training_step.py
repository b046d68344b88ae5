r"""The training step of a backbone: images per second, memory, and the share of the device's maximum.

    python benchmarks/training_step.py                                       a small size, for two cores
    python benchmarks/training_step.py --backbone vit_b_16 --backbone resnet50 --backbone efficientnet_b0 \
        --batch-size 128 --steps 30 --compile --out steps                    for a GPU

Ours runs as `lookalike train` does: with the default recipe, in float32, without channels_last, without keeping freed
memory, and with --compile compiled. The alternative is a plain loop over timm's model with a linear classifier,
cross-entropy and AdamW, in float32 and in bfloat16 by autocast. Each runs in a process of its own, all in turn in
each round; ratios are to the plain loop in float32. Weights and images are random, which does not affect the time;
ours keeps the batch statistics fixed, as for pretrained weights. The figure is the median of the steps after the
second. The share is relative to the fastest matrix product in the same precision; a step forward and back counts as
three times the operations of the forward pass.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from contest import answer, contest, make_parser, save_result
from lookalike._system import keep_freed_memory

CLASSES = 100
MIN_STEPS, MIN_ROUNDS = 5, 3  # of a result that docs/results/performance.md may show
OURS: dict[str, dict[str, Any]] = {
    "ours, default recipe": {},
    "ours, float32": {"precision": "float32"},
    "ours, no channels_last": {"channels_last": False},
    "ours, not keeping memory": {},
    "ours, compiled": {"compile": True},
}
BASELINE = "timm, float32"
OTHERS = {BASELINE: False, "timm, bfloat16": True}  # by name, whether it computes in bfloat16


@dataclass(frozen=True)
class Training:
    """What is timed.

    Attributes:
        context: steps run inside it.
        step: runs one step.
        forward: runs a forward pass, whose operations are counted.
        side: of the images, in pixels.
        bfloat16: whether it computes in bfloat16.
        device: where it computes.

    """

    context: AbstractContextManager[None]
    step: Callable[[], object]
    forward: Callable[[], object]
    side: int
    bfloat16: bool
    device: torch.device


def main() -> None:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--backbone", action="append")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    backbones = args.backbone or ["efficientnet_lite0"]
    if args.contender:
        measure(args.contender, backbones[0], args.batch_size, args.steps)
        return
    for backbone in backbones:
        result = contest(
            __file__,
            [*OTHERS, *(name for name in OURS if args.compile or name != "ours, compiled")],
            args.rounds,
            arguments=["--backbone", backbone, "--batch-size", str(args.batch_size), "--steps", str(args.steps)],
            baseline=BASELINE,
            facts={"backbone": backbone, "batch_size": args.batch_size},
        )
        complete = args.steps >= MIN_STEPS and args.rounds >= MIN_ROUNDS
        save_result(f"training-step-{backbone}", result, complete=complete, folder=args.out)


def measure(contender: str, backbone: str, batch_size: int, steps: int) -> None:
    """Train some steps and report their time."""
    if contender in OURS:
        if contender != "ours, not keeping memory":
            keep_freed_memory()  # as the commands do
        training = ours(OURS[contender], backbone, batch_size)
    else:
        training = plain_loop(OTHERS[contender], backbone, batch_size)
    device = training.device

    def time_step() -> float:
        clock = time.perf_counter()
        training.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - clock

    with training.context:
        first = time_step()
        time_step()
        median = statistics.median(time_step() for _ in range(steps))
        memory = {"device_memory_mb": torch.cuda.max_memory_allocated() / 1e6} if device.type == "cuda" else {}
        operations = count_operations(training.forward)
    max_rate = product_rate(torch.bfloat16 if training.bfloat16 else torch.float32, device)
    answer(
        per_second=batch_size / median,
        first_step_s=first,
        share_of_products=3 * operations / median / max_rate,
        side=training.side,
        **memory,
    )


def ours(options: dict[str, Any], backbone: str, batch_size: int) -> Training:
    from dataclasses import replace

    from lookalike.models.heads import random_head
    from lookalike.training.config import TrainingOptions
    from lookalike.training.distributed import SINGLE_PROCESS
    from lookalike.training.train_backbone import fresh_encoder
    from lookalike.training.trainer import LossModule, Trainer, resolve_precision

    encoder, recipe = fresh_encoder(backbone, "none", TrainingOptions(batch_size=batch_size, **options), unseen=False)
    encoder.set_head(random_head(encoder.features_width))
    state = Trainer(encoder, CLASSES, recipe)
    state.keep_statistics = recipe.frozen_statistics
    side = encoder.preprocessing.height
    pixels = random_pixels(batch_size, side)
    targets = torch.arange(batch_size) % CLASSES
    # operations of a compiled network are not counted
    uncompiled = LossModule(encoder, state.objective, replace(recipe, compile=False), SINGLE_PROCESS)
    return Training(
        state.training(),
        lambda: state.step(pixels, targets),
        lambda: uncompiled(encoder.to_input(pixels), targets.to(encoder.device), batch_size),
        side,
        resolve_precision(encoder.device, recipe.precision) != "float32",
        encoder.device,
    )


def plain_loop(bfloat16: bool, backbone: str, batch_size: int) -> Training:
    import timm

    from lookalike.models.registry import find_backbone  # imports no torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = timm.create_model(find_backbone(backbone).timm_name, num_classes=CLASSES).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    side = model.default_cfg["input_size"][-1]
    pixels = torch.from_numpy(random_pixels(batch_size, side)).permute(0, 3, 1, 2).contiguous()
    targets = (torch.arange(batch_size) % CLASSES).to(device)

    def loss() -> torch.Tensor:
        images = pixels.to(device).float().div_(127.5).sub_(1)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            return torch.nn.functional.cross_entropy(model(images), targets)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return Training(nullcontext(), step, loss, side, bfloat16, device)


def random_pixels(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def count_operations(forward: Callable[[], object]) -> int:
    """Return the operations of convolutions and products in a forward pass.

    The counter is wrong for the backward pass: it takes depthwise convolutions for dense ones there.
    """
    with FlopCounterMode(display=False) as counter:
        forward()
    return int(counter.get_total_flops())


def product_rate(dtype: torch.dtype, device: torch.device, side: int = 2048) -> float:
    """Return the maximum rate of a product of two square matrices, in operations per second."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = float("inf")
    for _ in range(8):
        clock = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = min(seconds, time.perf_counter() - clock)
    return 2 * side**3 / seconds


if __name__ == "__main__":
    main()
