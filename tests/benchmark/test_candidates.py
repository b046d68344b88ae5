from __future__ import annotations

import html
import json
import shutil
from dataclasses import asdict, replace

import pytest

from lookalike._files import checked_record, with_digest
from lookalike.benchmark.candidates import bundle_candidate, make_candidates, make_ensembles
from lookalike.errors import OptionError
from lookalike.models.info import TrainingReport
from lookalike.training.refit import refit

NAME = "test_efficientnet"
RESET = "fine-tuning did not improve on it, so there is no fine-tuned candidate."


def set_result(folder, share, state, planned_share=1.0):
    """Change the bundle so that its fine-tuning has this result; a share of None has no full stage."""
    path = folder / "bundle.json"
    info = checked_record(json.loads(path.read_text()))
    info["members"][0]["state"] = state
    kinds = ("mobile-cnn", "mobile-cnn", "float32", "shuffled")
    report = TrainingReport(NAME, {}, {}, *kinds, fine_tuned_share=share, planned_share=planned_share)
    info["training"] = [asdict(report)]
    path.write_text(json.dumps(with_digest(info)))


@pytest.mark.parametrize(
    ("share", "state", "note"),
    [
        (1.0, "fine-tuned", ""),
        (0.75, "fine-tuned", "uses 75% fine-tuned + 25% pretrained weights, the best mix on validation."),
        (
            0.0,
            "frozen + trained head",
            "fine-tuning did not improve on it; validation selected the pretrained backbone with a trained head.",
        ),
        (None, "frozen + trained head", "only the head was trained."),
        (None, "untrained", "training only the head did not improve on it."),
    ],
)
@pytest.mark.usefixtures("no_timing")
def test_the_name_says_what_was_trained_everywhere(again, finished_copy, tiny_weights, share, state, note):
    finetuned = finished_copy / "members" / "test-efficientnet-fine-tuned"
    shutil.rmtree(finetuned)
    shutil.copytree(finished_copy / "members" / "test-efficientnet-frozen", finetuned)
    set_result(finetuned, share, state)
    result = again(finished_copy, backbones=[NAME], weights={NAME: tiny_weights[NAME]})
    name = f"{NAME} {state}"
    assert [t.name for t in result.trials[:2]] == [f"{NAME} frozen", name]
    assert (result.trials[1].state, result.trials[1].note) == (state, note)
    assert result.trials[1].validation == result.trials[0].validation
    report = html.unescape((finished_copy / "report.html").read_text(encoding="utf-8"))
    assert (f"<li>{name}: {note}" in report) == bool(note)
    for suffix in ("md", "csv", "tex", "json"):
        text = (finished_copy / f"leaderboard.{suffix}").read_text(encoding="utf-8")
        assert name in text.replace("\\allowbreak{}", "").replace("\\", "").replace("$+$", "+")
    table = (finished_copy / "leaderboard.md").read_text(encoding="utf-8").replace("\\", "")
    assert (f"- {name}: {note}" in table) == bool(note)
    pair = next(t for t in result.trials if t.kind == "ensemble")
    assert pair.state == ("untrained" if state == "untrained" else "mixed")


@pytest.mark.parametrize("share", [0.0, None])
@pytest.mark.usefixtures("no_timing", "no_report")
def test_without_a_gain_there_is_only_the_frozen_candidate(again, finished_copy, tiny_weights, share):
    finetuned = finished_copy / "members" / "test-efficientnet-fine-tuned"
    shutil.rmtree(finetuned)
    shutil.copytree(finished_copy / "members" / "test-efficientnet-frozen", finetuned)
    set_result(finetuned, share, "frozen")
    result = again(finished_copy, backbones=[NAME], weights={NAME: tiny_weights[NAME]})
    assert [(t.name, t.note) for t in result.trials] == [(f"{NAME} frozen", RESET)]
    assert f"{NAME} frozen: {RESET}" in result.leaderboard.caption


@pytest.mark.usefixtures("no_timing", "no_report")
def test_candidates_from_random_weights_are_marked(again, finished, tmp_path):
    bundle = finished.out / "members" / "test-resnet-frozen"
    result = again(tmp_path / "run", backbones=[NAME], weights="none", bundles=[bundle])
    random = {t.name: (t.state, t.from_random) for t in result.trials if t.kind == "single" or "aligned" in t.name}
    assert random == {
        "test-resnet-frozen (frozen)": ("frozen", False),
        f"{NAME} untrained": ("untrained", True),
        f"{NAME} fine-tuned": ("fine-tuned", True),
        f"test-resnet-frozen (frozen) + {NAME} untrained, aligned": ("untrained", True),
        f"test-resnet-frozen (frozen) + {NAME} fine-tuned, aligned": ("mixed", True),
        f"{NAME} untrained + {NAME} fine-tuned, aligned": ("untrained", True),
    }
    marked = {row.trial.name for row in result.leaderboard.rows if row.name.endswith(" †")}
    assert marked == {t.name for t in result.trials if t.from_random and t.state != "untrained"}
    assert not any(t.from_random for t in finished.trials)


