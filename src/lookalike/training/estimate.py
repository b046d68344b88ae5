"""How long a training takes, estimated from the rate of a few forward passes before it starts."""

from __future__ import annotations

import time
from collections.abc import Sequence

from lookalike.data.dataset import Dataset, Item, sample_evenly
from lookalike.models.pipeline import Backbone
from lookalike.runtimes.load import Weights
from lookalike.runtimes.select import measure_rate, sample_pixels
from lookalike.training.config import Recipe, TrainingOptions
from lookalike.training.train_backbone import fresh_encoder
from lookalike.training.trainer import resolve_precision

_SAMPLE = 16
_SECONDS = 0.3
_STEP = 3.0  # forward and backward pass and update, relative to a forward pass


def measure_backbone(backbone: str, weights: Weights, data: Dataset, options: TrainingOptions) -> tuple[float, Recipe]:
    """Return the seconds per image of a backbone, in the precision of its recipe, and the recipe.

    Raises the errors of a training that could not start: an unknown backbone, no weights.
    """
    encoder, recipe = fresh_encoder(backbone, weights, options, unseen=data.validation_classes_unseen)
    precision = resolve_precision(encoder.device, recipe.precision)
    return seconds_per_image(encoder.torch_backbone(precision), data.training), recipe


def seconds_per_image(backbone: Backbone, items: Sequence[Item]) -> float:
    """Return the seconds of reading one image and computing its features."""
    sample = sample_evenly(items, _SAMPLE)
    started = time.perf_counter()
    pixels = sample_pixels(backbone.info.preprocessing, sample)
    reading = (time.perf_counter() - started) / max(1, len(sample))
    return reading + 1 / measure_rate(backbone, pixels, _SECONDS)


def training_seconds(per_image: float, data: Dataset, options: TrainingOptions, recipe: Recipe) -> float:
    """Return about how long one backbone trains, from the seconds per image; at most the time budget."""
    training, validation = len(data.training), len(data.validation)
    features = 2 * training + 6 * validation  # of the frozen stage, and of the selection of weights
    epochs = 0 if options.frozen else recipe.epochs
    total = per_image * (features + epochs * (_STEP * recipe.resolution**2 * training + validation))
    return total if options.max_minutes is None else min(total, 60 * options.max_minutes)
