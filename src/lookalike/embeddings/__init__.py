"""Embeddings on disk and the resumable embedding of a folder."""
