"""The training objective: a weighted sum of losses; all but cross-entropy come from pytorch-metric-learning."""

from __future__ import annotations

import math

import torch
from torch import nn

from lookalike.training.losses import Loss, parse_loss


class Objective(nn.Module):
    """A weighted sum of losses on the projections."""

    def __init__(self, loss: str, classes: int, dim: int, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        terms = parse_loss(loss)
        self.weights = [weight for weight, _ in terms]
        self.losses = nn.ModuleList(_make_loss(row, classes, dim, label_smoothing) for _, row in terms)
        self.classes = classes

    def forward(self, projections: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of projections `(n, dim)`, not normalised, with class indices `(n,)`."""
        total = projections.new_zeros(())
        for weight, loss in zip(self.weights, self.losses, strict=True):
            total = total + weight * loss(projections, targets)
        return total

    @torch.no_grad()
    def initialize_proxies(self, means: torch.Tensor) -> None:
        """Replace random proxies by the mean embedding of their class, `(classes, dim)`."""
        for loss in self.losses:
            for name, parameter in loss.named_parameters():
                if name == "proxies":
                    parameter.copy_(means)
                elif name == "W":  # (dim, proxies), the proxies of a class side by side
                    per_class = parameter.shape[1] // self.classes
                    columns = means.repeat_interleave(per_class, dim=0).T
                    # several proxies of a class must not start equal
                    noise = torch.randn(columns.shape, generator=torch.Generator().manual_seed(0))
                    scale = 0.1 / math.sqrt(len(columns)) if per_class > 1 else 0
                    parameter.copy_(columns + scale * noise)


class _CrossEntropy(nn.Module):
    """Cross-entropy of a linear classifier on the projections before they are normalised.

    The classifier starts at zero. A cosine classifier at the small scales that make classes compact had fewer correct
    first hits (docs/log.md).
    """

    def __init__(self, classes: int, dim: int, label_smoothing: float) -> None:
        super().__init__()
        self.classifier = nn.Linear(dim, classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)
        self.label_smoothing = label_smoothing

    def forward(self, projections: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = self.classifier(projections)
        return nn.functional.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)


class _MinedLoss(nn.Module):
    def __init__(self, loss: nn.Module, miner: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.miner = miner

    def forward(self, projections: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.loss(projections, targets, self.miner(projections, targets))
        return out


def _make_loss(loss: Loss, classes: int, dim: int, label_smoothing: float) -> nn.Module:
    if not loss.kind:
        return _CrossEntropy(classes, dim, label_smoothing)
    from pytorch_metric_learning import losses, miners  # takes half as long to import as torch

    sizes = {} if loss.compares else {"num_classes": classes, "embedding_size": dim}
    module: nn.Module = getattr(losses, loss.kind)(**sizes, **loss.settings)
    return _MinedLoss(module, getattr(miners, loss.miner)(**loss.miner_settings)) if loss.miner else module
