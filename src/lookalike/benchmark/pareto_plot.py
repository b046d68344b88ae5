"""Accuracy against time as an inline SVG whose colours come from the page, so that it is right in light and dark."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import TYPE_CHECKING

import numpy as np

from lookalike.benchmark.selection import Choice, pareto_front
from lookalike.benchmark.trial import Trial, measure_label, ms_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# matplotlib wants real colours; these stand for the page's own and are replaced in the SVG.
_INK, _MUTED, _LINE, _ACCENT, _PAPER = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _LINE: "--line", _ACCENT: "--accent", _PAPER: "--paper"}
_POINT = 7.0
_FONT = 10.5


@dataclass(frozen=True)
class _Box:
    """A rectangle on the drawing, pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: _Box) -> bool:
        beside = self.right <= other.left or other.right <= self.left
        return not (beside or self.top <= other.bottom or other.top <= self.bottom)

    def inside(self, other: _Box) -> bool:
        across = other.left <= self.left and self.right <= other.right
        return across and other.bottom <= self.bottom and self.top <= other.top


def pareto_svg(
    trials: Sequence[Trial], choice: Choice, numbers: Mapping[str, int], *, size: tuple[int, int], names: bool
) -> str:
    """Return an `<svg>` of validation accuracy against median milliseconds of one image.

    Args:
        trials: all trials; those that are no candidates are not drawn.
        choice: names the winner, the measure and the budget.
        numbers: the number of each trial in the table beside the plot.
        size: width and height in CSS pixels.
        names: label single models and the front with names where they fit; all others have their numbers only.

    """
    import matplotlib
    from matplotlib.figure import Figure

    shown = [t for t in trials if t.is_candidate]
    figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72)
    axes = figure.add_axes((54 / size[0], 46 / size[1], 1 - 70 / size[0], 1 - 62 / size[1]))
    _scales(axes, shown, choice.measure)
    _front(axes, shown, choice)
    front = set(pareto_front(shown, choice.measure))
    for trial in shown:
        _point(axes, trial, choice, on_front=trial.name in front, number=numbers[trial.name])
    named = {t.name for t in shown if names and (t.kind == "single" or t.name in front)}
    _labels(axes, sorted(shown, key=lambda t: (t.name != choice.winner, t.name not in front)), choice, numbers, named)
    buffer = StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"lookalike-{size[0]}"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    titles = {f"trial-{numbers[t.name]}": _title(t, choice.measure) for t in shown}
    return _inline(buffer.getvalue(), f"{measure_label(choice.measure)} against milliseconds per image", titles, size)


def _scales(axes: Axes, shown: Sequence[Trial], measure: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    costs = [t.cost_ms for t in shown]
    low, high = min(costs), max(costs)
    if high > 5 * low:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.35, high * 1.35)
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        margin = 0.12 * (high - low) or 0.3 * high
        axes.set_xlim(max(0.0, low - margin), high + margin)
        axes.xaxis.set_major_locator(MaxNLocator(6))
    intervals = [t.validation.interval(measure) for t in shown]
    bottom, top = min(i["low"] for i in intervals), max(i["high"] for i in intervals)
    margin = 0.08 * (top - bottom) or 0.05
    ticks = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(bottom - margin, top + margin)
    most = max(1.0, top) + 1e-9  # no share is above 1
    axes.yaxis.set_major_locator(FixedLocator([t for t in ticks if t <= most]))
    axes.set_ylim(bottom - margin, top + margin)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("milliseconds per image, one at a time (median)", color=_MUTED, fontsize=_FONT, labelpad=8)
    axes.set_title(f"{measure_label(measure)} on validation", color=_MUTED, fontsize=_FONT, loc="left", pad=6)
    axes.patch.set_visible(False)
    axes.figure.patch.set_visible(False)
    axes.grid(axis="y", color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED, labelsize=_FONT, length=0, pad=6)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_MUTED)


def _front(axes: Axes, shown: Sequence[Trial], choice: Choice) -> None:
    """Draw the front as steps: between two points, the accuracy that this much time buys is the left one's."""
    costs, accuracies = _steps(axes, shown, choice.measure)
    right = costs[-1]
    axes.plot(costs, accuracies, drawstyle="steps-post", color=_ACCENT, linewidth=1.4, zorder=2)
    if choice.budget_ms is not None and axes.get_xlim()[0] < choice.budget_ms < right:
        axes.axvline(choice.budget_ms, color=_INK, linewidth=1, linestyle=(0, (4, 4)), zorder=1)
        inner = axes.transAxes.inverted().transform(axes.transData.transform((choice.budget_ms, 0.0)))[0] > 0.5
        axes.annotate(
            f"budget {choice.budget_ms:g} ms", (choice.budget_ms, 0.0), xycoords=("data", "axes fraction"), color=_INK,
            fontsize=_FONT - 1, xytext=(-5 if inner else 5, 5), textcoords="offset points",
            ha="right" if inner else "left",
        )  # fmt: skip


def _steps(axes: Axes, shown: Sequence[Trial], measure: str) -> tuple[list[float], list[float]]:
    """Return the front's milliseconds and accuracies, and where it leaves the drawing."""
    by_name = {t.name: t for t in shown}
    front = [by_name[name] for name in pareto_front(shown, measure)]
    accuracies = [t.validation.mean(measure) for t in front]
    return [*(t.cost_ms for t in front), axes.get_xlim()[1]], [*accuracies, accuracies[-1]]


