"""The trainer: network, objective, optimizer and loss scaler, which one training step changes."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from timm.layers.drop import DropPath
from timm.optim import param_groups_layer_decay, param_groups_weight_decay  # type: ignore[attr-defined]
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lookalike.errors import OptionError
from lookalike.models.info import LearningRates
from lookalike.models.torch_backbone import has_bfloat16
from lookalike.models.trainable import TrainableEncoder
from lookalike.models.weights import seeded_weights
from lookalike.training.config import AUTO, Recipe
from lookalike.training.distributed import SINGLE_PROCESS, DistributedContext
from lookalike.training.guards import GradientGuard, MemoryGuard
from lookalike.training.losses import parse_loss
from lookalike.training.objective import Objective


def resolve_precision(device: torch.device, precision: str) -> str:
    """Return the precision of forward passes; `auto` is bfloat16 where the device supports it natively."""
    if precision != AUTO:
        return precision
    return "bfloat16" if has_bfloat16(device) else "float32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return the context for forward passes in a precision."""
    resolved = resolve_precision(device, precision)
    dtype = torch.float16 if resolved == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=resolved != "float32")


class _Float32(nn.Module):
    def __init__(self, layer: nn.Module, device_type: str) -> None:
        super().__init__()
        self.layer = layer
        self.device_type = device_type

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device_type, enabled=False):
            out: torch.Tensor = self.layer(x.float()).to(x.dtype)
        return out


