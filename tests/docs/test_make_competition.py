"""The script that makes docs/results/competition.md."""

from __future__ import annotations

from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def pages(load_script) -> ModuleType:
    return load_script("docs/make_competition.py")


def score(seconds, points, step, **more):
    return {"seconds": seconds, "step": step, "points": points, "hit@1": 0.5, "precision@3": 0.25, **more}


def test_the_best_frozen_backbone_and_the_last_submission_are_shown(pages):
    submissions = [
        score(10.0, 400.4, "first submission", validation=None),
        score(250.0, 700.0, "training a_b", validation=690.0, model="submitted: a_b", **{"map@r": 0.125}),
    ]
    page = pages.render(
        {
            "photos/frozen": {"scores": [score(5.0, 300.0, "a_b"), score(6.0, 350.0, "c"), score(7.0, 320.0, "d")]},
            "photos/compete/5": {"scores": submissions},
        }
    )
    lines = page.splitlines()
    first = lines.index("| – | frozen, c | 6 s | 350 | 0.500 | 0.250 | – |")
    assert lines[first + 1] == "| 5 | compete | 250 s | 700 | 0.500 | 0.250 | 0.125 |"
    assert "| 10 s | 400 | 0.500 | 0.250 | – | first submission |" in lines
    assert r"| 250 s | 700 | 0.500 | 0.250 | 690 | training a\_b |" in lines
