r"""Tables for LaTeX: booktabs rules, a column of names that break over lines, and intervals below their values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

_SPECIAL = str.maketrans(
    {
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
)
_INTERVAL = r"\newcommand{\interval}[2]{\begin{tabular}[t]{@{}r@{}}#1\\{\scriptsize #2}\end{tabular}}"


def latex_escape(text: str) -> str:
    """Return text that LaTeX prints literally."""
    return text.translate(_SPECIAL)


def latex_name(name: str) -> str:
    """Return a name that LaTeX prints literally, and that may break after `_` and `.` as well."""
    return latex_escape(name).replace(r"\_", r"\_\allowbreak{}").replace(".", r".\allowbreak{}")


def latex_cell(text: str, *, bold: bool) -> str:
    r"""Return a cell: of `0.915 (0.891–0.936)` the interval is below the value, in a smaller size."""
    value, _, interval = text.removesuffix(")").partition(" (")
    value = latex_bold(latex_escape(value), bold)
    return rf"\interval{{{value}}}{{{latex_escape(interval)}}}" if interval else value


def latex_bold(cell: str, bold: bool) -> str:
    """Return a cell in bold if it shall be."""
    return rf"\textbf{{{cell}}}" if bold else cell


def latex_table(
    caption: str,
    label: str,
    left: Sequence[str],
    groups: Sequence[tuple[str, Sequence[str]]],
    rows: Iterable[Sequence[str]],
) -> str:
    r"""Return a `table*` for `\input`; the cells of `rows` are already escaped.

    `left` are titles of columns of text, the first for names, which breaks its lines; `groups` are titles of groups of
    columns of numbers, each with the titles of its columns.
    """
    numbers = [title for _, titles in groups for title in titles]
    ends = list(accumulate((len(titles) for _, titles in groups), initial=len(left)))
    above = [rf"\multicolumn{{{len(titles)}}}{{c}}{{{latex_escape(title)}}}" for title, titles in groups]
    rules = [rf"\cmidrule(lr){{{start + 1}-{end}}}" for start, end in pairwise(ends)]
    columns = rf">{{\raggedright\arraybackslash}}p{{0.24\linewidth}}{'l' * (len(left) - 1)}{'r' * len(numbers)}"
    return "\n".join(
        [
            r"% \usepackage{array,booktabs} is needed; include with \input{leaderboard.tex}.",
            r"\begin{table*}[t]",
            r"\centering",
            r"\footnotesize",
            r"\setlength{\tabcolsep}{3pt}",
            _INTERVAL,
            rf"\caption{{{latex_escape(caption)}}}",
            rf"\label{{{label}}}",
            rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
            r"\toprule",
            " & ".join([*[""] * len(left), *above]).strip() + r" \\",
            "".join(rules),
            " & ".join(map(latex_escape, (*left, *numbers))) + r" \\",
            r"\midrule",
            *(" & ".join(row) + r" \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table*}",
            "",
        ]
    )
