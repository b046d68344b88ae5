"""What can be turned in a training run; the defaults are meant to be left alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack, cast

from lookalike.errors import OptionError
from lookalike.evaluation.measures import Measure
from lookalike.training.losses import parse_loss, require_neck
from lookalike.training.mixing import mixes
from lookalike.training.recipe import AUTO, FIELDS, Recipe, RecipeChanges, check_changes, make_recipe, require_recipe
from lookalike.training.sampling import require_sampling


class RunChanges(TypedDict, total=False):
    """The options of a run by name, without those of its recipe."""

    recipe: str
    frozen: bool
    max_minutes: float | None
    patience: int
    stop_on: str
    class_disjoint: bool | None
    allow_leaks: bool
    seed: int


class OptionChanges(RunChanges, RecipeChanges, total=False):
    """The options by name, as `train` and `benchmark` take them; those left out keep what they are."""


_RUN = tuple(RunChanges.__annotations__)

RATES = ("lr", "head_lr")
"""What a run may go on with other values of."""


@dataclass(frozen=True, init=False)
class TrainingOptions:
    """Options of a training run: those of the run itself, a recipe, and changes to it; checked when made.

    Attributes:
        recipe: how the network is trained, by name; `auto` takes the recipe of the network's family.
        changes: fields of `Recipe` in place of what the recipe says.
        frozen: stop after the stage with the backbone frozen, which goes through the images a few times.
        max_minutes: wall-clock budget for each backbone, of one sitting; the number of epochs is planned to fit.
        patience: epochs without a better measure before stopping.
        stop_on: the measure of the validation part which decides early stopping and what is kept.
        class_disjoint: how validation is cut; None decides by the data.
        allow_leaks: train although training images are in query or gallery too.
        seed: of the split, the order, the augmentation and the weights.

    Raises:
        OptionError: for a value outside what is allowed, or a name that is not known.

    """

    recipe: str
    changes: Mapping[str, Any]
    frozen: bool
    max_minutes: float | None
    patience: int
    stop_on: str
    class_disjoint: bool | None
    allow_leaks: bool
    seed: int

    def __init__(
        self,
        *,
        recipe: str = AUTO,
        frozen: bool = False,
        max_minutes: float | None = None,
        patience: int = 3,
        stop_on: str = "map@r",
        class_disjoint: bool | None = None,
        allow_leaks: bool = False,
        seed: int = 0,
        **changes: Unpack[RecipeChanges],
    ) -> None:
        own = {
            "recipe": recipe,
            "changes": dict(changes),
            "frozen": frozen,
            "max_minutes": max_minutes,
            "patience": patience,
            "stop_on": stop_on,
            "class_disjoint": class_disjoint,
            "allow_leaks": allow_leaks,
            "seed": seed,
        }
        for name, value in own.items():
            object.__setattr__(self, name, value)
        require_recipe(recipe)
        check_each(changes)
        together = {name: value for name, value in changes.items() if name in ("loss", "mixup", "cutmix", "neck")}
        _require_fitting(Recipe(**cast("RecipeChanges", together)))
        self._at_least("patience", 1)
        self._at_least("seed", 0)
        for name in ("frozen", "allow_leaks"):
            if not isinstance(own[name], bool):
                raise OptionError(f"{name} must be true or false, got {own[name]!r}.")
        Measure.parse(stop_on)
        if max_minutes is None:
            return
        if not isinstance(max_minutes, int | float):
            raise OptionError(f"max_minutes must be a number, got {max_minutes!r}.")
        if not (max_minutes > 0 and math.isfinite(max_minutes)):
            raise OptionError(f"max_minutes must be above 0, got {max_minutes}.")

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise OptionError(f"{name} must be a whole number of at least {least}, got {value!r}.")

    def recipe_for(self, family: str, *, unseen: bool = False) -> Recipe:
        """Return the whole recipe for a network of that family, see `family_of`; `unseen` as in `make_recipe`.

        Raises:
            OptionError: fields that cannot be together.

        """
        recipe = make_recipe(self.recipe, family, unseen=unseen, **cast("RecipeChanges", self.changes))
        require_sampling(recipe)
        _require_fitting(recipe)
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """Return a plain structure for JSON; `TrainingOptions(**it)` makes the same again."""
        return {name: getattr(self, name) for name in _RUN} | dict(self.changes)

    def without_rates(self) -> dict[str, Any]:
        """Return the same without what a run may go on with other values of: what names a run, sorted by name."""
        return {name: value for name, value in sorted(self.to_dict().items()) if name not in RATES}


def check_each(changes: RecipeChanges) -> None:
    """Raise `OptionError` for a field that no recipe has, or a value that is never allowed, whatever the others are."""
    check_changes(changes)
    if "loss" in changes:
        parse_loss(changes["loss"])


def _require_fitting(recipe: Recipe) -> None:
    """Raise `OptionError` for a loss that takes neither the neck before it nor images that are mixed."""
    require_neck(recipe.loss, recipe.neck)
    mixes(recipe)


def changed_options(options: TrainingOptions | None, changes: OptionChanges) -> TrainingOptions:
    """Return the options, by default the usual ones, with what was given by name in place of what they say."""
    return TrainingOptions(**{**(options or TrainingOptions()).to_dict(), **changes})


def option_names() -> tuple[str, ...]:
    """Return the names of all options: those of a run, then those of a recipe."""
    return (*_RUN, *FIELDS)
