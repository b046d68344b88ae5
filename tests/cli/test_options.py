"""Options that become training options or weights."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

import lookalike as la
from lookalike.cli.options import RECIPE_FLAGS, make_training_options, parse_weights, training_options
from lookalike.errors import OptionError
from lookalike.training.config import FIELDS


@pytest.mark.parametrize(
    ("values", "backbones", "weights"),
    [
        ([], ["a"], "pretrained"),
        (["none"], ["a", "b"], "none"),
        (["w.pth"], ["a"], Path("w.pth")),
        (["b=w.pth"], ["a", "b"], {"b": Path("w.pth")}),
        (["none", "b=w.pth"], ["a", "b"], {"a": "none", "b": Path("w.pth")}),
        (["b=w.pth"], ["auto"], {"b": Path("w.pth")}),
        (["pretrained", "b=w.pth"], ["a", "auto"], {"a": "pretrained", "b": Path("w.pth")}),
    ],
)
def test_parse_weights(values, backbones, weights):
    assert parse_weights(values, backbones) == weights


def test_defaults_of_training_are_those_of_the_library():
    values = click.command()(training_options(lambda **_: None)).make_context("train", []).params
    options = la.TrainingOptions()
    fields = {name: values.pop(name) for name in RECIPE_FLAGS if name in FIELDS}
    assert set(fields.values()) == {None}
    assert values.pop("settings") == ()
    assert values == {name: getattr(options, name) for name in values}


def test_set_parses_a_value_by_the_type_of_its_field():
    settings = ("pooling=gem", "channels-last=false", "weight_decay = 0.5", "epochs=2")
    options = make_training_options({"settings": settings, "seed": 3, "lr": None})
    expected = {"pooling": "gem", "channels_last": False, "weight_decay": 0.5, "epochs": 2, "seed": 3}
    assert options.to_dict().items() >= expected.items()


@pytest.mark.parametrize(
    ("values", "facts"),
    [
        ({"settings": ("pooling",)}, ["--set", "'pooling'"]),
        ({"settings": ("speed=9",)}, ["--set", "'speed=9'"]),
        ({"settings": ("epochs=9",), "epochs": 2}, ["`epochs`"]),
        ({"settings": ("epochs=many",)}, ["epochs", "'many'"]),
        ({"settings": ("channels_last=perhaps",)}, ["channels_last", "'perhaps'"]),
        ({"loss": "hinge"}, ["'hinge'", "cross-entropy"]),
        ({"settings": ("loss=hinge",)}, ["'hinge'", "cross-entropy"]),
    ],
)
def test_bad_training_options(values, facts):
    with pytest.raises(OptionError) as raised:
        make_training_options(values)
    assert not [fact for fact in facts if fact not in str(raised.value)], raised.value
