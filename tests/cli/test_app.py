"""The command group: help, version, completion, the generated reference, and flags in messages."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from lookalike.cli.app import COMMANDS, cli, with_flags

REPOSITORY = Path(__file__).resolve().parents[2]
CONTEXT = click.Context(cli)


def test_help_lists_the_commands_in_the_order_of_a_job(lookalike):
    outcome = lookalike("-h")
    assert (outcome.code, outcome.err) == (0, "")
    listed = re.findall(r"^  (\w+) {2,}(\S.*)$", outcome.out.partition("Commands:")[2], re.MULTILINE)
    assert [name for name, _ in listed] == list(COMMANDS)
    assert all(text.endswith(".") and not text.endswith("...") for _, text in listed)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_has_an_example(name, lookalike):
    outcome = lookalike(f"{name} --help")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"\n    lookalike {name}" in outcome.out.partition("Example")[2]
    assert max(map(len, outcome.out.splitlines())) <= 100


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help(name):
    for option in cli.get_command(CONTEXT, name).params:
        assert option.param_type_name == "argument" or option.help, option.name


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_can_be_parsed(name):
    command = cli.get_command(CONTEXT, name)
    text = (command.help or "").replace("\\\n", " ")
    for line in re.findall(rf"^ *lookalike {name} (.*)$", text, re.MULTILINE):
        command.make_context(name, re.sub(r"(>>? .*| {3,}\w.*)$", "", line).split())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_alone_has_the_help_options_of_the_program(name):
    command = cli.get_command(CONTEXT, name)
    assert command.make_context(name, [], resilient_parsing=True).help_option_names == ["-h", "--help"]


def test_version(lookalike):
    outcome = lookalike("--version")
    assert (outcome.code, outcome.out) == (0, "lookalike, version 0.1.0\n")
    command = [sys.executable, "-m", "lookalike", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == outcome.out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell, lookalike):
    outcome = lookalike(f"completion {shell}")
    assert (outcome.code, outcome.err) == (0, "")
    assert "_LOOKALIKE_COMPLETE" in outcome.out


@pytest.mark.parametrize(
    ("words", "completed"), [("lookalike ev", "plain,evaluate"), ("lookalike train x --max", "plain,--max-minutes")]
)
def test_completion_completes(words, completed, monkeypatch, lookalike):
    monkeypatch.setenv("_LOOKALIKE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert lookalike("").out.splitlines() == [completed]


@pytest.mark.parametrize(
    ("name", "message", "expected"),
    [
        ("search", "`top_k` is 9; choose a smaller `top_k`.", "-k is 9; choose a smaller -k."),
        ("train", "`max_minutes` and `out` must be set.", "--max-minutes and --out must be set."),
        ("train", "lr, `data` and `nothing` stay.", "lr, `data` and `nothing` stay."),
        ("train", "`class_disjoint` is true.", "--class-disjoint is true."),
    ],
)
def test_flags_replace_option_names_in_backticks(name, message, expected):
    assert with_flags(message, cli.get_command(CONTEXT, name)) == expected


def test_the_reference_is_up_to_date(load_script):
    make_cli = load_script("docs/make_cli.py")
    written = (REPOSITORY / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert written == make_cli.reference(), "run: python docs/make_cli.py"


@pytest.mark.parametrize("command", ["train", "benchmark"])
def test_options_and_the_output_folder_are_checked_before_torch_is_imported(command, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "file").touch()
    code = """
import sys
from lookalike.cli.main import run
for options in ("--epochs -1 --out new", "--lr nan --out new", "--out photos/..", "--out file", "--out file/new"):
    print(run([*sys.argv[1:], *options.split()]), [m for m in ("torch", "timm") if m in sys.modules])
"""
    arguments = [sys.executable, "-c", code, command, "photos"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "2 []\n" * 5, done.stderr


def test_a_command_imports_only_its_module():
    code = """
import sys, click
from lookalike.cli.app import cli
cli.get_command(click.Context(cli), "search")
names = sorted(m.rpartition(".")[2] for m in sys.modules if m.startswith("lookalike.cli.commands."))
print(names, [m for m in ("rich", "torch", "faiss", "openvino") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "['retrieve'] []\n", done.stderr
