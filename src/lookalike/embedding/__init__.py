"""Embeddings of many images: made shard by shard, kept in a folder, and what a head learns from them."""

from lookalike.embedding.embed import embed_to
from lookalike.embedding.fit import Features, compute_features, fit_projection, fitted_encoder, kept_features
from lookalike.embedding.folder import begun_with
from lookalike.embedding.store import (
    EmbeddingFacts,
    begun_precision,
    is_embeddings,
    is_unfinished,
    load_embeddings,
    read_embedding_facts,
)

__all__ = [
    "EmbeddingFacts",
    "Features",
    "begun_precision",
    "begun_with",
    "compute_features",
    "embed_to",
    "fit_projection",
    "fitted_encoder",
    "is_embeddings",
    "is_unfinished",
    "kept_features",
    "load_embeddings",
    "read_embedding_facts",
]
