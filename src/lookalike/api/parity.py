"""What an exported model loses against its bundle: cosines on golden pictures, measures on the validation part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lookalike.data.dataset import Dataset
from lookalike.errors import ModelError
from lookalike.evaluation.bootstrap import Comparison, paired_bootstrap
from lookalike.evaluation.evaluation import Evaluation, evaluate_embeddings
from lookalike.evaluation.measures import Measure
from lookalike.models.encoder import Encoder
from lookalike.models.engine import LEAST_COSINE, Engine
from lookalike.progress import SILENT, Progress
from lookalike.types import Pixels

MEASURES = ("precision@3", "hit@1", "map@r")
DECISIVE = "precision@3"
BATCH = 8
"""Pictures are embedded one by one and so many at once."""


@dataclass(frozen=True)
class Parity:
    """How far an exported model lies from its bundle.

    Attributes:
        pictures: which golden pictures were looked at.
        images: their number.
        min_cosine, mean_cosine: between a picture's embeddings by the two, the lower of one by one and in batches.
        batch_cosine: the smallest between its embeddings one by one and in batches.
        validation_images: that the measures were taken on; 0 without a data folder.
        measures: by name, of the bundle and of the exported model.
        loss: points of precision@3 that the exported model is below the bundle, with the 95 % interval of the paired
            bootstrap; None without a data folder.

    """

    pictures: str
    images: int
    min_cosine: float
    mean_cosine: float
    batch_cosine: float
    validation_images: int
    measures: Mapping[str, tuple[float, float]]
    loss: Comparison | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a plain structure for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        told = (
            f"cosine to the bundle at least {self.min_cosine:.4f}, mean {self.mean_cosine:.4f}, "
            f"on {self.images} {self.pictures}"
        )
        moved = [f"{name} {before:.4f} to {after:.4f}" for name, (before, after) in self.measures.items()]
        if moved:
            told += f"; on {self.validation_images} validation images {', '.join(moved)}"
        if self.loss is not None:
            told += f" ({self.loss.difference:.2f} points lost, from {self.loss.low:.2f} to {self.loss.high:.2f})"
        return told

    def require(self, precision: str, tolerance: float) -> None:
        """Raise `ModelError` where the exported model is too far from its bundle.

        Args:
            precision: that it computes in.
            tolerance: points of precision@3 that it may lose.

        """
        least = LEAST_COSINE[precision]
        if not self.batch_cosine >= LEAST_COSINE["bfloat16"]:  # nor where it is no number
            raise ModelError(
                "the exported model gives other embeddings in batches than one by one "
                f"(cosine {self.batch_cosine:.4f}); choose another format."
            )
        if not self.min_cosine >= least:
            raise ModelError(
                f"{precision} moves embeddings too far: {self}; a cosine of {least:g} is needed. "
                "Choose another precision."
            )
        if precision == "int8" and self.loss is None:
            raise ModelError(
                f"what int8 loses cannot be measured on {self.validation_images} validation images; more are needed."
            )
        if self.loss is not None and self.loss.difference > tolerance:
            raise ModelError(
                f"{precision} loses more than {tolerance:g} points of {DECISIVE}: {self}. "
                "Choose another precision, or allow more with tolerance."
            )


def compare(member: Engine, exported: Engine, alone: Engine, pixels: Pixels) -> tuple[np.ndarray, float]:
    """Return each picture's smaller cosine `(n,)` between the two, and the smallest between batches and one by one.

    Args:
        member: of the bundle.
        exported: what it became, opened for many pictures.
        alone: the same, opened for single ones.
        pixels: of golden pictures, `(n, height, width, 3)` uint8.

    """
    expected = member.encode(pixels)
    single = np.concatenate([alone.encode(pixels[n : n + 1]) for n in range(len(pixels))])
    many = np.concatenate([exported.encode(pixels[n : n + BATCH]) for n in range(0, len(pixels), BATCH)])
    cosines = np.minimum((expected * single).sum(1), (expected * many).sum(1))
    return cosines, float((single * many).sum(1).min())


def measured(
    encoder: Encoder, exported: Encoder, data: Dataset, progress: Progress = SILENT
) -> tuple[dict[str, tuple[float, float]], Comparison | None]:
    """Take the measures of both within the validation part, each image a query and the others the gallery.

    Returns:
        Both means by measure, and the loss of `DECISIVE` in points; None where there are too few images for it.

    """
    labels = data.labels("validation")
    found: list[Evaluation] = []
    for one, task in ((encoder, "validation, bundle"), (exported, "validation, exported")):
        embeddings = one.embed(data.validation, progress=progress, task=task)
        fitting = [name for name in MEASURES if Measure.parse(name).min_gallery < len(embeddings)]
        found.append(evaluate_embeddings(embeddings, embeddings, labels, labels, fitting))
    before, after = found
    means = {name: (before.mean(name), after.mean(name)) for name in before.values}
    if DECISIVE not in means:
        return means, None
    return means, paired_bootstrap(100 * before.values[DECISIVE], 100 * after.values[DECISIVE])


def generated(height: int, width: int, count: int = 16) -> Pixels:
    """Return pictures `(count, height, width, 3)` of coloured clouds, coarse and fine, for want of photographs."""
    random = np.random.default_rng(0)
    pictures = np.zeros((count, height, width, 3))
    for scale in (2, 5, 11, 40):
        coarse = random.normal(size=(count, scale, scale, 3))
        rows = np.arange(height) * scale // height
        columns = np.arange(width) * scale // width
        pictures += coarse[:, rows][:, :, columns]
    return np.clip(127 + 45 * pictures, 0, 255).astype(np.uint8)
