"""What a benchmark leaves behind: the table, the report, the winner as a bundle, and what it could not read."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from lookalike.benchmark.benchmark import benchmark
from lookalike.benchmark.candidates import make_candidates
from lookalike.benchmark.embedded import embedded
from lookalike.benchmark.pairs import pair_parts, pairs
from lookalike.benchmark.run import Run, measures_for
from lookalike.benchmark.trial import Trial
from lookalike.benchmark.wanted import Wanted
from lookalike.benchmark.winner import write_best
from lookalike.data.layouts import load_dataset
from lookalike.data.split import with_validation
from lookalike.errors import DataError
from lookalike.models.facts import read_facts
from lookalike.models.torch_bundle import load_bundle
from lookalike.progress import SILENT
from lookalike.training.refit import refit

EFFICIENTNET, RESNET = NAMES = ("test_efficientnet", "test_resnet")
SINGLES = [f"{name} {kind}" for name in NAMES for kind in ("frozen", "fine-tuned")]
ENSEMBLES = [f"{a} + {b}, {how}" for a, b in combinations(SINGLES, 2) for how in ("aligned", "average", "concat")]


def board_of(out: Path) -> dict:
    return json.loads((out / "leaderboard.json").read_text(encoding="utf-8"))


def test_every_backbone_in_two_forms_and_every_pair_in_three_ways(finished):
    assert [t.name for t in finished.trials] == [*SINGLES, *ENSEMBLES]
    assert {t.kind for t in finished.trials[:4]} == {"single"}
    assert {t.dim for t in finished.trials if t.combine == "concat"} == {1024}
    assert {t.dim for t in finished.trials if t.combine != "concat"} == {512}
    assert {(t.validation.queries, t.test.queries, t.test.gallery) for t in finished.trials} == {(8, 8, 12)}
    assert finished.skipped == ()


def test_the_folder_holds_all_that_was_promised(finished):
    names = {p.name for p in finished.out.iterdir()}
    files = {f"leaderboard.{suffix}" for suffix in ("json", "csv", "md", "tex")} | {"report.html", "run.json"}
    assert names == files | {"trials", "timing", "members", "best", "cache"}
    assert len(list((finished.out / "trials").iterdir())) == len(finished.trials)
    assert sorted(p.name for p in (finished.out / "timing").iterdir()) == [
        "test-efficientnet-160x160-test-efficientnet-160x160.json",
        "test-efficientnet-160x160-test-resnet-160x160.json",
        "test-efficientnet-160x160.json",
        "test-resnet-160x160-test-resnet-160x160.json",
        "test-resnet-160x160.json",
    ]
    report = (finished.out / "report.html").read_text(encoding="utf-8")
    assert "<h1>Photos</h1>" in report
    assert str(finished) == (finished.out / "leaderboard.md").read_text(encoding="utf-8")


def test_trials_of_one_architecture_share_a_time_and_a_pair_costs_both(finished):
    cost = {t.name: t.cost_ms for t in finished.trials}
    assert cost[f"{EFFICIENTNET} frozen"] == cost[f"{EFFICIENTNET} fine-tuned"] == 10.0
    assert cost[f"{EFFICIENTNET} frozen + {RESNET} fine-tuned, average"] == 24.0
    assert cost[f"{EFFICIENTNET} fine-tuned + {RESNET} frozen, aligned"] == 24.25


def test_a_trial_alone_agrees_with_the_measures_taken_by_training(finished):
    """The validation part is the same, so that the frozen figure of the training is the trial's."""
    facts = read_facts(finished.out / "members" / "test-resnet-fine-tuned")
    measured = facts["training"][0]["validation"]
    trial = next(t for t in finished.trials if t.name == f"{RESNET} frozen")
    assert trial.validation.mean("map@r") == pytest.approx(measured["frozen"], abs=1e-9)


