"""Re-ranking: a better order of the gallery, from embeddings that exist. NumPy only.

The parameters are chosen on validation by `lookalike.evaluation.reranking`.
"""
