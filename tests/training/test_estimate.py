from __future__ import annotations

import pytest

from lookalike.data.layouts import load_dataset
from lookalike.data.validation import with_validation
from lookalike.progress import format_about
from lookalike.training.config import TrainingOptions, make_recipe
from lookalike.training.estimate import training_seconds


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        (TrainingOptions(frozen=True), 2 * 16 + 6 * 8),
        (TrainingOptions(), 2 * 16 + 6 * 8 + 4 * (3 * 0.25 * 16 + 8)),  # 80 + 80
        (TrainingOptions(max_minutes=2), 120),
    ],
)
def test_the_estimate_by_hand(data_folder_original, options, seconds):
    """16 training and 8 validation images at one second each, four epochs at half the side."""
    data = with_validation(load_dataset(data_folder_original))
    assert (len(data.training), len(data.validation)) == (16, 8)
    recipe = make_recipe("cnn", "cnn", epochs=4, resolution=0.5)
    assert training_seconds(1.0, data, options, recipe) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1, "about 10 s"), (44, "about 40 s"), (100, "about 2 min"), (780, "about 13 min"), (7300, "about 2 h")],
)
def test_estimates_have_no_false_precision(seconds, text):
    assert format_about(seconds) == text
