"""Fine-tuning: backbone, head and classifier together, epoch by epoch, resumable."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lookalike._files import write_file
from lookalike.data.dataset import Item
from lookalike.errors import StorageError
from lookalike.models.info import UNTRAINED, EpochReport, LearningRates
from lookalike.models.weights import read_torch_file
from lookalike.progress import SILENT, Progress, count_noun
from lookalike.training.batches import Indices, epoch_order, iterate_batches, training_preprocessing
from lookalike.training.guards import DivergenceError, FutileTrainingError, LossGuard, require_finite
from lookalike.training.trainer import Trainer

_CHECKPOINT = "checkpoint.pt"
# after a divergence the learning rates are multiplied by this factor, twice at most
_RATE_FACTOR = 0.25
_MAX_REDUCTIONS = 2


@dataclass
class FinetuneState:
    """The progress of fine-tuning: everything that a checkpoint holds besides the weights."""

    # the plan, which the learning-rate schedule follows
    planned_epochs: int
    steps_per_epoch: int
    epochs: list[EpochReport] = field(default_factory=list)
    best: dict[str, torch.Tensor] | None = None  # weights of the encoder after the epoch with the best measure
    best_measure: float = -math.inf
    loss_guard: LossGuard | None = None  # after the last epoch; None before the first step
    last_epoch: int | None = None  # the epoch to stop after if it is known, regardless of the time budget
    # peak learning rates; several if a resumed run or a divergence changed them
    rates: list[LearningRates] = field(default_factory=list)
    requested_rates: tuple[float, float] | None = None  # lr and head_lr of the recipe
    reductions: int = 0  # of the rates, after a divergence
    warnings: list[str] = field(default_factory=list)  # sentences of the guards
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
        guard = None if self.loss_guard is None else asdict(self.loss_guard)
        return {**vars(self), "loss_guard": guard, "warnings": list(self.warnings), **records}

    @classmethod
    def restore(cls, stored: dict[str, Any]) -> FinetuneState:
        """Undo `dump`."""
        epochs = [EpochReport(**epoch) for epoch in stored["epochs"]]
        rates = [LearningRates(**rates) for rates in stored["rates"]]
        guard = None if stored["loss_guard"] is None else LossGuard(**stored["loss_guard"])
        return cls(**{**stored, "epochs": epochs, "rates": rates, "loss_guard": guard})

    def set_rates(self, lr: float, head_lr: float) -> bool:
        """Use these peak learning rates from here on; return whether they replace others that were requested."""
        if self.requested_rates == (lr, head_lr):
            return False
        self.requested_rates = lr, head_lr
        self.rates.append(LearningRates(self.epoch, lr, head_lr))
        return len(self.rates) > 1

    def reduce_rates(self) -> LearningRates:
        """Lower the peak learning rates from here on, and return them."""
        last = self.rates[-1]
        self.reductions += 1
        self.rates.append(LearningRates(self.epoch, last.lr * _RATE_FACTOR, last.head_lr * _RATE_FACTOR))
        return self.rates[-1]

    def is_over(self, patience: int) -> bool:
        """Whether all epochs ran, or the best one is `patience` epochs ago."""
        if self.epoch >= self.end:
            return True
        measures = [e.measure for e in self.epochs if e.measure is not None]
        return bool(measures) and len(measures) - 1 - int(np.argmax(measures)) >= patience


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


@dataclass(frozen=True)
class Validation:
    """What decides which epoch is kept and when to stop early."""

    name: str
    measure: Callable[[], float]  # returns it for the encoder's current weights
    patience: int  # epochs without improvement before stopping
    frozen: float | None = None  # the measure before fine-tuning


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
            trainer.add_gradients(batch.pixels, torch.from_numpy(targets[batch.indices]), valid=batch.valid)
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
    before each epoch but the first, unless the last epoch is known. After a divergence the epoch is repeated with lower
    learning rates. Fine-tuning that diverges again, or learns nothing, ends with the weights before that epoch; what is
    said about it is in `run.warnings`.
    """
    if not run.rates:
        run.set_rates(trainer.recipe.lr, trainer.recipe.head_lr)
    while not run.is_over(validation.patience if validation else 0):
        number = f"{run.epoch + 1}/{run.end}"
        if run.epoch and run.last_epoch is None and not has_time():
            progress.info(f"  stopping before epoch {number}: the remaining time is reserved for model selection")
            break
        started = time.perf_counter()
        before, guard = trainer.dump(), run.loss_guard
        devices = [trainer.encoder.device] if trainer.encoder.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices), trainer.training():  # the caller's random state is restored
                loss = _train_epoch(trainer, run, items, targets, progress)
            trainer.synchronize_statistics()
            require_finite(trainer.encoder.module.state_dict().values(), "weights or batch statistics")
        except (DivergenceError, FutileTrainingError) as error:
            trainer.load(before)
            run.loss_guard = guard
            if isinstance(error, DivergenceError) and run.reductions < _MAX_REDUCTIONS:
                rates = run.reduce_rates()
                trainer.warn(
                    f"epoch {number} diverged ({error}); it starts again with lower learning rates, lr {rates.lr:g} "
                    f"and head_lr {rates.head_lr:g}"
                )
                continue
            advice = "; use a lower `lr`" if isinstance(error, DivergenceError) else ""
            trainer.warn(
                f"fine-tuning ends in epoch {number}, and the best weights before it are used: {error}{advice}"
            )
            return
        measure = validation.measure() if validation else None
        if measure is None or measure > run.best_measure:
            run.best_measure, run.best = -math.inf if measure is None else measure, trainer.encoder.state()
        seconds = time.perf_counter() - started
        run.epochs.append(EpochReport(loss, round(seconds, 1), measure))
        progress.info(f"  epoch {number}: loss {loss:.3f}{_describe_measure(validation, measure)}, {seconds:.0f} s")
        if run.epoch == 1 and trainer.encoder.trained != UNTRAINED and _is_below_frozen(validation, measure):
            trainer.warn(
                f"after the first epoch{_describe_measure(validation, measure)}; if it stays below, the "
                "pretrained weights are used, alone or interpolated with the fine-tuned ones"
            )
        after_epoch(run)
    if run.loss_guard is not None and run.loss_guard.last_words:
        trainer.warn(f"fine-tuning is over, and {run.loss_guard.last_words}")


