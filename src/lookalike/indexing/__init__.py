"""The search index: cosine over unit-length vectors, exact or within a budget. The only place that knows FAISS."""

from lookalike.indexing.budget import Budget
from lookalike.indexing.building import remove_work
from lookalike.indexing.index import Index, is_index

__all__ = ["Budget", "Index", "is_index", "remove_work"]
