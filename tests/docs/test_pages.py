"""The pages that are written by hand: links, the worked example of the measures, the figures of the README."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import lookalike as la
from lookalike.evaluation.measures import REGISTRY, Measure

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_links_of_the_pages_outside_the_site(page):
    for target, anchor in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        path = ROOT / (target or page)
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), f"{target}#{anchor}"


def test_the_worked_example_of_the_measures():
    page = (ROOT / "docs" / "reference" / "measures.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `([^`]+)` \|.*\| ([\d.]+) \|$", page.split("## One example for all measures")[1], re.MULTILINE
    )
    relevant = np.array([[False, True, True, *[False] * 7]])
    for name, value in rows:
        (expected,) = Measure.parse(name).values(relevant, np.array([4]))
        assert float(value) == pytest.approx(expected, abs=5e-4), name
    assert {Measure.parse(name).pattern for name, _ in rows} == set(REGISTRY)


def test_the_page_of_measures_has_every_measure():
    page = (ROOT / "docs" / "reference" / "measures.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([^`]+)` \|", page.split("## One example")[0], re.MULTILINE) == list(REGISTRY)


def test_the_python_page_has_every_public_name():
    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: lookalike\.(\w+)$", page, re.MULTILINE)) == sorted(la.__all__)


def test_figures_of_the_readme_are_those_of_the_result_pages():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    results = (ROOT / "docs" / "results" / "training.md").read_text(encoding="utf-8")
    accuracies = re.findall(r"\b0\.\d{3}\b", readme.split("## Figures")[1].split("time and memory")[0])
    assert len(accuracies) == 9
    assert not [value for value in accuracies if value not in results]
