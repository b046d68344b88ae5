"""The check of an exported model, with figures made by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from lookalike.api.parity import compare_embeddings, generated_images, require_parity
from lookalike.errors import ModelError
from lookalike.models.info import Parity
from lookalike.types import Comparison, Skipped

GOOD = Parity("validation images", 64, 0.99, 0.995, 1.0, 200, {"precision@3": (0.9, 0.896)}, Comparison(0.4, 0.1, 0.7))


def test_a_good_export_passes():
    require_parity(GOOD, "int8", 0.5)


@pytest.mark.parametrize(
    ("changes", "precision", "facts"),
    [
        ({"min_cosine": 0.89}, "int8", ("int8", "0.8900", "0.9")),
        ({"min_cosine": 0.97}, "bfloat16", ("bfloat16", "0.9700", "0.98")),
        ({"min_cosine": 0.9998}, "float32", ("float32", "0.9998", "0.9999")),
        ({"batch_cosine": 0.9}, "int8", ("in batches", "0.9000")),
        ({"min_cosine": float("nan")}, "float32", ("float32", "nan")),
        ({"batch_cosine": float("nan")}, "float32", ("in batches", "nan")),
        ({"loss": None}, "int8", ("cannot be measured", "200 validation images")),
        ({"loss": Comparison(0.6, 0.1, 1.1)}, "int8", ("0.5 points of precision@3", "a loss of 0.60 points")),
        ({"loss": Comparison(0.6, -0.3, 1.5)}, "int8", ("0.5 points of precision@3", "a loss of 0.60 points")),
    ],
)
def test_a_bad_export_is_refused_with_its_figures(changes, precision, facts):
    with pytest.raises(ModelError) as caught:
        require_parity(replace(GOOD, **changes), precision, 0.5)
    assert all(fact in str(caught.value) for fact in facts)
    assert caught.value.argument in ("precision", "format", "data")


def test_too_few_images_that_can_be_read():
    skipped = Skipped(Path("a.jpg"), "the file is empty")
    with pytest.raises(ModelError, match=r"on 3 validation images.*a\.jpg: the file is empty"):
        require_parity(replace(GOOD, validation_images=3, loss=None), "int8", 0.5, [skipped])


def test_figures_in_words():
    assert str(GOOD) == (
        "cosine to the bundle at least 0.9900, mean 0.9950, on 64 validation images; "
        "on 200 validation images precision@3 0.9000 to 0.8960 (a loss of 0.40 points, 95 % interval 0.10 to 0.70)"
    )


@dataclass
class Table:
    """An encoder that returns rows of a table by the first pixel: `single` one by one, `batch` in batches."""

    single: list[list[float]]
    batch: list[list[float]]

    def prepare(self, *_):
        return self

    def encode(self, pixels):
        return np.array(self.single if len(pixels) == 1 else self.batch, np.float32)[pixels[:, 0, 0, 0]]


def test_the_lower_cosine_of_single_images_and_batches_counts():
    pixels = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1) * np.ones((1, 1, 1, 3), np.uint8)
    truth = [[1, 0], [0, 1], [0.6, 0.8]]
    exported = Table(
        single=[[1, 0], [0, 1], [0.8, 0.6]],  # the third: 0.96
        batch=[[0.6, 0.8], [0, 1], [0.6, 0.8]],  # the first: 0.6
    )
    cosines, batch_cosine = compare_embeddings(Table(truth, truth), exported, pixels)
    np.testing.assert_allclose(cosines, [0.6, 1, 0.96], atol=1e-6)
    assert batch_cosine == pytest.approx(0.6)


def test_generated_images_are_distinct_and_reproducible():
    images = generated_images(40, 60)
    assert (images.shape, images.dtype) == ((16, 40, 60, 3), np.uint8)
    np.testing.assert_array_equal(images, generated_images(40, 60))
    flat = images.reshape(16, -1).astype(float)
    correlations = np.corrcoef(flat) - np.eye(16)
    assert correlations.max() < 0.6
    assert flat.std() > 40