def _describe_measure(validation: Validation | None, measure: float | None) -> str:
    if validation is None:
        return ""
    frozen = f" ({validation.frozen:.4f} before fine-tuning)" if validation.frozen is not None else ""
    return f", validation {validation.name} {measure:.4f}{frozen}"


def _is_below_frozen(validation: Validation | None, measure: float | None) -> bool:
    frozen = None if validation is None else validation.frozen
    return measure is not None and frozen is not None and measure < frozen


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
    peak = next(r for r in reversed(run.rates) if r.epoch <= epoch)
    total = run.planned_epochs * run.steps_per_epoch
    guard = run.loss_guard or LossGuard(trainer.classes, warmup=round(recipe.warmup * total))
    guard = replace(guard, planned=run.end * run.steps_per_epoch)
    for batch in iterate_batches(items, order, preprocessing, recipe, trainer.distributed, seed=seed, epoch=epoch):
        step = epoch * run.steps_per_epoch + len(losses)
        trainer.set_learning_rates(learning_rate_factor(step, total, recipe.warmup), peak)
        trainer.compare_with_guessing = not guard.has_learned
        batch_targets = torch.from_numpy(targets[batch.indices])
        losses.append(trainer.step(batch.pixels, batch_targets, valid=batch.valid, last=batch.done == len(order)))
        guard = guard.add(losses[-1], trainer.guess)
        if guard.warning:
            trainer.warn(guard.warning)
        if not math.isfinite(losses[-1]):  # a skipped step, whose activations may have reached the batch statistics
            require_finite(trainer.encoder.module.buffers(), "batch statistics")
        progress.step(f"epoch {epoch + 1}/{run.end}", batch.done, len(order), f"loss {_mean(losses):.3f}{best}")
    run.loss_guard = guard
    mean = _mean(losses)
    if math.isnan(mean):
        raise DivergenceError("no loss of an epoch is finite")
    return mean


def _mean(losses: Sequence[float]) -> float:
    """Return the mean of the finite losses; nan if there is none."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    return float(np.mean(finite)) if finite else math.nan
