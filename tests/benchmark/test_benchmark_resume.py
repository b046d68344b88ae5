"""A benchmark that was killed, or is asked for more, takes what is there and ends as one that nobody disturbed."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lookalike.errors import OptionError, StorageError
from lookalike.models.facts import read_facts
from lookalike.training.options import TrainingOptions

EFFICIENTNET, RESNET = NAMES = ("test_efficientnet", "test_resnet")
pytestmark = pytest.mark.usefixtures("no_timing", "no_report")

KILLS = (
    (f"{EFFICIENTNET}: features", 16),
    ("epoch 1/2", 8),
    ("epoch 2/2", 8),
    (f"{RESNET}: validation", 8),
    (f"{EFFICIENTNET} frozen: query", 8),
    (f"{EFFICIENTNET} fine-tuned: gallery", 12),
    ("measuring", 3),
    ("measuring", 17),
    ("timing", 2),
)


def board_of(out: Path) -> dict:
    return json.loads((out / "leaderboard.json").read_text(encoding="utf-8"))


def test_killed_at_nine_places_it_ends_as_the_undisturbed_one(again, finished, tmp_path, listener):
    out = tmp_path / "run"
    for task, done in KILLS:
        heard = listener(stop_at=(task, done))
        with pytest.raises(KeyboardInterrupt):
            again(out, progress=heard)
        assert not (out / "leaderboard.json").exists()
    heard = listener()
    found = again(out, progress=heard)
    assert heard.tasks == ["measuring", "timing"]  # nothing is trained or embedded a second time
    assert board_of(out) == board_of(finished.out)
    assert found.choice == finished.choice
    for place in ("best", *(p.relative_to(finished.out) for p in (finished.out / "members").iterdir())):
        assert read_facts(out / place)["fingerprint"] == read_facts(finished.out / place)["fingerprint"]
    assert not list(out.glob("members/*.training"))


def test_each_sitting_goes_on_where_the_last_was_killed(again, tmp_path, listener):
    out = tmp_path / "run"
    started = []
    for stop in (("epoch 2/2", 8), (f"{RESNET} frozen: query", 8), None):
        heard = listener(stop_at=stop)
        try:
            again(out, progress=heard, backbones=NAMES)
        except KeyboardInterrupt:
            assert stop is not None
        started.append(heard.tasks)
    first, second, third = started
    assert first[0] == "looking for leaks"
    assert first[1:] == [f"{EFFICIENTNET}: features", f"{EFFICIENTNET}: validation", "epoch 1/2", "epoch 2/2"]
    heads = [f"{EFFICIENTNET}: last head at {share}% of fine-tuning" for share in (75, 50, 100, 25)]
    own = [heads[0], f"{EFFICIENTNET}: last head, validation", *heads[1:], f"{EFFICIENTNET}: measures"]
    assert second[1:9] == ["epoch 2/2", *own, f"{RESNET}: features"]
    assert second[-1] == f"{RESNET} frozen: query"
    assert third[0] == f"{RESNET} frozen: query" and not any(task.startswith("epoch") for task in third)


@pytest.mark.parametrize("name", ["write_best", "write_leaderboard"])
def test_killed_while_the_results_are_written(again, finished, finished_copy, monkeypatch, name):
    (finished_copy / "leaderboard.json").unlink()
    shutil.rmtree(finished_copy / "best")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["lookalike.benchmark.benchmark"], name, killed)
        with pytest.raises(KeyboardInterrupt):
            again(finished_copy)
    again(finished_copy)
    assert board_of(finished_copy) == board_of(finished.out)
    assert (finished_copy / "best" / "bundle.json").is_file()


def test_a_finished_run_takes_another_backbone(again, finished, tiny_weights, tmp_path, listener):
    one_file = {EFFICIENTNET: tiny_weights[EFFICIENTNET]}
    out = tmp_path / "run"
    again(out, backbones=NAMES[:1], weights=one_file)
    heard = listener()
    again(out, progress=heard)
    assert not any(task.startswith(EFFICIENTNET) for task in heard.tasks)
    assert f"{RESNET} frozen: query" in heard.tasks
    assert board_of(out) == board_of(finished.out)
    fewer = again(out, backbones=NAMES[:1], weights=one_file)  # and fewer again
    assert len(fewer.trials) == 2 + 3


def test_a_finished_run_takes_a_budget_and_another_measure(again, finished, finished_copy, listener):
    heard = listener()
    found = again(finished_copy, budget_ms=12.0, progress=heard)
    assert heard.tasks == ["measuring", "timing"]
    assert "The budget of 12 ms excluded" in found.choice.reason
    assert found.leaderboard.rows == finished.leaderboard.rows
    by_hit = again(finished_copy, measure="hit@1")
    assert by_hit.leaderboard.measure == "hit@1"
    assert by_hit.trials[0].validation.values["hit@1"] == finished.trials[0].validation.values["hit@1"]
    with pytest.raises(OptionError, match="no candidate takes at most 1 ms per image; the fastest of 22"):
        again(finished_copy, budget_ms=1.0)


def test_other_options_are_refused(again, finished_copy):
    with pytest.raises(StorageError, match="holds a benchmark with other options; choose another --out or remove it"):
        again(finished_copy, options=TrainingOptions(epochs=1, batch_size=8, precision="float32", resolution=0.5))


def test_other_weights_of_a_used_backbone_are_refused(again, finished_copy, tiny_weights, tmp_path):
    other = tmp_path / "other.safetensors"
    state = load_file(tiny_weights[RESNET])
    state["conv1.0.weight"] = state["conv1.0.weight"] * 1.5
    save_file(state, other)
    with pytest.raises(StorageError, match=f"other weights of {RESNET}; choose another"):
        again(finished_copy, weights={**tiny_weights, RESNET: other})


def test_other_training_images_are_refused(again, finished_copy, photo_folder):
    path = next((photo_folder / "training" / "cat").iterdir())
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(StorageError, match="other training data; choose"):
        again(finished_copy, data=photo_folder)


def test_other_test_labels_are_refused(again, finished_copy, photo_folder):
    labels = photo_folder / "labels.csv"
    labels.write_text(labels.read_text().replace("cat0.jpg,cat", "cat0.jpg,rocket"))
    with pytest.raises(StorageError, match="other test data; choose"):
        again(finished_copy, data=photo_folder)


def test_a_query_that_was_replaced_is_measured_anew(again, finished_copy, photo_folder, listener):
    """Its name and label are what they were, so the run is the same; what was measured on it is not."""
    again(finished_copy, data=photo_folder)
    query = photo_folder / "test" / "query" / "cat0.jpg"
    query.write_bytes((photo_folder / "test" / "gallery" / "rocket0.jpg").read_bytes())
    heard = listener()
    found = again(finished_copy, data=photo_folder, progress=heard)
    assert {task.partition(": ")[2] for task in heard.tasks if ": " in task} == {"query"}
    scores = found.trials[0].test
    values = dict(zip(scores.query_ids, scores.values["hit@1"], strict=True))
    assert values["test/query/cat0.jpg"] == 0.0  # it is a rocket now


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
def test_times_are_kept_for_the_set_up_that_they_were_measured_with(again, finished_copy, monkeypatch, changed, timed):
    """Two backbones make five sets of architectures: each alone, with itself, and both."""
    measuring = sys.modules["lookalike.benchmark.measuring"]
    measure, setup = measuring.measure_timing, measuring.timing_setup() | changed
    taken = []
    monkeypatch.setattr(measuring, "timing_setup", lambda: setup)
    monkeypatch.setattr(
        measuring, "measure_timing", lambda *given, **how: taken.append(given) or measure(*given, **how)
    )
    again(finished_copy)
    assert len(taken) == timed
    again(finished_copy)
    assert len(taken) == timed


def test_damaged_files_of_an_earlier_sitting_are_made_anew(again, finished, finished_copy):
    for pattern in ("cache/query-*.npz", "trials/*-concat.json", "timing/test-resnet-160x160.json"):
        for place in finished_copy.glob(pattern):
            place.write_bytes(place.read_bytes()[:100])
    again(finished_copy)
    assert board_of(finished_copy) == board_of(finished.out)
