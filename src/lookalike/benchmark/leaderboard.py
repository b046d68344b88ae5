"""The table of all trials, as values and as rows for people."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lookalike.benchmark.selection import Choice, pareto_front
from lookalike.benchmark.trial import (
    Interval,
    Scores,
    Trial,
    counted,
    hit_beside,
    interval_text,
    measure_label,
    ms_text,
)

_ABSENT = "–"
_MANY_ENSEMBLES = 12
_MARK = "†"
MILLISECONDS = {
    "ms p50": "p50_ms",
    "ms decode": "decode_ms",
    "ms model": "model_ms",
    "ms p95": "p95_ms",
    "ms batched": "batched_ms",
}
"""Columns of time, and where `Row` holds each."""


@dataclass(frozen=True)
class Row:
    """One trial's line: numbers as they are, None where something was not measured.

    `accuracy`, `hit_k`, `hit_1` and `map_r` are of the leaderboard's part, `validation` is the accuracy that the choice
    was made by; each has its 95 % interval, that of `accuracy` in `low` and `high`, the others' in `hit_k_low` and so
    on. The k of `hit_k` is told by `Leaderboard.hit_k`. Milliseconds are per image: `p50_ms`, `decode_ms` and
    `model_ms` are medians of one at a time, the latter two of its parts; `memory_mb` is the peak while measuring.
    `on_front` is of all trials, those over a budget too. `from_random` tells weights that began random.
    """

    model: str
    kind: str
    trained: str
    from_random: bool
    winner: bool
    on_front: bool
    accuracy: float
    low: float
    high: float
    hit_k: float | None
    hit_k_low: float | None
    hit_k_high: float | None
    hit_1: float | None
    hit_1_low: float | None
    hit_1_high: float | None
    map_r: float | None
    map_r_low: float | None
    map_r_high: float | None
    validation: float
    validation_low: float
    validation_high: float
    p50_ms: float | None
    decode_ms: float | None
    model_ms: float | None
    p95_ms: float | None
    batched_ms: float | None
    dim: int
    memory_mb: float | None
    note: str

    @property
    def marked(self) -> bool:
        """Whether it was trained from random weights, which nobody should take for a pretrained start."""
        return self.from_random and self.trained != "untrained"

    @property
    def name(self) -> str:
        """What tables call it: the model, with a mark where it was trained from random weights."""
        return f"{self.model} {_MARK}" if self.marked else self.model

    def interval(self, field: str) -> Interval | None:
        """Return mean, low and high of `accuracy`, `hit_k`, `hit_1`, `map_r` or `validation`."""
        stem = "" if field == "accuracy" else f"{field}_"
        mean, low, high = (getattr(self, name) for name in (field, f"{stem}low", f"{stem}high"))
        return None if mean is None else {"mean": mean, "low": low, "high": high}

    def mean_text(self, field: str, *, interval: bool) -> str:
        """Return such a mean as text, with its interval if asked for."""
        found = self.interval(field)
        if found is None:
            return _ABSENT
        return interval_text(found) if interval else f"{found['mean']:.3f}"

    def accuracy_text(self, *, interval: bool) -> str:
        """Return the accuracy; that of random weights is marked, since nobody should compare with it."""
        text = self.mean_text("accuracy", interval=interval)
        return f"untrained: {text}" if self.trained == "untrained" else text

    def _costs(self) -> tuple[str, ...]:
        times = (getattr(self, field) for field in MILLISECONDS.values())
        memory = _ABSENT if self.memory_mb is None else f"{self.memory_mb:.0f}"
        return (*(_ABSENT if ms is None else ms_text(ms) for ms in times), str(self.dim), memory)


class Groups(NamedTuple):
    """The rows as people can take them in, each group best first."""

    singles: list[Row]
    ensembles: list[Row]
    folded: list[Row]


@dataclass(frozen=True)
class Leaderboard:
    """All trials by accuracy, best first, untrained ones last.

    Attributes:
        part: "test" when every trial was measured on labelled queries and gallery, else "validation".
        measure: the accuracy in the table, for example "precision@3".
        caption: what the numbers are, in words.
        rows: one for each trial.

    """

    part: str
    measure: str
    caption: str
    rows: tuple[Row, ...]

    @property
    def hit_k(self) -> str:
        """The measure that `Row.hit_k` holds, for example "hit@3"."""
        return hit_beside(self.measure)

    @property
    def means(self) -> dict[str, str]:
        """What stands beside the accuracy: the measure's name and its field in `Row`, nothing twice."""
        beside = {self.hit_k: "hit_k", "hit@1": "hit_1", "map@r": "map_r"}
        return {name: field for name, field in beside.items() if name != self.measure}

    @property
    def header(self) -> tuple[str, ...]:
        """Column names for a terminal, in the order of its rows: one interval, that of the accuracy."""
        accuracy = measure_label(self.measure)
        return ("model", "type", accuracy, "95% interval", *self._others(accuracy))

    @property
    def file_header(self) -> tuple[str, ...]:
        """Column names where there is room for every interval, in the order of `file_cells`."""
        accuracy = measure_label(self.measure)
        return ("model", "type", accuracy, *self._others(accuracy))

    def _others(self, accuracy: str) -> tuple[str, ...]:
        return (*self.means, f"validation {accuracy}", *MILLISECONDS, "dimensions", "memory MB")

    def file_cells(self, row: Row) -> tuple[str, ...]:
        """Return a row as text, every mean with its interval, in the order of `file_header`."""
        means = (row.mean_text(field, interval=True) for field in (*self.means.values(), "validation"))
        return (row.name, row.kind, row.accuracy_text(interval=True), *means, *row._costs())

    def _terminal_cells(self, row: Row) -> tuple[str, ...]:
        means = (row.mean_text(field, interval=False) for field in (*self.means.values(), "validation"))
        accuracy = (row.accuracy_text(interval=False), f"{row.low:.3f}–{row.high:.3f}")
        return (f"★ {row.name}" if row.winner else row.name, row.kind, *accuracy, *means, *row._costs())

    def groups(self) -> Groups:
        """Split the rows into singles, ensembles, and ensembles to fold away where there are many of them.

        Never folded are the winner, those on the front, and the best few.
        """
        singles = [r for r in self.rows if r.kind == "single"]
        ensembles = [r for r in self.rows if r.kind == "ensemble"]
        if len(ensembles) <= _MANY_ENSEMBLES:
            return Groups(singles, ensembles, [])
        kept = {r.model for r in ensembles[: _MANY_ENSEMBLES // 2]}
        kept |= {r.model for r in ensembles if r.winner or r.on_front}
        shown = [r for r in ensembles if r.model in kept]
        return Groups(singles, shown, [r for r in ensembles if r.model not in kept])

    def short_rows(self, limit: int) -> list[tuple[str, ...]]:
        """Return at most `limit` rows for a terminal: the best ones, the winner always among them, with a star."""
        kept = list(self.rows[: max(limit, 1)])
        if not any(row.winner for row in kept):
            kept[-1:] = [row for row in self.rows if row.winner] or kept[-1:]
        return [self._terminal_cells(row) for row in kept]


def build_leaderboard(trials: Sequence[Trial], choice: Choice) -> Leaderboard:
    """Return the table of these trials; accuracy is of query and gallery when all trials have it, else of validation.

    Raises:
        OptionError: when `choice.measure` was not taken on a trial.

    """
    tested = bool(trials) and all(t.test is not None for t in trials)
    front = pareto_front(trials, choice.measure)
    rows = [_row(t, t.test if tested and t.test else t.validation, choice, front) for t in trials]
    rows.sort(key=lambda r: (r.trained == "untrained", -r.accuracy, r.p50_ms is None, r.p50_ms or 0.0, r.model))
    part = "test" if tested else "validation"
    caption = _caption(trials, choice.measure, tested)
    if any(row.marked for row in rows):
        caption += f" {_MARK} trained from random weights (of an ensemble: at least one member)."
    return Leaderboard(part, choice.measure, caption, tuple(rows))


def _row(trial: Trial, scores: Scores, choice: Choice, front: Collection[str]) -> Row:
    timing = trial.timing
    accuracy, validation = scores.interval(choice.measure), trial.validation.interval(choice.measure)
    return Row(
        model=trial.name,
        kind=trial.kind,
        trained=trial.trained,
        from_random=trial.from_random,
        winner=trial.name == choice.winner,
        on_front=trial.name in front,
        accuracy=accuracy["mean"],
        low=accuracy["low"],
        high=accuracy["high"],
        **_spread("hit_k", scores, hit_beside(choice.measure)),
        **_spread("hit_1", scores, "hit@1"),
        **_spread("map_r", scores, "map@r"),
        validation=validation["mean"],
        validation_low=validation["low"],
        validation_high=validation["high"],
        p50_ms=timing.single_p50_ms if timing else None,
        decode_ms=timing.single_decode_ms if timing else None,
        model_ms=timing.single_model_p50_ms if timing else None,
        p95_ms=timing.single_p95_ms if timing else None,
        batched_ms=timing.batched_ms if timing else None,
        dim=trial.dim,
        memory_mb=timing.peak_memory_mb if timing else None,
        note=trial.note,
    )


def _spread(field: str, scores: Scores, measure: str) -> dict[str, float | None]:
    """Return a mean and its interval by the names of their fields; None where the measure was not taken."""
    found = scores.measures.get(measure)
    mean, low, high = (found["mean"], found["low"], found["high"]) if found else (None, None, None)
    return {field: mean, f"{field}_low": low, f"{field}_high": high}


def _caption(trials: Sequence[Trial], measure: str, tested: bool) -> str:
    label = measure_label(measure).capitalize()
    meaning = f"{label} is {measure}" if label.lower() != measure else label
    if measure == "precision@1":
        meaning += ", whether the nearest gallery image has the query's class"
    elif measure.startswith("precision@"):
        k = measure.partition("@")[2]
        meaning += f", the share of the {k} nearest gallery images that have the query's class"
    scores = next((t.test if tested and t.test else t.validation for t in trials), None)
    if scores is None:
        return f"{meaning}."
    where = "labelled queries and gallery" if tested else "validation, since query and gallery carry no labels"
    counts = f"{counted(scores.queries, 'query', 'queries')} against {counted(scores.gallery, 'image', 'images')}"
    left_out = ""
    if scores.left_out:
        left_out = f", {counted(scores.left_out, 'query', 'queries')} without a relevant image left out"
    return f"{meaning}; measured on {where} ({counts}{left_out}), with 95% bootstrap intervals over queries."
