"""The report: one HTML file with the choice, the table, the plot, the classes and pictures of good and bad searches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookalike._files import write_text
from lookalike._html import Thumbnails, page_environment
from lookalike.benchmark.leaderboard import MILLISECONDS, Leaderboard, build_leaderboard
from lookalike.benchmark.markdown import more_ensembles
from lookalike.benchmark.pareto_plot import pareto_svg
from lookalike.benchmark.selection import Choice
from lookalike.benchmark.trial import Trial, counted, measure_label, ms_text
from lookalike.evaluation.bootstrap import bootstrap_interval

_LISTED_FILES = 40


@dataclass(frozen=True)
class Example:
    """One query of the winner with its top hits, for showing.

    Attributes:
        query_id: the query's id.
        query_path: its file.
        query_label: its class, None where nobody said.
        hits: id, file, label and cosine score of each hit, best first.
        value: the query's value of the accuracy that was chosen by, 0 to 1.

    """

    query_id: str
    query_path: Path
    query_label: str | None
    hits: Sequence[tuple[str, Path, str | None, float]]
    value: float


@dataclass(frozen=True)
class ClassScore:
    """The winner's accuracy on the queries of one class, with its 95 % interval."""

    label: str
    queries: int
    mean: float
    low: float
    high: float


def class_scores(values: Mapping[str, float], labels: Mapping[str, str | None]) -> list[ClassScore]:
    """Group the values of queries by their labels, hardest class first; queries without a label are passed over.

    Args:
        values: a measure's value by query id.
        labels: class by query id.

    """
    groups: dict[str, list[float]] = defaultdict(list)
    for query, value in values.items():
        label = labels.get(query)
        if label is not None:
            groups[label].append(value)
    scores = []
    for label, found in groups.items():
        low, high = bootstrap_interval(found)
        scores.append(ClassScore(label, len(found), sum(found) / len(found), float(low), float(high)))
    return sorted(scores, key=lambda s: (s.mean, s.label))


