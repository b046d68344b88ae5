from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lookalike.benchmark import run_trials
from lookalike.benchmark.run_trials import skipped_files
from lookalike.benchmark.spec import slug
from lookalike.benchmark.trial import Trial
from lookalike.types import Embeddings, Skipped

EFFICIENTNET, RESNET = ("test_efficientnet", "test_resnet")


def leaderboard_of(out: Path) -> dict:
    return json.loads((out / "leaderboard.json").read_text(encoding="utf-8"))


def test_skipped_files_are_listed_once_in_the_order_of_the_splits():
    files = {name: Skipped(Path(name), "damaged") for name in ("a", "b", "c")}

    def by_split(**skipped):
        splits = ("training", "validation", "query", "gallery")
        empty = np.zeros((0, 2), np.float32)
        return {s: Embeddings((), empty, "f", tuple(files[f] for f in skipped.get(s, ""))) for s in splits}

    embeddings = {"one": by_split(gallery="ab"), "other": by_split(training="c", gallery="b")}
    assert skipped_files(embeddings) == (files["c"], files["a"], files["b"])


def test_trials_of_one_architecture_share_a_timing(finished):
    cost = {t.name: t.cost_ms for t in finished.trials}
    assert cost[f"{EFFICIENTNET} frozen"] == cost[f"{EFFICIENTNET} fine-tuned"] == 10.0
    assert cost[f"{EFFICIENTNET} frozen + {RESNET} frozen (squash), average"] == 24.0
    assert cost[f"{EFFICIENTNET} fine-tuned + {RESNET} frozen, aligned"] == 24.25


def test_trials_on_disk_are_those_of_the_result_without_time(finished):
    for trial in finished.trials:
        stored = json.loads((finished.out / "trials" / f"{slug(trial.name)}.json").read_text(encoding="utf-8"))
        assert Trial.from_dict(stored["trial"]) == replace(trial, timing=None)


@pytest.mark.usefixtures("no_timing", "no_report")
def test_a_replaced_query_is_embedded_and_measured_again(again, finished_copy, data_folder, listener):
    again(finished_copy, data=data_folder)
    query = data_folder / "test" / "query" / "cat0.jpg"
    query.write_bytes((data_folder / "test" / "gallery" / "rocket0.jpg").read_bytes())
    recording_progress = listener()
    result = again(finished_copy, data=data_folder, progress=recording_progress)
    assert {task.partition(": ")[2] for task in recording_progress.tasks if ": " in task} == {"query"}
    measured = result.trials[0].test
    values = dict(zip(measured.query_ids, measured.values["hit@1"], strict=True))
    assert values["test/query/cat0.jpg"] == 0.0  # it is a rocket now


@pytest.mark.usefixtures("no_timing", "no_report")
def test_the_file_of_a_query_is_not_its_hit(again, finished_copy, data_folder):
    """The benchmark is measured again when a gallery image becomes a link to a query."""
    query = data_folder / "test" / "query" / "cat0.jpg"
    image = data_folder / "test" / "gallery" / "cat0.jpg"
    shutil.copy2(query, image)
    copied = again(finished_copy, data=data_folder).trials[0].test
    image.unlink()
    image.hardlink_to(query)
    linked = again(finished_copy, data=data_folder).trials[0].test
    row = linked.query_ids.index("test/query/cat0.jpg")
    assert linked.values["precision@3"][row] < copied.values["precision@3"][row]


@pytest.mark.usefixtures("no_timing", "no_report")
@pytest.mark.parametrize(
    ("changed", "timed"),
    [
        ({}, 0),
        ({"processor": "another"}, 5),
        ({"device": "another"}, 5),
        ({"threads": 99}, 5),
        ({"torch": "0.1"}, 5),
        ({"timm": "0.1"}, 5),
    ],
)
def test_timings_are_reused_with_the_same_setup_only(again, finished_copy, monkeypatch, changed, timed):
    """Two backbones make five sets of architectures: each alone, with itself, and both."""
    measure, setup = run_trials.measure_timing, run_trials.timing_setup() | changed
    calls = []
    monkeypatch.setattr(run_trials, "timing_setup", lambda: setup)
    monkeypatch.setattr(run_trials, "measure_timing", lambda request: calls.append(request) or measure(request))
    for _ in range(2):
        again(finished_copy)
        assert len(calls) == timed


@pytest.mark.usefixtures("no_timing", "no_report")
def test_damaged_files_are_made_again(again, finished, finished_copy):
    for pattern in ("cache/query-*.npz", "trials/*-concat.json", "timing/test-resnet-160x160.json"):
        for path in finished_copy.glob(pattern):
            path.write_bytes(path.read_bytes()[:100])
    again(finished_copy)
    assert leaderboard_of(finished_copy) == leaderboard_of(finished.out)
