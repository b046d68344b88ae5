"""Searching images by example: a folder becomes embeddings, these an index, a picture its nearest neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lookalike.lazy import lazy_names

if TYPE_CHECKING:
    from lookalike.retrieval.assess import evaluate, submit
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
    "resolve_model",
    "search",
    "submit",
]


if not TYPE_CHECKING:  # a type checker would take any name for known
    __getattr__ = lazy_names(__name__, _HOMES)  # so that a page of results needs no torch
