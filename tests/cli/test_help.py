"""Help, version, completion, and the reference that is made of the same text."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

import lookalike as la
from lookalike.cli.commands import cli
from lookalike.cli.options import make_training_options, training_options
from lookalike.errors import OptionError
from lookalike.training.losses import LOSSES
from lookalike.training.options import RunChanges
from lookalike.training.recipe import FIELDS

REPOSITORY = Path(__file__).resolve().parents[2]


def test_without_arguments_the_help_is_shown_as_talk(lookalike):
    found = lookalike("")
    assert (found.code, found.out) == (2, "")
    assert found.err == lookalike("--help").out


def test_help_lists_the_commands_in_the_order_of_a_job(lookalike):
    found = lookalike("-h")
    assert (found.code, found.err) == (0, "")
    listed = re.findall(r"^  (\w+) {2,}(\S.*)$", found.out.partition("Commands:")[2], re.MULTILINE)
    assert [name for name, _ in listed] == list(cli.commands)
    assert all(text.endswith(".") and not text.endswith("...") for _, text in listed)


@pytest.mark.parametrize("name", cli.commands)
def test_help_of_every_command_has_an_example_of_it(name, lookalike):
    found = lookalike(f"{name} --help")
    assert (found.code, found.err) == (0, "")
    examples = found.out.partition("Example")[2]
    assert f"\n    lookalike {name}" in examples
    assert max(map(len, found.out.splitlines())) <= 100


@pytest.mark.parametrize("name", cli.commands)
def test_every_option_has_a_help(name):
    for option in cli.commands[name].params:
        assert option.param_type_name == "argument" or option.help, option.name


def test_examples_parse():
    """Every line that the help shows is one that the command takes."""
    for name, command in cli.commands.items():
        text = (command.help or "").replace("\\\n", " ")
        for line in re.findall(rf"^ *lookalike {name} (.*)$", text, re.MULTILINE):
            words = re.sub(r"(>>? .*| {3,}\w.*)$", "", line).split()
            command.make_context(name, words)


def test_version(lookalike):
    found = lookalike("--version")
    assert (found.code, found.out) == (0, "lookalike, version 0.1.0\n")
    command = [sys.executable, "-m", "lookalike", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == found.out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell, lookalike):
    found = lookalike(f"completion {shell}")
    assert (found.code, found.err) == (0, "")
    assert "_LOOKALIKE_COMPLETE" in found.out


def test_completion_completes(capsys, monkeypatch, lookalike):
    monkeypatch.setenv("_LOOKALIKE_COMPLETE", "bash_complete")
    for words, wanted in (("lookalike ev", "plain,evaluate"), ("lookalike train x --max", "plain,--max-minutes")):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        assert lookalike("").out.splitlines() == [wanted]


def test_the_defaults_of_training_are_the_librarys():
    shown = click.command()(training_options(lambda **_: None)).make_context("train", []).params
    options = la.TrainingOptions()
    run = {name: getattr(options, name) for name in RunChanges.__annotations__ if name != "frozen"}
    recipe = dict.fromkeys([*FIELDS, "settings"], None) | {"settings": ()}
    assert shown == run | {name: recipe[name] for name in shown if name not in run}


def test_set_changes_any_field_of_a_recipe_as_its_type():
    settings = ("pooling=gem", "ema = 0.9", "compile=true", "last-stride=1")
    options = make_training_options({"settings": settings, "seed": 3, "lr": None})
    assert (
        options.to_dict().items()
        >= {"pooling": "gem", "ema": 0.9, "compile": True, "last_stride": 1, "seed": 3}.items()
    )


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"settings": ("pooling",)}, "--set takes FIELD=VALUE with a field of a recipe, got 'pooling'; see"),
        ({"settings": ("speed=9",)}, "--set takes FIELD=VALUE with a field of a recipe, got 'speed=9'; see"),
        ({"settings": ("epochs=9",), "epochs": 2}, "epochs is given twice; leave one of them out."),
        ({"settings": ("epochs=many",)}, "--set epochs=many: epochs must be a whole number of at least 1, got 'many'."),
        ({"settings": ("compile=perhaps",)}, "--set compile=perhaps: compile must be true or false, got 'perhaps'."),
        ({"loss": "hinge"}, "there is no loss named 'hinge'; allowed are cross-entropy,"),
        ({"settings": ("loss=hinge",)}, "--set loss=hinge: there is no loss named 'hinge'; allowed are cross-entropy,"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(values, sentence):
    with pytest.raises(OptionError) as raised:
        make_training_options(values)
    assert str(raised.value).startswith(sentence)


def test_a_setting_is_named_as_it_was_typed(lookalike, tmp_path):
    told = lookalike(f"train {tmp_path} --set head_lr=abc --out {tmp_path / 'new'}").errors
    assert told == ["--set head_lr=abc: head_lr must be a number, got 'abc'."]


def test_recipes_lists_every_field_and_loss(lookalike):
    found = lookalike("recipes")
    assert all(f"\n{name} = " in f"\n{found.out}" for name in FIELDS)
    assert "lr = 0.0001, mobile-cnn 0.0005" in found.out
    assert all(name in found.out for name in LOSSES)
    made = json.loads(lookalike("recipes --json").out)
    assert made["recipes"]["mobile-cnn"]["lr"] == 5e-4
    assert set(made) == {"recipes", "unseen", "fields", "losses"}
    assert "auto, where the test classes are unseen: epochs = 3, lr = 0.0001" in found.out


def test_the_reference_has_not_drifted():
    spec = importlib.util.spec_from_file_location("make_cli", REPOSITORY / "docs" / "make_cli.py")
    make_cli = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_cli)
    written = (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == make_cli.reference(), "run: python docs/make_cli.py"


def test_a_command_imports_only_its_own_module():
    code = """
import sys
from lookalike.cli.commands import cli
cli.commands["search"]
names = sorted(m.rpartition(".")[2] for m in sys.modules if m.startswith("lookalike.cli.commands."))
print(names, [m for m in ("rich", "torch", "faiss", "openvino") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "['searching'] []\n", done.stderr
