"""The leaderboard as JSON, CSV, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from lookalike._files import write_csv, write_json, write_text
from lookalike.benchmark.leaderboard import Leaderboard, Row, folded_summary
from lookalike.benchmark.report import RunDescription
from lookalike.benchmark.selection import Selection
from lookalike.benchmark.trial import measure_label
from lookalike.evaluation.evaluation import Estimate

_VERSION = 3
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "+": "$+$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    "†": r"$\dagger$",
    "−": "$-$",
    "×": r"$\times$",
    "→": r"$\rightarrow$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def write_leaderboard(out: Path, leaderboard: Leaderboard, selection: Selection, description: RunDescription) -> None:
    """Write leaderboard.json, .csv, .md and .tex into the folder `out`.

    The JSON holds everything but the values per query, which are in trials/*.json.
    """
    content = {
        "version": _VERSION,
        "measure": leaderboard.measure,
        "measured_on": leaderboard.measured_on,
        "caption": leaderboard.caption,
        "selection": selection.to_dict(),
        "description": asdict(description),
        "rows": [{"winner": r.winner, "on_front": r.on_front, **r.trial.to_dict()} for r in leaderboard.rows],
    }
    write_json(out / "leaderboard.json", content)
    records = [_csv_record(leaderboard, row) for row in leaderboard.rows]
    write_csv(out / "leaderboard.csv", list(records[0]), (list(record.values()) for record in records))
    write_text(out / "leaderboard.md", markdown(leaderboard, selection))
    write_text(out / "leaderboard.tex", latex(leaderboard))


def _csv_record(leaderboard: Leaderboard, row: Row) -> dict[str, object]:
    trial = row.trial
    record: dict[str, object] = {"model": trial.name, "type": trial.kind, "state": trial.state}
    flags = {"from_random": trial.from_random, "winner": row.winner, "on_front": row.on_front}
    record |= {name: "yes" if flag else "no" for name, flag in flags.items()}
    for column, value in leaderboard.values(row).items():
        name = column.lower().replace(" ", "_").replace("-", "_")
        if isinstance(value, Estimate):
            record |= {
                name: round(value.mean, 6),
                f"{name}_low": round(value.low, 6),
                f"{name}_high": round(value.high, 6),
            }
        elif value is None:
            record |= dict.fromkeys((name, f"{name}_low", f"{name}_high") if "@" in name else (name,), "")
        else:
            record[name] = round(value, 6)
    return record | {"note": trial.note}


def markdown(leaderboard: Leaderboard, selection: Selection) -> str:
    """Return the table in Markdown: the reason above; caption, folded ensembles and notes below."""
    folded = leaderboard.groups().folded
    lines = [f"**Winner: {escape(selection.winner)}.** {escape(selection.reason)}", ""]
    lines += table(leaderboard, (row for row in leaderboard.rows if row not in folded))
    lines += ["", escape(leaderboard.caption)]
    if folded:
        lines += ["", f"<details><summary>{folded_summary(len(folded))}</summary>", ""]
        lines += [*table(leaderboard, folded), "", "</details>"]
    trials = [row.trial for row in leaderboard.rows]
    notes = [f"- {escape(t.name)}: {escape(t.note)}" for t in trials if t.note]
    return "\n".join([*lines, *([""] if notes else []), *notes, ""])


def table(leaderboard: Leaderboard, rows: Iterable[Row], *, hidden: Collection[str] = ()) -> Iterator[str]:
    """Yield the lines of a Markdown table: header, separator, then one line per row."""
    columns = [(n, name) for n, name in enumerate(leaderboard.columns) if name not in hidden]
    yield table_line(name for _, name in columns)
    yield "|" + "|".join(":--" if name in ("model", "type") else "--:" for _, name in columns) + "|"
    for row in rows:
        cells = leaderboard.cells(row)
        model, *others = (escape(cells[n]) for n, _ in columns)
        yield table_line([f"**{model}** (winner)" if row.winner else model, *others])


def table_line(cells: Iterable[str]) -> str:
    """Return one line of a Markdown table; the cells are already escaped."""
    return f"| {' | '.join(cells)} |"


def escape(text: str) -> str:
    """Return text that Markdown shows literally, on one line."""
    for sign in ("\\", "|", "*", "_", "`", "<"):
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def latex(leaderboard: Leaderboard) -> str:
    r"""Return a `table` for `\input`, in booktabs style, best first, the winner in bold, without folded ensembles.

    Time is the mean per image in batches, decoding included, in seconds; that of an ensemble includes all members.
    """
    folded = leaderboard.groups().folded
    caption = leaderboard.caption
    if folded:
        caption += f" {folded_summary(len(folded))}, {'is' if len(folded) == 1 else 'are'} in leaderboard.csv."
    timings = [row.trial.timing for row in leaderboard.rows if row.trial.timing]
    if timings:
        sizes = " or ".join(map(str, sorted({t.batch_size for t in timings})))
        devices = " and ".join(sorted({t.device for t in timings}))
        caption += f" Time is the mean in batches of {sizes} on {devices}, decoding included. Bold: the winner."
    accuracy = latex_escape(measure_label(leaderboard.measure).capitalize())
    lines = [
        r"% \usepackage{booktabs} is needed; include with \input{leaderboard.tex}.",
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{latex_escape(caption)}}}",
        r"\label{tab:leaderboard}",
        r"\begin{tabular}{lrrl}",
        r"\toprule",
        rf"Model & {accuracy} & Avg.\ time per image (s) & Type \\",
        r"\midrule",
        *(_latex_line(leaderboard, row) for row in leaderboard.rows if row not in folded),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_line(leaderboard: Leaderboard, row: Row) -> str:
    timing = row.trial.timing
    seconds = f"{timing.batched_ms / 1000:.4f}" if timing else "--"
    name, _, accuracy, *_ = leaderboard.cells(row)
    cells = [latex_escape(name), latex_escape(accuracy), seconds]
    if row.winner:
        cells = [rf"\textbf{{{cell}}}" for cell in cells]
    return " & ".join([*cells, row.trial.kind.capitalize()]) + r" \\"


def latex_escape(text: str) -> str:
    """Return text that LaTeX prints literally."""
    return "".join(_LATEX.get(sign, sign) for sign in text)
