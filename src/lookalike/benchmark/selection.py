"""Choosing the winner: the cheapest candidate that is not significantly less accurate than the best one.

Only the validation part is looked at. The accuracy on query and gallery is for reporting; choosing by it would make it
too good to be true.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike.benchmark.trial import Trial, counted, measure_label, ms_text, signed_text
from lookalike.errors import OptionError
from lookalike.evaluation.bootstrap import Comparison, paired_bootstrap

DEFAULT_MEASURE = "precision@3"
_SAME_COST = 0.01  # of the smaller one


@dataclass(frozen=True)
class Choice:
    """Which trial won, and why.

    Attributes:
        winner: name of the chosen trial.
        reason: the choice in words, with its numbers.
        front: names on the Pareto front of accuracy and time among the candidates within the budget, cheapest first.
        most_accurate: name of the most accurate candidate within the budget.
        comparisons: for each other name on the front, its validation accuracy less the most accurate one's, paired.
        excluded: name to cause for every trial that could not be chosen.
        measure: the accuracy that was compared.
        budget_ms: the most an image might cost, None for no limit.

    """

    winner: str
    reason: str
    front: list[str]
    most_accurate: str
    comparisons: Mapping[str, Comparison]
    excluded: Mapping[str, str]
    measure: str = DEFAULT_MEASURE
    budget_ms: float | None = field(default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return a plain structure for JSON."""
        plain = asdict(self)
        for name, found in self.comparisons.items():
            plain["comparisons"][name]["significant"] = found.significant
        return plain


def pareto_front(trials: Iterable[Trial], measure: str = DEFAULT_MEASURE) -> list[str]:
    """Return the names of the trials that no other beats on validation accuracy and time together, cheapest first.

    A trial is beaten by one that is at least as accurate and at least as fast, and better in one of the two; equal
    ones stand together. Only candidates take part (`Trial.is_candidate`). O(n log n).

    Raises:
        OptionError: when `measure` was not taken on a trial.

    """
    front: list[str] = []
    best, best_cost = -math.inf, -math.inf
    for trial in _by_cost((t for t in trials if t.is_candidate), measure):
        accuracy = trial.validation.mean(measure)
        if accuracy > best or (accuracy == best and trial.cost_ms == best_cost):
            front.append(trial.name)
            best, best_cost = accuracy, trial.cost_ms
    return front


def select(trials: Sequence[Trial], *, measure: str = DEFAULT_MEASURE, budget_ms: float | None = None) -> Choice:
    """Choose the cheapest trial on the Pareto front that is not significantly less accurate than the most accurate.

    Accuracy is the validation mean of `measure`, cost the median time of one image; significance is a paired
    bootstrap over the same queries. Costs within 1 % of the cheapest count as equal: two ways of joining the same
    members differ by less, and no measurement is as exact. Among equal costs the more accurate goes first; among those
    equal in both, what keeps its pretrained weights goes before what was fine-tuned, then the name decides.

    Args:
        trials: all trials; those that are no candidates (`Trial.is_candidate`) are excluded, with their cause.
        measure: the accuracy to choose by.
        budget_ms: the most that `timing.single_p50_ms` of the winner may be.

    Raises:
        OptionError: when no trial can be chosen, two share a name, or the budget is not a positive number.

    """
    _check(trials, budget_ms)
    excluded = {t.name: _cause(t, budget_ms) for t in trials if _cause(t, budget_ms)}
    allowed = [t for t in trials if t.name not in excluded]
    if not allowed:
        raise OptionError(_nothing_left(trials, budget_ms))
    by_name = {t.name: t for t in allowed}
    front = pareto_front(allowed, measure)
    best = _most_accurate(allowed, measure)
    comparisons = {name: _compare(by_name[name], best, measure) for name in front if name != best.name}
    worse = {name for name, found in comparisons.items() if found.significant and found.difference < 0}
    winner = _cheapest([by_name[name] for name in front if name not in worse], measure)
    over = [t for t in trials if t.is_candidate and t.name in excluded]
    reason = " ".join(
        [*_reason(winner, best, [by_name[n] for n in front], comparisons, measure), *_budget(over, budget_ms, measure)]
    )
    return Choice(winner.name, reason, front, best.name, comparisons, excluded, measure, budget_ms)


def _by_cost(trials: Iterable[Trial], measure: str) -> list[Trial]:
    return sorted(trials, key=lambda t: (t.cost_ms, -t.validation.mean(measure), *_risk(t)))


def _most_accurate(trials: Iterable[Trial], measure: str) -> Trial:
    return min(trials, key=lambda t: (-t.validation.mean(measure), t.cost_ms, *_risk(t)))


def _risk(trial: Trial) -> tuple[bool, int, str]:
    """Order trials that are equal otherwise: frozen ones first, then by how many members are called fine-tuned.

    A model that validation took back to its pretrained weights keeps that name and goes after the frozen one it equals.
    """
    return trial.trained != "frozen", sum(m.endswith(" fine-tuned") for m in trial.members), trial.name


def _cheapest(front: Sequence[Trial], measure: str) -> Trial:
    """Return the most accurate of those that cost as much as the first; among equals the first stays."""
    cheapest = [t for t in front if t.cost_ms <= front[0].cost_ms * (1 + _SAME_COST)]
    return max(cheapest, key=lambda t: t.validation.mean(measure))


