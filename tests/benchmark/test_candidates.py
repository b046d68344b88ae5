from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from lookalike.benchmark.candidates import given_candidate, make_candidates, together
from lookalike.benchmark.run import Run
from lookalike.benchmark.wanted import Wanted
from lookalike.data.layouts import load_dataset
from lookalike.data.split import with_validation
from lookalike.errors import OptionError
from lookalike.models.facts import read_facts
from lookalike.progress import SILENT
from lookalike.training.options import TrainingOptions
from lookalike.training.refit import refit

NAME = "test_efficientnet"
ORIGINAL = "validation kept the original weights, since training did not better them."


def told(folder, share, trained):
    """Let a bundle say that its training ended so; a share of None has no full stage."""
    place = folder / "bundle.json"
    facts = json.loads(place.read_text())
    facts["members"][0]["origin"]["trained"] = trained
    facts["training"] = [{"backbone": NAME, "interpolation": {"share": share, "measures": {}}}]
    if share is None:
        del facts["training"][0]["interpolation"]
    place.write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("share", "trained", "note"),
    [
        (1.0, "fine-tuned", ""),
        (
            0.75,
            "fine-tuned",
            "validation kept 75% of the fine-tuned weights and 25% of the original ones, "
            "the mixture that measured best.",
        ),
        (0.0, "fine-tuned", "validation kept the original backbone, with a trained head."),
        (0.0, "frozen", ORIGINAL),
        (None, "frozen", ORIGINAL),
        (None, "fine-tuned", "only its head was trained."),
        (None, "untrained", "training its head alone did not better its random weights."),
    ],
)
@pytest.mark.usefixtures("no_timing")
def test_what_validation_kept_is_told_in_the_table_s_notes_and_the_report(
    again, finished_copy, tiny_weights, share, trained, note
):
    """A model that fine-tuning did not better keeps its own name and its own row."""
    tuned = finished_copy / "members" / "test-efficientnet-fine-tuned"
    shutil.rmtree(tuned)
    shutil.copytree(finished_copy / "members" / "test-efficientnet-frozen", tuned)
    told(tuned, share, trained)
    found = again(finished_copy, backbones=[NAME], weights={NAME: tiny_weights[NAME]})
    assert [t.name for t in found.trials[:2]] == [f"{NAME} frozen", f"{NAME} fine-tuned"]
    assert found.trials[1].trained == trained
    assert found.trials[1].note == note
    assert found.trials[1].validation == found.trials[0].validation
    report = (finished_copy / "report.html").read_text(encoding="utf-8")
    assert (f"<li>{NAME} fine-tuned: {note}" in report) == bool(note)
    table = (finished_copy / "leaderboard.md").read_text(encoding="utf-8")
    assert (rf"- test\_efficientnet fine-tuned: {note}" in table) == bool(note)


@pytest.mark.usefixtures("no_timing", "no_report")
def test_what_began_with_random_weights_is_told_apart(again, finished, tmp_path):
    given = finished.out / "members" / "test-resnet-frozen"
    found = again(tmp_path / "run", backbones=[NAME], weights="none", bundles=[given])
    random = {t.name: (t.trained, t.from_random) for t in found.trials if t.kind == "single" or "aligned" in t.name}
    assert random == {
        "test-resnet-frozen": ("frozen", False),
        f"{NAME} untrained": ("untrained", True),
        f"{NAME} fine-tuned": ("fine-tuned", True),
        f"test-resnet-frozen + {NAME} untrained, aligned": ("untrained", True),
        f"test-resnet-frozen + {NAME} fine-tuned, aligned": ("fine-tuned", True),
        f"{NAME} untrained + {NAME} fine-tuned, aligned": ("untrained", True),
    }
    marked = {row.model for row in found.leaderboard.rows if row.name.endswith(" †")}
    assert marked == {t.name for t in found.trials if t.from_random and t.trained == "fine-tuned"}
    assert not any(t.from_random for t in finished.trials)


@pytest.fixture
def data(photo_folder_original):
    return with_validation(load_dataset(photo_folder_original))


def swapped(data, here, there):
    """Return the data with the first item of one part and the first of another in each other's place."""
    one, other = data.split(here)[0], data.split(there)[0]
    splits = {one.id: other.split, other.id: one.split}
    return data.replace_items(replace(i, split=splits.get(i.id, i.split)) for i in data.items)


@pytest.mark.parametrize(("part", "named", "of"), [("validation", "validation", 8), ("query", "query and gallery", 20)])
def test_a_bundle_that_was_trained_on_images_it_is_measured_on_is_told_by_their_bytes(
    finished_copy, data, part, named, of
):
    bundle = finished_copy / "members" / "test-resnet-fine-tuned"
    assert (given_candidate(data, bundle).note, given_candidate(data, bundle).leaked) == ("", False)
    found = given_candidate(swapped(data, "training", part), bundle)
    assert found.leaked
    assert found.note == f"its training saw 1 of {of} {named} images, so it measures better there than it is."


def test_a_bundle_of_other_data_says_so_and_may_be_chosen(finished_copy, data):
    bundle = finished_copy / "members" / "test-resnet-fine-tuned"
    gone = data.training[0].id
    fewer = data.replace_items(i for i in data.items if i.id != gone)
    found = given_candidate(fewer, bundle)
    assert (found.note, found.leaked) == ("trained on other data than this training part.", False)


def test_a_fine_tuned_bundle_that_does_not_say_what_it_saw_is_not_trusted(finished_copy, data):
    for kind, leaked in (("fine-tuned", True), ("frozen", False)):
        bundle = finished_copy / "members" / f"test-resnet-{kind}"
        facts = read_facts(bundle)
        facts["members"][0]["origin"]["trained"] = kind
        del facts["training_data"]["contents"]
        (bundle / "bundle.json").write_text(json.dumps(facts))
        found = given_candidate(data, bundle)
        assert (found.leaked, "does not say which images" in found.note) == (leaked, leaked)


def test_a_benchmark_without_a_model_to_choose_stops_before_the_work(again, finished, data, tiny_weights, tmp_path):
    final = tmp_path / "final"
    first = finished.out / "members" / "test-resnet-frozen"
    refit(data, first, out=final, weights={"test_resnet": tiny_weights["test_resnet"]})
    with pytest.raises(OptionError, match=r"final cannot be chosen, and there is nothing else to choose: its training"):
        again(tmp_path / "run", backbones=[], weights="pretrained", bundles=[final])
    assert not (tmp_path / "run").exists()


def test_candidates_know_what_decides_their_time(finished_copy, data, tiny_weights):
    run = Run(data, finished_copy, TrainingOptions(), ("mrr",), SILENT)
    wanted = Wanted.of(list(tiny_weights), [finished_copy / "best"], tiny_weights, finetune=True)
    best, *others = make_candidates(run, wanted)
    assert best.name == "best" and best.signature == f"{NAME}@160x160"
    assert [c.signature for c in others] == [f"{NAME}@160x160"] * 2 + ["test_resnet@160x160"] * 2
    assert {c.trained for c in others} <= {"frozen", "fine-tuned"}
    assert not any(c.is_ensemble for c in others)


def test_what_several_members_are_together():
    assert together({"frozen"}) == "frozen"
    assert together({"frozen", "fine-tuned"}) == "fine-tuned"
    assert together({"frozen", "fine-tuned", "untrained"}) == "untrained"
