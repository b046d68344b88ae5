"""What is kept and shown of the winner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lookalike.benchmark.candidates import Candidate
from lookalike.benchmark.embedded import Parts
from lookalike.benchmark.machine import machine
from lookalike.benchmark.measuring import evaluate_test, evaluate_validation
from lookalike.benchmark.pairs import Pair, joined_encoder, pair_parts, pairs
from lookalike.benchmark.report import Example, best_and_worst
from lookalike.benchmark.run import Run
from lookalike.benchmark.selection import Choice
from lookalike.benchmark.trial import Scores, Trial
from lookalike.data.dataset import Dataset
from lookalike.evaluation.evaluation import Evaluation
from lookalike.models.facts import read_facts
from lookalike.runtimes.bundle import load_bundle, save_bundle
from lookalike.training.curves import write_curves
from lookalike.training.options import TrainingOptions
from lookalike.types import Skipped

_SHOWN_HITS = 8


def _find(choice: Choice, candidates: Sequence[Candidate]) -> Candidate | Pair:
    entries: list[Candidate | Pair] = [*candidates, *pairs(candidates)]
    return next(e for e in entries if e.name == choice.winner)


def evaluate_winner(run: Run, choice: Choice, candidates: Sequence[Candidate], parts: Parts) -> Evaluation:
    """Measure the winner once more, for its hits: on query and gallery, or validation where these carry no labels."""
    winner = _find(choice, candidates)
    own = parts[winner.name] if isinstance(winner, Candidate) else pair_parts(winner, parts)
    test = evaluate_test(run, own)
    return test if test is not None else evaluate_validation(run, own)


def write_best(
    run: Run, choice: Choice, trials: Sequence[Trial], candidates: Sequence[Candidate], parts: Parts
) -> None:
    """Save the winner as the bundle `best/`, with what its members know of their training."""
    winner = _find(choice, candidates)
    trial = next(t for t in trials if t.name == choice.winner)
    singles = [winner] if isinstance(winner, Candidate) else [winner.first, winner.second]
    known = [read_facts(single.bundle) for single in singles]
    facts: dict[str, Any] = {k: known[0][k] for k in ("classes", "options") if k in known[0]}
    facts |= _trained_on(known)
    facts["training"] = [report for own in known for report in _reports(own)]
    facts["measures"] = {
        name: scores.measures
        for name, scores in (("validation", trial.validation), ("test", trial.test))
        if isinstance(scores, Scores)
    }
    facts["benchmark"] = {"candidate": choice.winner, "reason": choice.reason, "seed": run.options.seed}
    encoder = load_bundle(winner.bundle) if isinstance(winner, Candidate) else joined_encoder(winner, parts)
    trained = [report for report in facts["training"] if report]
    curves = partial(write_curves, reports=trained, measure=run.options.stop_on)
    save_bundle(encoder, run.out / "best", facts=facts, replace=True, further=curves)


def _trained_on(known: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the members were trained on: the first one's data, with the images that any of them saw."""
    data = [facts.get("training_data") or {} for facts in known]
    first = {key: value for key, value in data[0].items() if key != "contents"}
    if all("contents" in own for own in data):
        first["contents"] = sorted({image for own in data for image in own["contents"]})
    return {"training_data": first} if first else {}


def _reports(facts: Mapping[str, Any]) -> list[dict[str, Any] | None]:
    """Return how each member of a bundle was trained, with its options; None for one that was not."""
    reports = facts.get("training") or [None] * len(facts["members"])
    return [report and {"options": facts.get("options"), **report} for report in reports]


def examples(evaluation: Evaluation, values: Mapping[str, float], data: Dataset) -> list[Example]:
    """Return the winner's best and worst queries with their first hits.

    Args:
        evaluation: of the winner.
        values: of the measure to choose by, by query id.
        data: knows files and labels.

    """
    labels = {i.id: i.label for i in data.items}
    paths = {i.id: i.path for i in data.items}
    best, worst = best_and_worst(values, labels)
    hits = {query.query_id: query[:_SHOWN_HITS] for query in evaluation.hits}
    return [
        Example(q, paths[q], labels[q], [(h.id, paths[h.id], labels[h.id], h.score) for h in hits[q]], values[q])
        for q in (*best, *worst)
    ]


def context(
    run: Run, trained: bool, skipped: Sequence[Skipped], title: str | None, notes: Sequence[str]
) -> dict[str, Any]:
    """Return how it was measured, as `write_report` takes it; holds no path of this machine outside the data folder."""
    data, options = run.data, run.options
    facts: dict[str, Any] = {
        "data": data.summary(data.root.resolve().name or "data"),
        "machine": machine(),
        "settings": {
            "seed": options.seed,
            "validation": f"{len(data.validation)} images, each searched for among all the others",
            **({"fine-tuning": _fine_tuning(options)} if trained else {}),
        },
        "skipped": [f"{_inside(data.root, s.path)}: {s.cause}" for s in skipped],
        "notes": [
            "Times are of architectures: trials that differ in weights alone share one measurement, "
            "made in a process of its own.",
            *notes,
        ],
    }
    return {"title": title, **facts} if title else facts


def _fine_tuning(options: TrainingOptions) -> str:
    if options.frozen:
        return "of the head only"
    limit = f", at most {options.max_minutes:g} minutes" if options.max_minutes is not None else ""
    changes = "".join(f", {name} {value}" for name, value in sorted(options.changes.items()))
    return f"recipe {options.recipe}{limit}{changes}, early stopping on {options.stop_on}"


def _inside(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
