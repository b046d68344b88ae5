"""Compare heads in closed form on a frozen backbone: fitted on training, chosen on validation, measured on test.

    python benchmarks/heads.py [--backbone resnet50 --weights FILE] [--only omniglot] [--measure hit@1] --cache features

Reads the data folders `omniglot`, `pacs`, `clothing`, `trashnet` and `caltech` from $LOOKALIKE_SHARED/data (default
../shared/data). Each row is fitted on the training split alone; where a head has parameters, those that measure best on
validation are used.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.data.dataset import Dataset, sample_evenly
from lookalike.data.layouts import load_training_splits
from lookalike.evaluation.evaluation import evaluate_embeddings, evaluate_validation
from lookalike.models.heads import Whitening, pca_head
from lookalike.progress import SILENT
from lookalike.runtimes.fit import Features, compute_features
from lookalike.runtimes.load import load_pretrained
from lookalike.training.context import class_indices, labelled
from lookalike.training.frozen_stage import HEAD_FITS, whitened_head
from lookalike.types import Embeddings, Vectors, l2_normalize

SETS = ("omniglot", "pacs", "clothing", "trashnet", "caltech")
MEASURES = ("points@1,5,10", "hit@1", "precision@3", "map@r")
Embed = Callable[[Vectors], Vectors]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--only", action="append", choices=SETS)
    parser.add_argument("--measure", default="map@r", help="what the heads are chosen by, on validation")
    parser.add_argument("--cache", type=Path, required=True)
    args = parser.parse_args()
    folder = Path(os.environ.get("LOOKALIKE_SHARED", "../shared")) / "data"
    print(f"{'data':<10} {'head':<34} {'parameters':<32} {'  '.join(MEASURES)}")
    for name in args.only or SETS:
        data = load_training_splits(folder / name, {})
        splits = {s: _features(args, data, s) for s in ("training", "validation", "query", "gallery")}
        for head, parameters, values in _compare(data, splits, args.measure):
            print(f"{name:<10} {head:<34} {parameters:<32} {values}", flush=True)


def _features(args: Any, data: Dataset, split: str) -> Features:
    items = data.split(split) if split != "training" else labelled(data.training)
    ((backbone, _),) = load_pretrained(args.backbone, args.weights)
    ready = replace(backbone, precision="float32").prepare(sample_evenly(items, 48), 5000, SILENT)
    return compute_features(ready, items, progress=SILENT, task=split, cache=args.cache)


def _compare(data: Dataset, splits: dict[str, Features], measure: str) -> Sequence[tuple[str, str, str]]:
    features = splits["training"]
    ids = set(features.ids)
    targets = class_indices([item for item in labelled(data.training) if item.id in ids])
    whitening = Whitening(features.rows, targets)
    heads = {fit: whitened_head(whitening, fit, len(targets)) for fit in HEAD_FITS}
    within = {fit: head for fit, head in heads.items() if fit.emphasis == 1}
    rows = [("principal components", "", pca_head(features.rows))]
    for name, group in (("whitened within the classes", within), ("the same and towards LDA", heads)):
        fit = max(group, key=lambda f: _validation(data, splits, group[f], measure))
        rows.append((name, str(fit), group[fit]))
    best = rows[-1][2]
    embedded = best(features.rows)
    for name, make, grid in (
        ("  + nearest class mean", _class_mean, (5.0, 10.0, 20.0, 40.0)),
        ("  + ridge", _ridge, (0.01, 0.1, 1.0)),
    ):
        candidates = {value: make(best, embedded, targets, value) for value in grid}
        value = max(candidates, key=lambda v: _validation(data, splits, candidates[v], measure))
        rows.append((name, f"{value:g}", candidates[value]))
    return [(name, parameters, _test(data, splits, embed)) for name, parameters, embed in rows]


def _class_mean(head: Embed, embedded: Vectors, targets: Any, temperature: float) -> Embed:
    """Return the embedding together with the probabilities of the classes by their means, half each."""
    means = l2_normalize(np.stack([embedded[targets == c].mean(axis=0) for c in np.unique(targets)]))

    def embed(features: Vectors) -> Vectors:
        z = head(features)
        logits = temperature * z @ means.T
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        return l2_normalize(np.hstack([z, np.sqrt(p / p.sum(axis=1, keepdims=True))]))

    return embed


def _ridge(head: Embed, embedded: Vectors, targets: Any, strength: float) -> Embed:
    """Return the scores of a ridge regression on the classes, centred and normalised."""
    labels = np.eye(targets.max() + 1)[targets]
    gram = embedded.T @ embedded
    penalty = strength * np.trace(gram) / len(gram) * np.eye(len(gram))
    weights = np.linalg.solve(gram + penalty, embedded.T @ (labels - labels.mean(axis=0)))
    return lambda features: l2_normalize(head(features) @ weights)


def _validation(data: Dataset, splits: dict[str, Features], embed: Embed, measure: str) -> float:
    embeddings = Embeddings(splits["validation"].ids, embed(splits["validation"].rows), "")
    return evaluate_validation(data, embeddings, [measure]).mean(measure)


def _test(data: Dataset, splits: dict[str, Features], embed: Embed) -> str:
    query, gallery = (Embeddings(splits[s].ids, embed(splits[s].rows), "") for s in ("query", "gallery"))
    labels = data.labels("query"), data.labels("gallery")
    result = evaluate_embeddings(query, gallery, *labels, MEASURES, same_file_ids=data.same_file_ids)
    return f"{result.mean(MEASURES[0]):13.1f}" + "".join(f"{result.mean(m):10.3f}" for m in MEASURES[1:])


if __name__ == "__main__":
    main()
