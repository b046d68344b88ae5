"""The leaderboard as a LaTeX table: model, accuracy, seconds per image, single or ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lookalike.benchmark.trial import Trial, measure_label

if TYPE_CHECKING:
    from lookalike.benchmark.leaderboard import Leaderboard, Row

_SPECIAL = {
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


def latex_escape(text: str) -> str:
    """Return text that LaTeX sets as it stands."""
    return "".join(_SPECIAL.get(sign, sign) for sign in text)


def latex_table(board: Leaderboard, trials: Sequence[Trial]) -> str:
    r"""Return a `table` for `\input`, in booktabs style, best first, the chosen model in bold.

    Time is the mean over batches, decoding included, in seconds; an ensemble's is that of all its members together.
    """
    accuracy = latex_escape(measure_label(board.measure).capitalize())
    lines = [
        r"% \usepackage{booktabs} is needed; include with \input{leaderboard.tex}.",
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{latex_escape(f'{board.caption} {_timing_note(trials)}'.strip())}}}",
        r"\label{tab:leaderboard}",
        r"\begin{tabular}{lrrl}",
        r"\toprule",
        rf"Model & {accuracy} & Avg.\ time per image (s) & Type \\",
        r"\midrule",
        *(_line(row) for row in board.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    seconds = "--" if row.batched_ms is None else f"{row.batched_ms / 1000:.4f}"
    accuracy = latex_escape(row.accuracy_text(interval=True))
    cells = [latex_escape(row.name), accuracy, seconds, row.kind.capitalize()]
    if row.winner:
        cells[:3] = [rf"\textbf{{{cell}}}" for cell in cells[:3]]
    return " & ".join(cells) + r" \\"


def _timing_note(trials: Sequence[Trial]) -> str:
    timings = [t.timing for t in trials if t.timing]
    if not timings:
        return ""
    sizes = sorted({t.batch_size for t in timings})
    devices = sorted({t.device for t in timings})
    batches = " or ".join(str(size) for size in sizes)
    where = f"batches of {batches} on {' and '.join(devices)}"
    return f"Time is the mean in {where}, decoding included. Bold: the chosen model."
