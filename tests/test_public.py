"""The public surface: what `lookalike` offers, and that importing it costs next to nothing."""

from __future__ import annotations

import inspect
import subprocess
import sys
import types

import pytest

import lookalike as la
from lookalike.cli.commands import cli

HEAVY = ("torch", "torchvision", "timm", "faiss", "matplotlib", "jinja2", "numpy", "PIL", "click", "rich")


def in_a_new_process(code: str) -> str:
    """Run Python with no module of ours or theirs imported yet."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_what_is_public():
    assert la.__all__ == [
        "Benchmark",
        "Choice",
        "Dataset",
        "Embeddings",
        "Encoder",
        "Evaluation",
        "Hits",
        "Index",
        "Item",
        "LookalikeError",
        "Measure",
        "Skipped",
        "TrainingOptions",
        "Trial",
        "benchmark",
        "check",
        "demo",
        "embed",
        "evaluate",
        "index",
        "load_bundle",
        "load_dataset",
        "save_bundle",
        "search",
        "submit",
        "train",
    ]
    assert dir(la) == sorted(la.__all__)


def test_nothing_else_is():
    assert in_a_new_process("import lookalike; print(dir(lookalike) == sorted(lookalike.__all__))") == "True"
    with pytest.raises(AttributeError, match=r"^module 'lookalike' has no attribute 'bnchmark'$"):
        la.bnchmark  # noqa: B018


@pytest.mark.parametrize("name", la.__all__)
def test_every_name_resolves_to_what_it_is_called(name):
    value = getattr(la, name)
    assert value.__name__ == name
    assert value.__module__.startswith("lookalike.")
    assert value.__doc__
    assert not isinstance(value, types.ModuleType)


def test_a_star_import_gives_all_of_it():
    space: dict[str, object] = {}
    exec("from lookalike import *", space)
    assert set(la.__all__) <= set(space)


def test_importing_it_imports_nothing_heavy():
    code = f"import lookalike, sys; print([m for m in {HEAVY} if m in sys.modules])"
    assert in_a_new_process(code) == "[]"


def test_the_commands_import_neither_torch_nor_what_draws():
    heavy = HEAVY[: HEAVY.index("numpy")]
    code = f"import lookalike.cli.commands, sys; print([m for m in {heavy} if m in sys.modules])"
    assert in_a_new_process(code) == "[]"


@pytest.mark.parametrize("name", [n for n in cli.commands if n != "completion"])
def test_every_command_is_a_function_of_the_same_name(name):
    function = getattr(la, name)
    assert inspect.isfunction(function)
    arguments = inspect.signature(function).parameters
    for parameter in cli.commands[name].params:
        if parameter.param_type_name == "argument" or parameter.name in ("out", "model", "weights", "budget_ms"):
            assert parameter.name in arguments or name == "check", parameter.name
