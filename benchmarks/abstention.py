"""Measure the probabilities of first hits on the real data sets, also of queries whose class is not in the gallery.

    python benchmarks/abstention.py --work work [--only clothing] [--out FILE]

Uses EfficientNet-Lite0: frozen with principal components, and with a whitening head that is chosen on validation.
Features are computed once per set and kept in the folder `--work`. Each method is fitted on validation and measured on
query and gallery, where every query is searched twice: with its class in the gallery, and with its class taken out.
Reads the data folders from $LOOKALIKE_SHARED/data (default ../shared/data) and prints a table for docs/log.md.

Columns: log loss and calibration error; the share of queries that the best threshold answers at a precision of 95 %,
of those whose class is in the gallery and of the others; the same for thresholds of 0.5 and 0.9, with the precision.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.isotonic import IsotonicRegression

from lookalike.data.dataset import Dataset
from lookalike.data.layouts import load_training_splits
from lookalike.evaluation.calibration import (
    FirstHits,
    cross_predict,
    fit_calibration,
    judge_first_hits,
    measure_reliability,
    validation_hits,
)
from lookalike.evaluation.reliability import answered_above
from lookalike.models.heads import pca_head
from lookalike.types import Embeddings, l2_normalize
from reranking import BACKBONE, embed, features

SETS = ("clothing", "caltech", "omniglot")
THRESHOLDS = (0.5, 0.9)
FEW, DRAWS = (20, 50, 100), 20
Method = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--only", action="append", choices=SETS)
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    args = parser.parse_args()
    shared = Path(os.environ.get("LOOKALIKE_SHARED", Path(__file__).parent.parent.parent / "shared"))
    figures: list[dict[str, Any]] = []
    print("| set | head | method | log loss | error | at 95 % | 0.5 | 0.9 |\n|---|---|---|---|---|---|---|---|")
    for name in args.only or SETS:
        data, file = load_training_splits(shared / "data" / name, {}), args.work / f"{name}-{BACKBONE}.npz"
        for head, embeddings in (("frozen", embed_frozen(data, file)), ("trained", embed(data, file))):
            figures += measure(name, head, data, embeddings)
    if args.out is not None:
        args.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def embed_frozen(data: Dataset, file: Path) -> Mapping[str, Embeddings]:
    """Return the embeddings by split with principal components of the training images as head."""
    ids, rows = features(data, file)
    row_of = {item: row for row, item in enumerate(ids)}
    items = {split: [i.id for i in data.split(split) if i.id in row_of] for split in ("training", "validation")}
    items |= {split: [i.id for i in data.split(split) if i.id in row_of] for split in ("query", "gallery")}
    inputs = {split: rows[[row_of[item] for item in part]] for split, part in items.items()}
    head = pca_head(inputs["training"], seed=0)
    return {
        split: Embeddings(tuple(part), l2_normalize(inputs[split] @ head.weight.T + head.bias), BACKBONE)
        for split, part in items.items()
    }


def measure(name: str, head: str, data: Dataset, embeddings: Mapping[str, Embeddings]) -> list[dict[str, Any]]:
    validation, labels = embeddings["validation"], data.labels("validation")
    hits = validation_hits(data, validation, embeddings["training"])
    alone = judge_first_hits(validation, validation, labels, labels, same_file_ids=data.same_file_ids)
    sides = embeddings["query"], embeddings["gallery"], data.labels("query"), data.labels("gallery")
    test = judge_first_hits(*sides, same_file_ids=data.same_file_ids)
    isotonic = IsotonicRegression(y_min=0.001, y_max=0.999, out_of_bounds="clip").fit(hits.scores, hits.is_match)
    methods: dict[str, Method] = {
        "Platt (ours)": platt(hits),
        "Platt, validation images alone as gallery": platt(alone),
        "isotonic regression": isotonic.predict,
        "Platt, fitted on the test itself": platt(test),
    }
    figures = [row(name, head, method, predict(test.scores), test) for method, predict in methods.items()]
    figures.append(row(name, head, "Platt (ours), on validation, other classes", cross_predict(hits), hits))
    figures += [few(name, head, hits, test, count) for count in FEW if count < hits.queries]
    return figures


def platt(hits: FirstHits) -> Method:
    calibration = fit_calibration(hits)
    assert calibration is not None
    return calibration.probabilities


def row(name: str, head: str, method: str, probabilities: np.ndarray, hits: FirstHits) -> dict[str, Any]:
    reliability = measure_reliability(probabilities, hits)
    above = [answered_above(probabilities, hits.is_match, hits.is_present, threshold) for threshold in THRESHOLDS]
    best = reliability.answered
    texts = [f"{best.present:.3f}, {best.absent:.3f}"]
    texts += [f"{a.precision:.2f}: {a.present:.2f}, {a.absent:.2f}" for a in above]
    cells = [
        f"{reliability.log_loss:.3f}",
        f"{reliability.error:.3f}",
        *texts,
    ]
    print(f"| {name} | {head} | {method} | {' | '.join(cells)} |", flush=True)
    figure = {"set": name, "head": head, "method": method, "queries": hits.queries}
    return figure | reliability.to_dict() | {"thresholds": [asdict(a) for a in above]}


def few(name: str, head: str, hits: FirstHits, test: FirstHits, count: int) -> dict[str, Any]:
    """Fit on a few queries, drawn several times; return the mean and the worst of log loss and error on the test."""
    random = np.random.default_rng(0)
    losses, errors = [], []
    half = hits.queries  # the hits with the class come first where all queries are in one chunk
    for _ in range(DRAWS):
        queries = random.choice(half, count, replace=False)
        calibration = fit_calibration(hits.take(np.concatenate([queries, queries + half])))
        if calibration is None:
            continue
        reliability = measure_reliability(calibration.probabilities(test.scores), test)
        losses.append(reliability.log_loss)
        errors.append(reliability.error)
    text = f"{np.mean(losses):.3f} | {np.mean(errors):.3f} | worst: {max(losses):.3f}, {max(errors):.3f}"
    print(f"| {name} | {head} | Platt (ours), {count} queries | {text} | {len(losses)} of {DRAWS} fits | |", flush=True)
    return {"set": name, "head": head, "method": f"{count} queries", "log_loss": losses, "error": errors}


if __name__ == "__main__":
    main()
