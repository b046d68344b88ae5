"""Options: the defaults are allowed, everything else is refused in one sentence."""

import json
import math

import pytest

from lookalike.errors import OptionError
from lookalike.training import TrainingOptions


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0."),
        ({"epochs": 2.5}, "epochs must be a whole number of at least 1, got 2.5."),
        ({"epochs": "3"}, "epochs must be a whole number of at least 1, got '3'."),
        ({"batch_size": 1}, "batch_size must be a whole number of at least 2, got 1."),
        ({"patience": 0}, "patience must be a whole number of at least 1, got 0."),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1."),
        ({"max_minutes": 0}, "max_minutes must be above 0, got 0."),
        ({"max_minutes": -1.5}, "max_minutes must be above 0, got -1.5."),
        ({"max_minutes": math.inf}, "max_minutes must be above 0, got inf."),
        ({"max_minutes": math.nan}, "max_minutes must be above 0, got nan."),
        ({"max_minutes": "5"}, "max_minutes must be a number, got '5'."),
        ({"lr": 0}, "lr must be above 0 and at most 10, got 0."),
        ({"lr": math.nan}, "lr must be above 0 and at most 10, got nan."),
        ({"head_lr": 11}, "head_lr must be above 0 and at most 10, got 11."),
        ({"head_lr": "fast"}, "head_lr must be a number, got 'fast'."),
        ({"warmup": 1.0}, "warmup must be at least 0 and below 1, got 1.0."),
        ({"label_smoothing": -0.1}, "label_smoothing must be at least 0 and below 1, got -0.1."),
        ({"weight_decay": math.nan}, "weight_decay must be at least 0 and below 1, got nan."),
        ({"epochs": True}, "epochs must be a whole number of at least 1, got True."),
        ({"frozen": "no"}, "frozen must be true or false, got 'no'."),
        ({"resolution": 0.2}, "resolution must be from 0.25 to 1, got 0.2."),
        ({"optimizer": "adam"}, "optimizer must be one of adamw, sgd, got 'adam'."),
        ({"precision": "float16"}, "precision must be one of auto, float32, bfloat16, got 'float16'."),
    ],
)
def test_a_value_outside_what_is_allowed(given, sentence):
    with pytest.raises(OptionError) as raised:
        TrainingOptions(**given)
    assert str(raised.value) == sentence


def test_an_unknown_measure_is_refused_before_any_work():
    with pytest.raises(OptionError, match=r"^the measure 'accuracy' is not known; allowed are .*\.$"):
        TrainingOptions(stop_on="accuracy")


@pytest.mark.parametrize(
    ("given", "sturdy", "rates"),
    [
        ({}, True, (5e-4, 1e-3)),
        ({}, False, (1e-4, 1e-3)),
        ({"optimizer": "sgd"}, True, (1e-2, 3e-2)),
        ({"lr": 1e-5}, True, (1e-5, 1e-3)),
        ({"optimizer": "sgd", "head_lr": 0.5}, False, (1e-2, 0.5)),
    ],
)
def test_learning_rates_not_given_fit_optimizer_and_backbone(given, sturdy, rates):
    assert TrainingOptions(**given).learning_rates(sturdy=sturdy) == rates


def test_json_and_back():
    options = TrainingOptions(epochs=9, max_minutes=2.5, class_disjoint=True)
    assert TrainingOptions(**json.loads(json.dumps(options.to_dict()))) == options