@pytest.fixture
def sitting(finished, finished_copy, photo_folder_original, tiny_weights):
    """The parts of the finished run, read back from its folder."""
    options = read_facts(finished.out / "members" / "test-resnet-fine-tuned")["options"]
    data = with_validation(load_dataset(photo_folder_original))
    run = Run(data, finished_copy, _options(options), measures_for(data, "precision@3", _options(options)), SILENT)
    candidates = make_candidates(run, Wanted.of(NAMES, (), tiny_weights, finetune=True))
    return run, candidates, {c.name: embedded(run, c) for c in candidates}


def _options(stored):
    from lookalike.training.options import TrainingOptions

    return TrainingOptions(**stored)


@pytest.mark.parametrize("name", [SINGLES[1], *ENSEMBLES[6:9]])
def test_best_embeds_exactly_as_the_winning_trial_did(finished, sitting, name):
    run, candidates, parts = sitting
    write_best(run, replace(finished.choice, winner=name), finished.trials, candidates, parts)
    best = load_bundle(run.out / "best")
    wanted = parts.get(name) or pair_parts(next(p for p in pairs(candidates) if p.name == name), parts)
    for part in ("validation", "query", "gallery"):
        found = best.embed(run.data.split(part))
        assert found.ids == wanted[part].ids
        np.testing.assert_array_equal(found.vectors, wanted[part].vectors)


@pytest.mark.parametrize("name", [SINGLES[0], SINGLES[3], f"{SINGLES[0]} + {SINGLES[3]}, average"])
def test_best_can_be_trained_again_on_all_images(
    finished, sitting, name, photo_folder_original, tiny_weights, tmp_path
):
    run, candidates, parts = sitting
    write_best(run, replace(finished.choice, winner=name), finished.trials, candidates, parts)
    assert (run.out / "best" / "curves.html").exists() is ("fine-tuned" in name)
    weights = {b: w for b, w in tiny_weights.items() if b in name}
    model = refit(photo_folder_original, run.out / "best", out=tmp_path / "final", weights=weights)
    assert [m.backbone for m in model.members] == list(weights)
    trained = {r["backbone"]: "history" in r or "validation" in r for r in read_facts(tmp_path / "final")["training"]}
    assert trained == {b: f"{b} fine-tuned" in name for b in weights}
    assert model.how == ("average" if "average" in name else load_bundle(run.out / "best").how)


def test_best_of_the_run_says_what_it_is(finished):
    facts = read_facts(finished.out / "best")
    winner = next(t for t in finished.trials if t.name == finished.choice.winner)
    assert load_bundle(finished.out / "best").fingerprint == facts["fingerprint"]
    assert facts["benchmark"] == {"candidate": winner.name, "reason": finished.choice.reason, "seed": 0}
    assert facts["measures"]["test"]["precision@3"] == winner.test.interval("precision@3")
    assert len(facts["classes"]) == 4
    assert facts["training_data"]["validation_images"] == 8


def test_context_has_no_path_of_this_machine(finished, photo_folder_original):
    stored = json.dumps(board_of(finished.out)["context"])
    assert str(photo_folder_original.parent) not in stored
    assert "photos: training and test folders" in stored


def broken(folder: Path) -> list[str]:
    """Break one file of each part, and one more of validation, of another class; return their ids."""
    data = with_validation(load_dataset(folder))
    items = [data.training[0], data.validation[0], data.validation[2], data.query[3], data.gallery[5]]
    for item in items:
        item.path.write_bytes(item.path.read_bytes()[:200])
    return [i.id for i in items]


@pytest.mark.usefixtures("no_timing")
def test_unreadable_files_are_left_out_of_singles_and_pairs_and_named_also_from_the_cache(
    again, photo_folder, tmp_path, listener
):
    ids = broken(photo_folder)
    found = again(tmp_path / "run", data=photo_folder, finetune=False)
    assert [s.path.relative_to(photo_folder).as_posix() for s in found.skipped] == ids
    assert {(t.validation.queries, t.validation.left_out, t.validation.gallery) for t in found.trials} == {(4, 2, 6)}
    assert {(t.test.queries, t.test.gallery) for t in found.trials} == {(7, 11)}
    assert len(found.trials) == 2 + 3
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "5 files left out" in report and f"<li>{ids[0]}: " in report
    heard = listener()
    assert again(tmp_path / "run", data=photo_folder, finetune=False, progress=heard).skipped == found.skipped
    assert heard.tasks == ["measuring", "timing"]


