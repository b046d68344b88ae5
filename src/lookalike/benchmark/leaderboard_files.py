"""Writing the table of all trials as JSON, CSV, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from lookalike._files import write_csv, write_json, write_text
from lookalike.benchmark.latex import latex_table
from lookalike.benchmark.leaderboard import MILLISECONDS, Leaderboard, Row, build_leaderboard
from lookalike.benchmark.markdown import markdown, more_ensembles
from lookalike.benchmark.selection import Choice
from lookalike.benchmark.trial import Trial, measure_label


def write_leaderboard(out: Path, trials: Sequence[Trial], choice: Choice, context: Mapping[str, Any]) -> Leaderboard:
    """Write leaderboard.json, .csv, .md and .tex into the folder `out` and return the table.

    The JSON holds everything but the values for each query, which stand in trials/*.json.

    Args:
        out: the folder; made when absent.
        trials: all trials.
        choice: what `select` returned for them.
        context: how it was measured, stored as it is; paths and the like become text.

    Raises:
        StorageError: when the folder cannot be written.

    """
    board = build_leaderboard(trials, choice)
    out = Path(out)
    write_json(out / "leaderboard.json", _as_json(board, trials, choice, context))
    columns = _csv_columns(board)
    rows = ([_cell(getattr(row, field)) for field in columns] for row in board.rows)
    write_csv(out / "leaderboard.csv", list(columns.values()), rows)
    write_text(out / "leaderboard.md", markdown(board, choice))
    write_text(out / "leaderboard.tex", latex_table(_for_print(board), trials))
    return board


def _for_print(board: Leaderboard) -> Leaderboard:
    """Return the table without what is folded away on a screen: a page holds no more."""
    folded = {row.model for row in board.groups().folded}
    if not folded:
        return board
    be = "is" if len(folded) == 1 else "are"
    caption = f"{board.caption} {more_ensembles(len(folded))}, {be} in leaderboard.csv."
    return replace(board, caption=caption, rows=tuple(row for row in board.rows if row.model not in folded))


def _as_json(board: Leaderboard, trials: Sequence[Trial], choice: Choice, context: Mapping[str, Any]) -> dict[str, Any]:
    by_name = {t.name: t.to_dict() for t in trials}
    for trial in by_name.values():
        for part in ("validation", "test"):
            if trial[part]:
                trial[part] = {k: v for k, v in trial[part].items() if k not in ("values", "query_ids")}
    return {
        "schema": 2,
        "measure": board.measure,
        "hit_k": board.hit_k,
        "part": board.part,
        "caption": board.caption,
        "choice": choice.to_dict(),
        "context": _plain(context),
        "rows": [asdict(row) for row in board.rows],
        "trials": [by_name[row.model] for row in board.rows],
    }


def _plain(value: Any) -> Any:
    """Bring whatever a context holds to what JSON knows."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _csv_columns(board: Leaderboard) -> dict[str, str]:
    """Return the fields of `Row` that are written, each with its column's name; no measure is written twice."""
    own = measure_label(board.measure).replace(" ", "_").replace("-", "_")
    names = {"kind": "type", "accuracy": own} | {field: name.replace(" ", "_") for name, field in MILLISECONDS.items()}
    for name, field in (*board.means.items(), (f"validation_{own}", "validation")):
        names |= {f"{field}{end}": f"{name}{end}" for end in ("", "_low", "_high")}
    written = [f.name for f in fields(Row) if f.name in names or not f.name.startswith(("hit_k", "hit_1", "map_r"))]
    return {field: names.get(field, field) for field in written}


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else round(value, 6) if isinstance(value, float) else value
