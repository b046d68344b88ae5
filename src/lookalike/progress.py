"""Progress of long work: a bar where a person watches, lines in a log elsewhere, or whatever the caller passes."""

from __future__ import annotations

import contextlib
import html
import importlib
import logging
import re
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


@runtime_checkable
class Progress(Protocol):
    """Receives the reports of long work."""

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:
        """Report that `done` of `total` units of `task` are finished; `detail` is a short text such as the loss."""

    def info(self, text: str) -> None:
        """Report one line for the user."""


class Silent:
    """Reports nothing."""

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:
        """Do nothing."""

    def info(self, text: str) -> None:
        """Do nothing."""


SILENT = Silent()


class LineProgress:
    """Writes lines of text: every `info`, and the state of a task at most once per `interval_s` seconds."""

    def __init__(self, write: Callable[[str], None], *, interval_s: float = 15.0) -> None:
        self._write = write
        self._interval_s = interval_s
        self._task = ""
        self._start_s = self._last_s = 0.0
        self._first = 0
        self._finished: tuple[str, int] | None = None

    def info(self, text: str) -> None:
        """Write the lines of the text."""
        for line in text.splitlines():
            self._write(printable(line))

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:
        """Write a line if the task is finished or the interval is over."""
        if done >= total and self._finished == (task, total):
            return
        now = time.monotonic()
        if task != self._task:
            self._task, self._start_s, self._last_s, self._first = task, now, now, done
        self._finished = (task, total) if done >= total else None
        if self._finished is None and now - self._last_s < self._interval_s:
            return
        self._last_s = now
        speed = (done - self._first) / (now - self._start_s) if now > self._start_s else 0.0
        parts = [f"{task}: {done}/{total}"]
        if speed > 0 and done < total:
            parts += [format_rate(speed), f"{format_duration((total - done) / speed)} left"]
        self._show(printable(", ".join([*parts, detail] if detail else parts)), done, total)
        if self._finished:
            self._task = ""

    def _show(self, line: str, done: int, total: int) -> None:  # noqa: ARG002
        self._write(line)

    def close(self) -> None:
        """Do nothing: a line needs no end."""


class BarProgress:
    """A progress bar with rate and time left on stderr, by rich; one bar at a time.

    It has no thread and leaves stdout and stderr as they are, so that an exception needs no clean-up.
    """

    def __init__(self, *, interval_s: float = 0.1) -> None:
        self._interval_s = interval_s
        self._console: Console | None = None
        self._bar: RichProgress | None = None
        self._task = ""
        self._drawn_s = 0.0
        self._finished: tuple[str, int] | None = None

    def info(self, text: str) -> None:
        """Print the lines of the text, above the bar if there is one."""
        for line in map(printable, text.splitlines()):
            if self._bar is not None:
                self._bar.console.print(line, markup=False, emoji=False)
            else:
                write_stderr(line)

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:
        """Draw the bar of the task."""
        if done >= total and self._finished == (task, total):
            return
        self._finished = (task, total) if done >= total else None
        if self._bar is None or task != self._task:
            self.close()
            self._console = self._console or _make_console()
            self._bar, self._task = _make_bar(self._console), task
            self._bar.add_task(printable(task), total=total, detail="")
        self._bar.update(self._bar.task_ids[0], completed=done, total=total, detail=printable(detail))
        now = time.monotonic()
        if self._finished:
            self.close()
        elif now - self._drawn_s >= self._interval_s:
            self._bar.refresh()
            self._drawn_s = now

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = None


class NotebookProgress(LineProgress):
    """One bar per task, updated in place in the output of a notebook's cell; its line of text where HTML is not shown.

    An HTML `<progress>` element needs no widgets, which rich and tqdm would.
    """

    def __init__(self, *, interval_s: float = 0.5) -> None:
        super().__init__(print, interval_s=interval_s)
        self._handle: Any = None

    def info(self, text: str) -> None:
        """Print the text; the task that follows starts a new bar."""
        super().info(text)
        self._handle = None

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:
        """Update the bar of the task; another task starts a new bar."""
        if task != self._task:
            self._handle = None
        super().step(task, done, total, detail)

    def _show(self, line: str, done: int, total: int) -> None:
        bar = f'<progress value="{done}" max="{total}"></progress> {html.escape(line)}'
        content = {"text/plain": line, "text/html": bar}
        if self._handle is None:
            self._handle = importlib.import_module("IPython.display").display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)


def resolve_progress(progress: Progress | None) -> Progress:
    """Return `progress`, or the default for None: a bar in a terminal or notebook, else the logger, at level INFO."""
    if progress is not None:
        return progress
    ipython = sys.modules.get("IPython")
    if ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None:
        return NotebookProgress()
    if sys.stderr is not None and sys.stderr.isatty():
        return BarProgress()
    return LineProgress(logging.getLogger("lookalike").info)


def format_duration(seconds: float) -> str:
    """Return a duration as text: `8 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"


def format_about(seconds: float) -> str:
    """Return an estimate as text, without false precision: `about 40 s`, `about 13 min`, `about 2 h`."""
    if seconds < 90:
        return f"about {max(10, round(seconds, -1)):.0f} s"
    minutes = seconds / 60
    return f"about {minutes:.0f} min" if minutes < 90 else f"about {minutes / 60:.0f} h"


def format_rate(per_second: float) -> str:
    """Return a speed as text: `12.5/s`, or `4.0 s each` below one per second."""
    return f"{per_second:.1f}/s" if per_second >= 1 else f"{1 / per_second:.1f} s each"


def printable(text: str) -> str:
    """Replace control characters, which file names may contain, line ends among them."""
    return _CONTROL.sub("�", text)


def write_stderr(line: str) -> None:
    """Write a line to stderr; a closed pipe is ignored, because the work is still needed."""
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _make_console() -> Console:
    import rich.console

    class _Console(rich.console.Console):
        def on_broken_pipe(self) -> None:
            self.quiet = True  # instead of ending the process: the work is still needed

    return _Console(stderr=True, highlight=False, soft_wrap=True)


def _make_bar(console: Console) -> RichProgress:
    """Return a started rich bar without a thread, whose cursor stays visible and on the line below."""
    import rich.progress as rp
    from rich.text import Text

    class _Rate(rp.ProgressColumn):
        def render(self, task: rp.Task) -> Text:
            # before one second the speed is that of cached results
            speed = (task.finished_speed or task.speed) if (task.elapsed or 0.0) >= 1 else None
            return Text(format_rate(speed) if speed else "", style="dim")

    class _Bar(rp.Progress):
        def get_renderables(self) -> Any:
            yield self.make_tasks_table(self.tasks)
            if not self.finished and self.tasks:
                yield Text("")  # the cursor waits here, so that an exception's traceback starts on a line of its own

    bar = _Bar(
        rp.TextColumn("{task.description}", markup=False),
        rp.BarColumn(bar_width=24),
        rp.MofNCompleteColumn(),
        _Rate(),
        rp.TimeRemainingColumn(elapsed_when_finished=True),
        rp.TextColumn("{task.fields[detail]}", style="dim", markup=False),
        console=console,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    bar.start()
    console.show_cursor(True)
    return bar


def count_noun(number: int, noun: str, plural: str = "") -> str:
    """Format a number with its noun: 1 query, 1,200 queries."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
