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
        last: the epoch to end after, where it is known beforehand; the learning rate falls as for `epochs`.

    """

    epochs: int
    steps: int
    epoch: int = 0
    best: State | None = None
    best_measure: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    last: int | None = None

    @property
    def planned(self) -> int:
        """The epoch to end after, at most."""
        return self.epochs if self.last is None else self.last

    def is_over(self, patience: int) -> bool:
        """Whether all epochs ran, or the best one lies `patience` epochs back."""
        if self.epoch >= self.planned:
            return True
        measures = [h["measure"] for h in self.history if "measure" in h]
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


def is_sturdy(module: nn.Module) -> bool:
    """Whether a network bears a high learning rate: depthwise convolutions and batch norm, as EfficientNets have."""
    layers = list(module.modules())
    depthwise = any(isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 for m in layers)
    attention = any(isinstance(m, nn.LayerNorm) for m in layers)  # in the blocks of hybrids
    return depthwise and not attention and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in layers)


def _optimizer(member: Member, classifier: LinearClassifier, options: TrainingOptions) -> torch.optim.Optimizer:
    backbone_lr, head_lr = options.learning_rates(sturdy=is_sturdy(member.module))
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
    """Plan epochs and steps; with a time budget, by timing steps that change nothing, two after one to warm up.

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
    clocks = [time.perf_counter()]
    view = training_view(trainee.member, options.resolution)
    for _, pixels, rows in _batches(first, np.arange(len(first)), view, options, epoch=0):
        trainee.loss(pixels, torch.from_numpy(targets[rows])).backward()  # type: ignore[no-untyped-call]
        clocks.append(time.perf_counter())
    warm = clocks[1:] if len(clocks) > 2 else clocks
    per_step = (warm[-1] - warm[0]) / max(1, len(warm) - 1)
    unwrap(trainee.member.module)
    trainee.optimizer.zero_grad(set_to_none=True)
    trainee.eval_mode()
    for module, state in zip((trainee.member.module, trainee.member.head), before, strict=True):
        module.load_state_dict(state)

    epochs = min(options.epochs, math.floor(seconds_left / (steps * per_step + overhead)))
    if epochs > 0:
        return Run(epochs, steps)
    return Run(1, max(1, min(steps, math.floor((seconds_left - overhead) / per_step))))


def finetune(
    trainee: Trainee,
    run: Run,
    items: Sequence[Item],
    targets: np.ndarray,
    measure: Callable[[], float] | None,
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
        measure: retrieval measure of the validation part with the present weights; None keeps the last epoch.
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
            found = {} if measure is None else {"measure": measure()}
            now = found.get("measure", math.nan)
            if not now <= run.best_measure:  # better, or not measured
                run.best_measure, run.best = now, trainee.state()
            run.epoch += 1
            seconds = time.perf_counter() - clock
            run.seconds += seconds
            run.history.append({"loss": loss, **found, "seconds": round(seconds, 1)})
            told = f", validation {options.stop_on} {now:.4f}" if found else ""
            progress.say(f"  epoch {run.epoch}/{run.planned}: loss {loss:.3f}{told}, {seconds:.0f} s")
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
    best = f", best {run.best_measure:.3f}" if math.isfinite(run.best_measure) else ""
    view = training_view(trainee.member, options.resolution)
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
        progress.step(f"epoch {run.epoch + 1}/{run.planned}", done, len(order), detail)
    return float(np.mean(losses))


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
