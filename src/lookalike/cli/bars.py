"""Progress bars on a terminal, by rich; imported when the first of them is drawn."""

from __future__ import annotations

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

from lookalike.cli.wording import rate


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        measurable = (task.elapsed or 0.0) >= 1  # a second, or it is what a cache held and says nothing
        speed = (task.finished_speed or task.speed) if measurable else None
        return Text(rate(speed) if speed else "", style="dim")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Go on silently: nobody hears the talk, the work is still wanted."""
        self.quiet = True


class Bars:
    """One bar at a time, on stderr."""

    def __init__(self) -> None:
        self._console = _Console(stderr=True, highlight=False, soft_wrap=True)
        self._drawn: Progress | None = None
        self._task: tuple[str, TaskID] | None = None

    @property
    def drawn(self) -> bool:
        """Whether there is a bar."""
        return self._drawn is not None

    def info(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(line, markup=False, emoji=False)

    def step(self, task: str, done: int, total: int, detail: str) -> None:
        """Show how far a task is."""
        if self._task is None or self._task[0] != task:
            self.close()
            self._drawn = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                _Rate(),
                TimeRemainingColumn(elapsed_when_finished=True),
                TextColumn("{task.fields[detail]}", style="dim", markup=False),
                console=self._console,
            )
            self._drawn.start()
            self._task = task, self._drawn.add_task(task, total=total, detail=detail)
        if self._drawn is not None:
            self._drawn.update(self._task[1], completed=done, total=total, detail=detail)
            if done >= total:
                self.close()

    def close(self) -> None:
        """End the bar."""
        if self._drawn is not None:
            self._drawn.stop()
        self._drawn = self._task = None
