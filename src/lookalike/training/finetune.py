"""The full stage: backbone, head and classifier together, epoch by epoch, resumable."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from lookalike.backbones import Member
from lookalike.backbones.preprocessing import Preprocessing
from lookalike.backbones.stream import map_ahead
from lookalike.data import Item, read_image
from lookalike.errors import ModelError
from lookalike.progress import SILENT, Progress
from lookalike.training.augment import augmented, training_view
from lookalike.training.fit_head import LinearClassifier
from lookalike.training.options import TrainingOptions
from lookalike.training.precision import autocast, keep_slow_layers_float32, unwrap
from lookalike.types import Skipped

State = dict[str, dict[str, torch.Tensor]]


@dataclass
class Run:
    """The state of a full-stage run: all that a checkpoint must hold.

    Attributes:
        epoch: epochs finished.
        best: state of member and classifier after the epoch that measured best; None before any.
        best_measure: its measure.
        history: per epoch its loss, measure and seconds.
        seconds: spent so far, over all sittings.
        epochs, steps: the plan: epochs at most, steps in each.

    """

    epochs: int
    steps: int
    epoch: int = 0
    best: State | None = None
    best_measure: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0

    def is_over(self, patience: int) -> bool:
        """Whether all epochs ran, or the best one lies `patience` epochs back."""
        if self.epoch >= self.epochs:
            return True
        measures = [h["measure"] for h in self.history]
        return bool(measures) and len(measures) - 1 - int(np.argmax(measures)) >= patience


class Trainee:
    """A member with the classifier and the optimizer that train it; nothing here decides when to stop."""

    def __init__(self, member: Member, classes: int, options: TrainingOptions) -> None:
        self.member = member
        self.classifier = LinearClassifier(member.dim, classes).to(member.device)
        self.options = options
        self.keep_statistics = member.trained != "untrained"
        self.optimizer = _optimizer(member, self.classifier, options)

    def train_mode(self) -> None:
        """Turn training behaviour on; pretrained batch statistics stay as they are, small batches would spoil them."""
        self.member.module.train()
        self.member.head.train()
        if self.keep_statistics:
            for layer in self.member.module.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()

    def eval_mode(self) -> None:
        """Turn training behaviour off."""
        self.member.module.eval()
        self.member.head.eval()
        self.member.changed()

    def loss(self, pixels: np.ndarray, targets: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of one batch of `(n, h, w, 3)` uint8 pixels."""
        device = self.member.device
        with autocast(device, self.options.precision):
            features = self.member.module(self.member.to_input(pixels))
        logits = self.classifier(self.member.head.linear(features.float()))
        return nn.functional.cross_entropy(logits, targets.to(device), label_smoothing=self.options.label_smoothing)

    def step(self, loss: torch.Tensor) -> None:
        """Take one optimizer step."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, 5.0)
        self.optimizer.step()

    def set_rate(self, share: float) -> None:
        """Scale every group's peak learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share

    def state(self) -> State:
        """Copy of the weights."""
        classifier = {k: v.to("cpu", copy=True) for k, v in self.classifier.state_dict().items()}
        return {"member": self.member.state(), "classifier": classifier}

    def load(self, state: State) -> None:
        """Undo `state`."""
        self.member.load_state(state["member"])
        self.classifier.load_state_dict(state["classifier"])


def _optimizer(member: Member, classifier: LinearClassifier, options: TrainingOptions) -> torch.optim.Optimizer:
    backbone_lr, head_lr = options.learning_rates
    groups: list[dict[str, Any]] = []
    for lr, modules in ((backbone_lr, [member.module]), (head_lr, [member.head, classifier])):
        parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
        for decay, chosen in (
            (options.weight_decay, [p for p in parameters if p.ndim >= 2]),
            (0.0, [p for p in parameters if p.ndim < 2]),
        ):
            if chosen:
                groups.append({"params": chosen, "lr": lr, "peak": lr, "weight_decay": decay})
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=backbone_lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=backbone_lr)


