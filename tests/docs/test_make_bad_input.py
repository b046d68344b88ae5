"""docs/results/bad-input.md and the script that makes it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"


@pytest.fixture(scope="module")
def pages(load_script) -> ModuleType:
    return load_script("docs/make_bad_input.py")


def case(**changes):
    values = {
        "kind": "Names",
        "input": "A file called `a|b`.",
        "commands": ["lookalike check x | cat"],
        "exit": 2,
        "prints": "error: *x* is <b>",
        "seconds": 1.25,
        "peak_memory_mb": 50,
        "connections": 0,
        "problems": [],
    }
    return {**values, **changes}


def test_a_table_per_kind_and_a_list_of_what_is_open(pages):
    results = {
        "machine": {"processor": "P", "cores": 2, "python": "3.11"},
        "timeout_seconds": 120,
        "cases": {"a": case(), "b": case(exit=None, problems=["the time limit ended it"]), "c": case(kind="Disks")},
        "not_made": {"Disks": [["`NTFS`", "not here"]]},
        "not_run": ["d"],
    }
    page = pages.render(results)
    assert "3 cases, 1 not as expected" in page
    assert "| [Names](#names) | 2 | 1 | 0 | 0 | 1 | 0 | 1 | 50 |" in page
    assert "- <code>b</code>: A file called <code>a&#124;b</code>. the time limit ended it." in page
    row = (
        "<code>a</code> | <code>lookalike check x &#124; cat</code> | error: &#42;x&#42; is &lt;b&gt; | 2 | 1.2 | 50 |"
    )
    assert f"| A file called <code>a&#124;b</code>.<br>{row}" in page
    assert "<code>b</code> (open)" in page
    assert "## Not run yet\n\n<code>d</code>" in page
    assert "- Disks: <code>NTFS</code>: not here." in page


def test_the_page_is_up_to_date(pages):
    results = json.loads((RESULTS / "bad-input.json").read_text(encoding="utf-8"))
    page = (RESULTS / "bad-input.md").read_text(encoding="utf-8")
    assert page == pages.render(results), "run python docs/make_bad_input.py"


def test_the_results_name_no_folder_of_the_machine():
    text = (RESULTS / "bad-input.json").read_text(encoding="utf-8")
    assert not re.search(r"/(tmp|root|home|var)/\w", text)
