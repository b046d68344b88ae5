"""The table of all trials, as values, as text, and as JSON, CSV, Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lookalike._files import spreadsheet_text, write_csv, write_json, write_text
from lookalike.benchmark.latex import latex_bold, latex_cell, latex_name, latex_table
from lookalike.benchmark.selection import DEFAULT_MEASURE, FALLBACK_MEASURE, Selection, pareto_front
from lookalike.benchmark.trial import SplitMeasures, Trial, format_comparison, format_estimate, format_ms, matching_hit
from lookalike.errors import DataError
from lookalike.evaluation.measures import Measure
from lookalike.models.backbone_files import without_folders
from lookalike.models.info import BenchmarkInfo, MeasuredCandidate
from lookalike.progress import count_noun
from lookalike.types import Comparison, Estimate

# Columns of time, and the field of `Timing` that each shows.
TIMES = {
    "ms p50": "single_p50_ms",
    "ms decode": "single_decode_ms",
    "ms model": "single_model_p50_ms",
    "ms p95": "single_p95_ms",
    "ms batched": "batched_ms",
}
_MANY_ENSEMBLES = 12
_VERSION = 5
DIFFERENCE = "vs winner"  # column of the paired difference of the accuracy to that of the winner

Value = Estimate | Comparison | float | None


@dataclass(frozen=True)
class Row:
    """One trial in the table."""

    trial: Trial
    winner: bool
    on_front: bool  # whether it is on the Pareto front of all candidates, within the budget or not
    difference: Comparison | None = None  # of its accuracy to the winner's, on the same queries; None for the winner

    @property
    def name(self) -> str:
        """Its name in tables, with a mark if it was trained from random weights."""
        return f"{self.trial.name} †" if self.trial.trained_from_random else self.trial.name


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

    def split_measures(self, trial: Trial) -> SplitMeasures:
        """Return the measures of a trial that the table shows."""
        return trial.test if self.measured_on == "test" and trial.test else trial.validation

    @property
    def label(self) -> str:
        """The name of the accuracy in tables, such as "top-3 accuracy"."""
        return Measure.parse(self.measure).title

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures in the table, the accuracy first, none twice."""
        names = [self.measure, matching_hit(self.measure), "hit@1", "map@r"]
        if self.measure == FALLBACK_MEASURE and DEFAULT_MEASURE in self.rows[0].trial.validation.measures:
            names.insert(1, DEFAULT_MEASURE)  # what everybody compares, although another measure decided
        return tuple(dict.fromkeys(names))

    def values(self, row: Row) -> dict[str, Value]:
        """Return the values of a row by column, in the order of the columns; None if nothing was measured."""
        trial, timing = row.trial, row.trial.timing
        means = {name: self.split_measures(trial).measures.get(name) for name in self.measures}
        return {
            self.label: means.pop(self.measure),
            DIFFERENCE: row.difference,
            **means,
            f"validation {self.label}": trial.validation.estimate(self.measure),
            **{column: getattr(timing, name) if timing else None for column, name in TIMES.items()},
            "dimensions": trial.dim,
            "memory MB": timing.peak_memory_mb if timing else None,
        }

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of `cells`."""
        return ("model", "type", *self.values(self.rows[0]))

    def cells(self, row: Row, *, intervals: bool = True) -> tuple[str, ...]:
        """Return a row as text, every mean with its interval or without."""
        values = self.values(row).items()
        accuracy, *others = (format_value(column, value, interval=intervals) for column, value in values)
        if row.trial.state == "untrained":  # nobody should compare with the accuracy of random weights
            accuracy = f"untrained: {accuracy}"
        return (row.name, row.trial.type, accuracy, *others)

    @property
    def header(self) -> tuple[str, ...]:
        """Names of the columns of `short_rows`: only the accuracy has its interval."""
        model, kind, accuracy, *others = self.columns
        return (model, kind, accuracy, "95% interval", *others)

    def short_rows(self, limit: int) -> list[tuple[str, ...]]:
        """Return at most `limit` rows for a terminal: the best ones and always the winner, marked with a star."""
        rows = list(self.rows[:limit])
        if self.winner not in rows:
            rows[-1] = self.winner
        lines = []
        for row in rows:
            name, kind, accuracy, *others = self.cells(row, intervals=False)
            estimate = self.split_measures(row.trial).estimate(self.measure)
            interval = f"{estimate.low:.3f}–{estimate.high:.3f}"
            lines.append((f"★ {name}" if row.winner else name, kind, accuracy, interval, *others))
        return lines

    @property
    def folded(self) -> list[Row]:
        """The rows that tables hide at first: of many ensembles all but the best, those on the front and the winner."""
        ensembles = [row for row in self.rows if row.trial.kind == "ensemble"]
        if len(ensembles) <= _MANY_ENSEMBLES:
            return []
        return [row for row in ensembles[_MANY_ENSEMBLES // 2 :] if not (row.winner or row.on_front)]

    def record(self, selection: Selection, seed: int) -> BenchmarkInfo:
        """Return what the bundle of the winner keeps: no name in it shows a folder of this machine."""
        shown = [row for row in self.rows if row not in self.folded]
        candidates = tuple(
            MeasuredCandidate(
                name=without_folders(row.name),
                type=row.trial.type,
                accuracy=self.split_measures(row.trial).estimate(self.measure),
                ms=row.trial.timing.single_p50_ms if row.trial.timing else None,
                winner=row.winner,
            )
            for row in shown
        )
        reason = selection.reason
        for name in sorted((row.trial.name for row in self.rows), key=len, reverse=True):
            reason = reason.replace(name, without_folders(name))
        winner = without_folders(selection.winner)
        return BenchmarkInfo(winner, reason, seed, self.measure, self.measured_on, candidates)

    @property
    def split_note(self) -> str:
        """Which split decides, and why the figures of the two differ; empty if only validation was measured."""
        if self.measured_on == "validation":
            return ""
        counts = describe_split(self.winner.trial.validation)
        return (
            f"Validation ({counts}) decides which model wins; query and gallery only report. The two differ in images, "
            f"so do not compare the {self.label} of one with that of the other."
        )

    @property
    def caption(self) -> str:
        """The caption of the table."""
        label = self.label.capitalize()
        meaning = f"{label} is {self.measure}" if self.label != self.measure else label
        if self.measure == "precision@1":
            meaning += ", whether the nearest gallery image has the query's class"
        elif self.measure.startswith("precision@"):
            k = self.measure.partition("@")[2]
            meaning += f", the share of the {k} nearest gallery images with the query's class"
        where = "labelled queries and gallery"
        if self.measured_on == "validation":
            where = "validation, because query and gallery have no labels"
        counts = describe_split(self.split_measures(self.rows[0].trial))
        caption = f"{meaning}; measured on {where} ({counts}), with 95% bootstrap intervals over queries."
        if len(self.rows) > 1:
            caption += f" {DIFFERENCE}: the difference to the winner on the same queries (paired bootstrap)."
        if self.measured_on == "test":
            caption += f" {self.split_note}"
        if self.winner.trial.note:
            caption += f" {self.winner.name}: {self.winner.trial.note}"
        if any(row.trial.trained_from_random for row in self.rows):
            caption += " † trained from random weights (of an ensemble: at least one member)."
        return caption


def build_leaderboard(trials: Sequence[Trial], selection: Selection) -> Leaderboard:
    """Build the table of these trials; accuracy is of query and gallery if all trials have it, else of validation."""
    front = [t.name for t in pareto_front(trials, selection.measure)]
    winner = next(t for t in trials if t.name == selection.winner)
    tested = all(t.test is not None for t in trials)

    def difference(trial: Trial) -> Comparison | None:
        if trial is winner:
            return None
        measures, winners = (t.test if tested and t.test else t.validation for t in (trial, winner))
        try:
            return measures.compare(winners, selection.measure)
        except DataError:  # not one query was measured for both
            return None

    rows = [Row(t.summary(), t is winner, t.name in front, difference(t)) for t in trials]
    unordered = Leaderboard("test" if tested else "validation", selection.measure, tuple(rows))

    def rank(row: Row) -> tuple[bool, float, float, str]:
        t = row.trial
        return t.state == "untrained", -unordered.split_measures(t).mean(selection.measure), t.cost_ms, t.name

    return replace(unordered, rows=tuple(sorted(rows, key=rank)))


def format_value(column: str, value: Value, *, interval: bool = True) -> str:
    """Format the value of a column; a mean with its interval or without."""
    if value is None:
        return "–"
    if isinstance(value, Comparison):
        return format_comparison(value)
    if isinstance(value, Estimate):
        return format_estimate(value) if interval else f"{value.mean:.3f}"
    return format_ms(value) if column in TIMES else f"{value:.0f}"


def describe_split(measures: SplitMeasures) -> str:
    """Return the numbers of queries and images in words."""
    text = f"{count_noun(measures.queries, 'query', 'queries')} against {count_noun(measures.gallery, 'image')}"
    if measures.excluded:
        text += f"; {count_noun(measures.excluded, 'query', 'queries')} without a relevant image excluded"
    return text


def folded_summary(count: int) -> str:
    """Return how many ensembles a table hides."""
    return f"{count_noun(count, 'more ensemble')}, none on the Pareto front"


@dataclass(frozen=True)
class RunDescription:
    """How a benchmark was measured, for report and leaderboard; without any path outside the data folder."""

    title: str = "Which model finds it best?"
    date: str = ""  # day of the benchmark
    data: str = ""
    machine: Mapping[str, Any] = field(default_factory=dict)  # processor, cores and versions
    settings: Mapping[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()  # skipped files with their causes
    notes: tuple[str, ...] = ()


def write_leaderboard(out: Path, leaderboard: Leaderboard, selection: Selection, description: RunDescription) -> None:
    """Write leaderboard.json, .csv, .md and .tex into the folder `out`.

    The JSON holds everything but the values per query, which are in trials/*.json.
    """
    content = {
        "version": _VERSION,
        "measure": leaderboard.measure,
        "measured_on": leaderboard.measured_on,
        "caption": leaderboard.caption,
        "selection": selection.to_dict(),
        "description": asdict(description),
        "rows": [
            {
                "winner": r.winner,
                "on_front": r.on_front,
                "vs_winner": r.difference and {**asdict(r.difference), "significant": r.difference.significant},
                **r.trial.to_dict(),
            }
            for r in leaderboard.rows
        ],
    }
    write_json(out / "leaderboard.json", content)
    records = [_csv_record(leaderboard, row) for row in leaderboard.rows]
    write_csv(out / "leaderboard.csv", list(records[0]), (list(record.values()) for record in records))
    write_text(out / "leaderboard.md", markdown(leaderboard, selection))
    write_text(out / "leaderboard.tex", _latex(leaderboard))


def _csv_record(leaderboard: Leaderboard, row: Row) -> dict[str, object]:
    trial = row.trial
    record: dict[str, object] = {"model": spreadsheet_text(trial.name), "type": trial.kind, "state": trial.state}
    flags = {"from_random": trial.from_random, "winner": row.winner, "on_front": row.on_front}
    record |= {name: "yes" if flag else "no" for name, flag in flags.items()}
    for column, value in leaderboard.values(row).items():
        name = column.lower().replace(" ", "_").replace("-", "_")
        if isinstance(value, Estimate | Comparison):
            record |= {
                name: round(value.mean if isinstance(value, Estimate) else value.difference, 6),
                f"{name}_low": round(value.low, 6),
                f"{name}_high": round(value.high, 6),
            }
        elif value is None:
            has_interval = "@" in name or column == DIFFERENCE
            record |= dict.fromkeys((name, f"{name}_low", f"{name}_high") if has_interval else (name,), "")
        else:
            record[name] = round(value, 6)
    return record | {"note": spreadsheet_text(trial.note)}


def markdown(leaderboard: Leaderboard, selection: Selection) -> str:
    """Return the table in Markdown: the reason above; caption, folded ensembles and notes below."""
    folded = leaderboard.folded
    lines = [f"**Winner: {escape(selection.winner)}.** {escape(selection.reason)}", ""]
    lines += table(leaderboard, (row for row in leaderboard.rows if row not in folded))
    lines += ["", escape(leaderboard.caption)]
    if folded:
        lines += ["", f"<details><summary>{folded_summary(len(folded))}</summary>", ""]
        lines += [*table(leaderboard, folded), "", "</details>"]
    trials = [row.trial for row in leaderboard.rows]
    notes = [f"- {escape(t.name)}: {escape(t.note)}" for t in trials if t.note]
    return "\n".join([*lines, *([""] if notes else []), *notes, ""])


def table(leaderboard: Leaderboard, rows: Iterable[Row], *, hidden: Collection[str] = ()) -> Iterator[str]:
    """Yield the lines of a Markdown table: header, separator, then one line per row."""
    columns = [(n, name) for n, name in enumerate(leaderboard.columns) if name not in hidden]
    yield table_line(name for _, name in columns)
    yield "|" + "|".join(":--" if name in ("model", "type") else "--:" for _, name in columns) + "|"
    for row in rows:
        cells = leaderboard.cells(row)
        model, *others = (escape(cells[n]) for n, _ in columns)
        yield table_line([f"**{model}** (winner)" if row.winner else model, *others])


def table_line(cells: Iterable[str]) -> str:
    """Return one line of a Markdown table; the cells are already escaped."""
    return f"| {' | '.join(cells)} |"


def escape(text: str) -> str:
    """Return text that Markdown shows literally, on one line."""
    return " ".join(re.sub(r"[\\|*_`<]", r"\\\g<0>", text).split())


def _latex(leaderboard: Leaderboard) -> str:
    r"""Return a `table*` for `\input`: all measures with their intervals, validation and the time that decided.

    Best first, the winner in bold, without folded ensembles. Time in batches is a mean, decoding included, in seconds;
    that of an ensemble includes all members.
    """
    folded = leaderboard.folded
    shown = [row for row in leaderboard.rows if row not in folded]
    label, tested = leaderboard.label, leaderboard.measured_on == "test"
    measured = [label, DIFFERENCE, *leaderboard.measures[1:]]
    decisive = [f"validation {label}"] if tested else []
    rows = []
    for row in shown:
        cells, timing = dict(zip(leaderboard.columns, leaderboard.cells(row), strict=True)), row.trial.timing
        line = [latex_bold(latex_name(row.name), row.winner), row.trial.kind]
        line += [latex_cell(cells[column], bold=row.winner) for column in (*measured, *decisive, "ms p50")]
        rows.append([*line, latex_bold(f"{timing.batched_ms / 1000:.4f}" if timing else "--", row.winner)])
    groups = [("Query and gallery" if tested else "Validation", [label.capitalize(), *measured[1:]])]
    groups += [("Validation", [label.capitalize()])] if tested else []
    groups += [("Time per image", ["one (ms)", "batched (s)"])]
    return latex_table(_latex_caption(leaderboard, shown), "tab:leaderboard", ("Model", "Type"), groups, rows)


def _latex_caption(leaderboard: Leaderboard, shown: Sequence[Row]) -> str:
    """Return the caption of the table with what is below it in the other files: the notes, and how time was taken."""
    caption = leaderboard.caption
    folded = len(leaderboard.rows) - len(shown)
    if folded:
        caption += f" {folded_summary(folded)}, {'is' if folded == 1 else 'are'} in leaderboard.csv."
    timings = [row.trial.timing for row in leaderboard.rows if row.trial.timing]
    if timings:
        sizes = " or ".join(map(str, sorted({t.batch_size for t in timings})))
        devices = " and ".join(sorted({t.device for t in timings}))
        caption += (
            " Accuracy on validation and the median time of one image decide; the other time is the mean in batches of "
            f"{sizes}, both on {devices}, decoding included. Bold: the winner."
        )
    notes = [f"{row.name}: {row.trial.note}" for row in shown if row.trial.note and not row.winner]
    return " ".join([caption, *notes])
