"""Accuracy against time as an inline SVG with the colours of the page, so that it suits light and dark."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Literal

from lookalike.benchmark.selection import Selection, pareto_front
from lookalike.benchmark.trial import Trial, format_ms
from lookalike.evaluation.measures import Measure
from lookalike.models.info import FINE_TUNED, FROZEN, MIXED, TRAINED_HEAD, UNTRAINED, TrainingState

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

# matplotlib needs real colours; in the SVG they are replaced by the variables of the page
_INK, _MUTED, _LINE, _ACCENT, _PAPER = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _LINE: "--line", _ACCENT: "--accent", _PAPER: "--paper"}
_POINT = 7.0
# which part of a marker is filled, by state
_FILL: Mapping[TrainingState, Literal["full", "left", "bottom", "none"]] = {
    UNTRAINED: "none", FROZEN: "none", TRAINED_HEAD: "bottom", MIXED: "left", FINE_TUNED: "full"
}  # fmt: skip
_FONT = 10.5


def pareto_svg(
    trials: Sequence[Trial], selection: Selection, numbers: Mapping[str, int], *, size: tuple[int, int], names: bool
) -> str:
    """Return an `<svg>` of validation accuracy against median milliseconds per image, for all candidates.

    `numbers` are those of the trials in the table next to it; `size` is in CSS pixels; with `names`, single models and
    the front are labelled with their names where these fit.
    """
    import matplotlib
    from matplotlib.figure import Figure

    measure, label = selection.measure, Measure.parse(selection.measure).title
    candidates = [t for t in trials if t.is_candidate]
    front = pareto_front(candidates, measure)
    figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72)
    axes = figure.add_axes((54 / size[0], 46 / size[1], 1 - 70 / size[0], 1 - 62 / size[1]))
    _scale(axes, candidates, measure)
    axes.set_title(f"{label} on validation", color=_MUTED, fontsize=_FONT, loc="left", pad=6)
    # between two points of the front, the accuracy that a time allows is that of the left one
    steps = [(t.cost_ms, t.validation.mean(measure)) for t in front]
    steps.append((axes.get_xlim()[1], steps[-1][1]))
    axes.plot(*zip(*steps, strict=True), drawstyle="steps-post", color=_ACCENT, linewidth=1.4, zorder=2)
    _draw_budget(axes, selection.budget_ms)
    for trial in candidates:
        _draw_point(axes, trial, selection, on_front=trial in front, number=numbers[trial.name])
    ordered = sorted(candidates, key=lambda t: (t.name != selection.winner, t not in front))
    labels: dict[str, list[str]] = {}
    titles: dict[str, str] = {}
    for trial in ordered:
        number = str(numbers[trial.name])
        labels[trial.name] = [number]
        if names and (trial.kind == "single" or trial in front):
            text = f"{number}  {trial.name}"
            width = max(22, *(len(word) + 4 for word in text.split()))
            lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
            labels[trial.name].insert(0, "\n".join(lines))
        accuracy = trial.validation.estimate(measure)
        interval = f"{accuracy.low:.3f} to {accuracy.high:.3f}"
        titles[number] = f"{trial.name}: {accuracy.mean:.3f} ({interval}) at {format_ms(trial.cost_ms)} ms"
    _draw_labels(axes, ordered, labels, steps, selection)
    buffer = StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"lookalike-{size[0]}"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), f"{label} against milliseconds per image", titles, size)


def _scale(axes: Axes, trials: Sequence[Trial], measure: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = min(t.cost_ms for t in trials), max(t.cost_ms for t in trials)
    if high > 5 * low:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.35, high * 1.35)
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        margin = 0.12 * (high - low) or 0.3 * high
        axes.set_xlim(max(0.0, low - margin), high + margin)
        axes.xaxis.set_major_locator(MaxNLocator(6))
    intervals = [t.validation.estimate(measure) for t in trials]
    bottom, top = min(i.low for i in intervals), max(i.high for i in intervals)
    margin = 0.08 * (top - bottom) or 0.05
    ticks = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(bottom - margin, top + margin)
    axes.yaxis.set_major_locator(FixedLocator([t for t in ticks if t <= max(1.0, top) + 1e-9]))  # a share is at most 1
    axes.set_ylim(bottom - margin, top + margin)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("milliseconds per image, one at a time (median)", color=_MUTED, fontsize=_FONT, labelpad=8)
    axes.patch.set_visible(False)
    axes.figure.patch.set_visible(False)
    axes.grid(axis="y", color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED, labelsize=_FONT, length=0, pad=6)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_MUTED)


def _draw_budget(axes: Axes, budget_ms: float | None) -> None:
    left, right = axes.get_xlim()
    if budget_ms is None or not left < budget_ms < right:
        return
    axes.axvline(budget_ms, color=_INK, linewidth=1, linestyle=(0, (4, 4)), zorder=1)
    on_right_half = axes.transAxes.inverted().transform(axes.transData.transform((budget_ms, 0.0)))[0] > 0.5
    axes.annotate(
        f"budget {budget_ms:g} ms", (budget_ms, 0.0), xycoords=("data", "axes fraction"), color=_INK,
        fontsize=_FONT - 1, xytext=(-5 if on_right_half else 5, 5), textcoords="offset points",
        ha="right" if on_right_half else "left",
    )  # fmt: skip


def _draw_point(axes: Axes, trial: Trial, selection: Selection, *, on_front: bool, number: int) -> None:
    x, interval, is_winner = trial.cost_ms, trial.validation.estimate(selection.measure), trial.name == selection.winner
    colour = _ACCENT if is_winner else _INK if on_front else _MUTED
    axes.plot(
        [x, x], [interval.low, interval.high], color=colour, linewidth=1.2, zorder=3, alpha=0.9 if on_front else 0.35,
        solid_capstyle="round",
    )  # fmt: skip
    if is_winner:
        axes.plot(
            x, interval.mean, marker="o", markersize=2.3 * _POINT, markerfacecolor="none", markeredgecolor=_ACCENT,
            markeredgewidth=1.8, zorder=4,
        )  # fmt: skip
    axes.plot(
        x, interval.mean, marker="o" if trial.kind == "single" else "D", linestyle="none",
        markersize=_POINT if trial.kind == "single" else 0.85 * _POINT, markeredgecolor=colour, markeredgewidth=1.4,
        fillstyle="full" if _FILL[trial.state] == "none" else _FILL[trial.state], markerfacecoloralt=_PAPER,
        markerfacecolor=_PAPER if _FILL[trial.state] == "none" else colour, zorder=5, gid=f"trial-{number}",
    )  # fmt: skip


def _draw_labels(
    axes: Axes,
    trials: Sequence[Trial],
    labels: Mapping[str, Sequence[str]],
    steps: Sequence[tuple[float, float]],
    selection: Selection,
) -> None:
    """Draw the first label of each trial that fits next to its point, the most important trial first, or none."""
    from matplotlib.transforms import Bbox

    to_pixels, measure = axes.transData.transform, selection.measure
    points = {t.name: to_pixels((t.cost_ms, t.validation.mean(measure))) for t in trials}
    occupied = [Bbox.from_extents(x, y, x, y).padded(0.8 * _POINT) for x, y in points.values()]
    intervals = [t.validation.estimate(measure) for t in trials]
    bars = [
        Bbox([to_pixels((t.cost_ms, i.low)), to_pixels((t.cost_ms, i.high))]).padded(1)
        for t, i in zip(trials, intervals, strict=True)
    ]
    pixels = [to_pixels(step) for step in steps]
    front = [Bbox.from_extents(x, y, right, y).padded(1) for (x, y), (right, _) in itertools.pairwise(pixels)]
    frame = axes.get_window_extent()
    for trial in trials:
        x, y = points[trial.name]
        is_winner = trial.name == selection.winner
        for text in labels[trial.name]:
            # a name across the front is hard to read, a number is not
            blocked = occupied + front if text != labels[trial.name][-1] else occupied
            boxes = [
                box
                for box in _label_boxes(x, y, text, _POINT * (1.5 if is_winner else 1.0))
                if frame.x0 <= box.x0 and box.x1 <= frame.x1 + 12 and frame.y0 <= box.y0 and box.y1 <= frame.y1
                and not box.count_overlaps(blocked)
            ]  # fmt: skip
            if boxes:
                box = min(boxes, key=lambda b: b.count_overlaps(bars))
                occupied.append(box)
                side, anchor = ("right", box.x1) if box.x1 <= x else ("left", box.x0)
                axes.annotate(
                    text, (anchor, box.y0), xycoords="figure pixels", fontsize=_FONT, va="bottom", ha=side,
                    color=_ACCENT if is_winner else _INK, fontweight="bold" if is_winner else "normal",
                    linespacing=1.15, zorder=6,
                )  # fmt: skip
                break


def _label_boxes(x: float, y: float, text: str, gap: float) -> list[Bbox]:
    """Return the places of a text around a point: right, left, below and above it; browsers set the font."""
    from matplotlib.transforms import Bbox

    lines = text.split("\n")
    width, height = 0.6 * _FONT * max(map(len, lines)) + 2, 1.25 * _FONT * len(lines)
    right, left, below, above, middle = x + gap, x - gap - width, y - height - 2, y + 2, y - height / 2
    corners = [(right, below), (right, above), (left, above), (left, below), (right, middle), (left, middle)]
    corners += [(x - width / 2, y - gap - height), (x - width / 2, y + gap)]
    return [Bbox.from_bounds(*corner, width, height) for corner in corners]


def _inline(svg: str, label: str, titles: Mapping[str, str], size: tuple[int, int]) -> str:
    """Reduce the SVG to what a page needs: no prologue, metadata or namespaces; titles, and the colours of the page."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    opening = f'<svg viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(label)}">'
    svg = opening + svg[svg.index(">") + 1 :]
    # two plots are in one page: their ids must differ
    svg = re.sub(r'(id="|href="#|url\(#)(?!trial-)', rf"\g<1>w{size[0]}-", svg)
    for number, title in titles.items():
        svg = svg.replace(f'<g id="trial-{number}">', f"<g><title>{escape(title)}</title>", 1)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.strip()
