"""From image files to embeddings, whatever computes them: preprocessing, decoding ahead, combining. Needs no torch."""

from lookalike.encoding.encoder import COMBINATIONS, Encoder, combine, require_combination
from lookalike.encoding.engine import Engine
from lookalike.encoding.preprocessing import Preprocessing

__all__ = ["COMBINATIONS", "Encoder", "Engine", "Preprocessing", "combine", "require_combination"]
