"""The public surface: what `lookalike` offers, and that importing it costs next to nothing."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import lookalike as la
from lookalike.cli.commands import cli
from lookalike.training.options import OptionChanges

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


def in_a_new_process(code: str) -> str:
    """Run Python with no module of ours or theirs imported yet."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_what_is_public():
    assert la.__all__ == dir(la)
    assert not [name for name in la.__all__ if name.startswith("_")]


def test_what_the_documents_use_is_public():
    readme = Path(__file__).parents[1] / "README.md"
    used = set(re.findall(r"\bla\.(\w+)", f"{la.__doc__}\n{readme.read_text(encoding='utf-8')}"))
    assert {"load_dataset", "train", "Index", "benchmark"} <= used <= set(la.__all__)


def test_nothing_else_is():
    assert in_a_new_process("import lookalike; print(dir(lookalike) == sorted(lookalike.__all__))") == "True"
    with pytest.raises(AttributeError, match="'bnchmark'"):
        la.bnchmark  # noqa: B018


def test_a_subpackage_does_not_hide_the_function_of_its_name():
    imports = "import lookalike as la, lookalike.index.index, lookalike.benchmark.trial"
    assert in_a_new_process(f"{imports}; print(callable(la.index), callable(la.benchmark))") == "True True"


def test_a_name_is_looked_up_once():
    code = "import lookalike; print('check' in vars(lookalike), lookalike.check is vars(lookalike)['check'])"
    assert in_a_new_process(code) == "False True"


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


PYTHON_NAMES = {"no_near": "near", "no_finetune": "finetune", "tuned": "finetune"}
"""Options that say no, or say in words what is one value in Python."""


@pytest.mark.parametrize("name", [n for n in cli.commands if n != "completion"])
def test_every_command_is_a_function_of_the_same_name_and_arguments(name):
    function = getattr(la, name)
    assert inspect.isfunction(function)
    signature = inspect.signature(function).parameters
    known = {n for n, p in signature.items() if p.kind is not p.VAR_KEYWORD}
    if "changes" in signature:
        known |= OptionChanges.__annotations__.keys()
    given = {PYTHON_NAMES.get(p.name, p.name) for p in cli.commands[name].params}
    assert (
        given - {"as_json", "settings"} <= known
    )  # what is returned can be turned into JSON; a setting is a recipe's field by name
