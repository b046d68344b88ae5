"""Mixing the images of a batch and their labels: Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from lookalike.errors import OptionError
from lookalike.training.losses import CROSS_ENTROPY, parse_loss
from lookalike.training.recipe import Recipe


def mixes(recipe: Recipe) -> bool:
    """Whether a recipe mixes images.

    Raises:
        OptionError: it does, and its loss takes one class an image.

    """
    if not (recipe.mixup or recipe.cutmix):
        return False
    names = [row.name for _, row in parse_loss(recipe.loss)]
    if names != [CROSS_ENTROPY]:
        raise OptionError(
            f"mixup and cutmix give an image two classes, which only {CROSS_ENTROPY} takes; got the loss "
            f"{recipe.loss!r}, so give the loss {CROSS_ENTROPY}, or set both to 0."
        )
    return True


def mixed(
    x: torch.Tensor, targets: torch.Tensor, classes: int, recipe: Recipe, key: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `(n, 3, h, w)` images, some of another in each, and the shares of the classes `(n, classes)`.

    Args:
        x: the batch; is not changed.
        targets: class rows `(n,)`.
        classes: how many there are.
        recipe: alphas and probability; with both kinds on, each batch takes one by chance.
        key: numbers that decide all chance: seed, epoch, step.

    """
    shares = torch.nn.functional.one_hot(targets, classes).float()
    random = np.random.default_rng([*key, 7])
    if random.random() >= recipe.mix_probability:
        return x, shares
    kinds = [kind for kind in ("mixup", "cutmix") if getattr(recipe, kind)]
    kind = kinds[int(random.integers(len(kinds)))]
    alpha = getattr(recipe, kind)
    kept = float(random.beta(alpha, alpha))
    other = torch.from_numpy(random.permutation(len(x))).to(x.device)
    if kind == "mixup":
        x = kept * x + (1 - kept) * x[other]
    else:
        height, width = x.shape[2:]
        h, w = (round(side * math.sqrt(1 - kept)) for side in (height, width))
        top, left = int(random.integers(height - h + 1)), int(random.integers(width - w + 1))
        x = x.clone()
        x[:, :, top : top + h, left : left + w] = x[other][:, :, top : top + h, left : left + w]
        kept = 1 - h * w / (height * width)
    return x, kept * shares + (1 - kept) * shares[other]
