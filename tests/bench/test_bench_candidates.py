from __future__ import annotations

import json
import shutil

import pytest

from lookalike.backbones.bundle import read_facts
from lookalike.bench.candidates import given_candidate, make_candidates, together
from lookalike.bench.run import Run
from lookalike.bench.wanted import Wanted
from lookalike.data import load_dataset, with_validation
from lookalike.progress import SILENT
from lookalike.training import TrainingOptions

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


def test_a_bundle_of_other_data_or_another_validation_part_says_so(finished_copy, data):
    bundle = finished_copy / "members" / "test-resnet-fine-tuned"
    assert (given_candidate(data, bundle).note, given_candidate(data, bundle).seen_validation) == ("", False)
    place = bundle / "bundle.json"
    facts = read_facts(bundle)
    facts["training_data"]["validation"] = "another"
    place.write_text(json.dumps(facts))
    assert given_candidate(data, bundle).note.startswith("its training saw validation images")
    assert given_candidate(data, bundle).seen_validation
    facts["training_data"]["fingerprint"] = "another"
    place.write_text(json.dumps(facts))
    assert given_candidate(data, bundle).note == "trained on other data than this training part."
    assert not given_candidate(data, bundle).seen_validation


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