def swapped(data, first, second):
    """Return the data with the first items of two splits exchanged."""
    one, other = data.split(first)[0], data.split(second)[0]
    splits = {one.id: other.split, other.id: one.split}
    return data.replace_items(replace(i, split=splits.get(i.id, i.split)) for i in data.items)


@pytest.mark.parametrize(
    ("split", "where", "images"), [("validation", "validation", 8), ("query", "query and gallery", 20)]
)
def test_a_bundle_trained_on_images_of_the_evaluation_is_detected_by_content(finished_copy, data, split, where, images):
    bundle = finished_copy / "members" / "test-resnet-fine-tuned"
    assert (bundle_candidate(data, bundle).note, bundle_candidate(data, bundle).leaked) == ("", False)
    candidate = bundle_candidate(swapped(data, "training", split), bundle)
    assert candidate.leaked
    assert f"1 of these {images} {where} images" in candidate.note


def test_a_bundle_of_other_data_has_a_note_and_can_win(finished_copy, data):
    bundle = finished_copy / "members" / "test-resnet-fine-tuned"
    fewer = data.replace_items(i for i in data.items if i.id != data.training[0].id)
    candidate = bundle_candidate(fewer, bundle)
    assert not candidate.leaked and "other data" in candidate.note


@pytest.mark.parametrize(("state", "leaked"), [("fine-tuned", True), ("frozen", False)])
def test_a_fine_tuned_bundle_without_a_record_of_its_images_cannot_win(finished_copy, data, state, leaked):
    bundle = finished_copy / "members" / f"test-resnet-{state}"
    path = bundle / "bundle.json"
    info = checked_record(json.loads(path.read_text()))
    info["members"][0]["state"] = state
    path.write_text(json.dumps(with_digest(info | {"training_data": None})))
    candidate = bundle_candidate(data, bundle)
    assert (candidate.leaked, "does not record its training images" in candidate.note) == (leaked, leaked)


def test_a_benchmark_without_a_possible_winner_is_refused_before_the_work(
    again, finished, data, tiny_weights, tmp_path
):
    final = tmp_path / "final"
    first = finished.out / "members" / "test-resnet-frozen"
    refit(data, first, out=final, weights={"test_resnet": tiny_weights["test_resnet"]})
    with pytest.raises(OptionError, match=r"final cannot win") as caught:
        again(tmp_path / "run", backbones=[], weights="pretrained", bundles=[final])
    assert caught.value.argument == "bundles"
    assert not (tmp_path / "run").exists()


def test_candidates_and_ensembles_of_a_spec(make_spec, finished_copy):
    best, *others = make_candidates(make_spec(bundles=(finished_copy / "best",)))
    assert best.name == f"best ({best.state})" and best.architecture == f"{NAME}@160x160"
    assert [c.architecture for c in others] == [f"{NAME}@160x160"] * 2 + ["test_resnet@160x160"] * 2
    assert {c.state for c in others} <= {"frozen", "fine-tuned"}
    assert {c.kind for c in others} == {"single"}
    ensembles = make_ensembles(others)
    assert len({e.name for e in ensembles}) == len(ensembles) == 6 * 3
    exported = [others[0], replace(others[1], export="onnxruntime-float32")]
    assert make_ensembles(exported) == []  # no bundle can hold both
    wider = [others[0], replace(others[1], dim=768)]
    assert [(e.combination, e.dim) for e in make_ensembles(wider)] == [("concat", 512 + 768)]


@pytest.mark.usefixtures("no_timing")
def test_a_fine_tuning_of_few_steps_is_not_judged(again, finished_copy, tiny_weights):
    finetuned = finished_copy / "members" / "test-efficientnet-fine-tuned"
    shutil.rmtree(finetuned)
    shutil.copytree(finished_copy / "members" / "test-efficientnet-frozen", finetuned)
    set_result(finetuned, 0.0, "frozen", planned_share=0.02)
    result = again(finished_copy, backbones=[NAME], weights={NAME: tiny_weights[NAME]})
    assert [t.name for t in result.trials] == [f"{NAME} frozen"]
    assert result.trials[0].note.startswith("the time limit allowed 2.0% of the fine-tuning steps, too few to judge it")
