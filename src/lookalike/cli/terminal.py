"""What people see: talk on stderr, data on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

_LINE_SECONDS = 15.0
_LISTED_SKIPPED = 20


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "", style="dim")


class Terminal:
    """Progress bars with rate and time left on a terminal, a line now and then elsewhere. All of it on stderr."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
        self._bars: Progress | None = None
        self._task: tuple[str, TaskID] | None = None
        self._said: dict[str, tuple[float, float, int]] = {}

    def say(self, text: str) -> None:
        """Print one line, above the bar if there is one."""
        self.console.print(text, markup=False)

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:
        """Show how far a task is."""
        if self.console.is_terminal:
            self._bar(task, done, total, detail)
        else:
            self._line(task, done, total, detail)

    def close(self) -> None:
        """End the bar."""
        if self._bars is not None:
            self._bars.stop()
        self._bars = self._task = None

    def _bar(self, task: str, done: int, total: int, detail: str) -> None:
        if self._task is None or self._task[0] != task:
            self.close()
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                _Rate(),
                TimeRemainingColumn(elapsed_when_finished=True),
                TextColumn("{task.fields[detail]}", style="dim", markup=False),
                console=self.console,
            )
            self._bars.start()
            self._task = task, self._bars.add_task(task, total=total, detail=detail)
        if self._bars is not None:
            self._bars.update(self._task[1], completed=done, total=total, detail=detail)
            if done >= total:
                self.close()

    def _line(self, task: str, done: int, total: int, detail: str) -> None:
        now = time.monotonic()
        start, last, first = self._said.get(task, (now, now, done))
        if task not in self._said:
            self._said[task] = (start, last, first)
        if done < total and now - last < _LINE_SECONDS:
            return
        rate = (done - first) / (now - start) if now > start else 0.0
        left = f", {rate:.1f}/s, {(total - done) / rate:.0f} s left" if rate > 0 and done < total else ""
        self.say(f"{task}: {done}/{total}{left}{', ' + detail if detail else ''}")
        self._said[task] = (start, now, first)
        if done >= total:
            self._said.pop(task, None)


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, right_from: int = 1, title: str | None = None
) -> None:
    """Print a table on stdout; columns from `right_from` on are right-aligned. Never cut when piped."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 500)
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for n, name in enumerate(header):
        table.add_column(name, justify="right" if n >= right_from else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    lines = console.render_lines(table, pad=False) if not sys.stdout.isatty() else None
    if lines is None:
        console.print(table)
    else:
        for line in lines:
            console.print("".join(segment.text for segment in line).rstrip(), markup=False, soft_wrap=True)


def list_skipped(terminal: Terminal, skipped: Sequence[object]) -> None:
    """Say how many files were left out and why, one a line."""
    if not skipped:
        return
    terminal.say(f"{len(skipped)} {'file was' if len(skipped) == 1 else 'files were'} skipped:")
    for one in skipped[:_LISTED_SKIPPED]:
        terminal.say(f"  {one}")
    if len(skipped) > _LISTED_SKIPPED:
        terminal.say(f"  and {len(skipped) - _LISTED_SKIPPED} more; 'lookalike check' lists all of them")


def display_path(path: Path) -> str:
    """Return a path relative to the working directory when it lies inside."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
