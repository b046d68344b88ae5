"""Where progress goes: a bar in a terminal or notebook, the log elsewhere."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lookalike.progress import (
    SILENT,
    BarProgress,
    LineProgress,
    NotebookProgress,
    count_noun,
    format_duration,
    format_rate,
    printable,
    resolve_progress,
)


@pytest.fixture
def terminal(monkeypatch):
    """Return a function that makes stderr a terminal of 100 columns."""

    def make():
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "100")

    return make


@pytest.fixture
def notebook(monkeypatch):
    """Put an IPython with a kernel in place and return what its cell shows: one list of contents per display."""
    displays = []

    def display(data, *, raw, display_id):
        contents = [data]
        displays.append(contents)
        return SimpleNamespace(update=lambda data, **_: contents.append(data))

    ipython = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    return displays


@pytest.fixture
def clock(monkeypatch):
    """Return a clock that the test sets."""
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr("lookalike.progress.time.monotonic", lambda: now.s)
    return now


def test_resolve_keeps_what_is_passed():
    assert resolve_progress(SILENT) is SILENT


def test_resolve_in_a_log(monkeypatch, caplog):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with caplog.at_level(logging.INFO, logger="lookalike"):
        progress = resolve_progress(None)
        progress.info("100% of\nthe images")
        progress.step("a", 1, 1)
    assert [(r.name, r.levelname, r.getMessage()) for r in caplog.records] == [
        ("lookalike", "INFO", "100% of"),
        ("lookalike", "INFO", "the images"),
        ("lookalike", "INFO", "a: 1/1"),
    ]


def test_resolve_in_a_terminal(terminal):
    terminal()
    assert isinstance(resolve_progress(None), BarProgress)


def test_resolve_in_a_notebook(notebook):
    assert isinstance(resolve_progress(None), NotebookProgress)


def test_resolve_in_ipython_without_a_notebook(terminal, monkeypatch):
    terminal()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=SimpleNamespace))
    assert isinstance(resolve_progress(None), BarProgress)


def test_lines_report_rate_and_time_left_once_per_interval(clock):
    lines = []
    progress = LineProgress(lines.append)
    for clock.s, done, detail in ((0, 0, ""), (20, 10, ""), (30, 15, ""), (40, 300, "the end"), (50, 300, "")):
        progress.step("embedding", done, 300, detail)
    assert lines == ["embedding: 10/300, 2.0 s each, 9 min 40 s left", "embedding: 300/300, the end"]


def test_lines_of_a_new_task_start_a_new_interval(clock):
    lines = []
    progress = LineProgress(lines.append)
    for clock.s, task in ((0, "a"), (14, "a"), (16, "b"), (30, "b"), (31, "b")):
        progress.step(task, 1, 3)
    assert lines == ["b: 1/3"]


def test_bar_draws_task_count_and_detail(terminal, capsys):
    terminal()
    progress = BarProgress(interval_s=0)
    progress.step("embedding", 1, 4, "loss 0.5")
    progress.info("a [bold]file\x1b")
    progress.step("embedding", 4, 4, "loss 0.25")
    progress.step("embedding", 4, 4)
    drawn = capsys.readouterr().err
    assert all(text in drawn for text in ("embedding", "1/4", "loss 0.5", "a [bold]file�", "loss 0.25"))
    assert drawn.count("4/4") == 1
    assert drawn.rfind("\x1b[?25h") > drawn.rfind("\x1b[?25l")  # the cursor is visible


def test_bar_of_another_task_ends_the_first(terminal, capsys):
    terminal()
    progress = BarProgress(interval_s=0)
    progress.step("first", 1, 2)
    progress.step("second", 1, 2)
    progress.close()
    progress.info("after")
    assert capsys.readouterr().err.endswith("after\n")


def test_notebook_updates_one_bar_per_task(notebook, capsys, clock):
    progress = NotebookProgress()
    for clock.s, done in ((0, 0), (2, 1), (4, 2)):
        progress.step("m: <a>", done, 2)
    progress.step("m: b", 2, 2)
    progress.info("next")
    assert [[content["text/plain"] for content in bar] for bar in notebook] == [
        ["m: <a>: 1/2, 2.0 s each, 2 s left", "m: <a>: 2/2"],
        ["m: b: 2/2"],
    ]
    assert notebook[0][0]["text/html"] == (
        '<progress value="1" max="2"></progress> m: &lt;a&gt;: 1/2, 2.0 s each, 2 s left'
    )
    assert capsys.readouterr().out == "next\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min"), (200, "3 min 20 s"), (3600, "1 h"), (7530, "2 h 6 min")],
)
def test_format_duration(seconds, text):
    assert format_duration(seconds) == text


def test_format_rate():
    assert [format_rate(r) for r in (12.34, 1.0, 0.25)] == ["12.3/s", "1.0/s", "4.0 s each"]


def test_printable_replaces_control_characters():
    assert printable("a\x1b[31m\nb") == "a�[31m�b"
    assert printable("  Grüße  ") == "  Grüße  "


def test_import_is_light():
    code = (
        "import sys, lookalike, lookalike.progress; print([m for m in ('rich', 'torch', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_count_noun():
    assert [count_noun(n, "image") for n in (0, 1, 1234)] == ["0 images", "1 image", "1,234 images"]
    assert [count_noun(n, "query", "queries") for n in (1, 2)] == ["1 query", "2 queries"]
