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
    from lookalike.api.change import Changed as Changed
    from lookalike.api.change import add as add
    from lookalike.api.change import remove as remove
    from lookalike.api.change import sync as sync
    from lookalike.api.change import update as update
    from lookalike.api.embed import embed as embed
    from lookalike.api.evaluate import evaluate as evaluate
    from lookalike.api.evaluate import submit as submit
    from lookalike.api.export import Exported as Exported
    from lookalike.api.export import export as export
    from lookalike.api.index import BuiltIndex as BuiltIndex
    from lookalike.api.index import index as index
    from lookalike.api.post import post as post
    from lookalike.api.queries import Query as Query
    from lookalike.api.search import LoadedIndex as LoadedIndex
    from lookalike.api.search import SearchResult as SearchResult
    from lookalike.api.search import load_index as load_index
    from lookalike.api.search import search as search
    from lookalike.benchmark.benchmark import Benchmark as Benchmark
    from lookalike.benchmark.benchmark import benchmark as benchmark
    from lookalike.benchmark.benchmark import demo as demo
    from lookalike.benchmark.leaderboard import Leaderboard as Leaderboard
    from lookalike.benchmark.selection import Selection as Selection
    from lookalike.benchmark.trial import Trial as Trial
    from lookalike.competition.compete import Competition as Competition
    from lookalike.competition.compete import compete as compete
    from lookalike.data.check import CheckReport as CheckReport
    from lookalike.data.check import Finding as Finding
    from lookalike.data.check import check as check
    from lookalike.data.dataset import Dataset as Dataset
    from lookalike.data.dataset import Item as Item
    from lookalike.data.layouts import load_dataset as load_dataset
    from lookalike.embeddings.folder import load_embeddings as load_embeddings
    from lookalike.errors import LookalikeError as LookalikeError
    from lookalike.evaluation.evaluation import Evaluation as Evaluation
    from lookalike.evaluation.measures import Measure as Measure
    from lookalike.evaluation.posting import Posted as Posted
    from lookalike.evaluation.reranking import RerankingChoice as RerankingChoice
    from lookalike.evaluation.reranking import choose_reranking as choose_reranking
    from lookalike.evaluation.submission import Submission as Submission
    from lookalike.index.index import Index as Index
    from lookalike.index.store import FileState as FileState
    from lookalike.index.store import IndexedItem as IndexedItem
    from lookalike.models.bundle import save_bundle as save_bundle
    from lookalike.models.catalogue import BackboneRow as BackboneRow
    from lookalike.models.encoder import Encoder as Encoder
    from lookalike.models.encoder import Ensemble as Ensemble
    from lookalike.models.function_backbone import as_encoder as as_encoder
    from lookalike.models.info import Parity as Parity
    from lookalike.models.preprocessing import Crop as Crop
    from lookalike.models.registry import backbones as backbones
    from lookalike.reranking.reranker import Reranker as Reranker
    from lookalike.reranking.reranker import class_means as class_means
    from lookalike.reranking.steps import ClassSimilarity as ClassSimilarity
    from lookalike.reranking.steps import GalleryAugmentation as GalleryAugmentation
    from lookalike.reranking.steps import KReciprocal as KReciprocal
    from lookalike.reranking.steps import QueryExpansion as QueryExpansion
    from lookalike.reranking.steps import Reranking as Reranking
    from lookalike.reranking.steps import SimilarityNormalization as SimilarityNormalization
    from lookalike.runtimes.load import load_encoder as load_encoder
    from lookalike.server.access import token as token
    from lookalike.server.client import Client as Client
    from lookalike.server.run import serve as serve
    from lookalike.training.config import Recipe as Recipe
    from lookalike.training.config import TrainingOptions as TrainingOptions
    from lookalike.training.config import recipes as recipes
    from lookalike.training.refit import refit as refit
    from lookalike.training.train import train as train
    from lookalike.types import Comparison as Comparison
    from lookalike.types import Embeddings as Embeddings
    from lookalike.types import Estimate as Estimate
    from lookalike.types import Hit as Hit
    from lookalike.types import Hits as Hits
    from lookalike.types import QueryHits as QueryHits
    from lookalike.types import Skipped as Skipped

# module: its public names
_NAMES = {
    "api.change": ("Changed", "add", "remove", "sync", "update"),
    "api.embed": ("embed",),
    "api.evaluate": ("evaluate", "submit"),
    "api.export": ("Exported", "export"),
    "api.index": ("BuiltIndex", "index"),
    "api.post": ("post",),
    "api.queries": ("Query",),
    "api.search": ("LoadedIndex", "SearchResult", "load_index", "search"),
    "benchmark.benchmark": ("Benchmark", "benchmark", "demo"),
    "benchmark.leaderboard": ("Leaderboard",),
    "benchmark.selection": ("Selection",),
    "benchmark.trial": ("Trial",),
    "competition.compete": ("Competition", "compete"),
    "data.check": ("CheckReport", "Finding", "check"),
    "data.dataset": ("Dataset", "Item"),
    "data.layouts": ("load_dataset",),
    "embeddings.folder": ("load_embeddings",),
    "errors": ("LookalikeError",),
    "evaluation.evaluation": ("Evaluation",),
    "evaluation.measures": ("Measure",),
    "evaluation.posting": ("Posted",),
    "evaluation.reranking": ("RerankingChoice", "choose_reranking"),
    "evaluation.submission": ("Submission",),
    "index.index": ("Index",),
    "index.store": ("FileState", "IndexedItem"),
    "models.bundle": ("save_bundle",),
    "models.encoder": ("Encoder", "Ensemble"),
    "models.catalogue": ("BackboneRow",),
    "models.function_backbone": ("as_encoder",),
    "models.info": ("Parity",),
    "models.preprocessing": ("Crop",),
    "models.registry": ("backbones",),
    "reranking.reranker": ("Reranker", "class_means"),
    "reranking.steps": (
        "ClassSimilarity",
        "GalleryAugmentation",
        "KReciprocal",
        "QueryExpansion",
        "Reranking",
        "SimilarityNormalization",
    ),
    "runtimes.load": ("load_encoder",),
    "server.access": ("token",),
    "server.client": ("Client",),
    "server.run": ("serve",),
    "training.config": ("Recipe", "TrainingOptions", "recipes"),
    "training.refit": ("refit",),
    "training.train": ("train",),
    "types": ("Comparison", "Embeddings", "Estimate", "Hit", "Hits", "QueryHits", "Skipped"),
}
_MODULES = dict(sorted((name, module) for module, names in _NAMES.items() for name in names))


class _Package(ModuleType):
    """The package itself: imports public names on first use; importing a subpackage never hides one of them.

    Python binds a subpackage to its parent once it is imported; for `index` and `benchmark` that would replace the
    functions of these names.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        return list(_MODULES)


__all__ = list(_MODULES)
sys.modules[__name__].__class__ = _Package
