"""The search index: exact cosine over unit-length vectors. The only place that knows FAISS."""

from lookalike.indexing.index import Index, is_index, require_min_recall

__all__ = ["Index", "is_index", "require_min_recall"]
