"""The order in which an epoch shows the images, decided by seed and epoch alone: a resumed run sees the same."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lookalike.errors import OptionError
from lookalike.training.losses import parse_loss
from lookalike.training.recipe import Recipe

Rows = npt.NDArray[np.int64]


def sampler_of(recipe: Recipe) -> str:
    """Return the recipe's sampler; `auto` is pk where a loss compares the images of a batch."""
    if recipe.sampler != "auto":
        return recipe.sampler
    return "pk" if any(row.compares for _, row in parse_loss(recipe.loss)) else "shuffled"


def require_sampling(recipe: Recipe) -> None:
    """Raise `OptionError` when a batch of the sampler pk would hold fewer than two classes."""
    at_once = recipe.batch_size // recipe.per_class
    if sampler_of(recipe) == "pk" and at_once < 2:
        raise OptionError(
            f"the sampler pk needs at least two classes a batch, but a batch_size of {recipe.batch_size} holds "
            f"{at_once} of per_class {recipe.per_class}; raise one or lower the other."
        )


def epoch_order(targets: Rows, recipe: Recipe, *, seed: int, epoch: int) -> Rows:
    """Return as many rows as there are images, in the order of the epoch.

    Args:
        targets: `(n,)` class of each image.
        recipe: its sampler, batch size and images a class decide.
        seed: of the run.
        epoch: counted from 0.

    """
    random = np.random.default_rng([seed, epoch])
    sampler = sampler_of(recipe)
    if sampler == "shuffled":
        return random.permutation(len(targets)).astype(np.int64)
    if sampler == "class-aware":
        return _class_aware(targets, random)
    return _pk(targets, recipe.batch_size, recipe.per_class, random)


def turns(order: Rows) -> Rows:
    """Return for each place of an order how often its row stands before it."""
    seen: dict[int, int] = {}
    found = np.zeros(len(order), np.int64)
    for place, row in enumerate(order.tolist()):
        found[place] = seen.get(row, 0)
        seen[row] = found[place] + 1
    return found


class _Dealer:
    """Deals the images of a class, every one before any again."""

    def __init__(self, rows: Rows, random: np.random.Generator) -> None:
        self.rows = rows
        self.random = random
        self.left: list[int] = []

    def deal(self, count: int) -> list[int]:
        dealt: list[int] = []
        while len(dealt) < count:
            if not self.left:
                self.left = self.random.permutation(self.rows).tolist()
            dealt.append(self.left.pop())
        return dealt


def _dealers(targets: Rows, random: np.random.Generator) -> list[_Dealer]:
    return [_Dealer(np.flatnonzero(targets == c), random) for c in np.unique(targets)]


def _class_aware(targets: Rows, random: np.random.Generator) -> Rows:
    """Every class as often, its images in turn (Shen et al. 2016, "Relay backpropagation")."""
    dealers = _dealers(targets, random)
    order: list[int] = []
    while len(order) < len(targets):
        for c in random.permutation(len(dealers)):
            order += dealers[c].deal(1)
    return np.array(order[: len(targets)], dtype=np.int64)


def _pk(targets: Rows, batch_size: int, per_class: int, random: np.random.Generator) -> Rows:
    """Batches of P classes with K images each (Hermans et al. 2017), classes in turn."""
    at_once = batch_size // per_class
    dealers = _dealers(targets, random)
    order: list[int] = []
    waiting: list[int] = []
    while len(order) < len(targets):
        if len(waiting) < at_once:
            fresh = [int(c) for c in random.permutation(len(dealers)) if c not in waiting]
            waiting += fresh
        chosen, waiting = waiting[:at_once], waiting[at_once:]
        # with fewer classes than a batch holds, each gives more
        share = batch_size // len(chosen)
        counts = [share + (n < batch_size % len(chosen)) for n in range(len(chosen))]
        for c, count in zip(chosen, counts, strict=True):
            order += dealers[c].deal(count)
    return np.array(order[: len(targets)], dtype=np.int64)
