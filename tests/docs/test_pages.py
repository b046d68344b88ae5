"""The pages that are written by hand: links, the worked example of the measures, the figures of the README."""

from __future__ import annotations

import json
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


def readme_row(start: str) -> list[str]:
    """Return the cells of the row of the README's figures that starts with a text."""
    figures = (ROOT / "README.md").read_text(encoding="utf-8").split("## Figures")[1]
    (row,) = (line for line in figures.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in row.strip("|").split("|")]


@pytest.mark.parametrize("name", ["clothing", "trashnet", "caltech"])
def test_accuracies_of_the_readme_are_the_measured_ones(name):
    results = json.loads((ROOT / "docs" / "results" / "training.json").read_text(encoding="utf-8"))
    expected = []
    for method in ("frozen", "full", "their-trainer"):
        key = f"{name}/efficientnet_lite0/{method}/"
        expected.append(np.mean([run["measures"]["precision@3"] for k, run in results.items() if k.startswith(key)]))
    assert readme_row(name)[1:4] == [f"{mean:.3f}" for mean in expected]


@pytest.mark.parametrize(
    ("start", "file", "figure", "ours", "theirs", "digits"),
    [
        ("`lookalike embed`", "commands", "seconds", "lookalike embed, bundle", "timm + DataLoader", ".1f"),
        ("the same, peak", "commands", "peak_memory_mb", "lookalike embed, bundle", "timm + DataLoader", ",.0f"),
        ("one query", "search-1000000", "single_ms", "ours, exact", "FAISS flat", ".1f"),
        ("the same with a recall", "search-1000000", "single_ms", "ours, recall 0.95", "hnswlib M=32, ef 48", ".2f"),
        ("`lookalike search`", "startup", "seconds", "search with the selected runtime", "search with torch", ".1f"),
    ],
)
def test_times_of_the_readme_are_the_measured_ones(start, file, figure, ours, theirs, digits):
    path = ROOT / "docs" / "results" / "performance" / f"{file}.json"
    contenders = json.loads(path.read_text(encoding="utf-8"))["contenders"]
    expected = [format(contenders[name][figure]["median"], digits) for name in (ours, theirs)]
    assert [cell.split(" (")[0] for cell in readme_row(start)[1:3]] == expected
