"""What people see while work goes on: talk on stderr."""

from __future__ import annotations

import time
from collections.abc import Sequence

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
from rich.text import Text

from lookalike.cli.wording import duration, printable, rate

_LINE_SECONDS = 15.0
_LISTED_SKIPPED = 20


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        measurable = (task.elapsed or 0.0) >= 1  # a second, or it is what a cache held and says nothing
        speed = (task.finished_speed or task.speed) if measurable else None
        return Text(rate(speed) if speed else "", style="dim")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Go on silently: nobody hears the talk, the work is still wanted."""
        self.quiet = True


class Terminal:
    """Progress bars with rate and time left on a terminal, a line now and then elsewhere. All of it on stderr."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = _Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
        self._bars: Progress | None = None
        self._task: tuple[str, TaskID] | None = None
        self._said: dict[str, tuple[float, float, int]] = {}
        self._finished: tuple[str, int] | None = None

    def say(self, text: str) -> None:
        """Print lines, above the bar if there is one."""
        for line in text.splitlines():
            self.console.print(printable(line), markup=False)

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:
        """Show how far a task is."""
        if done >= total and self._finished == (task, total):
            return  # the end of a task is told by its last part and by the whole
        self._finished = (task, total) if done >= total else None
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
        speed = (done - first) / (now - start) if now > start else 0.0
        left = f", {rate(speed)}, {duration((total - done) / speed)} left" if speed > 0 and done < total else ""
        self.say(f"{task}: {done}/{total}{left}{', ' + detail if detail else ''}")
        self._said[task] = (start, now, first)
        if done >= total:
            self._said.pop(task, None)


def list_skipped(terminal: Terminal, skipped: Sequence[object]) -> None:
    """Say how many files were left out and why, one a line."""
    if not skipped:
        return
    terminal.say(f"{len(skipped)} {'file was' if len(skipped) == 1 else 'files were'} skipped:")
    for one in skipped[:_LISTED_SKIPPED]:
        terminal.say(f"  {printable(str(one))}")
    if len(skipped) > _LISTED_SKIPPED:
        terminal.say(f"  and {len(skipped) - _LISTED_SKIPPED} more; 'lookalike check' lists all of them")
