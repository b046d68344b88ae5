"""The leaderboard in Markdown: the choice, the table, and what did not fit into a readable one folded away."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from lookalike.benchmark.selection import Choice
from lookalike.benchmark.trial import counted

if TYPE_CHECKING:
    from lookalike.benchmark.leaderboard import Leaderboard, Row


def markdown(board: Leaderboard, choice: Choice) -> str:
    """Return the table in Markdown: the reason of the choice above, what the numbers are and the notes below.

    Where there are many ensembles, those that are neither among the best nor on the front stand in a second, folded
    table.
    """
    groups = board.groups()
    folded = {row.model for row in groups.folded}
    lines = [f"**Chosen: {escape(choice.winner)}.** {escape(choice.reason)}", ""]
    lines += table(board, (row for row in board.rows if row.model not in folded))
    lines += ["", escape(board.caption)]
    if folded:
        lines += ["", f"<details><summary>{more_ensembles(len(folded))}</summary>", ""]
        lines += [*table(board, groups.folded), "", "</details>"]
    notes = [f"- {escape(row.model)}: {escape(row.note)}" for row in board.rows if row.note]
    return "\n".join([*lines, *([""] if notes else []), *notes, ""])


def table(board: Leaderboard, rows: Iterable[Row], *, without: Collection[str] = ()) -> Iterator[str]:
    """Yield the lines of a table: the header, the line below it, then one line for each row.

    Args:
        board: knows the columns.
        rows: what to show.
        without: names of columns to leave out.

    """
    kept = [n for n, name in enumerate(board.file_header) if name not in without]
    yield table_line(board.file_header[n] for n in kept)
    yield "|" + "|".join(":--" if board.file_header[n] in ("model", "type") else "--:" for n in kept) + "|"
    for row in rows:
        model, *others = (escape(board.file_cells(row)[n]) for n in kept)
        yield table_line([f"**{model}** (chosen)" if row.winner else model, *others])


def table_line(cells: Iterable[str]) -> str:
    """Return one line of a table; the cells are Markdown already."""
    return f"| {' | '.join(cells)} |"


def more_ensembles(count: int) -> str:
    """Say how many ensembles stand apart."""
    return f"{counted(count, 'more ensemble', 'more ensembles')}, none on the Pareto front"


def escape(text: str) -> str:
    """Return text that Markdown shows as it stands, on one line."""
    for sign in ("\\", "|", "*", "_", "`", "<"):
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