@pytest.mark.usefixtures("no_timing", "no_report")
def test_without_test_labels_the_table_is_of_validation(again, photo_folder, tmp_path):
    (photo_folder / "labels.csv").unlink()
    found = again(tmp_path / "run", data=photo_folder, finetune=False)
    assert found.leaderboard.part == "validation"
    assert all(t.test is None for t in found.trials)


@pytest.mark.usefixtures("no_timing", "no_report")
def test_a_given_bundle_stands_beside_and_is_paired(again, finished, tmp_path):
    bundle = finished.out / "members" / "test-resnet-fine-tuned"
    found = again(tmp_path / "run", backbones=NAMES[:1], weights="none", finetune=False, bundles=[bundle])
    assert [t.name for t in found.trials][:3] == [
        "test-resnet-fine-tuned",
        f"{EFFICIENTNET} untrained",
        f"test-resnet-fine-tuned + {EFFICIENTNET} untrained, aligned",
    ]
    assert found.choice.winner == "test-resnet-fine-tuned"  # nothing random may win
    assert found.trials[0].note == ""
    assert found.trials[0].validation == next(t for t in finished.trials if t.name == SINGLES[3]).validation


@pytest.mark.usefixtures("no_timing", "no_report")
def test_a_given_ensemble_is_measured_but_not_paired(again, sitting, finished, tmp_path):
    run, candidates, parts = sitting
    name = ENSEMBLES[6]
    write_best(run, replace(finished.choice, winner=name), finished.trials, candidates, parts)
    found = again(tmp_path / "run", finetune=False, bundles=[run.out / "best"])
    given = found.trials[0]
    assert (given.name, given.kind, given.combine, given.dim) == ("best", "ensemble", "aligned", 512)
    assert len(found.trials) == 3 + 3  # the pairs of the two backbones alone
    assert given.validation == next(t for t in finished.trials if t.name == name).validation
    pair = next(t for t in found.trials if t.name.endswith("aligned"))
    assert given.timing == pair.timing  # the same architectures


def test_data_without_labelled_training_is_refused_before_any_work(photo_folder, tmp_path):
    flat = photo_folder / "test" / "gallery"
    with pytest.raises(DataError, match="has no labelled training images"):
        benchmark(flat, NAMES, out=tmp_path / "run", weights="none")
    assert not (tmp_path / "run").exists()


def test_trials_on_disk_are_what_was_returned_but_for_the_time(finished):
    for trial in finished.trials:
        slug = trial.name.replace("_", "-").replace(" + ", "-").replace(", ", "-").replace(" ", "-")
        stored = json.loads((finished.out / "trials" / f"{slug}.json").read_text(encoding="utf-8"))
        assert Trial.from_dict(stored["trial"]) == replace(trial, timing=None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # mlflow's own
def test_mlflow_gets_the_figures_of_every_candidate_the_table_and_the_winner(
    again, photo_folder_original, no_timing, tmp_path, monkeypatch
):
    import mlflow

    monkeypatch.chdir(tmp_path)  # where mlflow keeps the files of a local database
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    found = again(tmp_path / "run", track=[f"mlflow={uri}"])
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("lookalike").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["winner"] == found.choice.winner
    frozen = found.trials[0]
    expected = frozen.validation.mean("precision@3")
    assert run.data.metrics["test-efficientnet-frozen/validation/precision_at_3"] == expected
    assert f"{EFFICIENTNET}/loss" in run.data.metrics
    kept = {f.path for f in client.list_artifacts(run.info.run_id)}
    assert kept >= {"leaderboard.json", "leaderboard.csv", "leaderboard.md", "report.html", "model"}
    mlflow.set_tracking_uri(uri)
    import mlflow.pyfunc

    images = [str(item.path) for item in load_dataset(photo_folder_original).gallery][:2]
    back = mlflow.pyfunc.load_model("models:/run/1").predict(images)
    np.testing.assert_array_equal(back, load_bundle(tmp_path / "run" / "best").embed(images).vectors)
