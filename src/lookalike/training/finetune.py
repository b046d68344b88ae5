"""The full stage: backbone, head and classifier together, epoch by epoch, resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from lookalike.data.dataset import Item
from lookalike.data.images import read_pixels
from lookalike.errors import ModelError
from lookalike.models.preprocessing import Preprocessing
from lookalike.models.stream import map_ahead
from lookalike.progress import SILENT, Progress
from lookalike.training.augment import augmented, resolution_at, training_view
from lookalike.training.sampling import epoch_order, turns
from lookalike.training.trainee import Rates, Trainee
from lookalike.types import Skipped

_WINDOW = 20
"""Steps that a mean loss is taken over."""
_FAR = 4
"""A mean loss so many times the first one, or that of a guess among the classes, is divergence."""

_BLANK = (-1, 0)
"""Row and turn of a picture that does not count."""


class DivergedError(ModelError):
    """A loss that is no number, or far above what it began with."""


@dataclass
class Run:
    """The state of a full-stage run: all that a checkpoint must hold.

    Attributes:
        epoch: epochs finished.
        best: weights of the member after the epoch that measured best; None before any.
        best_measure: its measure.
        history: per epoch its loss, measure and seconds.
        seconds: spent so far, over all sittings.
        epochs, steps: the plan: epochs at most, steps in each.
        level: the first loss of the run, or what guessing costs if that is more; later means are held against it.
        recent: the last losses, over epochs.
        last: the epoch to end after, where it is known beforehand, whatever the time; the learning rate falls as for
            `epochs`.
        rates: peak learning rates; several where the run went on with others.
        reserve: seconds of a time budget that are kept for what comes after the last epoch.

    """

    epochs: int
    steps: int
    epoch: int = 0
    best: dict[str, torch.Tensor] | None = None
    best_measure: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    level: float | None = None
    recent: list[float] = field(default_factory=list)
    last: int | None = None
    rates: list[Rates] = field(default_factory=list)
    reserve: float = 0.0

    @property
    def planned(self) -> int:
        """The epoch to end after, at most."""
        return self.epochs if self.last is None else self.last

    def dump(self) -> dict[str, Any]:
        """Return a plain structure for a checkpoint."""
        return dict(vars(self), rates=[list(r) for r in self.rates])

    @classmethod
    def restore(cls, stored: dict[str, Any]) -> Run:
        """Undo `dump`."""
        return cls(**{**stored, "rates": [Rates(*r) for r in stored["rates"]]})

    def go_on_with(self, lr: float, head_lr: float) -> bool:
        """Take these rates from here on; returns whether they take the place of others."""
        if self.rates and self.rates[-1][1:] == (lr, head_lr):
            return False
        self.rates.append(Rates(self.epoch, lr, head_lr))
        return len(self.rates) > 1

    def is_over(self, patience: int) -> bool:
        """Whether all epochs ran, or the best one lies `patience` epochs back."""
        if self.epoch >= self.planned:
            return True
        measures = [h["measure"] for h in self.history if "measure" in h]
        return bool(measures) and len(measures) - 1 - int(np.argmax(measures)) >= patience


@dataclass(frozen=True)
class Validation:
    """What decides which epoch is kept, and when to stop.

    Attributes:
        name: of the measure.
        measure: takes it with the member's present weights.
        patience: epochs without a better measure before stopping.

    """

    name: str
    measure: Callable[[], float]
    patience: int


def schedule(step: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate: a linear rise over `warmup` of all steps, then a cosine to zero."""
    rising = max(1, round(warmup * total))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def plan(
    trainee: Trainee, items: Sequence[Item], targets: np.ndarray, seconds_left: float | None, overhead: float
) -> Run:
    """Plan epochs and steps; with a time budget, by timing steps that change nothing, two after one to warm up.

    Args:
        trainee: what will be trained.
        items: training items.
        targets: their class rows `(n,)`.
        seconds_left: of the budget, None without one.
        overhead: seconds that each epoch's validation takes.

    """
    recipe = trainee.recipe
    steps = max(1, math.ceil(len(items) / recipe.batch_size))
    if seconds_left is None:
        return Run(recipe.epochs, steps)
    before = trainee.state()
    clocks = [time.perf_counter()]
    view = training_view(trainee.member, recipe.resolution)
    order = np.arange(min(len(items), 3 * recipe.batch_size))
    with trainee.training():
        for batch in _batches(trainee, items, order, view, epoch=0):
            trainee.loss(batch.pixels, torch.from_numpy(targets[batch.rows]), present=batch.present).backward()  # type: ignore[no-untyped-call]
            clocks.append(time.perf_counter())
    warm = clocks[1:] if len(clocks) > 2 else clocks
    per_step = (warm[-1] - warm[0]) / max(1, len(warm) - 1)
    trainee.optimizer.zero_grad(set_to_none=True)
    trainee.load(before)

    epochs = min(recipe.epochs, math.floor(seconds_left / (steps * per_step + overhead)))
    if epochs > 0:
        return Run(epochs, steps)
    return Run(1, max(1, min(steps, math.floor((seconds_left - overhead) / per_step))))


