"""The table of all trials, as values and as text for terminals, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lookalike.benchmark.selection import Selection, pareto_front
from lookalike.benchmark.trial import Scores, Trial, counted, format_estimate, format_ms, matching_hit, measure_label
from lookalike.evaluation.evaluation import Estimate

# Columns of time, and the field of `Timing` that each shows.
TIMES = {
    "ms p50": "single_p50_ms",
    "ms decode": "single_decode_ms",
    "ms model": "single_model_p50_ms",
    "ms p95": "single_p95_ms",
    "ms batched": "batched_ms",
}
_MANY_ENSEMBLES = 12

Value = Estimate | float | None


@dataclass(frozen=True)
class Row:
    """One trial in the table."""

    trial: Trial
    winner: bool
    on_front: bool  # whether it is on the Pareto front of all candidates, within the budget or not

    @property
    def name(self) -> str:
        """Its name in tables, with a mark if it was trained from random weights."""
        return f"{self.trial.name} †" if self.trial.trained_from_random else self.trial.name


class Groups(NamedTuple):
    """Rows by type, each group best first; `folded` are ensembles that tables hide at first."""

    singles: list[Row]
    ensembles: list[Row]
    folded: list[Row]


@dataclass(frozen=True)
class Leaderboard:
    """All trials by accuracy, best first, untrained ones last."""

    measured_on: str  # "test" (query and gallery) if every trial was measured there, else "validation"
    measure: str  # the accuracy in the table, such as "precision@3"
    rows: tuple[Row, ...]

    @property
    def winner(self) -> Row:
        """The row of the winner."""
        return next(row for row in self.rows if row.winner)

    def scores(self, trial: Trial) -> Scores:
        """Return the scores of a trial that the table shows."""
        return trial.test if self.measured_on == "test" and trial.test else trial.validation

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures in the table, the accuracy first, none twice."""
        return tuple(dict.fromkeys((self.measure, matching_hit(self.measure), "hit@1", "map@r")))

    def values(self, row: Row) -> dict[str, Value]:
        """Return the values of a row by column, in the order of the columns; None where nothing was measured."""
        label, trial, timing = measure_label(self.measure), row.trial, row.trial.timing
        means = {name: self.scores(trial).measures.get(name) for name in self.measures}
        return {
            label: means.pop(self.measure),
            **means,
            f"validation {label}": trial.validation.estimate(self.measure),
            **{column: getattr(timing, field) if timing else None for column, field in TIMES.items()},
            "dimensions": trial.dim,
            "memory MB": timing.peak_memory_mb if timing else None,
        }

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of `cells`."""
        return ("model", "type", *self.values(self.rows[0]))

    def cells(self, row: Row) -> tuple[str, ...]:
        """Return a row as text, every mean with its interval."""
        accuracy, *others = (format_value(column, value) for column, value in self.values(row).items())
        return (row.name, row.trial.kind, _with_state(row, accuracy), *others)

    @property
    def header(self) -> tuple[str, ...]:
        """Names of the columns of `short_rows`: only the accuracy has its interval."""
        model, kind, accuracy, *others = self.columns
        return (model, kind, accuracy, "95% interval", *others)

    def short_rows(self, limit: int) -> list[tuple[str, ...]]:
        """Return at most `limit` rows for a terminal: the best ones and always the winner, marked with a star."""
        rows = list(self.rows[: max(limit, 1)])
        if self.winner not in rows:
            rows[-1] = self.winner
        return [self._short_cells(row) for row in rows]

    def _short_cells(self, row: Row) -> tuple[str, ...]:
        accuracy, *others = (format_value(name, v, interval=False) for name, v in self.values(row).items())
        interval = self.scores(row.trial).estimate(self.measure)
        name = f"★ {row.name}" if row.winner else row.name
        return (name, row.trial.kind, _with_state(row, accuracy), f"{interval.low:.3f}–{interval.high:.3f}", *others)

    def groups(self) -> Groups:
        """Group the rows; of many ensembles only the best, those on the front and the winner are not folded."""
        singles = [r for r in self.rows if r.trial.kind == "single"]
        ensembles = [r for r in self.rows if r.trial.kind == "ensemble"]
        if len(ensembles) <= _MANY_ENSEMBLES:
            return Groups(singles, ensembles, [])
        best = ensembles[: _MANY_ENSEMBLES // 2]
        shown = [r for r in ensembles if r in best or r.winner or r.on_front]
        return Groups(singles, shown, [r for r in ensembles if r not in shown])

    @property
    def caption(self) -> str:
        """The caption of the table."""
        label = measure_label(self.measure).capitalize()
        meaning = f"{label} is {self.measure}" if label.lower() != self.measure else label
        if self.measure == "precision@1":
            meaning += ", whether the nearest gallery image has the query's class"
        elif self.measure.startswith("precision@"):
            k = self.measure.partition("@")[2]
            meaning += f", the share of the {k} nearest gallery images with the query's class"
        where = "labelled queries and gallery"
        if self.measured_on == "validation":
            where = "validation, since query and gallery have no labels"
        counts = describe_scores(self.scores(self.rows[0].trial))
        caption = f"{meaning}; measured on {where} ({counts}), with 95% bootstrap intervals over queries."
        if any(row.trial.trained_from_random for row in self.rows):
            caption += " † trained from random weights (of an ensemble: at least one member)."
        return caption


def build_leaderboard(trials: Sequence[Trial], selection: Selection) -> Leaderboard:
    """Build the table of these trials; accuracy is of query and gallery if all trials have it, else of validation."""
    front = pareto_front(trials, selection.measure)
    rows = tuple(Row(t.summary(), t.name == selection.winner, t.name in front) for t in trials)
    tested = all(t.test is not None for t in trials)
    table = Leaderboard("test" if tested else "validation", selection.measure, rows)

    def rank(row: Row) -> tuple[bool, float, float, str]:
        t = row.trial
        return t.state == "untrained", -table.scores(t).mean(selection.measure), t.cost_ms, t.name

    return Leaderboard(table.measured_on, table.measure, tuple(sorted(rows, key=rank)))


def format_value(column: str, value: Value, *, interval: bool = True) -> str:
    """Format the value of a column; a mean with its interval or without."""
    if value is None:
        return "–"
    if isinstance(value, Estimate):
        return format_estimate(value) if interval else f"{value.mean:.3f}"
    return format_ms(value) if column in TIMES else f"{value:.0f}"


def _with_state(row: Row, accuracy: str) -> str:
    # nobody should compare with the accuracy of random weights
    return f"untrained: {accuracy}" if row.trial.state == "untrained" else accuracy


def describe_scores(scores: Scores) -> str:
    """Return the numbers of queries and images in words."""
    text = f"{counted(scores.queries, 'query', 'queries')} against {counted(scores.gallery, 'image', 'images')}"
    if scores.excluded:
        text += f"; {counted(scores.excluded, 'query', 'queries')} without a relevant image excluded"
    return text


def folded_summary(count: int) -> str:
    """Return how many ensembles a table hides."""
    return f"{counted(count, 'more ensemble', 'more ensembles')}, none on the Pareto front"
