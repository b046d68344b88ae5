"""What commands print: progress, tables, text and paths."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import pytest

from lookalike.cli.console import (
    display_path,
    make_progress,
    print_json,
    print_prose,
    print_table,
    report_skipped,
    shell_path,
)
from lookalike.progress import BarProgress, LineProgress

HEADER = ["model", "accuracy", "ms"]
ROWS = [["resnet50", "0.9", "12.5"], ["a", "0.85", "3"]]


def test_progress_is_a_bar_in_a_terminal_only(monkeypatch):
    assert type(make_progress()) is LineProgress
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert type(make_progress()) is BarProgress


def test_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("/usr")
    assert display_path(tmp_path / "a" / "b") == "a/b"
    assert display_path(tmp_path / "link") == "link"
    assert display_path(Path("/usr/lib")) == "/usr/lib"
    assert shell_path(Path("my model")) == "'my model'"


def test_a_table_in_a_pipe_has_everything(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    assert print_table(HEADER, [*ROWS, ["x" * 300, "1", "1"]], right=HEADER[1:], optional=["ms"]) == []
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "model" + " " * 295 + "  accuracy    ms"
    assert lines[1] == "resnet50" + " " * 292 + "       0.9  12.5"
    assert lines[3] == "x" * 300 + "         1     1"


@pytest.mark.parametrize(("columns", "hidden"), [(24, []), (18, ["ms"]), (9, ["accuracy", "ms"])])
def test_a_narrow_terminal_hides_optional_columns(columns, hidden, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    assert print_table(HEADER, ROWS, right=HEADER[1:], optional=["ms", "accuracy"]) == hidden
    lines = click.unstyle(capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= columns
    assert lines[0].split() == [name for name in HEADER if name not in hidden]


def test_prose_is_wrapped_in_a_terminal_only(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "12")
    print_prose("one two three four")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_prose("one two three four")
    assert capsys.readouterr().out.splitlines() == ["one two three four", "one two", "three four"]


def test_a_long_list_of_skipped_files_is_cut():
    lines = []
    progress = LineProgress(lines.append)
    report_skipped(progress, [])
    assert lines == []
    report_skipped(progress, [f"{n}.jpg: empty" for n in range(25)])
    assert (lines[0], lines[1], len(lines)) == ("25 files were skipped:", "  0.jpg: empty", 22)
    assert "5 more" in lines[-1]


def test_json_has_no_control_characters(capsys):
    value = {"id": "a\x1b\x7f\x9b31mé"}
    print_json(value)
    text = capsys.readouterr().out
    assert text.replace("\n", "").isprintable()
    assert json.loads(text) == value
