"""The table of all trials, as values and as rows for people."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lookalike.bench.selection import Choice, pareto_front
from lookalike.bench.trial import Scores, Trial, measure_label, ms_text

_ABSENT = "–"
_MANY_ENSEMBLES = 12


@dataclass(frozen=True)
class Row:
    """One trial's line: numbers as they are, None where something was not measured.

    `accuracy`, `low`, `high`, `hit_3`, `hit_1` and `map_r` are of the leaderboard's part, `validation` is the accuracy
    that the choice was made by. Milliseconds are per image; `memory_mb` is the peak while measuring. `on_front` is of
    all trials, those over a budget too.
    """

    model: str
    kind: str
    trained: str
    winner: bool
    on_front: bool
    accuracy: float
    low: float
    high: float
    hit_3: float | None
    hit_1: float | None
    map_r: float | None
    validation: float
    p50_ms: float | None
    p95_ms: float | None
    batched_ms: float | None
    dim: int
    memory_mb: float | None
    note: str

    def accuracy_text(self) -> str:
        """Return the accuracy; that of random weights is marked, since nobody should compare with it."""
        return f"untrained ({self.accuracy:.3f})" if self.trained == "untrained" else f"{self.accuracy:.3f}"

    def cells(self) -> tuple[str, ...]:
        """Return the line as text, in the order of `Leaderboard.header`."""
        return (
            self.model,
            self.kind,
            self.accuracy_text(),
            f"{self.low:.3f}–{self.high:.3f}",
            _number(self.hit_3),
            _number(self.hit_1),
            _number(self.map_r),
            f"{self.validation:.3f}",
            _milliseconds(self.p50_ms),
            _milliseconds(self.p95_ms),
            _milliseconds(self.batched_ms),
            str(self.dim),
            _ABSENT if self.memory_mb is None else f"{self.memory_mb:.0f}",
        )


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
    def header(self) -> tuple[str, ...]:
        """Column names for people, in the order of `Row.cells`."""
        accuracy = measure_label(self.measure)
        return (
            "model", "type", accuracy, "95% interval", "hit@3", "hit@1", "map@r", f"validation {accuracy}",
            "ms p50", "ms p95", "ms batched", "dimensions", "memory MB",
        )  # fmt: skip

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

    @property
    def terminal_rows(self) -> list[tuple[str, ...]]:
        """All rows as text for a terminal; the winner's name carries a star."""
        return [_starred(row) for row in self.rows]

    def short_rows(self, limit: int) -> list[tuple[str, ...]]:
        """Return at most `limit` rows for a terminal: the best ones, the winner always among them."""
        kept = list(self.rows[: max(limit, 1)])
        if not any(row.winner for row in kept):
            kept[-1:] = [row for row in self.rows if row.winner] or kept[-1:]
        return [_starred(row) for row in kept]


def _starred(row: Row) -> tuple[str, ...]:
    model, *others = row.cells()
    return (f"★ {model}" if row.winner else model, *others)


def _number(value: float | None) -> str:
    return _ABSENT if value is None else f"{value:.3f}"


def _milliseconds(value: float | None) -> str:
    return _ABSENT if value is None else ms_text(value)


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
    return Leaderboard(part, choice.measure, _caption(trials, choice.measure, tested), tuple(rows))


def _row(trial: Trial, scores: Scores, choice: Choice, front: Collection[str]) -> Row:
    accuracy = scores.interval(choice.measure)
    timing = trial.timing
    hit_3, hit_1, map_r = (
        scores.measures[name]["mean"] if name in scores.measures else None for name in ("hit@3", "hit@1", "map@r")
    )
    return Row(
        model=trial.name,
        kind=trial.kind,
        trained=trial.trained,
        winner=trial.name == choice.winner,
        on_front=trial.name in front,
        accuracy=accuracy["mean"],
        low=accuracy["low"],
        high=accuracy["high"],
        hit_3=hit_3,
        hit_1=hit_1,
        map_r=map_r,
        validation=trial.validation.mean(choice.measure),
        p50_ms=timing.single_p50_ms if timing else None,
        p95_ms=timing.single_p95_ms if timing else None,
        batched_ms=timing.batched_ms if timing else None,
        dim=trial.dim,
        memory_mb=timing.peak_memory_mb if timing else None,
        note=trial.note,
    )


def _caption(trials: Sequence[Trial], measure: str, tested: bool) -> str:
    label = measure_label(measure).capitalize()
    meaning = f"{label} is {measure}" if label.lower() != measure else label
    if measure.startswith("precision@"):
        k = measure.partition("@")[2]
        meaning += f", the share of the {k} nearest gallery images that have the query's class"
    scores = next((t.test if tested and t.test else t.validation for t in trials), None)
    if scores is None:
        return f"{meaning}."
    where = "labelled queries and gallery" if tested else "validation, since query and gallery carry no labels"
    counts = f"{scores.queries:,} queries against {scores.gallery:,} images"
    left_out = f", {scores.left_out:,} queries without a relevant image left out" if scores.left_out else ""
    return f"{meaning}; measured on {where} ({counts}{left_out}), with its 95% bootstrap interval over queries."
