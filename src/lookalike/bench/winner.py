"""What is kept and shown of the winner."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lookalike.backbones import load_bundle, save_bundle
from lookalike.backbones.bundle import read_facts
from lookalike.bench.candidates import Candidate, Pair, alignment_of, joined_encoder, pairs
from lookalike.bench.measuring import Parts, evaluate_test, evaluate_validation, pair_parts
from lookalike.bench.report import Example, best_and_worst
from lookalike.bench.selection import Choice
from lookalike.data import Dataset
from lookalike.evaluation import Evaluation
from lookalike.training import TrainingOptions
from lookalike.types import Skipped

_SHOWN_HITS = 8


def _find(choice: Choice, candidates: Sequence[Candidate]) -> Candidate | Pair:
    wanted: dict[str, Candidate | Pair] = {c.name: c for c in candidates}
    wanted.update({p.name: p for p in pairs(candidates)})
    return wanted[choice.winner]


def evaluate_winner(
    choice: Choice, candidates: Sequence[Candidate], parts: Parts, data: Dataset, measures: Sequence[str]
) -> Evaluation:
    winner = _find(choice, candidates)
    own = parts[winner.name] if isinstance(winner, Candidate) else pair_parts(winner, parts)
    test = evaluate_test(own, data, measures)
    return test if test is not None else evaluate_validation(own, data, measures)


def write_best(
    choice: Choice, candidates: Sequence[Candidate], parts: Parts, out: Path, options: TrainingOptions
) -> None:
    """Save the winner as a bundle."""
    winner = _find(choice, candidates)
    single = winner if isinstance(winner, Candidate) else winner.first
    facts = read_facts(single.bundle)
    kept: dict[str, Any] = {k: facts[k] for k in ("classes", "training_data", "options") if k in facts}
    encoder = (
        load_bundle(winner.bundle)
        if isinstance(winner, Candidate)
        else joined_encoder(winner, alignment_of(winner, parts))
    )
    kept["benchmark"] = {"candidate": choice.winner, "reason": choice.reason, "seed": options.seed}
    save_bundle(encoder, out / "best", facts=kept, replace=True)


def examples(
    evaluation: Evaluation, values: Mapping[str, float], data: Dataset, labels: Mapping[str, str | None]
) -> list[Example]:
    best, worst = best_and_worst(values, labels)
    paths = {i.id: i.path for i in data.items}
    top = {query: found[:_SHOWN_HITS] for query, found in evaluation.top.rows()}
    return [
        Example(q, paths[q], labels[q], [(i, paths[i], labels[i], score) for i, score in top[q]], values[q])
        for q in (*best, *worst)
    ]


def context(
    data: Dataset, options: TrainingOptions, skipped: Sequence[Skipped], title: str | None, notes: Sequence[str]
) -> dict[str, Any]:
    text = str(data).replace(str(data.root), data.root.name or "data", 1)
    names = ("lookalike", "torch", "timm", "faiss-cpu", "numpy")
    context: dict[str, Any] = {
        "data": text,
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            **{n: importlib.metadata.version(n) for n in names},
        },
        "settings": {
            "seed": options.seed,
            "validation": f"{len(data.validation)} images cut from training, searched leave-one-out",
            "fine-tuning": f"at most {options.epochs} epochs, early stopping on {options.measure}",
        },
        "skipped": [str(s) for s in skipped],
        "notes": [
            "Times are of architectures: trials that differ in weights alone share one measurement, made in a process of its own.",
            *notes,
        ],
    }
    if title:
        context["title"] = title
    return context