def finetune(
    trainee: Trainee,
    run: Run,
    items: Sequence[Item],
    targets: np.ndarray,
    validation: Validation | None,
    after_epoch: Callable[[Run], None],
    *,
    may_go_on: Callable[[], bool] = lambda: True,
    progress: Progress = SILENT,
) -> None:
    """Train until the plan, the patience or the time ends; `run` and `trainee` are changed in place.

    Args:
        trainee: fresh, or as a checkpoint left it.
        run: likewise.
        items: training items.
        targets: their class rows `(n,)`.
        validation: decides what is kept and when to stop; None keeps the last epoch.
        after_epoch: called with the run once an epoch is complete.
        may_go_on: asked before each epoch but the first, where the end is not known beforehand.
        progress: told each step with loss, measure and rate.

    Raises:
        DivergedError: when the loss is no longer a number, or far above what it began with.

    """
    while not run.is_over(validation.patience if validation else 0):
        if run.epoch and run.last is None and not may_go_on():
            progress.info(f"  stopped before epoch {run.epoch + 1}/{run.planned}: the time is needed for the rest")
            return
        clock = time.perf_counter()
        with trainee.training():
            loss = _one_epoch(trainee, run, items, targets, progress)
        trainee.agree_statistics()
        with trainee.as_kept():
            found = {} if validation is None else {"measure": validation.measure()}
            now = found.get("measure", math.nan)
            if not now <= run.best_measure:  # better, or not measured
                run.best_measure, run.best = now, trainee.member.state()
        run.epoch += 1
        seconds = time.perf_counter() - clock
        run.seconds += seconds
        run.history.append({"loss": loss, **found, "seconds": round(seconds, 1)})
        told = f", validation {validation.name} {now:.4f}" if validation else ""
        progress.info(f"  epoch {run.epoch}/{run.planned}: loss {loss:.3f}{told}, {seconds:.0f} s")
        after_epoch(run)


