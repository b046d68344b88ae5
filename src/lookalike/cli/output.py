"""What a command prints on stdout: tables and JSON."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Sequence
from typing import Any

import click

from lookalike._files import json_text
from lookalike.cli.wording import printable

_UNLIMITED = 100_000  # columns of a pipe or a file: nothing is cut or folded there
_GAP = 2  # blanks between two columns


def print_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[str] = (),
    title: str | None = None,
    spare: Sequence[str] = (),
) -> list[str]:
    """Print a table on stdout and return the names of the columns that there was no room for.

    Args:
        header: column names.
        rows: cells, one for each column.
        right: columns that are right-aligned.
        title: a line above the table.
        spare: columns that a terminal too narrow for all of them does without, the first one first. A pipe or a file
            always gets everything.

    """
    from rich.console import Console  # not needed for --json
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, width=None if sys.stdout.isatty() else _UNLIMITED)
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    kept = _fitting(header, cells, console.width, spare)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for n in kept:
        table.add_column(header[n], justify="right" if header[n] in right else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(row[n]) for n in kept))
    with console.capture() as captured:
        if title is not None:
            console.print(Text(printable(title), style="bold"), soft_wrap=True)
        console.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())
    return [name for n, name in enumerate(header) if n not in kept]


def _fitting(header: Sequence[str], rows: Sequence[Sequence[str]], width: int, spare: Sequence[str]) -> list[int]:
    """Return the columns to print: all, or without those that can be spared until the rest fits the width."""
    from rich.cells import cell_len

    widths = [max(map(cell_len, (name, *(row[n] for row in rows)))) for n, name in enumerate(header)]
    kept = list(range(len(header)))
    for name in spare:
        if sum(widths[n] + _GAP for n in kept) - _GAP <= width:
            break
        kept = [n for n in kept if header[n] != name]
    return kept


def print_prose(text: str) -> None:
    """Print a paragraph on stdout: broken between words on a terminal, as one line elsewhere."""
    width = shutil.get_terminal_size().columns
    click.echo(click.wrap_text(text, width) if sys.stdout.isatty() else text)


def print_json(value: Any) -> None:
    """Print one JSON object."""
    click.echo(json_text(value))
