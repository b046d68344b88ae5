"""Plan the next fine-tuning from measured rates and scores; none is started that cannot end before the deadline.

Fine-tuning follows successive halving (Jamieson and Talwalkar 2016) by the expected gain per minute: where the recipes
of all promising backbones do not fit into the time, each is trained for a quarter of its recipe first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

QUARTER = 0.25
# share of the distance to a perfect score that fine-tuning is expected to close, before any backbone has shown it
_EXPECTED_GAIN = 0.25
# what a second model of another kind adds to an ensemble, as a share of the distance to a perfect score
_ENSEMBLE_GAIN = 0.1
# what another training of a complete backbone, with another seed, adds to an ensemble
_REPEAT_GAIN = 0.05
_MAX_COMPLETE, _MAX_RUNS = 3, 5
# estimates of seconds may be too small by this factor
_SAFETY = 1.15
_CLOSE = 0.6  # an expected gain per minute that is this close to the best is a contender
_COMPLETE_SHARE = 0.7  # of a recipe; such a run counts as one with all of it
_USEFUL_SHARE = 0.2  # less of a recipe is not worth its time


@dataclass(frozen=True)
class BackboneResults:
    """What was measured of a backbone so far."""

    name: str
    score: float  # validation measure of the frozen backbone with its best head, from 0 to 1
    recipe_seconds: float  # of fine-tuning with the whole recipe, validation and embedding included
    refit_factor: float  # seconds of a training on all labelled images, relative to one on training alone
    runs: tuple[Run, ...] = ()  # the fine-tunings so far

    @property
    def best(self) -> float:
        """The best score so far."""
        return max([self.score, *(run.score for run in self.runs)])

    @property
    def complete(self) -> int:
        """Number of runs with the whole recipe, or nearly."""
        return sum(run.share >= _COMPLETE_SHARE for run in self.runs)


@dataclass(frozen=True)
class Run:
    """One fine-tuning: the share of the recipe that its time allowed, and its score."""

    share: float
    score: float


@dataclass(frozen=True)
class FineTuning:
    """A planned fine-tuning: a backbone, seconds, and the reason in words."""

    backbone: str
    seconds: float
    reason: str


def plan_fine_tuning(backbones: Sequence[BackboneResults], seconds_left: float) -> FineTuning | None:
    """Return the fine-tuning that promises the largest gain per minute and can be refitted in time; None if none can.

    Args:
        backbones: those that can be fine-tuned, with a frozen score.
        seconds_left: until the deadline, without what the end of the competition needs.
    """
    best = max((b.best for b in backbones), default=0.0)
    gain = _observed_gain(backbones)
    options = []
    for backbone in backbones:
        if backbone.complete >= _MAX_COMPLETE or len(backbone.runs) >= _MAX_RUNS:
            continue
        # the fine-tuning and its refit on all images have to fit
        seconds = min(backbone.recipe_seconds, seconds_left / _SAFETY / (1 + backbone.refit_factor))
        tried = 0.0 if backbone.complete else max((run.share for run in backbone.runs), default=0.0)
        if seconds < max(_USEFUL_SHARE, 1.5 * tried) * backbone.recipe_seconds:
            continue
        if backbone.complete:
            value = backbone.best - best + _REPEAT_GAIN * (1 - best)
        else:
            # a quarter of the recipe shows about half of its gain
            expected = backbone.best + (gain if not backbone.runs else gain / 2) * (1 - backbone.best)
            value = expected - best + _ENSEMBLE_GAIN * (1 - best)
        if value > 0:
            options.append((value / seconds, backbone, seconds))
    if not options:
        return None
    options.sort(key=lambda option: (-option[0], option[1].name))
    rate, backbone, seconds = options[0]
    contenders = [b for r, b, _ in options if r >= _CLOSE * rate]
    needed = sum(_SAFETY * b.recipe_seconds for b in contenders) + backbone.refit_factor * backbone.recipe_seconds
    quarter = QUARTER * backbone.recipe_seconds
    if len(contenders) > 1 and needed > seconds_left and not backbone.runs and quarter < 0.15 * seconds_left:
        others = len(contenders) - 1
        return FineTuning(
            backbone.name, quarter, f"a quarter of the recipe first, because {others} more backbones are promising"
        )
    share = seconds / backbone.recipe_seconds
    whole = "the whole recipe" if share >= 0.99 else f"{share:.0%} of the recipe"
    return FineTuning(backbone.name, seconds, f"{whole}: the largest expected gain per minute")


def _observed_gain(backbones: Sequence[BackboneResults]) -> float:
    """Return the share of the distance to a perfect score that complete runs have closed, or the expectation."""
    gains = [(max(run.score for run in b.runs) - b.score) / (1 - b.score) for b in backbones if b.runs and b.score < 1]
    return max(0.0, sum(gains) / len(gains)) if gains else _EXPECTED_GAIN


def fits(seconds: float, seconds_left: float) -> bool:
    """Whether a step of about `seconds` ends in time."""
    return _SAFETY * seconds <= seconds_left
