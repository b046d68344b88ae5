"""The public interface of `lookalike`: its names, and a light import."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import types
from dataclasses import fields
from pathlib import Path

import click
import pytest

import lookalike as la
from lookalike.cli.app import COMMANDS, cli
from lookalike.training.config import OPTION_NAMES

HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "faiss",
    "pytorch_metric_learning",
    "sklearn",
    "matplotlib",
    "jinja2",
    "numpy",
    "PIL",
    "click",
    "rich",
)


def new_process(code: str) -> str:
    """Run Python code without any imported module and return its output."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_public_names():
    assert la.__all__ == dir(la)
    assert not [name for name in la.__all__ if name.startswith("_")]
    assert new_process("import lookalike; print(dir(lookalike) == sorted(lookalike.__all__))") == "True"


def test_names_in_the_documents_are_public():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    names = set(re.findall(r"\bla\.(\w+)", f"{la.__doc__}\n{readme}"))
    assert {"load_dataset", "train", "Index", "benchmark"} <= names <= set(la.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'bnchmark'"):
        la.bnchmark  # noqa: B018


def test_a_subpackage_does_not_hide_the_function_of_its_name(programs):
    code = "import lookalike as la, lookalike.index.index, lookalike.benchmark.trial"
    code += "; print(callable(la.index), callable(la.benchmark))"
    run = subprocess.run([programs / "run-code", code], capture_output=True, text=True, check=True)
    assert run.stdout == "True True\n"


def test_a_name_is_imported_once():
    code = "import lookalike; print('check' in vars(lookalike), lookalike.check is vars(lookalike)['check'])"
    assert new_process(code) == "False True"


@pytest.mark.parametrize("name", la.__all__)
def test_every_public_name_is_documented(name):
    value = getattr(la, name)
    assert value.__name__ == name
    assert value.__module__.startswith("lookalike.")
    assert value.__doc__
    assert not isinstance(value, types.ModuleType)


def test_star_import():
    namespace: dict[str, object] = {}
    exec("from lookalike import *", namespace)
    assert set(la.__all__) <= set(namespace)


def test_import_is_light():
    code = f"import lookalike, sys; print([m for m in {HEAVY} if m in sys.modules])"
    assert new_process(code) == "[]"


def test_the_command_line_imports_neither_models_nor_plots():
    heavy = HEAVY[: HEAVY.index("numpy")]
    code = f"import lookalike.cli.main, sys; print([m for m in {heavy} if m in sys.modules])"
    assert new_process(code) == "[]"


# options with another name than the argument: flags that negate it, or that set fields of the recipe by name
ARGUMENTS = {"no_near": "near", "no_finetune": "finetune", "mean": "images", "no_label": "label", "unset": "metadata"}
COMMAND_ONLY = {"as_json", "settings", "show_settings"}


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "completion"])
def test_every_command_is_a_function_with_the_same_name_and_arguments(name):
    function = getattr(la, name)
    assert inspect.isfunction(function)
    signature = inspect.signature(function).parameters
    arguments = {n for n, p in signature.items() if p.kind is not p.VAR_KEYWORD}
    if "overrides" in signature:
        arguments |= set(OPTION_NAMES)
    if name == "search":
        arguments |= {field.name for field in fields(la.Query)}
    options = {ARGUMENTS.get(p.name, p.name) for p in cli.get_command(click.Context(cli), name).params}
    assert options - COMMAND_ONLY <= arguments
