"""Selection of the winner: the cheapest candidate that is not significantly less accurate than the most accurate one.

Only measures on validation decide. Selecting by query and gallery would make their accuracy optimistic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lookalike.benchmark.trial import Trial, format_difference, format_ms
from lookalike.errors import DataError, OptionError
from lookalike.evaluation.measures import Measure
from lookalike.models.info import FROZEN
from lookalike.progress import count_noun
from lookalike.types import Comparison

DEFAULT_MEASURE = "precision@3"
FALLBACK_MEASURE = "map@r"  # whatever the number of relevant images, a perfect ranking reaches 1
# Of candidates that are not significantly less accurate than the most accurate one: that one, or the cheapest.
Preference = Literal["efficiency", "accuracy"]
PREFERENCES: tuple[Preference, ...] = ("efficiency", "accuracy")
SATURATED = 0.97  # a best mean above it leaves too little room to tell candidates apart
# Costs within 1 % of the cheapest are equal: combinations of the same members differ by less, as do repeated timings.
_SAME_COST = 1.01


@dataclass(frozen=True)
class Selection:
    """The winner of a benchmark, and why."""

    winner: str  # name of the winning trial
    reason: str  # the selection in words, with its numbers
    front: tuple[str, ...]  # names on the Pareto front of accuracy and time within the budget, cheapest first
    most_accurate: str  # name of the most accurate candidate within the budget
    comparisons: Mapping[str, Comparison]  # of each other trial on the front with the most accurate one, paired
    excluded: Mapping[str, str]  # cause by name for every trial that cannot win
    measure: str = DEFAULT_MEASURE  # the accuracy that was compared
    budget_ms: float | None = None  # maximum milliseconds per image
    ceiling: float = 1.0  # mean of the measure on validation that the best possible ranking has

    def to_dict(self) -> dict[str, Any]:
        """Return a plain structure for JSON."""
        plain = asdict(self)
        for name, comparison in self.comparisons.items():
            plain["comparisons"][name]["significant"] = comparison.significant
        return plain


def pareto_front(trials: Iterable[Trial], measure: str = DEFAULT_MEASURE) -> list[Trial]:
    """Return the candidates that no other one dominates in validation accuracy and time, cheapest first.

    A candidate is dominated by another that is at least as accurate and at least as fast, and better in one of both.
    Equal ones are all on the front. O(n log n).
    """
    front: list[Trial] = []
    best, best_cost = -math.inf, -math.inf
    candidates = [t for t in trials if t.is_candidate]
    for trial in sorted(candidates, key=lambda t: (t.cost_ms, -t.validation.mean(measure), *_preference(t))):
        accuracy = trial.validation.mean(measure)
        if accuracy > best or (accuracy == best and trial.cost_ms == best_cost):
            front.append(trial)
            best, best_cost = accuracy, trial.cost_ms
    return front


def is_saturated(trials: Iterable[Trial], measure: str) -> bool:
    """Whether validation cannot tell the best candidates apart by a measure, because they are near its largest value.

    That is if the best mean is above 97 % of it, or if the intervals of most candidates reach it. A choice would be by
    chance. One candidate alone needs no choice.
    """
    estimates = [t.validation.estimate(measure) for t in trials if t.is_candidate]
    largest = Measure.parse(measure).max_value
    reaching = sum(e.high >= largest - 1e-9 for e in estimates)  # rounding can miss it
    return len(estimates) > 1 and (
        max(e.mean for e in estimates) > SATURATED * largest or 2 * reaching > len(estimates)
    )


def default_measure(trials: Sequence[Trial], ceiling: float) -> tuple[str, str]:
    """Return the measure to select by if the user named none, and a sentence that gives the cause; "" for precision@3.

    It is map@r where validation has too few images per class for a precision@3 of 1, which is its `ceiling` there, or
    where precision@3 is saturated.
    """
    if ceiling < 1:
        cause = f"validation has too few images per class for a {DEFAULT_MEASURE} above {ceiling:.3f}"
    elif is_saturated(trials, DEFAULT_MEASURE):
        best = max(t.validation.mean(DEFAULT_MEASURE) for t in trials if t.is_candidate)
        cause = f"candidates reach a {DEFAULT_MEASURE} of {best:.3f} on validation, too close to 1 to tell them apart"
    else:
        return DEFAULT_MEASURE, ""
    return FALLBACK_MEASURE, f"The measure is {FALLBACK_MEASURE}, because {cause}."


def select(
    trials: Sequence[Trial],
    *,
    measure: str = DEFAULT_MEASURE,
    budget_ms: float | None = None,
    ceiling: float = 1.0,
    measure_note: str = "",
    prefer: Preference = "efficiency",
) -> Selection:
    """Select the cheapest trial on the Pareto front that is not significantly less accurate than the most accurate.

    Accuracy is the validation mean of `measure`, cost the median time of one image. Significance is a paired
    bootstrap over the same queries. Costs within 1 % are equal; of these the most accurate wins, then a frozen
    candidate before a fine-tuned one, then the first by name. With `prefer` accuracy the most accurate one wins.
    `ceiling` is the best mean that validation allows; the reason names it if it is below 1, and `measure_note`, a
    sentence on the choice of the measure. Query and gallery never decide; the reason names the best candidate that is
    significantly better there than the winner. Raises `OptionError` if no trial can win.
    """
    excluded = {t.name: cause for t in trials if (cause := _exclusion(t, budget_ms))}
    allowed = [t for t in trials if t.name not in excluded]
    if not allowed:
        raise _no_winner(trials, budget_ms)
    front = pareto_front(allowed, measure)
    best = _most_accurate(allowed, measure)
    comparisons = {t.name: t.validation.compare(best.validation, measure) for t in front if t is not best}
    worse = {name for name, c in comparisons.items() if c.significant and c.difference < 0}
    remaining = [t for t in front if t.name not in worse]
    cheapest = [t for t in remaining if t.cost_ms <= remaining[0].cost_ms * _SAME_COST]
    efficient = max(cheapest, key=lambda t: t.validation.mean(measure))
    winner = best if prefer == "accuracy" else efficient
    reason = list(_explain(winner, best, front, comparisons, measure, efficient))
    if ceiling < 1:
        title = Measure.parse(measure).title
        reason.insert(1, f"No model can reach more than {ceiling:.3f} there: {title} of the best possible ranking.")
    if budget_ms is not None:
        over_budget = [t for t in trials if t.is_candidate and t.name in excluded]
        reason.append(_explain_budget(over_budget, budget_ms, measure))
    reason += [measure_note] if measure_note else []
    reason += _explain_test(winner, allowed, measure)
    names = tuple(t.name for t in front)
    return Selection(
        winner.name, " ".join(reason), names, best.name, comparisons, excluded, measure, budget_ms, ceiling
    )


def require_budget(budget_ms: float | None) -> None:
    """Raise `OptionError` unless the budget is None or a positive number."""
    if budget_ms is not None and not (math.isfinite(budget_ms) and budget_ms > 0):
        raise OptionError(
            f"`budget_ms` must be a positive number of milliseconds, got {budget_ms}.", argument="budget_ms"
        )


def require_preference(prefer: str) -> Preference:
    """Return what is preferred; raise `OptionError` for anything but accuracy and efficiency."""
    for preference in PREFERENCES:
        if prefer == preference:
            return preference
    raise OptionError(f"`prefer` must be one of {', '.join(PREFERENCES)}, got {prefer!r}.", argument="prefer")


def _preference(trial: Trial) -> tuple[bool, int, str]:
    """Order trials that are equal in accuracy and cost: frozen first, then by the number of trained members."""
    return trial.state != FROZEN, sum(m.state != FROZEN for m in trial.members), trial.name


def _most_accurate(trials: Iterable[Trial], measure: str) -> Trial:
    return min(trials, key=lambda t: (-t.validation.mean(measure), t.cost_ms, *_preference(t)))


def _exclusion(trial: Trial, budget_ms: float | None) -> str:
    if not trial.exclusion and budget_ms is not None and trial.cost_ms > budget_ms:
        return f"over the budget: {format_ms(trial.cost_ms)} ms per image, the limit is {format_ms(budget_ms)}"
    return trial.exclusion


def _no_winner(trials: Sequence[Trial], budget_ms: float | None) -> OptionError:
    candidates = sorted((t for t in trials if t.is_candidate), key=lambda t: (t.cost_ms, t.name))
    if budget_ms is None or not candidates:
        causes = "; ".join(f"{t.name}: {t.exclusion}" for t in trials[:3])
        return OptionError(
            f"none of {count_noun(len(trials), 'trial')} can win{f' ({causes})' if causes else ''}; "
            "benchmark at least one backbone with trained weights."
        )
    fastest = candidates[0]
    return OptionError(
        f"no candidate takes at most {budget_ms:g} ms per image; the fastest, {fastest.name}, takes "
        f"{format_ms(fastest.cost_ms)} ms; set `budget_ms` to {math.ceil(fastest.cost_ms * 10) / 10:g} or more.",
        argument="budget_ms",
    )


def _explain(
    winner: Trial,
    best: Trial,
    front: Sequence[Trial],
    comparisons: Mapping[str, Comparison],
    measure: str,
    efficient: Trial,
) -> Iterator[str]:
    interval = winner.validation.estimate(measure)
    yield (
        f"{winner.name} has a {Measure.parse(measure).title} of {interval.mean:.3f} on validation (95% interval "
        f"{interval.low:.3f} to {interval.high:.3f}) at {format_ms(winner.cost_ms)} ms per image."
    )
    if winner is not best:
        ratio = best.cost_ms / winner.cost_ms
        times = f"{ratio:.1f} times " if ratio >= 1.05 else ""  # never "1.0 times faster"
        yield (
            f"The most accurate candidate, {best.name}, reaches {best.validation.mean(measure):.3f} at "
            f"{format_ms(best.cost_ms)} ms; the paired difference of {_format(comparisons[winner.name])} is not "
            f"significant, and the winner is {times}faster."
        )
    if winner is not efficient:
        yield (
            "It is the most accurate candidate, which was preferred to the cheapest one that is not significantly less "
            f"accurate, {efficient.name} at {format_ms(efficient.cost_ms)} ms: {_format(comparisons[efficient.name])}."
        )
        return
    faster = [t for t in front if t.cost_ms * _SAME_COST < winner.cost_ms]
    if winner is best and not faster:
        yield "It is the most accurate candidate, and no other is faster."
    elif winner is best:
        yield "It is the most accurate candidate, and each faster one on the front is significantly less accurate."
    if faster:
        yield (
            f"The next faster one, {faster[-1].name}, takes {format_ms(faster[-1].cost_ms)} ms but is significantly "
            f"less accurate than the most accurate: {_format(comparisons[faster[-1].name])}."
        )


def _explain_test(winner: Trial, allowed: Sequence[Trial], measure: str) -> Iterator[str]:
    """Name the best candidate that is significantly better than the winner on query and gallery, if there is one."""
    better = []
    for trial in allowed:
        if trial is winner or trial.test is None or winner.test is None:
            continue
        try:
            comparison = trial.test.compare(winner.test, measure)
        except DataError:  # not one query was measured for both
            continue
        if comparison.significant and comparison.difference > 0:
            better.append((comparison, trial.name))
    if better:
        comparison, name = min(better, key=lambda pair: (-pair[0].difference, pair[1]))
        which = "is" if len(better) == 1 else f"is the best of {len(better)} candidates that are"
        yield (
            f"On query and gallery, which never decide, {name} {which} significantly better than the winner: "
            f"{_format(comparison)}."
        )


def _format(comparison: Comparison) -> str:
    difference, low, high = map(format_difference, (comparison.difference, comparison.low, comparison.high))
    return f"{difference} (95% interval {low} to {high})"


def _explain_budget(over_budget: Sequence[Trial], budget_ms: float, measure: str) -> str:
    if not over_budget:
        return f"The budget of {budget_ms:g} ms excluded no candidate."
    best = _most_accurate(over_budget, measure)
    which = "" if len(over_budget) == 1 else "the most accurate of them "
    return (
        f"The budget of {budget_ms:g} ms excluded {count_noun(len(over_budget), 'candidate')}, "
        f"{which}{best.name} ({best.validation.mean(measure):.3f} at {format_ms(best.cost_ms)} ms)."
    )
