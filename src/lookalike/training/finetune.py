"""Fine-tuning: backbone, head and classifier together, epoch by epoch, resumable."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lookalike._files import write_file
from lookalike.data.dataset import Item
from lookalike.errors import ModelError, StorageError
from lookalike.models.info import EpochReport, LearningRates
from lookalike.models.weights import read_torch_file
from lookalike.progress import SILENT, Progress, count_noun
from lookalike.training.batches import Indices, epoch_order, iterate_batches, training_preprocessing
from lookalike.training.trainer import Trainer

_CHECKPOINT = "checkpoint.pt"
# number of steps over which the loss is averaged
_WINDOW = 20
# training has diverged when the average loss exceeds the first loss, or that of guessing, by this factor
_DIVERGENCE_FACTOR = 4


@dataclass
class FinetuneState:
    """The progress of fine-tuning: everything that a checkpoint holds besides the weights."""

    # the plan, which the learning-rate schedule follows
    planned_epochs: int
    steps_per_epoch: int
    epochs: list[EpochReport] = field(default_factory=list)
    best: dict[str, torch.Tensor] | None = None  # weights of the encoder after the epoch with the best measure
    best_measure: float = -math.inf
    first_loss: float | None = None  # the first loss of the run, or the loss of guessing if that is larger
    recent_losses: list[float] = field(default_factory=list)  # the last losses, over epochs
    last_epoch: int | None = None  # the epoch to stop after if it is known, regardless of the time budget
    # peak learning rates; several if a resumed run changed them
    rates: list[LearningRates] = field(default_factory=list)
    reserved_seconds: float = 0.0  # of the time budget, for the stages after fine-tuning
    planned_share: float = 1.0  # of the recipe's steps; less where the time budget does not allow more

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.epochs)

    @property
    def end(self) -> int:
        """The epoch to stop after at the latest."""
        return self.planned_epochs if self.last_epoch is None else self.last_epoch

    @property
    def best_weights(self) -> dict[str, torch.Tensor]:
        """Weights of the best epoch."""
        if self.best is None:
            raise ValueError("no epoch is finished")
        return self.best

    def dump(self) -> dict[str, Any]:
        """Return a plain structure for a checkpoint."""
        records = {name: [asdict(record) for record in getattr(self, name)] for name in ("epochs", "rates")}
        return {**vars(self), "recent_losses": list(self.recent_losses), **records}

    @classmethod
    def restore(cls, stored: dict[str, Any]) -> FinetuneState:
        """Undo `dump`."""
        epochs = [EpochReport(**epoch) for epoch in stored["epochs"]]
        rates = [LearningRates(**rates) for rates in stored["rates"]]
        return cls(**{**stored, "epochs": epochs, "rates": rates})

    def set_rates(self, lr: float, head_lr: float) -> bool:
        """Use these peak learning rates from here on; return whether they replace others."""
        rates = LearningRates(self.epoch, lr, head_lr)
        if self.rates and (self.rates[-1].lr, self.rates[-1].head_lr) == (lr, head_lr):
            return False
        self.rates.append(rates)
        return len(self.rates) > 1

    def is_over(self, patience: int) -> bool:
        """Whether all epochs ran, or the best one is `patience` epochs ago."""
        if self.epoch >= self.end:
            return True
        measures = [e.measure for e in self.epochs if e.measure is not None]
        return bool(measures) and len(measures) - 1 - int(np.argmax(measures)) >= patience


# ---------------------------------------------------------------- checkpoint


def save_checkpoint(folder: Path, content: dict[str, Any]) -> None:
    """Write the state of a run: tensors, numbers, strings, and lists and dictionaries of them.

    It is one file, replaced in one step, and read without running pickled code.
    """
    buffer = io.BytesIO()  # for a full disk torch raises no OSError
    torch.save(content, buffer)
    write_file(folder / _CHECKPOINT, lambda path: path.write_bytes(buffer.getbuffer()))


def load_checkpoint(folder: Path | None, key: str) -> dict[str, Any] | None:
    """Read the state of the run with this key, or None if there is no checkpoint."""
    if folder is None or not (folder / _CHECKPOINT).is_file():
        return None
    path = folder / _CHECKPOINT
    try:
        content = read_torch_file(path)
    except Exception as error:  # garbage makes an unpickler raise anything: KeyError, struct.error, ...
        raise StorageError(f"the checkpoint {path} is damaged; remove {folder} and start again.") from error
    if not isinstance(content, dict) or content.get("key") != key:
        raise StorageError(
            f"the checkpoint in {folder} belongs to a run with other data, weights or options; resume with the "
            "original options (only `lr` and `head_lr` may differ), or remove the folder."
        )
    return content


# ---------------------------------------------------------------- epochs


@dataclass(frozen=True)
class Validation:
    """What decides which epoch is kept and when to stop early."""

    name: str
    measure: Callable[[], float]  # returns it for the encoder's current weights
    patience: int  # epochs without improvement before stopping


def learning_rate_factor(step: int, total: int, warmup: float) -> float:
    """Return the learning rate relative to its peak: linear warm-up over a share of all steps, then cosine to zero."""
    rising = max(1, round(warmup * total))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def plan_epochs(
    trainer: Trainer,
    items: Sequence[Item],
    targets: Indices,
    seconds_left: float | None,
    overhead: float,
    progress: Progress = SILENT,
) -> FinetuneState:
    """Plan epochs and steps; with a time budget, by timing two steps that do not change the weights.

    `overhead` is the seconds of validation per epoch. A plan that is shorter than the recipe is reported.
    """
    recipe = trainer.recipe
    steps = max(1, math.ceil(len(items) / recipe.batch_size))
    if seconds_left is None:
        return FinetuneState(recipe.epochs, steps)
    before = trainer.dump()
    times = [time.perf_counter()]
    preprocessing = training_preprocessing(trainer.encoder, recipe.resolution)
    order = np.arange(min(len(items), 3 * recipe.batch_size))
    with trainer.training():
        for batch in iterate_batches(
            items, order, preprocessing, recipe, trainer.distributed, seed=trainer.seed, epoch=0
        ):
            loss = trainer.loss(batch.pixels, torch.from_numpy(targets[batch.indices]), valid=batch.valid)
            loss.backward()  # type: ignore[no-untyped-call]
            times.append(time.perf_counter())
    warm = times[1:] if len(times) > 2 else times
    per_step = (warm[-1] - warm[0]) / max(1, len(warm) - 1)
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.load(before)

    per_epoch = steps * per_step + overhead
    epochs = min(recipe.epochs, math.floor(seconds_left / per_epoch))
    planned = steps if epochs > 0 else max(1, min(steps, math.floor((seconds_left - overhead) / per_step)))
    run = FinetuneState(max(1, epochs), planned)
    run.planned_share = run.planned_epochs * planned / (recipe.epochs * steps)
    if run.planned_share < 1:
        allowed = f"{epochs} of {recipe.epochs} epochs" if epochs > 0 else f"{planned} of {steps} steps of one epoch"
        missing = count_noun(max(1, math.ceil((recipe.epochs * per_epoch - seconds_left) / 60)), "minute")
        progress.info(
            f"{trainer.encoder.name}: the time limit allows {allowed}; all {recipe.epochs} epochs would take about "
            f"{missing} more"
        )
    return run


def finetune(
    trainer: Trainer,
    run: FinetuneState,
    items: Sequence[Item],
    targets: Indices,
    validation: Validation | None,
    after_epoch: Callable[[FinetuneState], None],
    *,
    has_time: Callable[[], bool] = lambda: True,
    progress: Progress = SILENT,
) -> None:
    """Train until the plan, the patience or the time is exhausted; `run` and `trainer` are changed in place.

    Both are fresh or restored from a checkpoint. Without `validation` the last epoch is kept. `has_time` is called
    before each epoch but the first, unless the last epoch is known.
    """
    while not run.is_over(validation.patience if validation else 0):
        number = f"{run.epoch + 1}/{run.end}"
        if run.epoch and run.last_epoch is None and not has_time():
            progress.info(f"  stopping before epoch {number}: the remaining time is reserved for model selection")
            return
        started = time.perf_counter()
        devices = [trainer.encoder.device] if trainer.encoder.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), trainer.training():  # the caller's random state is restored
            loss = _train_epoch(trainer, run, items, targets, progress)
        trainer.synchronize_statistics()
        measure = validation.measure() if validation else None
        if measure is None or measure > run.best_measure:
            run.best_measure, run.best = -math.inf if measure is None else measure, trainer.encoder.state()
        seconds = time.perf_counter() - started
        run.epochs.append(EpochReport(loss, round(seconds, 1), measure))
        text = f", validation {validation.name} {measure:.4f}" if validation else ""
        progress.info(f"  epoch {number}: loss {loss:.3f}{text}, {seconds:.0f} s")
        after_epoch(run)


def _train_epoch(
    trainer: Trainer, run: FinetuneState, items: Sequence[Item], targets: Indices, progress: Progress
) -> float:
    """Train one epoch and return its mean loss; order, augmentation and dropout depend on seed and epoch alone."""
    recipe, seed, epoch = trainer.recipe, trainer.seed, run.epoch
    torch.manual_seed(seed * 100_003 + epoch)
    order = epoch_order(targets, recipe, seed=seed, epoch=epoch)[: run.steps_per_epoch * recipe.batch_size]
    if len(order) % recipe.batch_size == 1:
        order = order[:-1]  # a batch of one image has no batch statistics
    losses: list[float] = []
    best = f", best {run.best_measure:.3f}" if math.isfinite(run.best_measure) else ""
    preprocessing = training_preprocessing(trainer.encoder, recipe.resolution)
    default = LearningRates(0, recipe.lr, recipe.head_lr)
    peak = next((r for r in reversed(run.rates) if r.epoch <= epoch), default)
    total = run.planned_epochs * run.steps_per_epoch
    for batch in iterate_batches(items, order, preprocessing, recipe, trainer.distributed, seed=seed, epoch=epoch):
        step = epoch * run.steps_per_epoch + len(losses)
        trainer.set_learning_rates(learning_rate_factor(step, total, recipe.warmup), peak)
        batch_targets = torch.from_numpy(targets[batch.indices])
        losses.append(trainer.step(batch.pixels, batch_targets, valid=batch.valid, last=batch.done == len(order)))
        _require_convergence(run, losses[-1], trainer.classes)
        detail = f"loss {np.mean(losses[-_WINDOW:]):.3f}{best}"
        progress.step(f"epoch {epoch + 1}/{run.end}", batch.done, len(order), detail)
    return float(np.mean(losses))


def _require_convergence(run: FinetuneState, loss: float, classes: int) -> None:
    """Raise `ModelError` for a loss that is not finite, or a recent mean far above the first loss of the run."""
    if run.first_loss is None:
        run.first_loss = max(loss, math.log(classes))
    run.recent_losses = [*run.recent_losses, loss][-_WINDOW:]
    mean = float(np.mean(run.recent_losses))
    if mean <= _DIVERGENCE_FACTOR * run.first_loss:
        return
    finite = math.isfinite(loss)
    cause = f"the loss rose from {run.first_loss:.3g} to {mean:.3g}" if finite else "a loss or gradient is not finite"
    raise ModelError(
        f"training diverged in epoch {run.epoch + 1} ({cause}); use a lower `lr`, and `resume` to continue from the "
        "last complete epoch.",
        argument="lr",
    )
