r"""Compare `lookalike compete` with simpler ways to use the same minutes, on labelled data sets.

    python benchmarks/competition.py --weights resnet50=FILE --weights vit_small_patch16_224=FILE \
        [--only omniglot] [--minutes 5] [--contender compete]
    python docs/make_competition.py

Reads the data folders from $LOOKALIKE_SHARED/data (default ../shared/data). Each result is added to
docs/results/competition.json at once; a run whose result is there is skipped. The contenders:

  compete           `lookalike compete` with all backbones; every submission that it wrote is scored
  fine-tuned pair   `lookalike train` of two backbones for half of the time each, and the average of their embeddings
  metric learning   the trainer of pytorch-metric-learning with one backbone, on all labelled images
  frozen            each pretrained backbone as it is, principal components as its head

None of them uses the labels of query and gallery; this script scores with them afterwards. `seconds` is the time from
the start to the submission.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from contest import add_out_option, shared_folder
from lookalike._files import write_json
from lookalike.api.evaluate import evaluate
from lookalike.benchmark.timing import machine
from lookalike.competition.compete import compete
from lookalike.competition.log import Log
from lookalike.competition.setup import BEST, LOG
from lookalike.data.dataset import Dataset
from lookalike.data.layouts import load_dataset
from lookalike.models.encoder import AnyEncoder, Ensemble
from lookalike.progress import SILENT
from lookalike.runtimes.load import load_encoder
from lookalike.training.config import TrainingOptions
from lookalike.training.context import class_indices, labelled
from lookalike.training.train import train
from lookalike.training.train_backbone import fresh_encoder

SETS = ("omniglot", "pacs", "clothing")
MINUTES = (5, 15, 45)
BACKBONES = ("efficientnet_lite0", "efficientnet_lite2", "resnet50", "vit_small_patch16_224")
PAIR = ("efficientnet_lite0", "efficientnet_lite2")
MEASURES = ("points@1,5,10", "hit@1", "hit@10", "precision@3", "map@r")
RESULTS = Path(__file__).parent.parent / "docs" / "results"
_LAST_SECONDS = 15.0  # left to a rival for embedding query and gallery


@dataclass(frozen=True)
class Case:
    """One run: a data set and its name, minutes, weights by backbone, and an empty folder."""

    name: str
    data: Dataset
    minutes: int
    weights: Mapping[str, str]
    out: Path


def run_compete(case: Case) -> list[dict[str, Any]]:
    """Score every submission of a competition, and the submitted model, which has more than ten hits."""
    compete(
        case.data,
        group="benchmark",
        out=case.out,
        deadline=f"{case.minutes}min",
        backbones=BACKBONES,
        weights=dict(case.weights),
    )
    log = Log(case.out / LOG).entries
    rows = [
        {"seconds": entry.seconds, "step": entry.step, "validation": entry.score, **score(case.data, path)}
        for entry in log
        if entry.submission is not None and (path := case.out / entry.submission)
    ]
    model = evaluate(case.data, case.out / BEST, measures=MEASURES, progress=SILENT)
    rows[-1] |= {"map@r": model.mean("map@r"), "model": log[-1].reason, "ended": log[-1].seconds}
    return rows


def run_fine_tuned_pair(case: Case) -> list[dict[str, Any]]:
    """Fine-tune two backbones with cross-entropy for half of the time each, and average their embeddings."""
    started = time.perf_counter()
    members = []
    for number, backbone in enumerate(PAIR):
        left = 60 * case.minutes - _LAST_SECONDS - (time.perf_counter() - started)
        out = case.out / backbone
        weights = case.weights.get(backbone, "pretrained")
        minutes = left / 60 / (len(PAIR) - number)
        train(case.data, backbone, weights=weights, out=out, max_minutes=minutes, allow_leaks=True, progress=SILENT)
        members += load_encoder(out).members
    row = _measure(Ensemble(tuple(members), "average"), case.data)
    return [{"seconds": time.perf_counter() - started, "step": " + ".join(PAIR), **row}]


def run_metric_learning(case: Case) -> list[dict[str, Any]]:
    """Train the first backbone of the pair with the trainer of pytorch-metric-learning."""
    from rival_trainer import train_with_metric_learning

    started = time.perf_counter()
    backbone, items = PAIR[0], labelled(case.data.training)
    weights = case.weights.get(backbone, "pretrained")
    _, recipe = fresh_encoder(backbone, weights, TrainingOptions(), unseen=False)
    left = 60 * case.minutes - _LAST_SECONDS - (time.perf_counter() - started)
    options = {"lr": recipe.lr, "head_lr": recipe.head_lr, "seconds": left, "seed": 0}
    encoder = train_with_metric_learning(items, class_indices(items), backbone, weights, **options)
    row = _measure(encoder, case.data)
    return [{"seconds": time.perf_counter() - started, "step": backbone, **row}]


def run_frozen(case: Case) -> list[dict[str, Any]]:
    """Measure every pretrained backbone as it is."""
    rows = []
    for backbone in BACKBONES:
        started = time.perf_counter()
        weights = case.weights.get(backbone, "pretrained")
        row = _measure(backbone, case.data, weights)
        rows.append({"seconds": time.perf_counter() - started, "step": backbone, **row})
    return rows


CONTENDERS: Mapping[str, Callable[[Case], list[dict[str, Any]]]] = {
    "compete": run_compete,
    "fine-tuned pair": run_fine_tuned_pair,
    "metric learning": run_metric_learning,
    "frozen": run_frozen,
}


def _measure(model: AnyEncoder | str, data: Dataset, weights: str = "pretrained") -> dict[str, float]:
    evaluation = evaluate(data, model, measures=MEASURES, weights=weights, progress=SILENT)
    return {name.partition("@1,")[0]: evaluation.mean(name) for name in MEASURES}


def score(data: Dataset, submission: Path) -> dict[str, float]:
    """Return the measures of a submission with ten names per query; queries without a relevant image do not count."""
    images = json.loads(submission.read_text(encoding="utf-8"))["images"]
    labels = {PurePosixPath(item_id).name: label for item_id, label in data.labels("gallery").items()}
    rows = [
        [labels.get(name) == label for name in images[PurePosixPath(item_id).name]]
        for item_id, label in data.labels("query").items()
        if label in labels.values()
    ]
    relevant = np.array(rows)
    hit = {k: relevant[:, :k].any(axis=1).mean() for k in (1, 5, 10)}
    return {
        "points": float(600 * hit[1] + 300 * hit[5] + 100 * hit[10]),
        "hit@1": float(hit[1]),
        "hit@10": float(hit[10]),
        "precision@3": float(relevant[:, :3].mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--runs", type=Path, default=Path("runs/competition"), help="folder for what they compute")
    parser.add_argument("--only", action="append", choices=SETS)
    parser.add_argument("--minutes", action="append", type=int)
    parser.add_argument("--contender", action="append", choices=CONTENDERS)
    add_out_option(parser, "docs/results")
    args = parser.parse_args()
    weights = dict(value.split("=", 1) for value in args.weights)
    results = (args.out or RESULTS) / "competition.json"
    for minutes in args.minutes or MINUTES:
        for name in args.only or SETS:
            data = load_dataset(shared_folder() / "data" / name)
            for contender in args.contender or CONTENDERS:
                key = f"{name}/{contender}" if contender == "frozen" else f"{name}/{contender}/{minutes}"
                stored = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
                if key in stored:
                    continue
                out = args.runs / key.replace("/", "-").replace(" ", "-")
                scores = CONTENDERS[contender](Case(name, data, minutes, weights, out))
                results.parent.mkdir(parents=True, exist_ok=True)
                write_json(results, {**stored, key: {"scores": scores, "machine": machine()}})
                for row in scores:
                    print(f"{key}: {row['seconds']:.0f} s, {row['points']:.1f} points, {row['step']}", flush=True)


if __name__ == "__main__":
    main()
