"""The leaderboard in Markdown: the choice, the table, and what did not fit into a readable one folded away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from lookalike.bench.selection import Choice

if TYPE_CHECKING:
    from lookalike.bench.leaderboard import Leaderboard, Row


def markdown(board: Leaderboard, choice: Choice) -> str:
    """Return the table in Markdown: the reason of the choice above, what the numbers are and the notes below.

    Where there are many ensembles, those that are neither among the best nor on the front stand in a second, folded
    table.
    """
    groups = board.groups()
    folded = {row.model for row in groups.folded}
    lines = [f"**Chosen: {escape(choice.winner)}.** {escape(choice.reason)}", ""]
    lines += _table(board, (row for row in board.rows if row.model not in folded))
    lines += ["", escape(board.caption)]
    if folded:
        lines += ["", f"<details><summary>{len(folded)} more ensembles, none on the Pareto front</summary>", ""]
        lines += [*_table(board, groups.folded), "", "</details>"]
    notes = [f"- {escape(row.model)}: {escape(row.note)}" for row in board.rows if row.note]
    return "\n".join([*lines, *([""] if notes else []), *notes, ""])


def _table(board: Leaderboard, rows: Iterable[Row]) -> Iterator[str]:
    yield "| " + " | ".join(board.header) + " |"
    yield "|" + "|".join([":--", ":--"] + ["--:"] * (len(board.header) - 2)) + "|"
    for row in rows:
        model, *others = (escape(cell) for cell in row.cells())
        yield "| " + " | ".join([f"**{model}** (chosen)" if row.winner else model, *others]) + " |"


def escape(text: str) -> str:
    """Return text that Markdown shows as it stands, on one line."""
    for sign in ("\\", "|", "*", "_", "`", "<"):
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())
