"""What an exported model loses against its bundle: cosines of embeddings, measures on the validation images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lookalike.data.dataset import Dataset
from lookalike.data.folders import skipped_suffix
from lookalike.errors import ModelError
from lookalike.evaluation.bootstrap import paired_bootstrap
from lookalike.evaluation.evaluation import evaluate_validation
from lookalike.evaluation.measures import Measure
from lookalike.models.encoder import AnyEncoder, Encoder
from lookalike.models.info import Parity
from lookalike.progress import SILENT, Progress
from lookalike.runtimes.graphs import SINGLE_MAX
from lookalike.runtimes.select import MIN_COSINE
from lookalike.types import Comparison, Pixels, Skipped

MEASURES = ("precision@3", "hit@1", "map@r")
DECISIVE = "precision@3"
_BATCH = 8  # images are embedded one by one and this many at once


def require_parity(parity: Parity, precision: str, tolerance: float, skipped: Sequence[Skipped] = ()) -> None:
    """Raise `ModelError` if the model differs too much, or loses more than `tolerance` points of precision@3.

    `skipped` are the files that could not be read; the error for too few images names the first.
    """
    if not parity.batch_cosine >= MIN_COSINE["bfloat16"]:  # nor where it is not a number
        raise ModelError(
            "the exported model computes other embeddings in batches than one by one "
            f"(cosine {parity.batch_cosine:.4f}); choose another `format`.",
            argument="format",
        )
    if not parity.min_cosine >= MIN_COSINE[precision]:
        raise ModelError(
            f"{precision} changes embeddings too much: {parity}; a cosine of {MIN_COSINE[precision]:g} is required. "
            "Choose another `precision`.",
            argument="precision",
        )
    if precision == "int8" and parity.loss is None:
        raise ModelError(
            f"the loss of int8 cannot be measured on {parity.validation_images} validation images"
            f"{skipped_suffix(skipped)}; more are needed.",
            argument="data",
        )
    if parity.loss is not None and parity.loss.difference > tolerance:
        raise ModelError(
            f"{precision} loses more than {tolerance:g} points of {DECISIVE}: {parity}. "
            "Choose another `precision`, or a larger `tolerance`.",
            argument="precision",
        )


def compare_embeddings(encoder: Encoder, exported: Encoder, pixels: Pixels) -> tuple[np.ndarray, float]:
    """Return each image's smaller cosine `(n,)` to the bundle, and the smallest between batches and one by one."""
    single = exported.prepare((), 1, SILENT)
    many = exported.prepare((), SINGLE_MAX + 1, SILENT)  # compiled for many batches
    expected = encoder.encode(pixels)
    one_by_one = np.concatenate([single.encode(pixels[n : n + 1]) for n in range(len(pixels))])
    batched = np.concatenate([many.encode(pixels[n : n + _BATCH]) for n in range(0, len(pixels), _BATCH)])
    cosines = np.minimum((expected * one_by_one).sum(1), (expected * batched).sum(1))
    return cosines, float((one_by_one * batched).sum(1).min())


@dataclass(frozen=True)
class ComparedMeasures:
    """Measures of a bundle and its exported model on the validation images."""

    images: int = 0  # number that can be read
    means: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # by measure, of both
    loss: Comparison | None = None  # of `DECISIVE` in points; None if there are too few images for it
    skipped: tuple[Skipped, ...] = ()


def compare_measures(encoder: AnyEncoder, exported: AnyEncoder, data: Dataset, progress: Progress) -> ComparedMeasures:
    """Measure both within the validation split, each image a query and the others the gallery."""
    evaluations = []
    for model, task in ((encoder, "validation, bundle"), (exported, "validation, exported")):
        embeddings = model.embed(data.validation, progress=progress, task=task)
        measures = [
            name for name in MEASURES if Measure.parse(name).min_gallery <= len(embeddings) - data.validation_excluded
        ]
        evaluations.append(evaluate_validation(data, embeddings, measures))
    before, after = evaluations
    means = {name: (before.mean(name), after.mean(name)) for name in before.values}
    loss = None
    if DECISIVE in means:
        loss = paired_bootstrap(100 * before.values[DECISIVE], 100 * after.values[DECISIVE])
    return ComparedMeasures(len(embeddings), means, loss, embeddings.skipped)


def generated_images(height: int, width: int) -> Pixels:
    """Return images `(16, height, width, 3)` of coloured clouds, coarse and fine, to compare without data."""
    random = np.random.default_rng(0)
    images = np.zeros((16, height, width, 3))
    for scale in (2, 5, 11, 40):
        coarse = random.normal(size=(len(images), scale, scale, 3))
        rows = np.arange(height) * scale // height
        columns = np.arange(width) * scale // width
        images += coarse[:, rows][:, :, columns]
    return np.clip(127 + 45 * images, 0, 255).astype(np.uint8)
