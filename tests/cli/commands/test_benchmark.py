"""`lookalike benchmark`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def timing_in_process(monkeypatch):
    """Time in this process instead of a new one, which takes seconds to start."""
    from lookalike.benchmark import run_trials
    from lookalike.benchmark.timing import time_members
    from lookalike.runtimes.load import load_encoder

    def measure(request):
        def load_members(_):
            return [m for b in request.bundles for m in load_encoder(b).members]

        return time_members(load_members, request.combinations, request.images, count=request.count)

    monkeypatch.setattr(run_trials, "measure_timing", measure)


@pytest.mark.slow
def test_benchmark(timing_in_process, workspace, lookalike):
    line = "benchmark photos --bundle model --bundle other --out 'first run'"
    outcome = lookalike(line)
    assert outcome.code == 0
    header, *rows = outcome.out.split("\n\n")[0].splitlines()
    assert header.split()[:3] == ["model", "type", "map@r"]  # few images per class in validation
    assert len(rows) == 5  # two bundles, and their ensemble in three combinations
    assert sum(row.startswith("★ ") for row in rows) == 1
    assert outcome.out.splitlines()[-2:] == ["report: first run/report.html", "model:  first run/best"]
    assert outcome.err.splitlines()[-3:] == [
        "or: index images with the winner and search them",
        "  lookalike index IMAGES --model 'first run/best' --out IMAGES.index",
        "  lookalike search IMAGES.index query.jpg --html hits.html",
    ]
    assert "  lookalike submit photos --model 'first run/best' --group NAME --out submission.json" in outcome.err
    again = lookalike(f"{line} --json")
    assert again.json == json.loads(Path("first run/leaderboard.json").read_text(encoding="utf-8"))
    assert len(again.json["rows"]) == 5


def test_benchmark_with_a_budget_that_no_candidate_meets(timing_in_process, fails):
    line = "benchmark photos --bundle model --budget-ms 0.001 --out new"
    fails(line, "0.001 ms", "model", "budget", grows="new/")
