"""Options: the defaults are allowed, everything else is refused in one sentence."""

import json
import math

import pytest

from lookalike.errors import OptionError
from lookalike.training.options import TrainingOptions
from lookalike.training.recipe import FIELDS, RecipeChanges


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
        ({"precision": "half"}, "precision must be one of auto, float32, bfloat16, float16, got 'half'."),
        ({"frozen_statistics": 1}, "frozen_statistics must be true or false, got 1."),
        ({"last_stride": 3}, "last_stride must be a whole number from 1 to 2, got 3."),
        (
            {"recipe": "best"},
            "there is no recipe named 'best'; allowed are auto, cnn, mobile-cnn, transformer, hybrid.",
        ),
        (
            {"neck": "bnneck", "loss": "triplet"},
            "a neck stands before losses that classify, and triplet only compares images; "
            "add a loss that classifies, or set neck to none.",
        ),
        ({"allow_leaks": 1}, "allow_leaks must be true or false, got 1."),
        ({"speed": 1}, "there is no option named 'speed'; 'lookalike recipes' lists what a recipe has."),
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
    ("given", "family", "rates"),
    [
        ({}, "mobile-cnn", (5e-4, 1e-3)),
        ({}, "cnn", (1e-4, 1e-3)),
        ({}, "transformer", (1e-4, 1e-3)),
        ({"optimizer": "sgd"}, "mobile-cnn", (1e-2, 3e-2)),
        ({"lr": 1e-5}, "mobile-cnn", (1e-5, 1e-3)),
        ({"optimizer": "sgd", "head_lr": 0.5}, "cnn", (1e-2, 0.5)),
        ({"recipe": "cnn"}, "mobile-cnn", (1e-4, 1e-3)),
    ],
)
def test_learning_rates_not_given_fit_optimizer_and_network(given, family, rates):
    recipe = TrainingOptions(**given).recipe_for(family)
    assert (recipe.lr, recipe.head_lr) == rates


def test_unseen_classes_are_trained_more_gently_unless_a_recipe_or_a_value_is_named():
    def of(**given):
        recipe = TrainingOptions(**given).recipe_for("mobile-cnn", unseen=True)
        return recipe.epochs, recipe.lr

    assert of() == (3, 1e-4)
    assert of(epochs=5) == (5, 1e-4)
    assert of(recipe="mobile-cnn") == (8, 5e-4)
    assert of(optimizer="sgd") == (3, 2e-3)


def test_json_and_back():
    options = TrainingOptions(epochs=9, max_minutes=2.5, class_disjoint=True)
    assert TrainingOptions(**json.loads(json.dumps(options.to_dict()))) == options


def test_every_field_of_a_recipe_is_an_option_explained():
    assert set(RecipeChanges.__annotations__) == set(FIELDS)
    assert all(own.metadata["help"] for own in FIELDS.values())


def test_what_a_recipe_cannot_be_in_combination():
    options = TrainingOptions(first_resolution=0.9, resolution=0.5)
    with pytest.raises(
        OptionError, match=r"first_resolution must be 0, or from 0\.25 to the resolution of 0.5, got 0.9"
    ):
        options.recipe_for("cnn")