def schedule(step: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate: a linear rise over `warmup` of all steps, then a cosine to zero."""
    rising = max(1, round(warmup * total))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def plan(
    trainee: Trainee, items: Sequence[Item], targets: np.ndarray, seconds_left: float | None, overhead: float
) -> Run:
    """Plan epochs and steps; with a time budget, by timing three steps that change nothing.

    Args:
        trainee: what will be trained.
        items: training items.
        targets: their class rows `(n,)`.
        seconds_left: of the budget, None without one.
        overhead: seconds that each epoch's validation takes.

    """
    options = trainee.options
    steps = max(1, math.ceil(len(items) / options.batch_size))
    if seconds_left is None:
        return Run(options.epochs, steps)
    before = copy.deepcopy([m.state_dict() for m in (trainee.member.module, trainee.member.head)])
    trainee.train_mode()
    first = items[: 3 * options.batch_size]
    keep_slow_layers_float32(trainee.member.module, trainee.member.device)
    clock = time.perf_counter()
    count = 0
    for _, pixels, rows in _batches(first, np.arange(len(first)), training_view(trainee.member, 1.0), options, epoch=0):
        trainee.loss(pixels, torch.from_numpy(targets[rows])).backward()  # type: ignore[no-untyped-call]
        count += 1
    per_step = (time.perf_counter() - clock) / max(1, count)
    unwrap(trainee.member.module)
    trainee.optimizer.zero_grad(set_to_none=True)
    trainee.eval_mode()
    for module, state in zip((trainee.member.module, trainee.member.head), before, strict=True):
        module.load_state_dict(state)

    def seconds(epochs: int) -> float:
        shares = (epoch_resolution(e, epochs, options.resolution) for e in range(epochs))
        views = [training_view(trainee.member, share) for share in shares]
        full = trainee.member.preprocessing
        pixels = sum(v.height * v.width for v in views) / (full.height * full.width)
        return pixels * steps * per_step + epochs * overhead

    epochs = max((e for e in range(1, options.epochs + 1) if seconds(e) <= seconds_left), default=0)
    if epochs:
        return Run(epochs, steps)
    return Run(1, max(1, min(steps, math.floor((seconds_left - overhead) / per_step))))


def finetune(
    trainee: Trainee,
    run: Run,
    items: Sequence[Item],
    targets: np.ndarray,
    measure: Callable[[], float],
    after_epoch: Callable[[Run], None],
    *,
    progress: Progress = SILENT,
) -> None:
    """Train until the plan or the patience ends; `run` and `trainee` are changed in place.

    Args:
        trainee: fresh, or as a checkpoint left it.
        run: likewise.
        items: training items.
        targets: their class rows `(n,)`.
        measure: retrieval measure of the validation part with the present weights.
        after_epoch: called with the run once an epoch is complete.
        progress: told each step with loss, measure and rate.

    Raises:
        ModelError: when the loss is no longer a number.

    """
    options = trainee.options
    keep_slow_layers_float32(trainee.member.module, trainee.member.device)
    try:
        while not run.is_over(options.patience):
            clock = time.perf_counter()
            loss = _one_epoch(trainee, run, items, targets, progress)
            trainee.eval_mode()
            unwrap(trainee.member.module)
            now = measure()
            if now > run.best_measure:
                run.best_measure, run.best = now, trainee.state()
            run.epoch += 1
            seconds = time.perf_counter() - clock
            run.seconds += seconds
            run.history.append({"loss": loss, "measure": now, "seconds": round(seconds, 1)})
            progress.say(
                f"  epoch {run.epoch}/{run.epochs}: loss {loss:.3f}, "
                f"validation {options.stop_on} {now:.4f}, {seconds:.0f} s"
            )
            after_epoch(run)
            keep_slow_layers_float32(trainee.member.module, trainee.member.device)
    finally:
        unwrap(trainee.member.module)
        trainee.eval_mode()


def _one_epoch(trainee: Trainee, run: Run, items: Sequence[Item], targets: np.ndarray, progress: Progress) -> float:
    """Train one epoch; order, augmentation and dropout depend on seed and epoch alone. Returns the mean loss."""
    options = trainee.options
    torch.manual_seed(options.seed * 100_003 + run.epoch)
    order = np.random.default_rng([options.seed, run.epoch]).permutation(len(items))[: run.steps * options.batch_size]
    trainee.train_mode()
    losses: list[float] = []
    best = f", best {run.best_measure:.3f}" if run.best else ""
    view = training_view(trainee.member, epoch_resolution(run.epoch, run.epochs, options.resolution))
    for done, pixels, rows in _batches(items, order, view, options, epoch=run.epoch):
        trainee.set_rate(schedule(run.epoch * run.steps + len(losses), run.epochs * run.steps, options.warmup))
        loss = trainee.loss(pixels, torch.from_numpy(targets[rows]))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ModelError(
                f"training diverged in epoch {run.epoch + 1} (the loss is {value}); lower the learning rate."
            )
        trainee.step(loss)
        losses.append(value)
        detail = f"loss {np.mean(losses[-20:]):.3f}{best}"
        progress.step(f"epoch {run.epoch + 1}/{run.epochs}", done, len(order), detail)
    return float(np.mean(losses))


def epoch_resolution(epoch: int, epochs: int, resolution: float) -> float:
    """Return the share of the full sides that an epoch trains at: the first two thirds see fewer pixels."""
    return resolution if epoch < epochs * 2 // 3 else 1.0


def _batches(
    items: Sequence[Item], order: np.ndarray, view: Preprocessing, options: TrainingOptions, epoch: int
) -> Any:
    """Yield `(images done, pixels, rows)`; a last batch of one image is passed over, it has no batch statistics."""
    done = 0

    def prepare(row: int) -> np.ndarray:
        item = items[row]
        return augmented(read_image(item.path), view, seed=options.seed, epoch=epoch, item_id=item.id)

    for results in map_ahead([int(r) for r in order], prepare, options.batch_size):
        done += len(results)
        good = [(row, pixels) for row, pixels in results if not isinstance(pixels, Skipped)]
        if len(good) >= 2:
            yield done, np.stack([p for _, p in good]), np.array([row for row, _ in good])
