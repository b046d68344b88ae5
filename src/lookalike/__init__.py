"""Lookalike: find the images that look like this one.

    import lookalike as la

    data = la.load_dataset("photos")
    encoder = la.train(data, backbone="resnet50", out="model")
    index = la.Index.build(encoder.embed(paths))
    hits = index.search(encoder.embed(["q.jpg"]), top_k=10)
    table = la.benchmark(data, backbones=["resnet50", "vit_b_16"], out="runs/first")

Names are imported on first use: `import lookalike` imports neither torch nor timm nor FAISS.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lookalike.api.embed import embed as embed
    from lookalike.api.embed import index as index
    from lookalike.api.evaluate import evaluate as evaluate
    from lookalike.api.evaluate import submit as submit
    from lookalike.api.export import export as export
    from lookalike.api.search import load_index as load_index
    from lookalike.api.search import search as search
    from lookalike.benchmark.benchmark import Benchmark as Benchmark
    from lookalike.benchmark.benchmark import benchmark as benchmark
    from lookalike.benchmark.demo import demo as demo
    from lookalike.benchmark.selection import Selection as Selection
    from lookalike.benchmark.trial import Trial as Trial
    from lookalike.data.check import check as check
    from lookalike.data.dataset import Dataset as Dataset
    from lookalike.data.dataset import Item as Item
    from lookalike.data.layouts import load_dataset as load_dataset
    from lookalike.embeddings.store import load_embeddings as load_embeddings
    from lookalike.errors import LookalikeError as LookalikeError
    from lookalike.evaluation.evaluation import Evaluation as Evaluation
    from lookalike.evaluation.measures import Measure as Measure
    from lookalike.index.index import Index as Index
    from lookalike.models.bundle import save_bundle as save_bundle
    from lookalike.models.encoder import Encoder as Encoder
    from lookalike.models.encoder import Ensemble as Ensemble
    from lookalike.models.registry import backbones as backbones
    from lookalike.runtimes.load import load_encoder as load_encoder
    from lookalike.training.config import Recipe as Recipe
    from lookalike.training.config import TrainingOptions as TrainingOptions
    from lookalike.training.config import recipes as recipes
    from lookalike.training.refit import refit as refit
    from lookalike.training.train import train as train
    from lookalike.types import Embeddings as Embeddings
    from lookalike.types import Hits as Hits
    from lookalike.types import Skipped as Skipped

_LAZY_IMPORTS = {
    "Benchmark": "benchmark.benchmark",
    "Dataset": "data.dataset",
    "Embeddings": "types",
    "Encoder": "models.encoder",
    "Ensemble": "models.encoder",
    "Evaluation": "evaluation.evaluation",
    "Hits": "types",
    "Index": "index.index",
    "Item": "data.dataset",
    "LookalikeError": "errors",
    "Measure": "evaluation.measures",
    "Recipe": "training.config",
    "Selection": "benchmark.selection",
    "Skipped": "types",
    "TrainingOptions": "training.config",
    "Trial": "benchmark.trial",
    "backbones": "models.registry",
    "benchmark": "benchmark.benchmark",
    "check": "data.check",
    "demo": "benchmark.demo",
    "embed": "api.embed",
    "evaluate": "api.evaluate",
    "export": "api.export",
    "index": "api.embed",
    "load_dataset": "data.layouts",
    "load_embeddings": "embeddings.store",
    "load_encoder": "runtimes.load",
    "load_index": "api.search",
    "recipes": "training.config",
    "refit": "training.refit",
    "save_bundle": "models.bundle",
    "search": "api.search",
    "submit": "api.evaluate",
    "train": "training.train",
}


class _Package(ModuleType):
    """The package itself: imports public names on first use; importing a subpackage never hides one of them.

    Python binds a subpackage to its parent once it is imported; for `index` and `benchmark` that would replace the
    functions of these names.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _LAZY_IMPORTS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> object:
        if name not in _LAZY_IMPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(importlib.import_module(f"{__name__}.{_LAZY_IMPORTS[name]}"), name)
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        return sorted(_LAZY_IMPORTS)


__all__ = list(_LAZY_IMPORTS)
sys.modules[__name__].__class__ = _Package
