"""A running mean of the weights, which is steadier than the last ones (Polyak and Juditsky 1992)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn


class RunningMean:
    """Exponential moving average of all floating-point weights and statistics of some modules.

    Early on it forgets faster, so that the weights it began with do not linger: the decay of step n is at most
    (1 + n) / (10 + n).
    """

    def __init__(self, modules: Sequence[nn.Module], decay: float) -> None:
        self.modules = modules
        self.decay = decay
        self.steps = 0
        self.means = [t.detach().clone() for t in self._tensors()]

    def _tensors(self) -> Iterator[torch.Tensor]:
        for module in self.modules:
            yield from module.parameters()
            yield from (b for b in module.buffers() if b.is_floating_point())

    def of_buffers(self) -> Iterator[torch.Tensor]:
        """Yield the means of statistics, without those of weights."""
        kinds = (isinstance(t, nn.Parameter) for t in self._tensors())
        yield from (mean for mean, is_weight in zip(self.means, kinds, strict=True) if not is_weight)

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the present weights."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.means, [t.detach() for t in self._tensors()], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the mean and the present weights; a second time puts them back."""
        for mean, tensor in zip(self.means, self._tensors(), strict=True):
            present = tensor.detach().clone()
            tensor.copy_(mean)
            mean.copy_(present)

    def state(self) -> dict[str, torch.Tensor]:
        """Copy for a checkpoint."""
        return {"steps": torch.tensor(self.steps), **{str(n): m.to("cpu", copy=True) for n, m in enumerate(self.means)}}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Undo `state`."""
        self.steps = int(state["steps"])
        for n, mean in enumerate(self.means):
            mean.copy_(state[str(n)])