def _check(trials: Sequence[Trial], budget_ms: float | None) -> None:
    names = [t.name for t in trials]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise OptionError(f"trials need distinct names, but {twice!r} stands more than once.")
    if budget_ms is not None and not (math.isfinite(budget_ms) and budget_ms > 0):
        raise OptionError(f"--budget-ms must be a positive number of milliseconds, got {budget_ms}.")


def _cause(trial: Trial, budget_ms: float | None) -> str:
    """Say why a trial cannot be chosen; empty when it can."""
    if trial.trained == "untrained":
        return "untrained: its weights are random"
    if trial.leaked:
        return "its training may have seen images that it is measured on"
    if trial.timing is None:
        return "its time was not measured"
    if budget_ms is not None and trial.cost_ms > budget_ms:
        return f"over the budget: {ms_text(trial.cost_ms)} ms per image, allowed are {ms_text(budget_ms)}"
    return ""


def _nothing_left(trials: Sequence[Trial], budget_ms: float | None) -> str:
    candidates = [t for t in trials if t.is_candidate]
    if budget_ms is None or not candidates:
        which = "there is no trial to choose from"
        if len(trials) == 1:
            which = f"the only trial, {trials[0].name}, cannot be chosen ({_cause(trials[0], None)})"
        elif trials:
            which = f"none of the {len(trials)} trials can be chosen, since each is untrained, untimed, or leaked"
        return f"{which}; benchmark at least one backbone with trained weights."
    fastest = min(candidates, key=lambda t: (t.cost_ms, t.name))
    which = "the only one" if len(candidates) == 1 else f"the fastest of {len(candidates)}"
    return (
        f"no candidate takes at most {budget_ms:g} ms per image; {which}, {fastest.name}, "
        f"takes {ms_text(fastest.cost_ms)} ms, so give --budget-ms {math.ceil(fastest.cost_ms * 10) / 10:g} or more."
    )


def _compare(trial: Trial, best: Trial, measure: str) -> Comparison:
    """Compare two trials on the queries that both have, in the order of the best one's."""
    ours = _by_query(trial, measure)
    theirs = _by_query(best, measure)
    shared = [query for query in theirs if query in ours]
    if not shared:
        raise OptionError(f"{trial.name!r} and {best.name!r} need validation queries in common, but share none.")
    return paired_bootstrap(_values(ours, shared), _values(theirs, shared))


def _by_query(trial: Trial, measure: str) -> dict[str, float]:
    scores = trial.validation
    if measure not in scores.values:
        raise OptionError(f"{trial.name!r} has no values of {measure!r} for each query; measure it again.")
    return dict(zip(scores.query_ids, scores.values[measure], strict=True))


def _values(by_query: Mapping[str, float], queries: Sequence[str]) -> npt.NDArray[np.float64]:
    return np.array([by_query[query] for query in queries], dtype=np.float64)


def _reason(
    winner: Trial, best: Trial, front: Sequence[Trial], comparisons: Mapping[str, Comparison], measure: str
) -> Iterable[str]:
    label = measure_label(measure)
    own = winner.validation.interval(measure)
    yield (
        f"{winner.name} has a {label} of {own['mean']:.3f} on validation (95% interval {own['low']:.3f} to "
        f"{own['high']:.3f}) at {ms_text(winner.cost_ms)} ms per image."
    )
    if winner.name != best.name:
        found = comparisons[winner.name]
        yield (
            f"The most accurate candidate, {best.name}, reaches {best.validation.mean(measure):.3f} at "
            f"{ms_text(best.cost_ms)} ms; the paired difference of {signed_text(found.difference)} (95% interval "
            f"{signed_text(found.low)} to {signed_text(found.high)}) is not significant, and the chosen one is "
            f"{_times(best.cost_ms / winner.cost_ms)}faster."
        )
    elif all(t.cost_ms * (1 + _SAME_COST) >= winner.cost_ms for t in front):
        yield "It is the most accurate candidate, and none is faster."
    else:
        yield "It is the most accurate candidate, and each faster one on the front is significantly less accurate."
    faster = [t for t in front if t.cost_ms * (1 + _SAME_COST) < winner.cost_ms]
    if faster:
        nearest = faster[-1]
        found = comparisons[nearest.name]
        yield (
            f"The next faster one, {nearest.name}, takes {ms_text(nearest.cost_ms)} ms but is significantly less "
            f"accurate than the most accurate: {signed_text(found.difference)} (95% interval "
            f"{signed_text(found.low)} to {signed_text(found.high)})."
        )


def _times(ratio: float) -> str:
    """Write how many times; nothing where that would read 1.0."""
    return f"{ratio:.1f} times " if ratio >= 1.05 else ""


def _budget(over: Sequence[Trial], budget_ms: float | None, measure: str) -> Iterable[str]:
    if budget_ms is None:
        return
    if not over:
        yield f"The budget of {budget_ms:g} ms excluded nothing."
        return
    best = _most_accurate(over, measure)
    which = "" if len(over) == 1 else "the most accurate of them "
    yield (
        f"The budget of {budget_ms:g} ms excluded {counted(len(over), 'candidate', 'candidates')}, {which}{best.name} "
        f"({best.validation.mean(measure):.3f} at {ms_text(best.cost_ms)} ms)."
    )
