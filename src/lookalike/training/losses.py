"""The table of losses, and how a weighted sum of them is written; imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lookalike.errors import OptionError

CROSS_ENTROPY = "cross-entropy"


@dataclass(frozen=True)
class Loss:
    """One row of the table of losses."""

    name: str
    description: str  # what it is, with its source
    compares: bool = False  # whether it compares the images of a batch, so that a batch needs several images per class
    whole_batch: bool = False  # whether it is otherwise not a mean over the images of a batch
    kind: str = ""  # its class in pytorch-metric-learning; empty for cross-entropy
    settings: Mapping[str, Any] = field(default_factory=dict)
    miner: str = ""  # the class that selects pairs or triplets for it; empty for none
    miner_settings: Mapping[str, Any] = field(default_factory=dict)


# The scale of 16 is smaller than in papers on faces, which have thousands of classes. With a margin it still makes the
# classes compact; without one the gradient vanishes earlier (see `frozen_stage.logit_scale`).
_ANGLE = {"margin": math.degrees(0.3), "scale": 16}

LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss(CROSS_ENTROPY, "linear classifier with softmax"),
        Loss("normalised-softmax", "cross-entropy of scaled cosines to one proxy per class (Zhai and Wu 2019)",
             kind="NormalizedSoftmaxLoss", settings={"temperature": 1 / 16}),
        Loss("arcface", "normalised-softmax with an angular margin (Deng et al. 2019)",
             kind="ArcFaceLoss", settings=_ANGLE),
        Loss("cosface", "normalised-softmax with a cosine margin (Wang et al. 2018)",
             kind="CosFaceLoss", settings={"margin": 0.2, "scale": 16}),
        Loss("subcenter-arcface", "arcface with three proxies per class (Deng et al. 2020)",
             kind="SubCenterArcFaceLoss", settings={**_ANGLE, "sub_centers": 3}),
        Loss("proxy-anchor", "each proxy against all images of a batch (Kim et al. 2020)", whole_batch=True,
             kind="ProxyAnchorLoss"),
        Loss("multi-similarity", "mined pairs, weighted by three similarities (Wang et al. 2019)", compares=True,
             kind="MultiSimilarityLoss", miner="MultiSimilarityMiner"),
        Loss("triplet", "hardest positive and hardest negative of the batch (Hermans et al. 2017)", compares=True,
             kind="TripletMarginLoss", settings={"margin": 0.2}, miner="BatchHardMiner"),
        Loss("triplet-semihard", "negatives farther away than the positive, but within the margin (Schroff et al. "
             "2015)", compares=True, kind="TripletMarginLoss", settings={"margin": 0.2}, miner="TripletMarginMiner",
             miner_settings={"margin": 0.2, "type_of_triplets": "semihard"}),
        Loss("supervised-contrastive", "all positives against all other images (Khosla et al. 2020)", compares=True,
             kind="SupConLoss", settings={"temperature": 0.1}),
    )
}  # fmt: skip


def parse_loss(text: object) -> tuple[tuple[float, Loss], ...]:
    """Read `cross-entropy+0.5*multi-similarity` as weights and losses."""
    terms: list[tuple[float, Loss]] = []
    for part in str(text).split("+"):
        factor, _, name = part.strip().rpartition("*")
        name = name.strip()
        if name not in LOSSES:
            raise OptionError(f"`loss` must be made of {', '.join(LOSSES)}, got {name!r} in {text!r}.", argument="loss")
        try:
            weight = float(factor) if factor else 1.0
        except ValueError:
            weight = math.nan
        if not 0 < weight < math.inf:
            raise OptionError(
                f"the weight of {name} in `loss` must be a number above 0, got {factor.strip()!r}.", argument="loss"
            )
        terms.append((weight, LOSSES[name]))
    names = [loss.name for _, loss in terms]
    if len(set(names)) < len(names):
        raise OptionError(f"`loss` {text!r} contains a loss twice; write it once, with its weight.", argument="loss")
    return tuple(terms)