@contextlib.contextmanager
def slow_layers_in_float32(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Exclude wide and strided depthwise convolutions from autocast on a CPU: their bfloat16 backward pass is slower.

    docs/log.md has the measurement.
    """
    slow = [
        (parent, name, layer)
        for parent in module.modules()
        for name, layer in parent.named_children()
        if device.type == "cpu"
        and isinstance(layer, nn.Conv2d)
        and layer.groups == layer.in_channels > 1
        and (layer.kernel_size[0] >= 5 or layer.stride[0] > 1)
    ]
    for parent, name, layer in slow:
        setattr(parent, name, _Float32(layer, device.type))
    try:
        yield
    finally:
        for parent, name, layer in slow:
            setattr(parent, name, layer)


class LossModule(nn.Module):
    """Backbone, projection and objective as one module, from images and targets to the loss."""

    def __init__(
        self, encoder: TrainableEncoder, objective: Objective, recipe: Recipe, distributed: DistributedContext
    ) -> None:
        super().__init__()
        self.backbone = encoder.module
        self.projection = encoder.head.linear
        self.objective = objective
        self._precision = recipe.precision
        self._distributed = distributed
        self._compiled = [torch.compile(encoder.module)] if recipe.compile else []  # in a list: not a submodule
        self.compare_with_guessing = False
        self.guess = torch.tensor(math.nan)  # the loss of the last batch with shuffled labels

    def forward(self, x: torch.Tensor, targets: torch.Tensor, valid: int) -> torch.Tensor:
        """Return the loss of the batch of all processes; of this process's images the first `valid` count."""
        backbone = self._compiled[0] if self._compiled else self.backbone
        with autocast(x.device, self._precision):
            features = backbone(x)
        with torch.autocast(x.device.type, enabled=False):
            projections = self.projection(features.float())
            projections, targets = self._distributed.gather_batch(projections, targets, valid)
            loss: torch.Tensor = self.objective(projections, targets)
            if self.compare_with_guessing:
                order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
                with torch.no_grad():
                    self.guess = self.objective(projections, targets[order.to(targets.device)])
        return loss


class Trainer:
    """An encoder with the objective and the optimizer that train it; when to stop is decided elsewhere."""

    def __init__(
        self,
        encoder: TrainableEncoder,
        classes: int,
        recipe: Recipe,
        *,
        seed: int = 0,
        distributed: DistributedContext = SINGLE_PROCESS,
        warn: Callable[[str], None] = lambda _text: None,  # receives sentences of the guards
    ) -> None:
        self.encoder = encoder
        self.classes = classes
        self.recipe = recipe
        self.seed = seed
        self.distributed = distributed
        with seeded_weights(seed):  # for random proxies
            objective = Objective(recipe.loss, classes, encoder.dim, label_smoothing=recipe.label_smoothing)
        self.objective = objective.to(encoder.device)
        self.keep_statistics = recipe.frozen_statistics and encoder.trained != "untrained"
        if not recipe.channels_last:
            encoder.module.to(memory_format=torch.contiguous_format)
        if recipe.drop_path:
            add_stochastic_depth(encoder.module, recipe.drop_path)
        _set_checkpointing(encoder.module, recipe.checkpointing)
        self.optimizer = _make_optimizer(encoder, self.objective, recipe)
        # float16 has a short exponent: without scaling, small gradients vanish
        self.scaler = torch.amp.GradScaler(encoder.device.type, enabled=recipe.precision == "float16")
        self._inner = LossModule(encoder, self.objective, recipe, distributed)
        self.loss_module = distributed.prepare(self._inner)
        self._accumulated = 0
        self.guess = math.nan  # the loss of the last step with shuffled labels, as if nothing were learned
        self.warn = warn
        self._gradients = GradientGuard(
            {n: p for n, p in self._inner.named_parameters() if p.requires_grad}, needed="backbone."
        )
        self._memory = MemoryGuard(
            recipe.batch_size, encoder.device, self._consequences_of_parts(), may_divide=distributed.world_size == 1
        )

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Enable training behaviour inside; pretrained batch statistics stay fixed if the recipe says so."""
        module = self.encoder.module
        try:
            with slow_layers_in_float32(module, self.encoder.device):
                self.loss_module.train()
                if self.keep_statistics:  # small batches would degrade them
                    for layer in module.modules():
                        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                            layer.eval()
                yield
        finally:
            self.loss_module.eval()

    def synchronize_statistics(self) -> None:
        """Average batch statistics that are trained over the processes: each updates them with its own share."""
        if not self.keep_statistics:
            self.distributed.all_reduce_mean(b for b in self.encoder.module.buffers() if b.is_floating_point())

    def loss(self, pixels: np.ndarray, targets: torch.Tensor, *, valid: int | None = None) -> torch.Tensor:
        """Return the loss of this process's share of a batch `(n, h, w, 3)` uint8; the first `valid` images count."""
        x, targets = self.encoder.to_input(pixels), targets.to(self.encoder.device)
        if not self.recipe.channels_last:
            x = x.contiguous()
        loss: torch.Tensor = self.loss_module(x, targets, len(x) if valid is None else valid)
        return loss

    @property
    def compare_with_guessing(self) -> bool:
        """Whether `step` also computes `guess`."""
        return self._inner.compare_with_guessing

    @compare_with_guessing.setter
    def compare_with_guessing(self, enabled: bool) -> None:
        self._inner.compare_with_guessing = enabled
        self._inner.guess = torch.tensor(math.nan)

    def step(self, pixels: np.ndarray, targets: torch.Tensor, *, valid: int | None = None, last: bool = True) -> float:
        """Add the gradients of a batch; update the weights once enough are added, or at the last batch of an epoch.

        Returns the loss; NaN, with the weights unchanged and the gradients dropped, if a gradient is not finite. With a
        scaled loss, overflows are expected at first: such updates are skipped until the scale is below one.
        """
        update = last or self._accumulated + 1 >= self.recipe.accumulate
        value = self.add_gradients(pixels, targets, valid=valid, update=update)
        self._accumulated = 0 if update else self._accumulated + 1
        return value if not update or self._update() else math.nan

    def add_gradients(
        self, pixels: np.ndarray, targets: torch.Tensor, *, valid: int | None = None, update: bool = True
    ) -> float:
        """Add the gradients of a batch, in parts if memory is short, and return its loss.

        `update` says whether the weights are updated next. The gradients of earlier batches are dropped if memory runs
        out. One of several processes cannot divide its share alone.
        """

        def add() -> float:
            parts = self._memory.parts(len(pixels))
            values = [self._add_part(pixels[p], targets[p], valid, len(pixels), update=update) for p in parts]
            loss, self.guess = (float(sum(column)) for column in zip(*values, strict=True))
            return loss

        def warn(text: str) -> None:
            self.optimizer.zero_grad(set_to_none=True)
            self.warn(text)

        return self._memory.run(add, len(pixels), warn)

    def _add_part(
        self, pixels: np.ndarray, targets: torch.Tensor, valid: int | None, count: int, *, update: bool
    ) -> tuple[float, float]:
        """Add the gradients of some of `count` images; return their shares of the loss and of that of guessing."""
        share = len(pixels) / count
        with contextlib.ExitStack() as stack:
            if not update and isinstance(self.loss_module, DistributedDataParallel):
                stack.enter_context(self.loss_module.no_sync())  # the processes average gradients once per update
            loss = self.loss(pixels, targets, valid=valid)
            self.scaler.scale(share * loss / self.recipe.accumulate).backward()  # type: ignore[no-untyped-call]
        return share * float(loss.detach()), share * float(self._inner.guess)

    def _consequences_of_parts(self) -> list[str]:
        changes = []
        if any(loss.compares or loss.whole_batch for _, loss in parse_loss(self.recipe.loss)):
            changes.append(f"{self.recipe.loss} compares {{images}} images instead of {self.recipe.batch_size}")
        norms = [m for m in self.encoder.module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if norms and not self.keep_statistics:
            changes.append("batch statistics are those of {images} images")
        return changes

    def _update(self) -> bool:
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.recipe.clip or math.inf)
        may_overflow = self.scaler.is_enabled() and self.scaler.get_scale() >= 1
        is_finite = bool(norm.isfinite())
        if is_finite and (text := self._gradients.observe()):
            self.warn(text)
        if is_finite or may_overflow:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return is_finite or may_overflow

    def set_learning_rates(self, factor: float, peak: LearningRates) -> None:
        """Set the learning rates to `factor` times their peaks."""
        for group in self.optimizer.param_groups:
            group["lr"] = factor * (peak.head_lr if group["is_head"] else peak.lr * group["lr_scale"])

    def dump(self) -> dict[str, Any]:
        """Return a copy of everything that training changes."""
        return {
            "encoder": self.encoder.state(),
            "objective": {k: v.to("cpu", copy=True) for k, v in self.objective.state_dict().items()},
            "optimizer": _copy_to_cpu(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict(),
        }

    def load(self, stored: dict[str, Any]) -> None:
        """Restore what `dump` returned."""
        self.encoder.load_state(stored["encoder"])
        self.objective.load_state_dict(stored["objective"])
        self.optimizer.load_state_dict(stored["optimizer"])
        self.scaler.load_state_dict(stored["scaler"])


def _copy_to_cpu(state: dict[str, Any]) -> dict[str, Any]:
    """Copy the state of an optimizer; on a GPU a second one might not fit."""
    copied = {number: {k: _on_cpu(v) for k, v in values.items()} for number, values in state["state"].items()}
    return {**copy.deepcopy({k: v for k, v in state.items() if k != "state"}), "state": copied}


def _on_cpu(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value


def add_stochastic_depth(module: nn.Module, rate: float) -> None:
    """Let training skip residual blocks at random: the last with probability `rate`, earlier ones linearly less often.

    Huang et al. 2016, "Deep networks with stochastic depth". timm's blocks have an identity in its place. Evaluation is
    unchanged, and so is a network without such blocks.
    """
    places = [
        (block, name)
        for block in module.modules()
        for name in ("drop_path", "drop_path1", "drop_path2")
        if hasattr(block, name) and isinstance(getattr(block, name) or nn.Identity(), nn.Identity)
    ]
    blocks = list(dict.fromkeys(id(block) for block, _ in places))
    for block, name in places:
        depth = blocks.index(id(block)) / max(1, len(blocks) - 1)
        setattr(block, name, DropPath(rate * depth).train(block.training))


def _set_checkpointing(module: nn.Module, enabled: bool) -> None:
    switch = getattr(module, "set_grad_checkpointing", None)
    if switch is not None:
        switch(enabled)
    elif enabled:
        raise OptionError(
            f"{type(module).__name__} does not support activation checkpointing; set `checkpointing` to false.",
            argument="checkpointing",
        )


def _make_optimizer(encoder: TrainableEncoder, objective: Objective, recipe: Recipe) -> torch.optim.Optimizer:
    decay = recipe.weight_decay
    if recipe.layer_decay < 1:
        backbone = param_groups_layer_decay(encoder.module, weight_decay=decay, layer_decay=recipe.layer_decay)
    else:
        backbone = param_groups_weight_decay(encoder.module, weight_decay=decay)
    head = [group for module in (encoder.head, objective) for group in param_groups_weight_decay(module, decay)]
    groups = [{"lr_scale": 1.0, **group, "is_head": False} for group in backbone]
    groups += [{**group, "is_head": True} for group in head]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=recipe.lr)
