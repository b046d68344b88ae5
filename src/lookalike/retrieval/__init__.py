"""Searching images by example: a folder becomes embeddings, these an index, a picture its nearest neighbours."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lookalike.retrieval.assess import evaluate, measures_for, submit
    from lookalike.retrieval.gallery import MadeIndex, embed, index
    from lookalike.retrieval.model import load_as_trained, resolve_model
    from lookalike.retrieval.query import LoadedIndex, SearchResult, load_index, search

_HOMES = {
    "LoadedIndex": "query",
    "MadeIndex": "gallery",
    "SearchResult": "query",
    "embed": "gallery",
    "evaluate": "assess",
    "index": "gallery",
    "load_as_trained": "model",
    "load_index": "query",
    "measures_for": "assess",
    "resolve_model": "model",
    "search": "query",
    "submit": "assess",
}

__all__ = [
    "LoadedIndex",
    "MadeIndex",
    "SearchResult",
    "embed",
    "evaluate",
    "index",
    "load_as_trained",
    "load_index",
    "measures_for",
    "resolve_model",
    "search",
    "submit",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for, so that a page of results needs no torch."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'lookalike.retrieval' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"lookalike.retrieval.{home}"), name)
    globals()[name] = value
    return value
