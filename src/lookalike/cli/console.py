"""What commands print: progress and messages on stderr; tables, text and JSON on stdout."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import click

from lookalike._files import json_text
from lookalike.progress import BarProgress, LineProgress, Progress, printable, write_stderr

_MAX_SKIPPED = 20
_UNLIMITED = 100_000  # columns of a pipe or a file: nothing is cut or folded there
_GAP = 2  # spaces between two columns


def make_progress() -> BarProgress | LineProgress:
    """Return the progress of a command: a bar in a terminal, a line every 15 seconds in a pipe or a file."""
    return BarProgress() if sys.stderr.isatty() else LineProgress(write_stderr)


def report_skipped(progress: Progress, skipped: Sequence[object]) -> None:
    """Report how many files were skipped and why, one per line."""
    if not skipped:
        return
    progress.info(f"{len(skipped)} {'file was' if len(skipped) == 1 else 'files were'} skipped:")
    for entry in skipped[:_MAX_SKIPPED]:
        progress.info(f"  {printable(str(entry))}")
    if len(skipped) > _MAX_SKIPPED:
        progress.info(f"  and {len(skipped) - _MAX_SKIPPED} more; 'lookalike check' lists all of them")


def print_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[str] = (),
    title: str | None = None,
    optional: Sequence[str] = (),
) -> list[str]:
    """Print a table on stdout and return the names of the columns that did not fit.

    `right` are right-aligned columns. `optional` columns are hidden, in this order, in a terminal too narrow for all; a
    pipe or a file gets everything.
    """
    from rich.console import Console  # not needed for --json
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, width=None if sys.stdout.isatty() else _UNLIMITED)
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    columns = _columns_that_fit(header, cells, console.width, optional)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(header[column], justify="right" if header[column] in right else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(row[column]) for column in columns))
    with console.capture() as captured:
        if title is not None:
            console.print(Text(printable(title), style="bold"), soft_wrap=True)
        console.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())
    return [name for column, name in enumerate(header) if column not in columns]


def print_title(title: str) -> None:
    """Print the title of a table that has no rows on stdout."""
    click.echo(click.style(printable(title), bold=True))


def _columns_that_fit(
    header: Sequence[str], rows: Sequence[Sequence[str]], width: int, optional: Sequence[str]
) -> list[int]:
    from rich.cells import cell_len

    widths = [max(map(cell_len, (name, *(row[n] for row in rows)))) for n, name in enumerate(header)]
    columns = list(range(len(header)))
    for name in optional:
        if sum(widths[n] + _GAP for n in columns) - _GAP <= width:
            break
        columns = [n for n in columns if header[n] != name]
    return columns


def print_prose(text: str) -> None:
    """Print a paragraph on stdout: wrapped in a terminal, as one line elsewhere."""
    width = shutil.get_terminal_size().columns
    click.echo(click.wrap_text(text, width) if sys.stdout.isatty() else text)


def print_json(value: Any) -> None:
    """Print one JSON object on stdout."""
    # a terminal obeys control characters above ASCII too, which JSON does not have to escape
    click.echo(re.sub(r"[\x7f-\x9f]", lambda control: f"\\u{ord(control[0]):04x}", json_text(value)))


def print_path(path: Path) -> None:
    """Print the path of a result on stdout."""
    click.echo(display_path(path))


def display_path(path: Path) -> str:
    """Return a path relative to the working directory if it is inside it."""
    try:
        # not resolve(): it would replace a link by its target
        return str(Path(os.path.abspath(path)).relative_to(Path.cwd()))  # noqa: PTH100
    except (ValueError, OSError):
        return str(path)


def shell_path(path: Path) -> str:
    """Return a path as it is typed in a shell."""
    return shlex.quote(display_path(path))
