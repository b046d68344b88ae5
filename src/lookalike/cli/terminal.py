"""What people see while work goes on: talk on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from lookalike.cli.wording import duration, printable, rate

if TYPE_CHECKING:
    from lookalike.cli.bars import Bars

_LINE_SECONDS = 15.0
_LISTED_SKIPPED = 20


class Terminal:
    """Progress bars with rate and time left on a terminal, a line now and then elsewhere. All of it on stderr."""

    def __init__(self) -> None:
        self._quiet = False
        self._bars: Bars | None = None
        self._said: dict[str, tuple[float, float, int]] = {}
        self._finished: tuple[str, int] | None = None

    def info(self, text: str) -> None:
        """Print lines, above the bar if there is one."""
        for line in map(printable, text.splitlines()):
            if self._quiet:
                return
            if self._bars is not None and self._bars.drawn:
                self._bars.info(line)
                continue
            try:
                click.echo(line, err=True)
            except BrokenPipeError:  # nobody hears the talk, the work is still wanted
                self._quiet = True

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:
        """Show how far a task is."""
        if self._quiet or (done >= total and self._finished == (task, total)):
            return  # the end of a task is told by its last part and by the whole
        self._finished = (task, total) if done >= total else None
        if not sys.stderr.isatty():
            self._line(task, done, total, detail)
            return
        if self._bars is None:
            from lookalike.cli.bars import Bars

            self._bars = Bars()
        self._bars.step(task, done, total, detail)

    def close(self) -> None:
        """End the bar."""
        if self._bars is not None:
            self._bars.close()

    def _line(self, task: str, done: int, total: int, detail: str) -> None:
        now = time.monotonic()
        start, last, first = self._said.get(task, (now, now, done))
        if task not in self._said:
            self._said[task] = (start, last, first)
        if done < total and now - last < _LINE_SECONDS:
            return
        speed = (done - first) / (now - start) if now > start else 0.0
        left = f", {rate(speed)}, {duration((total - done) / speed)} left" if speed > 0 and done < total else ""
        self.info(f"{task}: {done}/{total}{left}{', ' + detail if detail else ''}")
        self._said[task] = (start, now, first)
        if done >= total:
            self._said.pop(task, None)


def list_skipped(terminal: Terminal, skipped: Sequence[object]) -> None:
    """Say how many files were left out and why, one a line."""
    if not skipped:
        return
    terminal.info(f"{len(skipped)} {'file was' if len(skipped) == 1 else 'files were'} skipped:")
    for one in skipped[:_LISTED_SKIPPED]:
        terminal.info(f"  {printable(str(one))}")
    if len(skipped) > _LISTED_SKIPPED:
        terminal.info(f"  and {len(skipped) - _LISTED_SKIPPED} more; 'lookalike check' lists all of them")
