from __future__ import annotations

import re
from dataclasses import replace

import matplotlib
import pytest
from matplotlib.figure import Figure

from lookalike.benchmark.pareto_plot import pareto_svg
from lookalike.benchmark.selection import select

HALF = [1.0, 1.0, 0.0, 0.0]
MOST = [1.0, 1.0, 1.0, 0.0]


@pytest.fixture
def trials(make_trial):
    return [
        make_trial("lite_0 frozen", HALF, 8, state="frozen"),
        make_trial("lite_2 fine-tuned", HALF, 12),
        make_trial("lite_0 + lite_2", MOST, 60, kind="ensemble", combination="aligned"),
        make_trial("random", HALF, 5, state="untrained"),
    ]


def plot(trials, size=(860, 460), *, names=True) -> str:
    return pareto_svg(
        trials, select(trials), {t.name: n for n, t in enumerate(trials, start=1)}, size=size, names=names
    )


def test_every_candidate_has_one_point_with_a_title(trials):
    svg = plot(trials)
    titles = re.findall(r"<title>(.*?)</title>", svg)
    assert {title.split(":")[0] for title in titles} == {"lite_0 frozen", "lite_2 fine-tuned", "lite_0 + lite_2"}
    assert "lite_0 frozen: 0.500 (0.400 to 0.600) at 8.0 ms" in titles
    assert "http" not in svg and "#0" not in svg.replace('="#', "") and "var(--accent)" in svg


def test_one_candidate_and_equal_ones_are_drawn(make_trial):
    assert "only" in plot([make_trial("only", HALF)], (360, 380))
    svg = plot([make_trial("a", HALF), make_trial("b", HALF)], (360, 380), names=False)
    assert len(re.findall("<title>", svg)) == 2


def test_no_tick_is_above_one(make_trial):
    svg = plot([make_trial("sure", [0.9] * 9), make_trial("not so", [0.81] * 9)])  # intervals reach 1.0
    accuracies = [float(text) for text in re.findall(r">(\d\.\d+)</text>", svg)]
    assert max(accuracies) == 1.0


def test_no_name_crosses_the_front(make_trial, monkeypatch):
    """Next to the slower of two points that are nearly level, at the right edge, a name fits only across the front."""
    trials = [
        make_trial("cheap", [0.841, 0.941] * 5, 18.7),  # not significantly below the next
        make_trial("dear fine-tuned + another one fine-tuned, concat", [0.945, 0.845] * 5, 46.0, kind="ensemble"),
        make_trial("poor", [0.81] * 10, 32.0),
    ]
    for trial in trials:  # no room above either
        interval = trial.validation.estimate("precision@3")
        trial.validation.measures["precision@3"] = replace(interval, high=interval.mean + 0.005)
    figures = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self) or savefig(self, *a, **k))
    plot(trials)
    (axes,) = figures[0].axes
    names = [text for text in axes.texts if re.search("[a-z]", text.get_text())]
    assert any("cheap" in text.get_text() for text in names)
    points = [(t.cost_ms, t.validation.mean("precision@3")) for t in trials[:2]]
    (left, level), (right, above) = axes.transData.transform(points)
    for extent in (text.get_window_extent() for text in names):
        assert not (extent.x0 < right and extent.x1 > left and extent.y0 < level < extent.y1)
        assert not (extent.x1 > right and extent.y0 < above < extent.y1)


def test_settings_of_matplotlib_stay_and_the_result_is_reproducible(trials):
    before = dict(matplotlib.rcParams)
    first = plot(trials, (360, 380), names=False)
    assert dict(matplotlib.rcParams) == before
    assert plot(trials, (360, 380), names=False) == first
