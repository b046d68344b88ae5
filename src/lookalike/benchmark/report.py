"""The report: one HTML file with the winner, the table, the plot, the classes, and images of good and bad searches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lookalike._files import write_text
from lookalike._html import Thumbnails, page_environment
from lookalike.benchmark.leaderboard import (
    DIFFERENCE,
    TIMES,
    Leaderboard,
    RunDescription,
    describe_split,
    folded_summary,
    format_value,
)
from lookalike.benchmark.pareto_plot import pareto_svg
from lookalike.benchmark.selection import Selection
from lookalike.benchmark.spec import BenchmarkSpec
from lookalike.benchmark.timing import machine
from lookalike.data.dataset import Dataset, Item
from lookalike.evaluation.evaluation import ClassMean, Evaluation
from lookalike.evaluation.measures import Measure
from lookalike.evaluation.reliability import Reliability
from lookalike.types import Skipped

_SKIPPED = 40
_HITS = 8
_EXAMPLES = 6
_CLASSES = 10  # shown at first


def describe_run(spec: BenchmarkSpec, skipped: Sequence[Skipped]) -> RunDescription:
    """Return how a benchmark was measured."""
    data, options = spec.data, spec.options
    validation = f"{len(data.validation)} images, each queried against all others"
    if data.validation_query_ids:
        validation = f"{len(data.validation_query)} queries in a gallery of {len(data.validation_gallery)}"
    settings = {"seed": options.seed, "validation": validation}
    if spec.finetune:
        limit = f", at most {options.max_minutes:g} minutes" if options.max_minutes is not None else ""
        changes = "".join(f", {name} {value}" for name, value in sorted(options.overrides.items()))
        recipe = f"recipe {options.recipe}{limit}{changes}, early stopping on {options.stop_on}"
        settings["fine-tuning"] = "head only" if options.frozen else recipe
    times = "Times depend on the architecture: trials that differ only in their weights share one measurement."
    paths = [
        s.path.relative_to(data.root).as_posix() if s.path.is_relative_to(data.root) else s.path.name for s in skipped
    ]
    return RunDescription(
        title=spec.title or RunDescription.title,
        date=datetime.now().astimezone().date().isoformat(),
        data=data.summary(data.root.resolve().name or "data"),
        machine=machine(),
        settings=settings,
        skipped=tuple(f"{path}: {s.cause}" for path, s in zip(paths, skipped, strict=True)),
        notes=(times, *spec.notes),
    )


@dataclass(frozen=True)
class Example:
    """One query of the winner: its first hits with their scores, and its value of the accuracy, 0 to 1."""

    query: Item
    hits: Sequence[tuple[Item, float]]
    value: float


def best_and_worst(
    values: Mapping[str, float], labels: Mapping[str, str | None], count: int
) -> tuple[list[str], list[str]]:
    """Return the ids of the best and of the worst queries, spread over the classes, none in both.

    `values` and `labels` are by query id; at most half of the queries are the best ones, and as many the worst.
    """
    count = min(count, len(values) // 2)
    worst = _lowest(values, labels, count)
    best = _lowest({q: -v for q, v in values.items() if q not in worst}, labels, count)
    return best, worst


def _lowest(values: Mapping[str, float], labels: Mapping[str, str | None], count: int) -> list[str]:
    queries: list[str] = []
    per_class = Counter[str | None]()
    for _ in range(count):
        remaining = (q for q in values if q not in queries)
        query = min(remaining, key=lambda q: (values[q], per_class[labels.get(q)], q))
        per_class[labels.get(query)] += 1
        queries.append(query)
    return queries


def find_examples(evaluation: Evaluation, measure: str, data: Dataset) -> list[Example]:
    """Return the best and the worst queries of the winner with their first hits."""
    items = {i.id: i for i in data.items}
    values = dict(zip(evaluation.query_ids, evaluation.per_query(measure).tolist(), strict=True))
    hits = {query.query_id: query[:_HITS] for query in evaluation.hits}
    best, worst = best_and_worst(values, {q: items[q].label for q in values}, _EXAMPLES)
    return [Example(items[q], [(items[h.id], h.score) for h in hits[q]], values[q]) for q in (*best, *worst)]


def write_report(
    path: Path,
    leaderboard: Leaderboard,
    selection: Selection,
    description: RunDescription,
    examples: Sequence[Example],
    per_class: Mapping[str, ClassMean],
    *,
    reliability: Reliability | None = None,
) -> None:
    """Write the report as one HTML file that needs no other file, no network and no script.

    The better half of the examples by `value` is shown as the best queries, the others as the worst. Without a
    calibration there is no reliability curve.
    """
    folded = leaderboard.folded
    singles = [row for row in leaderboard.rows if row.trial.kind == "single"]
    ensembles = [row for row in leaderboard.rows if row.trial.kind == "ensemble" and row not in folded]
    trials = [row.trial for row in (*singles, *ensembles, *folded)]
    numbers = {t.name: number for number, t in enumerate(trials, start=1)}
    ordered = sorted(examples, key=lambda e: -e.value)
    middle = (len(ordered) + 1) // 2
    hardest = sorted(per_class.items(), key=lambda c: (c[1].mean, c[0]))
    thumbnails = Thumbnails()
    page = page_environment().get_template("report.html.j2").render(
        description=description,
        selection=selection,
        board=leaderboard,
        label=leaderboard.label,
        max_value=Measure.parse(leaderboard.measure).max_value,
        difference=DIFFERENCE,
        groups=[("Single models", singles), ("Ensembles", ensembles)],
        folded=folded,
        folded_summary=folded_summary(len(folded)),
        times=[name.removeprefix("ms ") for name in TIMES],
        format_value=format_value,
        numbers=numbers,
        wide=pareto_svg(trials, selection, numbers, size=(860, 460), names=True),
        narrow=pareto_svg(trials, selection, numbers, size=(360, 380), names=False),
        candidates=sum(t.is_candidate for t in trials),
        hardest=hardest[:_CLASSES],
        other_classes=hardest[_CLASSES:],
        reliability=reliability,
        best=[_search(e, thumbnails) for e in ordered[:middle]],
        worst=[_search(e, thumbnails) for e in reversed(ordered[middle:])],
        facts=_facts(leaderboard, description),
        notes=[*description.notes, *(f"{t.name}: {t.note}" for t in trials if t.note)],
        skipped=description.skipped[:_SKIPPED],
        skipped_more=len(description.skipped[_SKIPPED:]),
    )  # fmt: skip
    write_text(path, page)


def _search(example: Example, thumbnails: Thumbnails) -> dict[str, Any]:
    query = example.query
    return {
        "id": query.id,
        "label": query.label,
        "value": example.value,
        "image": thumbnails.uri(query.path),
        "hits": [
            {
                "id": item.id,
                "score": score,
                "image": thumbnails.uri(item.path),
                "same": None if query.label is None or item.label is None else item.label == query.label,
                "caption": item.label or "",
            }
            for item, score in example.hits
        ],
    }


def _facts(leaderboard: Leaderboard, description: RunDescription) -> list[tuple[str, str]]:
    validation = describe_split(leaderboard.rows[0].trial.validation)
    facts = [
        ("Accuracy", leaderboard.caption),
        ("Selection", f"by validation only: {validation}; cost is the median time of one image"),
    ]
    timings = [row.trial.timing for row in leaderboard.rows if row.trial.timing]
    if timings:
        threads = _range(t.threads for t in timings)
        facts += [
            (
                "Time",
                f"warm, from file to embedding; {_range(t.images for t in timings)} images one at a time, then "
                f"batches of {_range(t.batch_size for t in timings)}; {threads} "
                f"{'thread' if threads == '1' else 'threads'} on {', '.join(sorted({t.device for t in timings}))}, "
                f"{', '.join(sorted({t.runtime for t in timings}))}; "
                "decode is reading and preprocessing, model the rest, each with its own median",
            ),
            ("Memory", "peak of the measuring process, runtime included"),
        ]
    for name, value in (*description.machine.items(), *description.settings.items()):
        facts.append((name.replace("_", " ").capitalize(), "none" if value is None else str(value)))
    return facts


def _range(numbers: Iterable[int]) -> str:
    ordered = sorted(set(numbers))
    return f"{ordered[0]:,}" if len(ordered) == 1 else f"{ordered[0]:,} to {ordered[-1]:,}"