def _one_epoch(trainee: Trainee, run: Run, items: Sequence[Item], targets: np.ndarray, progress: Progress) -> float:
    """Train one epoch; order, augmentation and dropout depend on seed and epoch alone. Returns the mean loss."""
    recipe, seed = trainee.recipe, trainee.seed
    torch.manual_seed(seed * 100_003 + run.epoch)
    order = epoch_order(targets, recipe, seed=seed, epoch=run.epoch)[: run.steps * recipe.batch_size]
    if len(order) % recipe.batch_size == 1:
        order = order[:-1]  # a batch of one image has no batch statistics
    losses: list[float] = []
    best = f", best {run.best_measure:.3f}" if math.isfinite(run.best_measure) else ""
    view = training_view(trainee.member, resolution_at(recipe, run.epoch, run.epochs))
    rates = next((r for r in reversed(run.rates) if r.epoch <= run.epoch), None)
    for batch in _batches(trainee, items, order, view, epoch=run.epoch):
        trainee.set_rate(schedule(run.epoch * run.steps + len(losses), run.epochs * run.steps, recipe.warmup), rates)
        key = (seed, run.epoch, len(losses))
        rows, last = torch.from_numpy(targets[batch.rows]), batch.done == len(order)
        with trainee.exchanging(last=last):
            loss = trainee.loss(batch.pixels, rows, present=batch.present, key=key)
            losses.append(float(loss.detach()))
            _require_sane(run, losses[-1], trainee.classes)
            if not trainee.step(loss, last=last):
                raise _diverged(run, "a gradient is no number")
        detail = f"loss {np.mean(losses[-_WINDOW:]):.3f}{best}"
        progress.step(f"epoch {run.epoch + 1}/{run.planned}", batch.done, len(order), detail)
    return float(np.mean(losses))


def _require_sane(run: Run, loss: float, classes: int) -> None:
    """Raise `DivergedError` for a loss that is no number, or a recent mean far above the run's first loss."""
    if not math.isfinite(loss):
        raise _diverged(run, f"the loss is {loss}")
    if run.level is None:
        run.level = max(loss, math.log(classes))
    run.recent = [*run.recent, loss][-_WINDOW:]
    mean = float(np.mean(run.recent))
    if mean > _FAR * run.level:
        raise _diverged(run, f"the loss rose from {run.level:.3g} to {mean:.3g}")


def _diverged(run: Run, told: str) -> DivergedError:
    return DivergedError(f"training diverged in epoch {run.epoch + 1} ({told}); take a lower learning rate.")


@dataclass(frozen=True)
class _Batch:
    """A process's share of a batch: `(n, h, w, 3)` uint8 pixels and their rows, of which the first `present` count.

    `done` is the number of images of the epoch that all processes have gone through with it.
    """

    done: int
    pixels: np.ndarray
    rows: np.ndarray
    present: int


def _batches(
    trainee: Trainee, items: Sequence[Item], order: np.ndarray, view: Preprocessing, epoch: int
) -> Iterator[_Batch]:
    """Yield the batches of an epoch; alone, one of which a single image can be read is passed over."""
    recipe, team = trainee.recipe, trainee.team
    places = np.stack([order, turns(order)], axis=1)
    starts = range(0, len(order), recipe.batch_size)
    shares = [team.share(places[start : start + recipe.batch_size]) for start in starts]
    # a process without an image of the last batch takes part with a blank one that does not count
    padded = [share if len(share) else np.array([_BLANK]) for share in shares]
    size = max(len(share) for share in padded)

    def prepare(place: tuple[int, int]) -> np.ndarray:
        row, turn = place
        if row < 0:
            return np.zeros((view.height, view.width, 3), np.uint8)
        item, seed = items[row], trainee.seed
        image = Image.fromarray(read_pixels(item.path, view.at_least))
        return augmented(image, view, recipe, seed=seed, epoch=epoch, item_id=item.id, turn=turn)

    shown = [(int(row), int(turn)) for share in padded for row, turn in share]
    for number, results in enumerate(map_ahead(shown, prepare, size)):
        good = [(row, pixels) for (row, _), pixels in results if not isinstance(pixels, Skipped)]
        done = min(len(order), (number + 1) * recipe.batch_size)
        present = sum(row >= 0 for row, _ in good)
        if team.size > 1 and not good:
            good = [(_BLANK[0], prepare(_BLANK))]
        if len(good) >= 2 or team.size > 1:
            pixels = np.stack([p for _, p in good])
            yield _Batch(done, pixels, np.array([max(row, 0) for row, _ in good]), present)
