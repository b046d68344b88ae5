"""The gate, by hand-made figures."""

from dataclasses import replace

import numpy as np
import pytest

from lookalike.api.parity import Parity, compare, generated
from lookalike.errors import ModelError
from lookalike.evaluation.bootstrap import Comparison

GOOD = Parity("validation images", 64, 0.99, 0.995, 1.0, 200, {"precision@3": (0.9, 0.896)}, Comparison(0.4, 0.1, 0.7))


def test_a_good_export_passes():
    GOOD.require("int8", 0.5)


@pytest.mark.parametrize(
    ("changes", "precision", "sentence"),
    [
        ({"min_cosine": 0.89}, "int8", "int8 moves embeddings too far: cosine to the bundle at least 0.8900"),
        ({"min_cosine": 0.97}, "bfloat16", "bfloat16 moves embeddings too far"),
        ({"min_cosine": 0.9998}, "float32", "float32 moves embeddings too far"),
        ({"batch_cosine": 0.9}, "int8", "the exported model gives other embeddings in batches than one by one"),
        ({"min_cosine": float("nan")}, "float32", "float32 moves embeddings too far"),
        ({"batch_cosine": float("nan")}, "float32", "the exported model gives other embeddings in batches"),
        ({"loss": None}, "int8", "what int8 loses cannot be measured on 200 validation images"),
        ({"loss": Comparison(0.6, 0.1, 1.1)}, "int8", "int8 loses more than 0.5 points of precision@3"),
        ({"loss": Comparison(0.6, -0.3, 1.5)}, "int8", "int8 loses more than 0.5 points of precision@3"),
    ],
)
def test_a_bad_one_is_refused_with_its_figures(changes, precision, sentence):
    with pytest.raises(ModelError) as raised:
        replace(GOOD, **changes).require(precision, 0.5)
    assert str(raised.value).startswith(sentence)


class Fixed:
    """An runtime that returns rows of a table, by the first pixel; in batches of another one."""

    def __init__(self, single, many):
        self.single, self.many = np.array(single, np.float32), np.array(many, np.float32)

    def encode(self, pixels):
        return (self.single if len(pixels) == 1 else self.many)[pixels[:, 0, 0, 0]]


def test_the_lower_cosine_of_both_ways_counts():
    pixels = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1) * np.ones((1, 1, 1, 3), np.uint8)
    truth = [[1, 0], [0, 1], [0.6, 0.8]]
    single = [[1, 0], [0, 1], [0.8, 0.6]]  # the third: 0.96
    many = [[0.6, 0.8], [0, 1], [0.6, 0.8]]  # the first: 0.6
    cosines, between = compare(Fixed(truth, truth), Fixed(many, many), Fixed(single, single), pixels)
    np.testing.assert_allclose(cosines, [0.6, 1, 0.96], atol=1e-6)
    assert between == pytest.approx(0.6)


def test_generated_pictures_differ_and_are_the_same_each_time():
    found = generated(40, 60)
    assert found.shape == (16, 40, 60, 3)
    np.testing.assert_array_equal(found, generated(40, 60))
    flat = found.reshape(16, -1).astype(float)
    correlations = np.corrcoef(flat) - np.eye(16)
    assert correlations.max() < 0.6
    assert flat.std() > 40
