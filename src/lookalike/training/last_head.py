"""The head that is kept with a fine-tuned backbone: the trained one, or one fitted to what the backbone sees now.

Fine-tuning pulls the training classes together in some directions more than in others. Evening that out in closed form
costs one pass over the training images, and nothing at search time. It pays most where the classes to be found are
unseen, where the classifier's own head fits the wrong ones (figures in docs/log.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lookalike.embeddings.fit import Features
from lookalike.models.member import TrainableEncoder
from lookalike.models.projection import Whitening
from lookalike.training.start import Rows
from lookalike.types import Vectors

Fit = tuple[float, float]
"""Shrinkage and emphasis, as `fit_whitened` takes them."""

FITS: tuple[Fit, ...] = tuple((shrinkage, emphasis) for shrinkage in (0.1, 0.3, 0.5, 0.7) for emphasis in (1.0, 2.0))


@dataclass(frozen=True)
class Kept:
    """A share of the fine-tuned weights with a head fitted to them, and what validation measures of it."""

    share: float
    fit: Fit
    measure: float


def set_last_head(member: TrainableEncoder, whitening: Whitening, fit: Fit, images: int) -> None:
    """Put a whitening of the present backbone's features in the member's head.

    Args:
        member: fine-tuned; only its head is changed.
        whitening: of the features of the training images, as its backbone sees them now.
        fit: shrinkage and emphasis.
        images: how many there were.

    """
    shrinkage, emphasis = fit
    member.head.set(*whitening.fit(shrinkage, emphasis))
    words = f"shrinkage {shrinkage:g}, emphasis {emphasis:g}"
    member.origin["head"] = f"whitened within the classes of {images} images after training, {words}"
    member.changed()


def best_last_head(
    member: TrainableEncoder,
    shares: Sequence[float],
    weights: Callable[[float], dict[str, torch.Tensor]],
    see: Callable[[float], tuple[Features, Rows]],
    measure: Callable[[], Callable[[], float]],
    at_least: float,
    *,
    seed: int,
    may_go_on: Callable[[], bool] = lambda: True,
) -> Kept | None:
    """Set the member to the mixture of weights and the head fitted to it that measure best.

    Args:
        member: is left as it is when none measures above `at_least`.
        shares: of the fine-tuned weights, to be tried in this order.
        weights: makes the mixture of a share.
        see: takes the features of the training images with the member's present backbone, and their class rows; is
            told the share.
        measure: prepares the validation measure for the present backbone; what it returns takes it for a head.
        at_least: what the trained head measures; minus infinity to take the best in any case.
        seed: of the completing basis.
        may_go_on: asked before each share but the first.

    """
    backbone, origin = member.state(), dict(member.origin)
    best: Kept | None = None
    head: tuple[Vectors, Vectors] | None = None
    for number, share in enumerate(shares):
        if number and not may_go_on():
            break
        mixture = weights(share)
        member.load_state(mixture)
        features, targets = see(share)
        whitening = Whitening(features.rows, targets, member.dim, seed=seed)
        take = measure()
        for fit in FITS:
            set_last_head(member, whitening, fit, len(features.ids))
            found = take()
            if found > (at_least if best is None else best.measure):
                best, head = Kept(share, fit, found), whitening.fit(*fit)
                backbone, origin = mixture, dict(member.origin)
    member.load_state(backbone)
    if head is not None:
        member.head.set(*head)
    member.origin.update(origin)
    member.changed()
    return best


def joined_features(parts: Sequence[Features], ids: Sequence[str]) -> Features:
    """Bring what several processes computed into the order of the ids; what none could read is left out."""
    rows = {i: row for part in parts for i, row in zip(part.ids, part.rows, strict=True)}
    found = tuple(i for i in ids if i in rows)
    return Features(found, np.stack([rows[i] for i in found]), tuple(s for part in parts for s in part.skipped))
