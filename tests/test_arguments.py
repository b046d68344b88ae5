"""Arguments of a wrong type, in every public function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lookalike as la
from lookalike._arguments import checked_arguments
from lookalike.errors import LookalikeError, OptionError

CLASSES = (la.CheckReport, la.Encoder, la.Ensemble, la.Index)
CHECKED_METHODS = ("build", "embed", "load", "save", "with_root", "write_clean_manifest")


def public_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in la.__all__:
        if inspect.isfunction(getattr(la, name)):
            yield name, getattr(la, name)
    for kind in CLASSES:
        for name in CHECKED_METHODS:
            if hasattr(kind, name):
                yield f"{kind.__name__}.{name}", getattr(kind, name)


FUNCTIONS = dict(public_functions())
ARGUMENTS = [
    pytest.param(name, argument, id=f"{name}-{argument}")
    for name, function in FUNCTIONS.items()
    for argument, parameter in inspect.signature(function).parameters.items()
    if argument != "self" and parameter.kind is not parameter.VAR_KEYWORD
]


def refused(name: str, argument: str, value: object) -> None:
    """Call a public function with one wrong argument, which is the first that is looked at."""
    function = FUNCTIONS[name]
    instance = {"self": object.__new__(la.Encoder)} if "self" in inspect.signature(function).parameters else {}
    with pytest.raises(LookalikeError) as caught:
        function(**instance, **{argument: value})
    assert caught.value.argument == argument
    assert f"`{argument}`" in str(caught.value)


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_a_value_of_no_fitting_type_is_refused_by_name(name, argument):
    refused(name, argument, object())


PATHS = [
    (name, argument)
    for name, argument in (p.values for p in ARGUMENTS)
    if "Path" in str(inspect.signature(FUNCTIONS[name]).parameters[argument].annotation)
]


@pytest.mark.parametrize(("name", "argument"), PATHS)
def test_a_path_with_a_null_character_is_refused_by_name(name, argument):
    refused(name, argument, "a\0b" if argument != "bundles" else ["a\0b"])


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("load_dataset", "data", 3),
        ("load_dataset", "seed", "1"),
        ("load_encoder", "model", 3),
        ("load_encoder", "weights", {"resnet50": 3}),
        ("load_index", "index", None),
        ("embed", "images", ["a.jpg"]),
        ("embed", "progress", "x"),
        ("index", "min_recall", "high"),
        ("evaluate", "k", [1, "3"]),
        ("train", "track", "mlflow"),
        ("train", "options", {"epochs": 3}),
        ("benchmark", "backbones", "resnet50"),
        ("benchmark", "finetune", "resnet50"),
        ("check", "near", 1),
        ("search", "images", 5),
    ],
)
def test_what_users_pass_by_mistake(name, argument, value):
    refused(name, argument, value)


@checked_arguments(path="pass a folder")
def example(
    path: Path | str = ".",
    count: int = 1,
    share: float = 0.5,
    weights: Mapping[str, str | Path] | None = None,
    k: int | Sequence[int] = (),
    **others: Any,
) -> tuple[Any, ...]:
    """Return the arguments."""
    return path, count, share, weights, k, others


def test_values_of_fitting_types_are_passed_on(tmp_path):
    assert example() == (".", 1, 0.5, None, (), {})
    numbers = {"count": np.int64(3), "share": np.float32(0.5), "k": [np.int32(1)]}
    path, count, share, weights, k, others = example(tmp_path, **numbers, weights={"a": tmp_path}, other=object())
    assert (path, count, share, weights, k) == (tmp_path, 3, 0.5, {"a": tmp_path}, [1])
    assert list(others) == ["other"]
    assert example.__name__ == "example"


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ({"path": 3}, ("a path", "int 3", "pass a folder")),
        ({"path": b"photos"}, ("a path", "bytes")),
        ({"path": Path("a\0b")}, ("a path", "null character")),
        ({"count": 1.0}, ("an integer", "float 1.0")),
        ({"count": True}, ("an integer", "bool True")),
        ({"share": "0.5"}, ("a number", "str '0.5'")),
        ({"weights": {"a": 1}}, ("a mapping, each value a path or None",)),
        ({"k": "13"}, ("an integer or a list, each item an integer",)),
    ],
)
def test_the_message_says_what_is_allowed_and_what_was_passed(arguments, facts):
    with pytest.raises(OptionError) as caught:
        example(**arguments)
    assert all(fact in str(caught.value) for fact in facts)


def test_a_misspelt_argument_is_an_error_of_python():
    with pytest.raises(TypeError, match="nmae"):
        la.load_dataset("photos", nmae=1)