def _front_boxes(axes: Axes, shown: Sequence[Trial], measure: str) -> list[_Box]:
    """Return what the front covers, for each of its steps the flat part."""
    points = axes.transData.transform(np.column_stack(_steps(axes, shown, measure)))
    return [_Box(x, y - 1, right, y + 1) for (x, y), (right, _) in itertools.pairwise(points)]


def _point(axes: Axes, trial: Trial, choice: Choice, *, on_front: bool, number: int) -> None:
    found = trial.validation.interval(choice.measure)
    won = trial.name == choice.winner
    colour = _ACCENT if won else _INK if on_front else _MUTED
    axes.plot(
        [trial.cost_ms] * 2, [found["low"], found["high"]], color=colour, linewidth=1.2, zorder=3,
        alpha=0.9 if on_front else 0.35, solid_capstyle="round",
    )  # fmt: skip
    if won:
        axes.plot(
            trial.cost_ms, found["mean"], marker="o", markersize=2.3 * _POINT, markerfacecolor="none",
            markeredgecolor=_ACCENT, markeredgewidth=1.8, zorder=4,
        )  # fmt: skip
    axes.plot(
        trial.cost_ms, found["mean"], marker="o" if trial.kind == "single" else "D", linestyle="none",
        markersize=_POINT if trial.kind == "single" else 0.85 * _POINT, markeredgecolor=colour, markeredgewidth=1.4,
        markerfacecolor=_PAPER if trial.trained == "frozen" else colour, zorder=5, gid=f"trial-{number}",
    )  # fmt: skip


def _labels(axes: Axes, shown: Sequence[Trial], choice: Choice, numbers: Mapping[str, int], names: set[str]) -> None:
    """Label the points, the most important first: with the name where it fits, else the number, else not at all."""
    points = {t.name: axes.transData.transform((t.cost_ms, t.validation.mean(choice.measure))) for t in shown}
    around = _POINT * 0.8
    taken = [_Box(x - around, y - around, x + around, y + around) for x, y in points.values()]
    bars = [_bar(axes, t, choice.measure) for t in shown]
    front = _front_boxes(axes, shown, choice.measure)
    frame = axes.get_window_extent()
    inside = _Box(frame.x0, frame.y0, frame.x1 + 12, frame.y1)
    for trial in shown:
        x, y = points[trial.name]
        won = trial.name == choice.winner
        texts = [_wrapped(trial.name, numbers[trial.name])] if trial.name in names else []
        for text in [*texts, str(numbers[trial.name])]:
            free = [b for b in _places(x, y, text, won) if b.inside(inside) and not any(map(b.meets, taken))]
            if text in texts:  # a name across the front cannot be read, a number can
                free = [b for b in free if not any(map(b.meets, front))]
            if free:
                box = min(free, key=lambda b: sum(map(b.meets, bars)))  # the first of those that cross fewest bars
                taken.append(box)
                side, anchor = ("right", box.right) if box.right <= x else ("left", box.left)
                axes.annotate(
                    text, (anchor, box.bottom), xycoords="figure pixels", fontsize=_FONT, va="bottom", ha=side,
                    color=_ACCENT if won else _INK, fontweight="bold" if won else "normal", linespacing=1.15, zorder=6,
                )  # fmt: skip
                break


def _bar(axes: Axes, trial: Trial, measure: str) -> _Box:
    found = trial.validation.interval(measure)
    x, bottom = axes.transData.transform((trial.cost_ms, found["low"]))
    _, top = axes.transData.transform((trial.cost_ms, found["high"]))
    return _Box(x - 1, bottom, x + 1, top)


def _wrapped(name: str, number: int) -> str:
    width = max(22, *(len(word) + 4 for word in name.split()))
    return "\n".join(textwrap.wrap(f"{number}  {name}", width, break_long_words=False, break_on_hyphens=False))


def _places(x: float, y: float, text: str, won: bool) -> Iterator[_Box]:
    """Yield boxes for a text around a point: right, left, below and above it, then the corners."""
    lines = text.split("\n")
    width, height = 0.6 * _FONT * max(map(len, lines)) + 2, 1.25 * _FONT * len(lines)
    gap = _POINT * (1.5 if won else 1.0)
    for left, bottom in (
        (x + gap, y - height - 2), (x + gap, y + 2), (x - gap - width, y + 2), (x - gap - width, y - height - 2),
        (x + gap, y - height / 2), (x - gap - width, y - height / 2),
        (x - width / 2, y - gap - height), (x - width / 2, y + gap),
    ):  # fmt: skip
        yield _Box(left, bottom, left + width, bottom + height)


def _title(trial: Trial, measure: str) -> str:
    found = trial.validation.interval(measure)
    interval = f"{found['low']:.3f} to {found['high']:.3f}"
    return f"{trial.name}: {found['mean']:.3f} ({interval}) at {ms_text(trial.cost_ms)} ms"


def _inline(svg: str, label: str, titles: Mapping[str, str], size: tuple[int, int]) -> str:
    """Cut the SVG down to what a page needs: no prologue, no metadata, no namespaces, the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    opening = f'<svg viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(label)}">'
    svg = opening + svg[svg.index(">") + 1 :]
    # Two plots stand in one page: what one refers to must not be found in the other.
    svg = re.sub(r'(id="|href="#|url\(#)(?!trial-)', rf"\g<1>w{size[0]}-", svg)
    for gid, title in titles.items():
        svg = svg.replace(f'<g id="{gid}">', f"<g><title>{escape(title)}</title>", 1)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.strip()
