"""Provoke each failure that the guards of a training look for, on real images, and print when it is noticed.

    python benchmarks/guards.py --set omniglot --set clothing --set trashnet --side 0.5

Reads the data folders from $LOOKALIKE_SHARED/data (default ../shared/data). One line per set and failure: the step and
the seconds since the first step at which the guard spoke, and its sentence. `none` is the recipe as it is: its line has
the step at which the loss is first below that of guessing, and a warning would be a false alarm.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import torch

from contest import shared_folder
from lookalike.data.layouts import load_dataset
from lookalike.data.validation import with_validation
from lookalike.models.heads import pca_head
from lookalike.progress import SILENT
from lookalike.runtimes.fit import compute_features
from lookalike.training.config import TrainingOptions
from lookalike.training.context import class_indices, labelled
from lookalike.training.finetune import FinetuneState, finetune
from lookalike.training.train_backbone import fresh_encoder
from lookalike.training.trainer import Trainer


def rate_too_low(trainer: Trainer) -> None:
    set_rates = trainer.set_learning_rates
    trainer.set_learning_rates = lambda factor, peak: set_rates(1e-9 * factor, peak)


def rate_too_high(trainer: Trainer) -> None:
    set_rates = trainer.set_learning_rates
    trainer.set_learning_rates = lambda factor, peak: set_rates(3000 * factor, peak)


def detached(trainer: Trainer) -> None:
    forward = trainer.encoder.module.forward
    trainer.encoder.module.forward = lambda x: forward(x).detach()


def not_finite(trainer: Trainer) -> None:
    calls: list[int] = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return gradient * math.nan if len(calls) == 5 else gradient

    trainer.encoder.head.linear.weight.register_hook(spoil)


def no_memory(trainer: Trainer) -> None:
    forward = trainer.encoder.module.forward

    def limited(x: torch.Tensor) -> torch.Tensor:
        if len(x) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(x)

    trainer.encoder.module.forward = limited


FAILURES: dict[str, Callable[[Trainer], None] | None] = {
    "none": None,
    "learning rate x 1e-9": rate_too_low,
    "learning rate x 3000": rate_too_high,
    "detached backbone": detached,
    "NaN gradient at step 5": not_finite,
    "memory for 16 images": no_memory,
}


class NoticedError(Exception):
    """Ends a run once its guard has spoken."""


def measure(name: str, failure: str, backbone: str, side: float, steps: int) -> None:
    data = with_validation(load_dataset(shared_folder() / "data" / name), seed=0)
    items = labelled(data.training)
    options = TrainingOptions(side=side)
    encoder, recipe = fresh_encoder(backbone, "pretrained", options, unseen=data.validation_classes_unseen)
    features = compute_features(encoder.torch_backbone(), items, progress=SILENT, task="features", min_count=0)
    encoder.set_head(pca_head(features.rows, encoder.dim, seed=0))
    trainer = Trainer(encoder, len({i.label for i in items}), recipe)
    change = FAILURES[failure]
    if change is not None:
        change(trainer)
    count, started = 0, time.perf_counter()

    def report(step: int, text: str) -> None:
        print(f"{name}, {failure}: step {step}, {time.perf_counter() - started:.1f} s: {text}", flush=True)

    def warn(text: str) -> None:
        report(count + 1, text)
        raise NoticedError

    class Steps:
        def info(self, text: str) -> None: ...

        def step(self, _task: str, _done: int, _total: int, detail: str = "") -> None:
            nonlocal count
            count += 1
            if not trainer.compare_with_guessing:
                report(count - 1, f"has learned; {detail}")
                raise NoticedError
            if count == steps:
                report(count, f"nothing noticed; {detail}")
                raise NoticedError

    trainer.warn = warn
    run = FinetuneState(recipe.epochs, math.ceil(len(items) / recipe.batch_size))
    try:
        finetune(trainer, run, items, class_indices(items), None, lambda _run: None, progress=Steps())
    except NoticedError:
        return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], help="data folder; default omniglot")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--side", type=float, default=1.0, help="input side relative to the pretrained one")
    parser.add_argument("--steps", type=int, default=150, help="maximum number of steps per run")
    parser.add_argument("--failure", action="append", choices=list(FAILURES), default=[])
    arguments = parser.parse_args()
    for name in arguments.set or ["omniglot"]:
        for failure in arguments.failure or FAILURES:
            measure(name, failure, arguments.backbone, arguments.side, arguments.steps)


if __name__ == "__main__":
    main()
