"""Lookalike: find the pictures that look like this one.

    import lookalike as la

    data = la.load_dataset("data/")
    model = la.train(data, backbone="resnet50")
    embeddings = model.embed(paths)
    index = la.Index.build(embeddings)
    hits = index.search(model.embed(["q.jpg"]), top_k=10)
    table = la.benchmark(data, backbones=["resnet50", "vit_b_16"], out="runs/first")

Importing this does nothing else; torch, timm and FAISS are imported by what needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lookalike.lazy import lazy_names

if TYPE_CHECKING:
    from lookalike.bench import Benchmark, Choice, Trial, benchmark
    from lookalike.bench.demo import demo
    from lookalike.data import Dataset, Item, load_dataset
    from lookalike.data.check import check
    from lookalike.encoding import Encoder
    from lookalike.engines import accelerated, load_bundle, save_bundle
    from lookalike.errors import LookalikeError
    from lookalike.evaluation import Evaluation, Measure
    from lookalike.exporting import export
    from lookalike.indexing import Index
    from lookalike.retrieval import embed, evaluate, index, search, submit
    from lookalike.training import Recipe, TrainingOptions, recipes, refit, train
    from lookalike.types import Embeddings, Hits, Skipped

_HOMES = {
    "Benchmark": "bench",
    "Choice": "bench",
    "Dataset": "data",
    "Embeddings": "types",
    "Encoder": "encoding",
    "Evaluation": "evaluation",
    "Hits": "types",
    "Index": "indexing",
    "Item": "data",
    "LookalikeError": "errors",
    "Measure": "evaluation",
    "Recipe": "training",
    "Skipped": "types",
    "TrainingOptions": "training",
    "Trial": "bench",
    "accelerated": "engines",
    "benchmark": "bench",
    "check": "data.check",
    "demo": "bench.demo",
    "embed": "retrieval",
    "evaluate": "retrieval",
    "export": "exporting",
    "index": "retrieval",
    "load_bundle": "engines",
    "load_dataset": "data",
    "recipes": "training",
    "refit": "training",
    "save_bundle": "engines",
    "search": "retrieval",
    "submit": "retrieval",
    "train": "training",
}

__all__ = [
    "Benchmark",
    "Choice",
    "Dataset",
    "Embeddings",
    "Encoder",
    "Evaluation",
    "Hits",
    "Index",
    "Item",
    "LookalikeError",
    "Measure",
    "Recipe",
    "Skipped",
    "TrainingOptions",
    "Trial",
    "accelerated",
    "benchmark",
    "check",
    "demo",
    "embed",
    "evaluate",
    "export",
    "index",
    "load_bundle",
    "load_dataset",
    "recipes",
    "refit",
    "save_bundle",
    "search",
    "submit",
    "train",
]


if not TYPE_CHECKING:  # a type checker would take any name for known
    __getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
