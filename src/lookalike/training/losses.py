"""Losses by name, and their weighted sum; all but the cross-entropy come from pytorch-metric-learning."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lookalike.errors import OptionError
from lookalike.training.fit_head import LinearClassifier

CROSS_ENTROPY = "cross-entropy"


@dataclass(frozen=True)
class Loss:
    """One row of the table of losses.

    Attributes:
        name: as it is given.
        words: what it is, with its source.
        compares: it compares the images of a batch with each other, so a batch needs several of a class.
        make: from the number of classes and of dimensions, and the label smoothing.

    """

    name: str
    words: str
    compares: bool
    make: Callable[[int, int, float], nn.Module]


class _CrossEntropy(nn.Module):
    """Of a linear classifier on the projection before it is normalised; targets are rows, or shares `(n, classes)`."""

    def __init__(self, classes: int, dim: int, label_smoothing: float) -> None:
        super().__init__()
        self.classifier = LinearClassifier(dim, classes)
        self.label_smoothing = label_smoothing

    def forward(self, projected: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = self.classifier(projected)
        return nn.functional.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)


class _Mined(nn.Module):
    """A loss on the pairs or triplets that a miner picks."""

    def __init__(self, loss: nn.Module, miner: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.miner = miner

    def forward(self, projected: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.loss(projected, targets, self.miner(projected, targets))
        return out


def _library() -> Any:
    """Import pytorch-metric-learning, which takes as long as half of torch, when a loss of it is made."""
    import pytorch_metric_learning as library
    from pytorch_metric_learning import losses, miners  # noqa: F401 - loads what is used below

    return library


def _margin_softmax(kind: str, **settings: Any) -> Callable[[int, int, float], nn.Module]:
    def make(classes: int, dim: int, _smoothing: float) -> nn.Module:
        made: nn.Module = getattr(_library().losses, kind)(num_classes=classes, embedding_size=dim, **settings)
        return made

    return make


def _multi_similarity(_classes: int, _dim: int, _smoothing: float) -> nn.Module:
    library = _library()
    return _Mined(library.losses.MultiSimilarityLoss(), library.miners.MultiSimilarityMiner())


def _triplet(_classes: int, _dim: int, _smoothing: float) -> nn.Module:
    library = _library()
    return _Mined(library.losses.TripletMarginLoss(margin=0.2), library.miners.BatchHardMiner())


def _triplet_semihard(_classes: int, _dim: int, _smoothing: float) -> nn.Module:
    library = _library()
    miner = library.miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard")
    return _Mined(library.losses.TripletMarginLoss(margin=0.2), miner)


def _supervised_contrastive(_classes: int, _dim: int, _smoothing: float) -> nn.Module:
    made: nn.Module = _library().losses.SupConLoss(temperature=0.1)
    return made


# Scales are smaller than in papers on faces, with their thousands of classes. Without a margin 16 is content before the
# classes are compact (see fit_head.logit_scale); it is the margin that keeps pulling.
LOSSES: dict[str, Loss] = {
    row.name: row
    for row in (
        Loss(CROSS_ENTROPY, "of a linear classifier", False, _CrossEntropy),
        Loss(
            "normalised-softmax",
            "cross-entropy of scaled cosines to one proxy a class (Zhai and Wu 2019)",
            False,
            _margin_softmax("NormalizedSoftmaxLoss", temperature=1 / 16),
        ),
        Loss("arcface", "the same with a margin on the angle (Deng et al. 2019)", False,
             _margin_softmax("ArcFaceLoss", margin=math.degrees(0.3), scale=16)),
        Loss("cosface", "the same with a margin on the cosine (Wang et al. 2018)", False,
             _margin_softmax("CosFaceLoss", margin=0.2, scale=16)),
        Loss("subcenter-arcface", "arcface with three proxies a class (Deng et al. 2020)", False,
             _margin_softmax("SubCenterArcFaceLoss", margin=math.degrees(0.3), scale=16, sub_centers=3)),
        Loss("proxy-anchor", "every proxy against all images of a batch (Kim et al. 2020)", False,
             _margin_softmax("ProxyAnchorLoss")),
        Loss("multi-similarity", "mined pairs, weighted by three similarities (Wang et al. 2019)", True,
             _multi_similarity),
        Loss("triplet", "the hardest positive and negative of the batch (Hermans et al. 2017)", True, _triplet),
        Loss("triplet-semihard", "negatives farther than the positive, within the margin (Schroff et al. 2015)", True,
             _triplet_semihard),
        Loss("supervised-contrastive", "all positives against all others (Khosla et al. 2020)", True,
             _supervised_contrastive),
    )
}  # fmt: skip


def parse_loss(text: str) -> tuple[tuple[float, Loss], ...]:
    """Read `cross-entropy+0.5*multi-similarity` as weights and losses.

    Raises:
        OptionError: an unknown loss, a weight that is no number above 0, or a loss twice.

    """
    terms: list[tuple[float, Loss]] = []
    for part in text.split("+"):
        weight, _, name = part.strip().rpartition("*")
        name = name.strip()
        if not name:
            raise OptionError(f"the loss {text!r} lacks a name; write losses with a + between them.")
        if name not in LOSSES:
            raise OptionError(f"there is no loss named {name!r}; allowed are {', '.join(LOSSES)}.")
        try:
            factor = float(weight) if weight else 1.0
        except ValueError:
            factor = math.nan
        if not 0 < factor < math.inf:
            raise OptionError(f"the weight of {name} must be a number above 0, got {weight.strip()!r}.")
        terms.append((factor, LOSSES[name]))
    names = [row.name for _, row in terms]
    if len(set(names)) < len(names):
        raise OptionError(f"the loss {text!r} names a loss twice; give it once, with its weight.")
    return tuple(terms)


def require_neck(loss: str, neck: str) -> None:
    """Raise `OptionError` for a neck in front of losses that all see what is before it."""
    if neck != "none" and all(row.compares for _, row in parse_loss(loss)):
        raise OptionError(
            f"a neck stands before losses that classify, and {loss} only compares images; "
            "add a loss that classifies, or set neck to none."
        )


class Objective(nn.Module):
    """What is minimised: a weighted sum of losses on the projection, and the batch norm of a BNNeck before some.

    With a neck, losses that compare images see the projection, classifiers its batch norm (Luo et al. 2019, "Bag of
    tricks"). Retrieval uses the latter: `folded` makes it part of the projection.
    """

    def __init__(self, loss: str, classes: int, dim: int, *, label_smoothing: float = 0.0, neck: bool = False) -> None:
        super().__init__()
        self.terms = parse_loss(loss)
        self.losses = nn.ModuleList(row.make(classes, dim, label_smoothing) for _, row in self.terms)
        self.neck = nn.BatchNorm1d(dim) if neck else None
        self.classes = classes

    def forward(self, projected: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of `(n, dim)` projections, not normalised; targets `(n,)` or shares `(n, classes)`."""
        behind = projected if self.neck is None else self.neck(projected)
        total = projected.new_zeros(())
        for (weight, row), loss in zip(self.terms, self.losses, strict=True):
            total = total + weight * loss(projected if row.compares else behind, targets)
        return total

    @torch.no_grad()
    def start_from(self, means: torch.Tensor) -> None:
        """Put the mean embedding of each class, `(classes, dim)`, in the place of random proxies."""
        for loss in self.losses:
            for name, parameter in loss.named_parameters():
                if name == "proxies":
                    parameter.copy_(means)
                elif name == "W":  # (dim, proxies), the proxies of a class side by side
                    count = parameter.shape[1] // self.classes
                    rows = means.repeat_interleave(count, dim=0).T
                    # several of one class must not begin as one
                    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
                    parameter.copy_(rows + (0.1 / math.sqrt(len(rows)) * noise if count > 1 else 0))

    @torch.no_grad()
    def folded(self, linear: nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight and bias of the projection with the neck's running statistics and scale in them."""
        if self.neck is None:
            return linear.weight, linear.bias
        assert self.neck.running_mean is not None and self.neck.running_var is not None
        scale = self.neck.weight / torch.sqrt(self.neck.running_var + self.neck.eps)
        shift = self.neck.bias - scale * self.neck.running_mean
        return linear.weight * scale[:, None], linear.bias * scale + shift
