"""Re-ranking: post-processing of embeddings and cosines for a better order of the gallery. NumPy only.

The parameters are chosen on validation by `lookalike.evaluation.reranking`.
"""
