"""The report of a competition: its steps with their reasons, and the score on validation over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lookalike._files import write_text
from lookalike._html import page_environment
from lookalike.competition.log import LogEntry
from lookalike.data.dataset import Dataset
from lookalike.evaluation.measures import Measure
from lookalike.progress import format_duration

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _MARGIN = 720.0, 260.0, 48.0, 34.0, 16.0


@dataclass(frozen=True)
class Point:
    """A submission in the plot: its position in pixels, its number and its title."""

    x: float
    y: float
    number: int
    title: str


@dataclass(frozen=True)
class Timeline:
    """The validation measure of the submissions over time, in pixels of a plot of `width` x `height`."""

    width: float
    height: float
    points: tuple[Point, ...]
    path: str  # of the line that joins them in steps
    ticks_x: tuple[tuple[float, str], ...]
    ticks_y: tuple[tuple[float, str], ...]


def make_timeline(log: Sequence[LogEntry], measure: str, total_seconds: float) -> Timeline | None:
    """Return the plot of all submissions that were measured; None if there are none."""
    scored = [(number, e) for number, e in enumerate((e for e in log if e.submission), start=1) if e.score is not None]
    if not scored:
        return None
    scores = [e.score for _, e in scored if e.score is not None]
    top = Measure.parse(measure).max_value
    low = max(0.0, min(scores) - 0.25 * (top - min(scores)))

    def x_of(seconds: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _MARGIN) * min(1.0, seconds / total_seconds)

    def y_of(score: float) -> float:
        return _MARGIN + (_HEIGHT - _BOTTOM - _MARGIN) * (top - score) / (top - low or 1.0)

    def tick(score: float) -> str:
        return f"{score:.0f}" if top > 1 else f"{score:.2f}"

    points = tuple(
        Point(x_of(e.seconds), y_of(e.score or 0.0), number, f"{format_duration(e.seconds)}: {e.step}, {e.score:.4g}")
        for number, e in scored
    )
    path = f"M{points[0].x:.1f} {points[0].y:.1f}"
    path += "".join(f" H{point.x:.1f} V{point.y:.1f}" for point in points[1:]) + f" H{_WIDTH - _MARGIN:.1f}"
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    return Timeline(
        _WIDTH,
        _HEIGHT,
        points,
        path,
        tuple((x_of(total_seconds * share), format_duration(total_seconds * share)) for share in shares),
        tuple((y_of(low + (top - low) * share), tick(low + (top - low) * share)) for share in shares[::2]),
    )


def write_report(
    path: Path, data: Dataset, log: Sequence[LogEntry], *, measure: str, model: str, total_seconds: float
) -> None:
    """Write the page; `model` describes what the submission is made from."""
    scores = [entry.score for entry in log if entry.score is not None]
    page = (
        page_environment()
        .get_template("competition.html.j2")
        .render(
            title=f"Competition: {data.root.name}",
            data=data.summary(data.root.name),
            measure=measure,
            model=model,
            score=scores[-1] if scores else None,
            entries=[entry for entry in log if entry.outcome != "started"],
            timeline=make_timeline(log, measure, total_seconds),
            total=format_duration(total_seconds),
            format_duration=format_duration,
        )
    )
    write_text(path, page)
