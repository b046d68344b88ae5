"""How things look: words, tables, progress, and streams that take less than they should."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from lookalike.cli.command import as_typed
from lookalike.cli.commands import cli
from lookalike.cli.main import run
from lookalike.cli.output import print_prose, print_table
from lookalike.cli.terminal import Terminal, list_skipped
from lookalike.cli.wording import counted, display_path, duration, printable, rate, typed_path


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min"), (200, "3 min 20 s"), (3600, "1 h"), (7530, "2 h 6 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_rate_and_counted():
    assert [rate(r) for r in (12.34, 1.0, 0.25)] == ["12.3/s", "1.0/s", "4.0 s each"]
    assert [counted(n, "image") for n in (0, 1, 1234)] == ["0 images", "1 image", "1,234 images"]


def test_printable_keeps_control_characters_from_the_terminal():
    assert printable("a\x1b[31m\nb") == "a�[31m�b"
    assert printable("  Grüße  ") == "  Grüße  "


def test_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("/usr")
    assert display_path(tmp_path / "a" / "b") == "a/b"
    assert display_path(tmp_path / "link") == "link"
    assert display_path(Path("/usr/lib")) == "/usr/lib"
    assert typed_path(Path("my model")) == "'my model'"


def test_errors_name_options_as_they_are_typed():
    train, search = cli.commands["train"], cli.commands["search"]
    assert as_typed("max_minutes must be above 0, got 0.", train) == "--max-minutes must be above 0, got 0."
    assert as_typed("lr must be above 0.", train) == "--lr must be above 0."
    assert as_typed("epochs must be whole, got 1.", train) == "--epochs must be whole, got 1."
    assert as_typed("an image of few epochs must be.", train) == "an image of few epochs must be."
    assert as_typed("top_k is 9; choose a smaller top_k.", search) == "-k is 9; choose a smaller -k."


HEADER = ["model", "accuracy", "ms"]
ROWS = [["resnet50", "0.9", "12.5"], ["a", "0.85", "3"]]


def test_a_table_in_a_pipe_has_everything(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    assert print_table(HEADER, [*ROWS, ["x" * 300, "1", "1"]], right=HEADER[1:], spare=["ms"]) == []
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "model" + " " * 295 + "  accuracy    ms"
    assert lines[1] == "resnet50" + " " * 292 + "       0.9  12.5"
    assert lines[3] == "x" * 300 + "         1     1"


def test_a_narrow_terminal_does_without_what_can_be_spared(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    for columns, spared in ((24, []), (18, ["ms"]), (9, ["accuracy", "ms"])):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert print_table(HEADER, ROWS, right=HEADER[1:], spare=["ms", "accuracy"]) == spared
        lines = click.unstyle(capsys.readouterr().out).splitlines()
        assert max(map(len, lines)) <= columns
        assert lines[0].split() == [name for name in HEADER if name not in spared]


def test_prose_is_broken_between_words_on_a_terminal_only(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "12")
    print_prose("one two three four")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_prose("one two three four")
    assert capsys.readouterr().out.splitlines() == ["one two three four", "one two", "three four"]


def test_progress_in_a_log(capsys, monkeypatch):
    clock = iter([0.0, 20.0, 30.0, 40.0, 50.0])
    monkeypatch.setattr("lookalike.cli.terminal.time.monotonic", lambda: next(clock))
    terminal = Terminal()
    terminal.step("embedding", 0, 300)
    terminal.step("embedding", 10, 300)  # after 20 s
    terminal.step("embedding", 15, 300)  # 10 s later: too soon for another line
    terminal.step("embedding", 300, 300, "the end")
    terminal.step("embedding", 300, 300)  # told once
    terminal.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["embedding: 10/300, 2.0 s each, 9 min 40 s left", "embedding: 300/300, the end"]


def test_a_long_list_of_skipped_files_is_cut(capsys):
    list_skipped(Terminal(), [])
    assert capsys.readouterr().err == ""
    list_skipped(Terminal(), [f"{n}.jpg: empty" for n in range(25)])
    lines = capsys.readouterr().err.splitlines()
    assert (lines[0], lines[1], len(lines)) == ("25 files were skipped:", "  0.jpg: empty", 22)
    assert lines[-1] == "  and 5 more; 'lookalike check' lists all of them"


def test_a_stream_that_knows_few_characters(world, monkeypatch, capsys):
    few = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    Path("фото").mkdir()
    Path("photos").rename("фото/photos")
    (Path("фото/photos/training/cat/x.jpg")).write_text("")
    monkeypatch.setattr(sys, "stdout", few)
    assert run(["check", "фото/photos", "--no-near", "--json"]) == 1
    few.flush()
    assert b'"data": "????/photos"' in few.buffer.getvalue()


def pipe(*argv: str, stdout: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lookalike", *argv]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)


@pytest.mark.parametrize("argv", [["--help"], ["check", "photos", "--no-near", "--json"]])
def test_a_reader_that_has_gone(argv, world):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = pipe(*argv, stdout=writer)
    finally:
        os.close(writer)
    assert done.returncode == 0
    assert "error" not in done.stderr.replace("0 errors", "")
    assert "Exception" not in done.stderr


def test_what_should_not_fail(world, lookalike, monkeypatch):
    monkeypatch.setattr("lookalike.data.check.load_dataset", lambda *_: 1 / 0)
    found = lookalike("check photos")
    assert (found.code, found.out) == (3, "")
    assert found.errors == [
        "something failed that should not have (ZeroDivisionError: division by zero); run it again with --debug."
    ]
    assert "Traceback" not in found.err
    found = lookalike("check photos --debug")
    assert found.code == 3
    assert "Traceback (most recent call last):" in found.err


def test_debug_shows_where_an_expected_error_came_from(world, lookalike):
    found = lookalike("--debug check nowhere")
    assert found.code == 2
    assert "Traceback (most recent call last):" in found.err
    assert len(found.errors) == 1