def best_and_worst(
    values: Mapping[str, float], labels: Mapping[str, str | None], count: int = 6
) -> tuple[list[str], list[str]]:
    """Return the ids of the best and of the worst queries, spread over the classes, none in both.

    Args:
        values: a measure's value by query id.
        labels: class by query id; each class gives its first before any gives its second.
        count: how many of each at most; fewer when there are not twice as many queries.

    """
    count = min(count, len(values) // 2)
    worst = _spread(values, labels, count, sign=1)
    best = _spread({q: v for q, v in values.items() if q not in worst}, labels, count, sign=-1)
    return best, worst


def _spread(values: Mapping[str, float], labels: Mapping[str, str | None], count: int, sign: int) -> list[str]:
    """Take the lowest `sign * value` first; among equal ones the class that was taken least often, then the id."""
    chosen: list[str] = []
    taken: dict[str | None, int] = defaultdict(int)
    left = dict(values)
    while left and len(chosen) < count:
        query = min(left, key=lambda q: (sign * left[q], taken[labels.get(q)], q))
        taken[labels.get(query)] += 1
        chosen.append(query)
        del left[query]
    return chosen


def write_report(
    path: Path,
    trials: Sequence[Trial],
    choice: Choice,
    context: Mapping[str, Any],
    examples: Sequence[Example] = (),
    per_class: Sequence[ClassScore] = (),
) -> None:
    """Write the report as one HTML file that needs no other file, no network and no script.

    Args:
        path: the file to write.
        trials: all trials.
        choice: what `select` returned for them.
        context: how it was measured; all keys may be absent: `title` (str), `data` (str, one or more lines),
            `machine` and `settings` (name to value, shown as they are), `skipped` (files left out with their causes),
            `notes` (sentences).
        examples: queries of the winner; the better half by `value` is shown as the best, the others as the worst.
        per_class: the winner's accuracy by class, as `class_scores` returns it.

    Raises:
        StorageError: when the file cannot be written.
        OptionError: when `choice.measure` was not taken on a trial.

    """
    board = build_leaderboard(trials, choice)
    singles, ensembles, folded = board.groups()
    numbers = {row.model: number for number, row in enumerate([*singles, *ensembles, *folded], start=1)}
    shown, hidden = _skipped(context)
    ordered = sorted(examples, key=lambda e: -e.value)
    middle = (len(ordered) + 1) // 2
    pictures, queries = Thumbnails(), Thumbnails(size=192)
    page = page_environment().get_template("report.html.j2")
    write_text(
        Path(path),
        page.render(
            title=context.get("title", "Which model finds it best?"),
            data=str(context.get("data", "")),
            choice=choice,
            board=board,
            label=measure_label(choice.measure),
            winner=next(row for row in board.rows if row.winner),
            groups=[("Single models", singles), ("Ensembles", ensembles)],
            folded=folded,
            more=more_ensembles(len(folded)),
            times={name.removeprefix("ms "): field for name, field in MILLISECONDS.items()},
            numbers=numbers,
            wide=pareto_svg(trials, choice, numbers, size=(860, 460), names=True),
            narrow=pareto_svg(trials, choice, numbers, size=(360, 380), names=False),
            drawn=sum(t.is_candidate for t in trials),
            per_class=per_class,
            best=[_shown(e, queries, pictures) for e in ordered[:middle]],
            worst=[_shown(e, queries, pictures) for e in reversed(ordered[middle:])],
            facts=_facts(trials, board, context),
            notes=[*context.get("notes", ()), *(f"{t.name}: {t.note}" for t in trials if t.note)],
            skipped=shown,
            skipped_more=hidden,
            ms=ms_text,
        ),
    )


def _shown(example: Example, queries: Thumbnails, pictures: Thumbnails) -> dict[str, Any]:
    label = example.query_label
    return {
        "id": example.query_id,
        "label": label,
        "value": example.value,
        "picture": queries.uri(example.query_path),
        "hits": [
            {
                "id": item,
                "score": score,
                "picture": pictures.uri(path),
                "same": None if label is None or found is None else found == label,
                "caption": found or "",
            }
            for item, path, found, score in example.hits
        ],
    }


def _facts(trials: Sequence[Trial], board: Leaderboard, context: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Say how it was measured, as names and values."""
    timings = [t.timing for t in trials if t.timing]
    facts = [("Accuracy", board.caption)]
    validation = trials[0].validation
    facts.append(
        (
            "Choice",
            f"by validation only: {counted(validation.queries, 'query', 'queries')} against "
            f"{counted(validation.gallery, 'image', 'images')}{_left_out(validation.left_out)}; "
            "cost is the median time of one image",
        )
    )
    if timings:
        threads, devices = _range(t.threads for t in timings), ", ".join(sorted({t.device for t in timings}))
        engines = ", ".join(sorted({t.runtime for t in timings}))
        timed = (
            f"warm, file to embedding with decoding; {_range(t.images for t in timings)} images one at a time, "
            f"then in batches of {_range(t.batch_size for t in timings)}; "
            f"{threads} {'thread' if threads == '1' else 'threads'} on {devices}, by {engines}; "
            "decode is reading and preparing the picture, model the rest, each with a median of its own"
        )
        facts.append(("Time", timed))
        facts.append(("Memory", "the process's peak while measuring, the deep-learning runtime included"))
    for group in ("machine", "settings"):
        for name, value in context.get(group, {}).items():
            facts.append((str(name).replace("_", " ").capitalize(), _value(value)))
    return facts


def _left_out(count: int) -> str:
    return f", {count:,} without a relevant image left out" if count else ""


def _range(numbers: Iterable[int]) -> str:
    found = sorted(set(numbers))
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)


def _skipped(context: Mapping[str, Any]) -> tuple[list[str], int]:
    """Return the skipped files to list, and how many more there are."""
    files = [str(entry) for entry in context.get("skipped", ())]
    return files[:_LISTED_FILES], len(files) - len(files[:_LISTED_FILES])
