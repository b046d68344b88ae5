"""Fine-tuning a backbone as a classifier, and keeping what retrieves best."""

from lookalike.embedding.fit import fit_projection, fitted_encoder
from lookalike.training.options import OptionChanges, TrainingOptions, changed_options
from lookalike.training.recipe import Recipe, recipes
from lookalike.training.refit import refit
from lookalike.training.train import load_as, train

__all__ = [
    "OptionChanges",
    "Recipe",
    "TrainingOptions",
    "changed_options",
    "fit_projection",
    "fitted_encoder",
    "load_as",
    "recipes",
    "refit",
    "train",
]
