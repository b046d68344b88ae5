"""Recipes and options: defaults per network family, overrides, and errors for values outside their limits."""

import json
import math

import pytest

from lookalike.errors import OptionError
from lookalike.training.config import FIELDS, Recipe, TrainingOptions, make_recipe, override_options, recipes


@pytest.mark.parametrize(
    ("overrides", "facts"),
    [
        ({"epochs": 0}, ("at least 1", "0")),
        ({"epochs": 2.5}, ("integer", "2.5")),
        ({"epochs": "3"}, ("integer", "'3'")),
        ({"epochs": True}, ("integer", "True")),
        ({"batch_size": 1}, ("at least 2", "1")),
        ({"patience": 0}, ("at least 1", "0")),
        ({"seed": -1}, ("at least 0", "-1")),
        ({"max_minutes": 0}, ("above 0", "0")),
        ({"max_minutes": math.inf}, ("above 0", "inf")),
        ({"max_minutes": math.nan}, ("above 0", "nan")),
        ({"max_minutes": "5"}, ("number", "'5'")),
        ({"lr": 0}, ("above 0 and at most 10", "0")),
        ({"lr": math.nan}, ("above 0 and at most 10", "nan")),
        ({"head_lr": 11}, ("above 0 and at most 10", "11")),
        ({"head_lr": "fast"}, ("number", "'fast'")),
        ({"warmup": 1.0}, ("at least 0 and below 1", "1.0")),
        ({"label_smoothing": -0.1}, ("at least 0 and below 1", "-0.1")),
        ({"frozen": "no"}, ("true or false", "'no'")),
        ({"allow_leaks": 1}, ("true or false", "1")),
        ({"class_disjoint": "yes"}, ("true or false", "'yes'")),
        ({"resolution": 0.2}, ("at least 0.25 and at most 1", "0.2")),
        ({"optimizer": "adam"}, ("adamw, sgd", "'adam'")),
        ({"precision": "half"}, ("auto, float32, bfloat16, float16", "'half'")),
        ({"crop_mode": "unchanged"}, ("auto, pretrained, center, squash, border", "'unchanged'")),
        ({"frozen_statistics": 1}, ("true or false", "1")),
        ({"loss": "hinge"}, ("cross-entropy", "'hinge'")),
        ({"loss": 3}, ("cross-entropy", "'3'")),
        ({"recipe": "best"}, ("auto, cnn, mobile-cnn, transformer, hybrid", "'best'")),
    ],
    ids=str,
)
def test_invalid_value(overrides, facts):
    with pytest.raises(OptionError) as raised:
        TrainingOptions(**overrides)
    assert raised.value.argument in overrides
    assert all(fact in str(raised.value) for fact in facts)


def test_unknown_option():
    with pytest.raises(OptionError, match="speed"):
        TrainingOptions(speed=1)


def test_unknown_measure():
    with pytest.raises(OptionError, match="accuracy"):
        TrainingOptions(stop_on="accuracy")


def test_batch_too_small_for_two_classes():
    with pytest.raises(OptionError) as raised:
        TrainingOptions(loss="triplet", batch_size=7)
    assert raised.value.argument == "batch_size"
    assert all(fact in str(raised.value) for fact in ("`batch_size` of 7", "holds 1 of 4"))


def test_cross_entropy_is_the_default_loss():
    assert {recipe.loss for recipe in recipes().values()} == {"cross-entropy"}
    assert make_recipe("auto", "cnn", unseen=True).loss == "cross-entropy"


def test_auto_sampler_is_pk_for_losses_that_compare_images():
    assert Recipe().resolved_sampler == "shuffled"
    assert Recipe(loss="arcface").resolved_sampler == "shuffled"
    assert Recipe(loss="cross-entropy+0.5*triplet").resolved_sampler == "pk"
    assert Recipe(loss="triplet", sampler="shuffled").resolved_sampler == "shuffled"


@pytest.mark.parametrize(
    ("overrides", "family", "rates"),
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
def test_default_learning_rates_depend_on_optimizer_and_family(overrides, family, rates):
    recipe = TrainingOptions(**overrides).recipe_for(family)
    assert (recipe.lr, recipe.head_lr) == rates


def test_unseen_classes_are_trained_more_gently_by_default():
    def schedule(**overrides):
        recipe = TrainingOptions(**overrides).recipe_for("mobile-cnn", unseen=True)
        return recipe.epochs, recipe.lr

    assert schedule() == (3, 1e-4)
    assert schedule(epochs=5) == (5, 1e-4)
    assert schedule(recipe="mobile-cnn") == (8, 5e-4)
    assert schedule(optimizer="sgd") == (3, 2e-3)


def test_json_round_trip():
    options = TrainingOptions(epochs=9, max_minutes=2.5, class_disjoint=True)
    assert TrainingOptions(**json.loads(json.dumps(options.to_dict()))) == options


def test_overrides_replace_options():
    options = override_options(TrainingOptions(epochs=9, seed=1), {"epochs": 2})
    assert options == TrainingOptions(epochs=2, seed=1)
    assert override_options(None, {}) == TrainingOptions()


def test_every_field_has_a_help_text():
    assert all(field.metadata["help"] for field in FIELDS.values())
