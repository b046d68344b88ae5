"""A member together with what trains it: objective, optimizer, running mean of the weights."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from lookalike.models.member import TrainableEncoder
from lookalike.training.average import RunningMean
from lookalike.training.layers import freeze_first_layers, rate_shares, stochastic_depth
from lookalike.training.losses import Objective
from lookalike.training.mixing import mixed, mixes
from lookalike.training.precision import autocast, is_scaled, keep_slow_layers_float32, unwrap
from lookalike.training.recipe import Recipe
from lookalike.training.team import ALONE, Team

State = dict[str, Any]


class Rates(NamedTuple):
    """Peak learning rates of backbone and head, and the epoch they hold from, counted from 0."""

    epoch: int
    lr: float
    head_lr: float


class Learner(nn.Module):
    """Backbone, projection and objective as one module, from pictures and targets to the loss."""

    def __init__(self, member: TrainableEncoder, objective: Objective, recipe: Recipe, team: Team) -> None:
        super().__init__()
        self.backbone = member.module
        self.projection = member.head.linear
        self.objective = objective
        self._recipe = recipe
        self._team = team
        self._compiled = [torch.compile(member.module)] if recipe.compile else None  # in a list: it is no submodule

    def forward(self, x: torch.Tensor, targets: torch.Tensor, present: int) -> torch.Tensor:
        """Return the loss of the whole batch, of which this process has the first `present` of these images."""
        backbone = self.backbone if self._compiled is None else self._compiled[0]
        with autocast(x.device, self._recipe.precision):
            features = backbone(x)
        with torch.autocast(x.device.type, enabled=False):
            projected, targets = self._team.gather(self.projection(features.float()), targets, present)
            loss: torch.Tensor = self.objective(projected, targets)
        return loss


class Trainee:
    """A member with the objective and the optimizer that train it; nothing here decides when to stop."""

    def __init__(
        self, member: TrainableEncoder, classes: int, recipe: Recipe, *, seed: int = 0, team: Team = ALONE
    ) -> None:
        self.member = member
        self.recipe = recipe
        self.team = team
        self.seed = seed
        self.classes = classes
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # of random proxies
            self.objective = Objective(
                recipe.loss,
                classes,
                member.dim,
                label_smoothing=recipe.label_smoothing,
                neck=recipe.neck == "bnneck",
            ).to(member.device)
        self.keep_statistics = recipe.frozen_statistics and member.trained != "untrained"
        self.mixes = mixes(recipe)
        if not recipe.channels_last:
            member.module.to(memory_format=torch.contiguous_format)
        freeze_first_layers(member.module, recipe.unfreeze)
        _set_checkpointing(member.module, recipe.checkpointing)
        self.optimizer = _optimizer(member, self.objective, recipe)
        averaged = [m for m in (member.module, member.head, self.objective.neck) if m is not None]
        self.mean = RunningMean(averaged, recipe.ema) if recipe.ema else None
        self.scaler = torch.amp.GradScaler(member.device.type, enabled=is_scaled(recipe.precision))
        self.learner = team.prepare(Learner(member, self.objective, recipe, team))
        self._waiting = 0

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Inside, everything behaves as in training; pretrained batch statistics stay as they are if so asked."""
        module = self.member.module
        keep_slow_layers_float32(module, self.member.device)
        try:
            with stochastic_depth(module, self.recipe.drop_path):
                self._train_mode()
                yield
        finally:
            unwrap(module)
            self.eval_mode()

    def _train_mode(self) -> None:
        self.learner.train()
        if self.keep_statistics:  # small batches would spoil them
            for layer in self.member.module.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()

    def eval_mode(self) -> None:
        """Turn training behaviour off."""
        self.learner.eval()
        self.member.changed()

    def agree_statistics(self) -> None:
        """Give batch statistics that are trained the mean of all processes': each has moved them by its own share."""
        if not self.keep_statistics:
            self.team.average(b for b in self.member.module.buffers() if b.is_floating_point())
            if self.mean is not None:
                self.team.average(self.mean.of_buffers())

    @contextlib.contextmanager
    def as_kept(self) -> Iterator[None]:
        """Inside, the member is as it would be kept: the mean of its weights, the neck folded into its head."""
        linear = self.member.head.linear
        if self.mean is not None:
            self.mean.swap()
        before = [p.detach().clone() for p in (linear.weight, linear.bias)]
        with torch.no_grad():
            for parameter, folded in zip((linear.weight, linear.bias), self.objective.folded(linear), strict=True):
                parameter.copy_(folded)
        self.member.changed()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, old in zip((linear.weight, linear.bias), before, strict=True):
                    parameter.copy_(old)
            if self.mean is not None:
                self.mean.swap()
            self.member.changed()

    def loss(
        self, pixels: np.ndarray, targets: torch.Tensor, *, present: int | None = None, key: Sequence[int] = (0,)
    ) -> torch.Tensor:
        """Loss of one batch of `(n, h, w, 3)` uint8 pixels with class rows `(n,)`.

        Args:
            pixels: this process's share of the batch.
            targets: of the same images.
            present: how many of them count, by default all.
            key: numbers that decide how images are mixed.

        """
        x, targets = self.member.to_input(pixels), targets.to(self.member.device)
        if not self.recipe.channels_last:
            x = x.contiguous()
        if self.mixes:
            x, targets = mixed(x, targets, self.classes, self.recipe, key)
        found: torch.Tensor = self.learner(x, targets, len(x) if present is None else present)
        return found

    def exchanging(self, *, last: bool) -> AbstractContextManager[Any]:
        """For `loss` and `step` together: processes exchange gradients only where the weights move."""
        return contextlib.nullcontext() if self._moves(last=last) else self.team.no_sync(self.learner)

    def _moves(self, *, last: bool) -> bool:
        return last or self._waiting + 1 >= self.recipe.accumulate

    def step(self, loss: torch.Tensor, *, last: bool = True) -> bool:
        """Add the gradients of a loss, and move the weights once enough have been added, or at an epoch's last.

        Returns:
            Whether all is well: false for a gradient that is no number, with the weights as they were. Those of a
            scaled loss are expected to overflow at first: they are passed over until the scale is below one.

        """
        moves = self._moves(last=last)
        self.scaler.scale(loss / self.recipe.accumulate).backward()  # type: ignore[no-untyped-call]
        if not moves:
            self._waiting += 1
            return True
        self._waiting = 0
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.recipe.clip or math.inf)
        scaled = self.scaler.is_enabled()
        if not bool(norm.isfinite()) and not (scaled and self.scaler.get_scale() >= 1):
            return False
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.mean is not None:
            self.mean.update()
        return True

    def set_rate(self, share: float, rates: Rates | None = None) -> None:
        """Set every group's learning rate to a share of its peak; the peaks are the recipe's unless given."""
        rates = rates or Rates(0, self.recipe.lr, self.recipe.head_lr)
        for group in self.optimizer.param_groups:
            own = group["share"]
            group["lr"] = share * (rates.head_lr if own is None else rates.lr * own)

    def state(self) -> State:
        """Copy of all that changes in training."""
        return {
            "member": self.member.state(),
            "objective": {k: v.to("cpu", copy=True) for k, v in self.objective.state_dict().items()},
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "mean": self.mean.state() if self.mean is not None else {},
            "scaler": self.scaler.state_dict(),
        }

    def load(self, state: State) -> None:
        """Undo `state`."""
        self.member.load_state(state["member"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.mean is not None:
            self.mean.load(state["mean"])
        self.scaler.load_state_dict(state["scaler"])


def _set_checkpointing(module: nn.Module, on: bool) -> None:
    switch = getattr(module, "set_grad_checkpointing", None)
    if switch is not None:
        switch(on)
    elif on:
        from lookalike.errors import OptionError

        raise OptionError(f"{type(module).__name__} cannot compute activations twice; set checkpointing to false.")


def _optimizer(member: TrainableEncoder, objective: Objective, recipe: Recipe) -> torch.optim.Optimizer:
    groups: dict[tuple[float | None, float], dict[str, Any]] = {}  # by share of the backbone's rate, and decay
    shares = rate_shares(member.module, recipe.layer_decay)
    rated: list[tuple[float | None, nn.Parameter]] = [(shares[n], p) for n, p in member.module.named_parameters()]
    rated += [(None, p) for m in (member.head, objective) for p in m.parameters()]
    for share, parameter in rated:
        if parameter.requires_grad:
            decay = recipe.weight_decay if parameter.ndim >= 2 else 0.0
            empty: dict[str, Any] = {"params": [], "share": share, "weight_decay": decay}
            groups.setdefault((share, decay), empty)["params"].append(parameter)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(list(groups.values()), lr=recipe.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(list(groups.values()), lr=recipe.lr)
