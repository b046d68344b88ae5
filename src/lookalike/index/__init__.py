"""The search index: cosine similarity, exact or approximate within a budget. The only place that imports FAISS."""
