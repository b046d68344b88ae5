"""Measure every step of re-ranking, and the choice that validation makes, on the real data sets.

    python benchmarks/reranking.py --work work [--only clothing] [--measure map@r]

Uses EfficientNet-Lite0, frozen, with a whitening head that is chosen on validation. Features are computed once per set
and kept in the folder `--work`. Reads the data folders from $LOOKALIKE_SHARED/data (default ../shared/data) and prints
one table per set for docs/log.md.
"""

from __future__ import annotations

import argparse
import os
import time
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from lookalike.data.dataset import Dataset
from lookalike.data.layouts import load_training_splits
from lookalike.evaluation.evaluation import evaluate_embeddings
from lookalike.evaluation.reranking import GRID, choose_reranking
from lookalike.models.heads import Whitening
from lookalike.progress import SILENT
from lookalike.reranking.reranker import Reranker, class_means
from lookalike.reranking.steps import Reranking
from lookalike.runtimes.fit import compute_features
from lookalike.runtimes.load import load_pretrained
from lookalike.types import Embeddings, Vectors, l2_normalize

SETS = ("omniglot", "pacs", "clothing", "trashnet", "caltech")
BACKBONE = "efficientnet_lite0"
MEASURES = ("points@1,5,10", "hit@1", "precision@3", "map@r")
SHRINKAGES, EMPHASES = (0.1, 0.3, 0.5, 0.7, 0.9), (1.0, 2.0, 4.0, 16.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("work"))
    parser.add_argument("--only", action="append", choices=SETS)
    parser.add_argument("--measure", action="append", help="measure of the choice; may be repeated; default map@r")
    args = parser.parse_args()
    shared = Path(os.environ.get("LOOKALIKE_SHARED", Path(__file__).parent.parent.parent / "shared"))
    for name in args.only or SETS:
        data = load_training_splits(shared / "data" / name, {})
        print_table(name, data, embed(data, args.work / f"{name}-{BACKBONE}.npz"), args.measure or ["map@r"])


def embed(data: Dataset, file: Path) -> Mapping[str, Embeddings]:
    """Return the embeddings by split, with the head that has the best map@r on validation."""
    ids, rows = features(data, file)
    index = {item: row for row, item in enumerate(ids)}
    splits = ("training", "validation", "query", "gallery")
    items = {split: [i.id for i in data.split(split) if i.id in index] for split in splits}
    inputs = {split: rows[[index[item] for item in items[split]]] for split in splits}
    classes = data.labels("training")
    labelled = [row for row, item in enumerate(items["training"]) if classes.get(item)]
    targets = np.unique([classes[items["training"][row]] for row in labelled], return_inverse=True)[1]
    whitening = Whitening(inputs["training"][labelled], targets)

    def embeddings(split: str, head: tuple[Vectors, Vectors]) -> Embeddings:
        return Embeddings(tuple(items[split]), l2_normalize(inputs[split] @ head[0].T + head[1]), BACKBONE)

    def quality(head: tuple[Vectors, Vectors]) -> float:
        validation, labels = embeddings("validation", head), data.labels("validation")
        return evaluate_embeddings(validation, validation, labels, labels, ["map@r"]).mean("map@r")

    best = max((whitening.fit(*pair) for pair in product(SHRINKAGES, EMPHASES)), key=quality)
    return {split: embeddings(split, best) for split in splits}


def features(data: Dataset, file: Path) -> tuple[list[str], Vectors]:
    """Compute the pooled features of all images, or read those of an earlier run."""
    if not file.exists():
        ((backbone, _),) = load_pretrained(BACKBONE)
        computed = compute_features(backbone, list(data.items), progress=SILENT, task=file.stem)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, ids=np.array(computed.ids), rows=computed.rows)
    with np.load(file) as stored:
        return stored["ids"].tolist(), stored["rows"]


def print_table(name: str, data: Dataset, embeddings: Mapping[str, Embeddings], measures: list[str]) -> None:
    """Print each step with the parameters that are best on validation, and the choices."""
    means = class_means(embeddings["training"], data.labels("training"))
    query, gallery, validation = (embeddings[split] for split in ("query", "gallery", "validation"))
    labels, same = data.labels("validation"), data.same_file_ids
    sides = query, gallery, data.labels("query"), data.labels("gallery")

    def row(text: str, reranker: Reranker) -> None:
        start = time.perf_counter()
        evaluation = evaluate_embeddings(*sides, MEASURES, same_file_ids=same, reranker=reranker)
        seconds = time.perf_counter() - start
        tracemalloc.start()
        reranker.search(query, gallery, 10, same_file_ids=same)
        memory = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        figures = " | ".join(f"{evaluation.mean(m):.{1 if m.startswith('points') else 3}f}" for m in MEASURES)
        print(f"| {name} | {text} | {figures} | {seconds:.1f} | {memory:.0f} |", flush=True)

    def quality(reranking: Reranking, measure: str) -> float:
        reranker = Reranker(reranking, means)
        evaluation = evaluate_embeddings(
            validation, validation, labels, labels, [measure], same_file_ids=same, reranker=reranker
        )
        return evaluation.mean(measure)

    row("none", Reranker(Reranking()))
    for field, steps in GRID.items():
        trials = [replace(Reranking(), **{field: step}) for step in steps]  # type: ignore[arg-type]
        best = max(trials, key=lambda trial: quality(trial, measures[0]))
        row(str(best.steps[0]), Reranker(best, means))
    for measure, transductive in product(measures, (False, True)):
        choice = choose_reranking(
            validation,
            validation,
            labels,
            labels,
            measure,
            class_means=means,
            same_file_ids=same,
            allow_transductive=transductive,
        )
        steps = ", ".join(map(str, choice.reranker.reranking.steps)) or "none"
        row(
            f"chosen by {measure}{'' if transductive else ', not transductive'}: {steps} ({choice.gain})",
            choice.reranker,
        )


if __name__ == "__main__":
    main()
