"""Fine-tuning a backbone as a classifier, and keeping what retrieves best."""

from lookalike.embedding.fit import fit_projection, fitted_encoder
from lookalike.training.options import TrainingOptions
from lookalike.training.train import train

__all__ = ["TrainingOptions", "fit_projection", "fitted_encoder", "train"]
