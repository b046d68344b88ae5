"""The stage with the frozen backbone: head and classifier by cross-entropy on cached features."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from lookalike.embeddings.fit import Features
from lookalike.models.member import TrainableEncoder
from lookalike.types import Vectors, l2_normalize

BATCH_SIZE = 128
HEAD_EPOCHS = 30


def logit_scale(classes: int, label_smoothing: float) -> float:
    """Return the scale at which the smoothed target is met exactly when every class is one point and all are far apart.

    The ideal arrangement of `classes` unit vectors is the regular simplex, where cosines differ by C / (C - 1)
    (Papyan et al. 2020, "Prevalence of neural collapse"); a smoothing of e asks for logits that differ by
    ln((C (1 - e) + e) / e). A larger scale is content long before the classes are compact: with 10 classes, 16 instead
    of 4 cost 0.2 of map@r (docs/log.md).
    """
    smoothing = max(label_smoothing, 0.01)
    gap = math.log((classes * (1 - smoothing) + smoothing) / smoothing)
    return gap * (classes - 1) / classes


class CosineClassifier(nn.Module):
    """For the stage with the frozen backbone: logits `(n, classes)`, the scaled cosine to one unit vector a class."""

    def __init__(self, embeddings: Vectors, targets: np.ndarray, classes: int, label_smoothing: float) -> None:
        super().__init__()
        means = np.stack([embeddings[targets == c].mean(axis=0) for c in range(classes)])
        self.weight = nn.Parameter(torch.from_numpy(l2_normalize(means)))
        self.scale = logit_scale(classes, label_smoothing)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return logits `(n, classes)`."""
        return self.scale * nn.functional.linear(embeddings, nn.functional.normalize(self.weight, dim=1))


class LinearClassifier(nn.Linear):
    """Of the loss cross-entropy: logits `(n, classes)` from the projection before it is normalised; starts at zero.

    Under cross-entropy without a margin, the cosine classifier at the small scales that make classes compact lost first
    hits (single runs, docs/log.md).
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__(dim, classes)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def train_head(
    member: TrainableEncoder,
    classifier: CosineClassifier,
    features: Features,
    targets: np.ndarray,
    measure: Callable[[], float] | None,
    *,
    label_smoothing: float,
    seed: int,
    epochs: int = HEAD_EPOCHS,
) -> tuple[float, int]:
    """Train head and classifier with cross-entropy on cached features; keep the epoch that measures best.

    Args:
        member: its head is changed in place.
        classifier: likewise.
        features: of the training images.
        targets: `(n,)` class rows of the same images.
        measure: retrieval measure of the validation part with the member's present head; None keeps the last epoch.
        label_smoothing: of the cross-entropy.
        seed: decides the order.
        epochs: over the cached features.

    Returns:
        The best measure and its epoch, counted from 1; the starting one and 0 when training did not help;
        not a number and the last epoch without a measure.

    """
    head = member.head.train()
    device = member.device
    x, y = torch.from_numpy(features.rows).to(device), torch.from_numpy(targets).to(device)
    classifier.to(device)
    optimizer = torch.optim.AdamW([*head.parameters(), *classifier.parameters()], lr=1e-3, weight_decay=1e-2)
    order = torch.Generator().manual_seed(seed)
    best, best_epoch, kept = measure() if measure else math.nan, 0, _copy(head, classifier)
    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(len(x), generator=order).to(device).split(BATCH_SIZE):  # type: ignore[no-untyped-call]
            loss = nn.functional.cross_entropy(classifier(head(x[rows])), y[rows], label_smoothing=label_smoothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        now = measure() if measure else math.nan
        if not now <= best:  # better, or not measured
            best, best_epoch, kept = now, epoch, _copy(head, classifier)
    head.load_state_dict(kept[0])
    classifier.load_state_dict(kept[1])
    head.eval()
    member.changed()
    return best, best_epoch


def _copy(*modules: nn.Module) -> list[dict[str, torch.Tensor]]:
    return [{k: v.detach().clone() for k, v in m.state_dict().items()} for m in modules]
