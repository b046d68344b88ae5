from __future__ import annotations

import json
import shutil
from collections import Counter
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from lookalike.benchmark import benchmark as benchmark_module
from lookalike.benchmark.benchmark import DEMO_BACKBONES, DEMO_OPTIONS, benchmark, demo
from lookalike.benchmark.candidates import make_candidates, make_ensembles, save_winner
from lookalike.benchmark.run_trials import embed_candidate
from lookalike.data.layouts import load_dataset
from lookalike.data.samples import DESCRIPTION, SCENES, write_demo_images
from lookalike.data.validation import with_validation
from lookalike.errors import DataError, OptionError, StorageError
from lookalike.evaluation import calibration
from lookalike.models import auto
from lookalike.models.bundle import read_bundle_info
from lookalike.models.info import BenchmarkInfo
from lookalike.runtimes.load import load_encoder
from lookalike.training.config import TrainingOptions
from lookalike.training.refit import refit

EFFICIENTNET, RESNET = NAMES = ("test_efficientnet", "test_resnet")
# fine-tuning does not help the ResNet: validation selects its pretrained weights, with the input of the recipe
TRAINED = {EFFICIENTNET: f"{EFFICIENTNET} fine-tuned", RESNET: f"{RESNET} frozen (squash)"}
SINGLES = [name for b in NAMES for name in (f"{b} frozen", TRAINED[b])]
ENSEMBLES = [f"{a} + {b}, {c}" for a, b in combinations(SINGLES, 2) for c in ("aligned", "average", "concat")]


def leaderboard_of(out: Path) -> dict:
    return json.loads((out / "leaderboard.json").read_text(encoding="utf-8"))


def test_every_backbone_frozen_and_fine_tuned_and_every_pair_in_three_combinations(finished):
    assert [t.name for t in finished.trials] == [*SINGLES, *ENSEMBLES]
    assert {t.kind for t in finished.trials[:4]} == {"single"}
    assert {t.dim for t in finished.trials if t.combination == "concat"} == {1024}
    assert {t.dim for t in finished.trials if t.combination != "concat"} == {512}
    assert {(t.validation.queries, t.test.queries, t.test.gallery) for t in finished.trials} == {(8, 8, 12)}
    assert finished.skipped == ()


def test_the_folder_has_all_results(finished):
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
    assert "<h1>Benchmark</h1>" in report
    assert str(finished) == (finished.out / "leaderboard.md").read_text(encoding="utf-8")


def test_a_frozen_trial_has_the_accuracy_that_training_reported(finished):
    info = read_bundle_info(finished.out / "members" / "test-resnet-fine-tuned")
    (report,) = info.training
    trial = next(t for t in finished.trials if t.name == f"{RESNET} frozen")
    assert trial.validation.mean("map@r") == pytest.approx(report.measures.frozen, abs=1e-9)


@pytest.fixture
def save(finished, make_spec):
    """Save a candidate as the winner; return its embeddings by split and the folder of the benchmark."""

    def save_as_winner(name: str):
        spec = make_spec()
        singles = make_candidates(spec)
        embeddings = {c.name: embed_candidate(spec, c) for c in singles}
        winner = next(c for c in (*singles, *make_ensembles(singles)) if c.name == name)
        trial = next(t for t in finished.trials if t.name == name)
        save_winner(spec, winner, BenchmarkInfo(name, "", 0), trial, embeddings, None)
        return winner.embeddings(embeddings), spec.out

    return save_as_winner


@pytest.mark.parametrize("name", [SINGLES[1], *ENSEMBLES[6:9]])
def test_best_embeds_exactly_as_the_winner_did(save, data, name):
    expected, out = save(name)
    best = load_encoder(out / "best")
    for split in ("validation", "query", "gallery"):
        embeddings = best.embed(data.split(split))
        assert embeddings.ids == expected[split].ids
        np.testing.assert_array_equal(embeddings.vectors, expected[split].vectors)


@pytest.mark.parametrize("name", [SINGLES[0], SINGLES[3], f"{SINGLES[0]} + {SINGLES[3]}, average"])
def test_best_can_be_refitted_on_all_images(save, name, data_folder_original, tiny_weights, tmp_path):
    _, out = save(name)
    assert (out / "best" / "curves.html").exists() is any(trained in name for trained in TRAINED.values())
    weights = {b: w for b, w in tiny_weights.items() if b in name}
    model = refit(data_folder_original, out / "best", out=tmp_path / "final", weights=weights)
    assert [m.name for m in model.members] == list(weights)
    reports = read_bundle_info(tmp_path / "final").training
    trained = {r.backbone: bool(r.epochs) or r.measures is not None for r in reports}
    assert trained == {b: TRAINED[b] in name for b in weights}
    assert read_bundle_info(tmp_path / "final").combination == ("average" if "average" in name else None)


def test_best_has_the_record_of_the_benchmark(finished):
    info = read_bundle_info(finished.out / "best")
    winner = next(t for t in finished.trials if t.name == finished.selection.winner)
    assert load_encoder(finished.out / "best").fingerprint == info.fingerprint
    assert info.benchmark == finished.leaderboard.record(finished.selection, 0)
    assert (info.benchmark.candidate, info.benchmark.reason) == (winner.name, finished.selection.reason)
    assert info.measures["test"]["precision@3"] == winner.test.estimate("precision@3")
    assert len(info.classes) == 4
    assert info.training_data.validation_images == 8


def test_the_description_has_no_path_of_this_machine(finished, data_folder_original):
    stored = json.dumps(leaderboard_of(finished.out)["description"])
    assert str(data_folder_original.parent) not in stored
    assert "photos: training and test folders" in stored


def damage(folder: Path) -> list[str]:
    """Damage one file of each split, and one more of validation, of another class; return their ids."""
    data = with_validation(load_dataset(folder))
    items = [data.training[0], data.validation[0], data.validation[2], data.query[3], data.gallery[5]]
    for item in items:
        item.path.write_bytes(item.path.read_bytes()[:200])
    return [i.id for i in items]


@pytest.mark.usefixtures("no_timing")
def test_unreadable_files_are_skipped_by_all_and_reported_also_when_cached(again, data_folder, tmp_path, listener):
    ids = damage(data_folder)
    result = again(tmp_path / "run", data=data_folder, finetune=False)
    assert [s.path.relative_to(data_folder).as_posix() for s in result.skipped] == ids
    assert {(t.validation.queries, t.validation.excluded, t.validation.gallery) for t in result.trials} == {(4, 2, 6)}
    assert {(t.test.queries, t.test.gallery) for t in result.trials} == {(7, 11)}
    assert len(result.trials) == 2 + 3
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "5 files skipped" in report and f"<li>{ids[0]}: " in report
    watcher = listener()
    assert again(tmp_path / "run", data=data_folder, finetune=False, progress=watcher).skipped == result.skipped
    assert watcher.tasks == ["measuring", "timing", "choosing a re-ranking"]


@pytest.mark.usefixtures("no_timing", "no_report")
def test_without_test_labels_the_table_shows_validation(again, data_folder, tmp_path):
    (data_folder / "labels.csv").unlink()
    result = again(tmp_path / "run", data=data_folder, finetune=False)
    assert result.leaderboard.measured_on == "validation"
    assert all(t.test is None for t in result.trials)


@pytest.mark.usefixtures("no_timing")
@pytest.mark.parametrize("labels", [True, False])
def test_best_has_a_calibration_and_the_report_its_reliability(again, data_folder, tmp_path, monkeypatch, labels):
    monkeypatch.setattr(calibration, "MIN_QUERIES", 2)
    if not labels:
        (data_folder / "labels.csv").unlink()
    again(tmp_path / "run", data=data_folder, finetune=False)
    info = read_bundle_info(tmp_path / "run" / "best")
    validation = with_validation(load_dataset(data_folder)).validation
    assert info.calibration.queries == len(validation)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Can the probabilities be trusted?" in page
    assert f"with the {'query and gallery' if labels else 'validation'} images" in page


@pytest.mark.usefixtures("no_timing", "no_report")
def test_a_bundle_is_measured_and_paired(again, finished, tmp_path):
    bundle = finished.out / "members" / "test-resnet-fine-tuned"
    result = again(tmp_path / "run", backbones=NAMES[:1], weights="none", finetune=False, bundles=[bundle])
    assert [t.name for t in result.trials][:3] == [
        "test-resnet-fine-tuned (frozen)",
        f"{EFFICIENTNET} untrained",
        f"test-resnet-fine-tuned (frozen) + {EFFICIENTNET} untrained, aligned",
    ]
    assert result.selection.winner == "test-resnet-fine-tuned (frozen)"  # random weights cannot win
    for suffix in ("md", "tex", "csv", "json"):
        text = (tmp_path / "run" / f"leaderboard.{suffix}").read_text(encoding="utf-8")
        assert "test-resnet-fine-tuned (frozen)" in text
    assert result.trials[0].note == ""
    assert result.trials[0].validation == next(t for t in finished.trials if t.name == SINGLES[3]).validation


@pytest.mark.usefixtures("no_timing", "no_report")
def test_the_default_measure_is_one_that_validation_can_show(again, finished_copy):
    """Validation has two images of each class, so that precision@3 is at most a third."""
    result = again(finished_copy, measure=None)
    assert result.selection.measure == "map@r"
    assert "The measure is map@r, because validation has too few images per class" in result.selection.reason
    assert result.leaderboard.measures == ("map@r", "precision@3", "hit@3", "hit@1")
    assert "precision@3" in (finished_copy / "leaderboard.csv").read_text(encoding="utf-8")


@pytest.mark.usefixtures("no_timing", "no_report")
def test_one_ensemble_alone(again, finished_copy, listener):
    watcher = listener()
    result = again(finished_copy, backbones=["+".join(NAMES)], finetune=False, progress=watcher)
    members = f"{EFFICIENTNET} frozen + {RESNET} frozen"
    assert [t.name for t in result.trials] == [f"{members}, {c}" for c in ("aligned", "average", "concat")]
    assert not any("estimate" in message for message in watcher.messages)  # all members are there


@pytest.mark.usefixtures("no_timing", "no_report")
def test_the_time_is_estimated_before_the_work_and_after_each_stage(again, tiny_weights, tmp_path, listener):
    watcher = listener()
    weights = {RESNET: tiny_weights[RESNET]}
    again(tmp_path / "run", backbones=[RESNET], weights=weights, finetune=False, progress=watcher)
    estimates = [m for m in watcher.messages if m.startswith("estimate: about")]
    assert "for the whole run (training 10 s, embedding 10 s, timing 30 s)" in estimates[0]
    assert [m.partition(" left ")[2] for m in estimates[1:]] == [
        f"(training {RESNET} is complete)",
        "(embedding is complete)",
    ]


@pytest.mark.usefixtures("no_timing", "no_report")
def test_an_ensemble_bundle_is_measured_but_not_paired(again, save, finished, tmp_path):
    name = ENSEMBLES[6]
    _, out = save(name)
    result = again(tmp_path / "run", finetune=False, bundles=[out / "best"])
    best = result.trials[0]
    assert (best.name, best.kind, best.combination, best.dim) == ("best (frozen)", "ensemble", "aligned", 512)
    assert len(result.trials) == 3 + 3  # the combinations of the two backbones
    assert best.validation == next(t for t in finished.trials if t.name == name).validation
    pair = next(t for t in result.trials if t.name.endswith("aligned"))
    assert best.timing == pair.timing  # the same architectures


def test_data_without_training_labels_is_refused_before_the_work(data_folder, tmp_path):
    flat = data_folder / "test" / "gallery"
    with pytest.raises(DataError, match="has no labelled training images"):
        benchmark(flat, NAMES, out=tmp_path / "run", weights="none")
    assert not (tmp_path / "run").exists()


def test_a_validation_split_does_not_replace_training_labels(data_folder, tiny_weights, tmp_path):
    lines = ["path,label,split"]
    for path in sorted((data_folder / "training").rglob("*.jpg")):
        split = "validation" if path.stem.endswith("0") else "training"
        lines.append(f"{path.relative_to(data_folder)},{path.parent.name if split == 'validation' else ''},{split}")
    (data_folder / "manifest.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match="has no labelled training images") as caught:
        benchmark(data_folder, NAMES, out=tmp_path / "run", weights=tiny_weights, finetune=False)
    assert caught.value.argument == "data"
    assert not (tmp_path / "run").exists()


def test_one_class_cannot_be_fine_tuned_which_is_reported_before_the_work(data_folder, tmp_path):
    for folder in (data_folder / "training").iterdir():
        if folder.name != "cat":
            shutil.rmtree(folder)
    with pytest.raises(DataError, match="images of 1 class, but fine-tuning needs"):
        benchmark(
            data_folder,
            NAMES[:1],
            out=tmp_path / "run",
            weights="none",
            class_disjoint=False,
            measure="mrr",
            stop_on="hit@1",
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # in mlflow
def test_mlflow_receives_measures_table_and_winner(again, data_folder_original, no_timing, tmp_path, monkeypatch):
    import mlflow

    monkeypatch.chdir(tmp_path)  # where mlflow keeps the files of a local database
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    result = again(tmp_path / "run", track=[f"mlflow={uri}"])
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("lookalike").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["winner"] == result.selection.winner
    frozen = result.trials[0]
    expected = frozen.validation.mean("precision@3")
    (point,) = client.get_metric_history(run.info.run_id, "test-efficientnet-frozen/validation/precision_at_3")
    assert point.value == expected
    assert client.get_metric_history(run.info.run_id, f"{EFFICIENTNET}/loss")
    artifacts = {f.path for f in client.list_artifacts(run.info.run_id)}
    assert artifacts >= {"leaderboard.json", "leaderboard.csv", "leaderboard.md", "report.html", "model"}
    mlflow.set_tracking_uri(uri)
    import mlflow.pyfunc

    images = [str(item.path) for item in load_dataset(data_folder_original).gallery][:2]
    back = mlflow.pyfunc.load_model("models:/run/1").predict(images)
    np.testing.assert_array_equal(back, load_encoder(tmp_path / "run" / "best").embed(images).vectors)


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


@pytest.mark.usefixtures("no_timing", "no_report")
def test_killed_at_nine_points_it_has_the_same_results(again, finished, tmp_path, listener):
    out = tmp_path / "run"
    for task, done in KILLS:
        watcher = listener(stop_at=(task, done))
        with pytest.raises(KeyboardInterrupt):
            again(out, progress=watcher)
        assert not (out / "leaderboard.json").exists()
    watcher = listener()
    result = again(out, progress=watcher)
    assert watcher.tasks == ["measuring", "timing", "choosing a re-ranking"]  # nothing is trained or embedded again
    assert leaderboard_of(out) == leaderboard_of(finished.out)
    assert result.selection == finished.selection
    for folder in ("best", *(p.relative_to(finished.out) for p in (finished.out / "members").iterdir())):
        assert read_bundle_info(out / folder).fingerprint == read_bundle_info(finished.out / folder).fingerprint
    assert not list(out.glob("members/*.training"))


@pytest.mark.usefixtures("no_timing", "no_report")
def test_each_session_resumes_where_the_last_was_killed(again, tmp_path, listener):
    out = tmp_path / "run"
    started = []
    for stop in (("epoch 2/2", 8), (f"{RESNET} frozen: query", 8), None):
        watcher = listener(stop_at=stop)
        try:
            again(out, progress=watcher, backbones=NAMES)
        except KeyboardInterrupt:
            assert stop is not None
        started.append(watcher.tasks)
    first, second, third = started
    assert first[0] == "looking for leaks"
    assert first[1:] == [f"{EFFICIENTNET}: features", f"{EFFICIENTNET}: validation", "epoch 1/2", "epoch 2/2"]
    assert second[1] == "epoch 2/2" and f"{EFFICIENTNET}: features" not in second
    assert f"{RESNET}: features" in second
    assert second[-1] == f"{RESNET} frozen: query"
    assert third[0] == f"{RESNET} frozen: query" and not any(task.startswith("epoch") for task in third)


@pytest.mark.usefixtures("no_timing", "no_report")
@pytest.mark.parametrize("name", ["save_winner", "write_leaderboard"])
def test_killed_while_results_are_written(again, finished, finished_copy, monkeypatch, name):
    (finished_copy / "leaderboard.json").unlink()
    shutil.rmtree(finished_copy / "best")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(benchmark_module, name, killed)
        with pytest.raises(KeyboardInterrupt):
            again(finished_copy)
    again(finished_copy)
    assert leaderboard_of(finished_copy) == leaderboard_of(finished.out)
    assert (finished_copy / "best" / "bundle.json").is_file()


@pytest.mark.usefixtures("no_timing", "no_report")
def test_auto_keeps_the_backbones_of_a_finished_benchmark(again, finished, finished_copy, monkeypatch):
    monkeypatch.setattr(auto, "auto_backbones", None)
    result = again(finished_copy, backbones=["auto"])
    assert [t.name for t in result.trials] == [t.name for t in finished.trials]


@pytest.mark.usefixtures("no_timing", "no_report")
def test_a_backbone_is_added_to_a_finished_benchmark(again, finished, tiny_weights, tmp_path, listener):
    one_file = {EFFICIENTNET: tiny_weights[EFFICIENTNET]}
    out = tmp_path / "run"
    again(out, backbones=NAMES[:1], weights=one_file)
    watcher = listener()
    again(out, progress=watcher)
    assert not any(task.startswith(EFFICIENTNET) for task in watcher.tasks)
    assert f"{RESNET} frozen: query" in watcher.tasks
    assert leaderboard_of(out) == leaderboard_of(finished.out)
    fewer = again(out, backbones=NAMES[:1], weights=one_file)
    assert len(fewer.trials) == 2 + 3


@pytest.mark.usefixtures("no_timing", "no_report")
def test_budget_and_measure_of_a_finished_benchmark_change(again, finished, finished_copy, listener):
    watcher = listener()
    result = again(finished_copy, budget_ms=12.0, progress=watcher)
    assert watcher.tasks == ["measuring", "timing", "choosing a re-ranking"]
    assert "The budget of 12 ms excluded" in result.selection.reason
    assert result.leaderboard.rows == finished.leaderboard.rows
    by_hit = again(finished_copy, measure="hit@1")
    assert by_hit.leaderboard.measure == "hit@1"
    assert by_hit.trials[0].validation.values["hit@1"] == finished.trials[0].validation.values["hit@1"]
    with pytest.raises(OptionError, match="no candidate takes at most 1 ms"):
        again(finished_copy, budget_ms=1.0)


@pytest.mark.usefixtures("no_timing", "no_report")
def test_other_options_are_refused(again, finished_copy):
    with pytest.raises(StorageError, match="different options"):
        again(finished_copy, options=TrainingOptions(epochs=1, batch_size=8, precision="float32", resolution=0.5))


@pytest.mark.usefixtures("no_timing", "no_report")
def test_other_weights_of_a_used_backbone_are_refused(again, finished_copy, tiny_weights, tmp_path):
    other = tmp_path / "other.safetensors"
    state = load_file(tiny_weights[RESNET])
    state["conv1.0.weight"] = state["conv1.0.weight"] * 1.5
    save_file(state, other)
    with pytest.raises(StorageError, match=f"different weights of {RESNET}"):
        again(finished_copy, weights={**tiny_weights, RESNET: other})


@pytest.mark.usefixtures("no_timing", "no_report")
def test_other_training_images_are_refused(again, finished_copy, data_folder):
    path = next((data_folder / "training" / "cat").iterdir())
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(StorageError, match="different training data"):
        again(finished_copy, data=data_folder)


@pytest.mark.usefixtures("no_timing", "no_report")
def test_other_test_labels_are_refused(again, finished_copy, data_folder):
    labels = data_folder / "labels.csv"
    labels.write_text(labels.read_text().replace("cat0.jpg,cat", "cat0.jpg,rocket"))
    with pytest.raises(StorageError, match="different test data"):
        again(finished_copy, data=data_folder)


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    """The built-in set with as many training views as the demo has, but fewer test images."""
    return write_demo_images(tmp_path_factory.mktemp("views") / "views", n_query=1, n_gallery=3)


class Bench:
    """Replaces the benchmark and records its arguments."""

    def __init__(self) -> None:
        self.calls: list[tuple[Path, dict]] = []

    def __call__(self, data, backbones, **arguments):
        assert backbones == DEMO_BACKBONES and arguments.pop("options") is DEMO_OPTIONS
        self.calls.append((data, arguments))
        return arguments["out"]


@pytest.fixture
def bench(monkeypatch):
    recorded = Bench()
    monkeypatch.setattr(benchmark_module, "benchmark", recorded)
    monkeypatch.setattr(
        benchmark_module, "write_demo_images", partial(write_demo_images, n_training=1, n_query=1, n_gallery=1)
    )
    return recorded


def test_validation_can_reach_a_precision_at_3_of_one(views):
    """Each of the four images of a class has three others to find."""
    data = with_validation(load_dataset(views), seed=DEMO_OPTIONS.seed)
    assert Counter(i.label for i in data.validation) == dict.fromkeys(SCENES, 4)
    assert Counter(i.label for i in data.training) == dict.fromkeys(SCENES, 12)


def test_the_demo_writes_images_and_benchmarks(bench, tmp_path, listener):
    recording_progress = listener()
    out = tmp_path / "demo"
    demo(out, progress=recording_progress)
    assert DESCRIPTION in recording_progress.messages
    ((folder, arguments),) = bench.calls
    assert folder == out / "images" and len(load_dataset(folder)) == 3 * len(SCENES)
    assert arguments["out"] == out / "benchmark" and arguments["notes"] == (DESCRIPTION,)
    assert arguments["title"].startswith("The demo")


def test_the_demo_resumes_in_its_folder(bench, tmp_path, listener):
    demo(tmp_path / "demo")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "demo").rglob("*")}
    recording_progress = listener()
    demo(tmp_path / "demo", progress=recording_progress)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "demo").rglob("*")} == times
    assert recording_progress.messages == [DESCRIPTION]
    assert len(bench.calls) == 2


def test_partial_images_of_an_interrupted_demo_are_removed(bench, tmp_path):
    out = tmp_path / "demo"
    half = out / ".images.x1y2" / "training"  # what a kill leaves no time to remove
    half.mkdir(parents=True)
    (half / "00.jpg").touch()
    demo(out)
    assert [p.name for p in out.iterdir()] == ["images"]


def test_a_folder_with_other_things_is_refused(bench, tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(StorageError, match="already exists"):
        demo(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(StorageError, match="already exists"):
        demo(tmp_path / "thesis.txt")
    assert not bench.calls


def test_other_images_are_not_taken_for_the_demos(bench, data_folder, tmp_path):
    (tmp_path / "demo").mkdir()
    data_folder.rename(tmp_path / "demo" / "images")
    with pytest.raises(StorageError, match="images") as caught:
        demo(tmp_path / "demo")
    assert caught.value.argument == "out"
    assert not bench.calls


def test_a_folder_of_the_user(bench, data_folder, tmp_path):
    demo(tmp_path / "demo", data=data_folder)
    ((folder, arguments),) = bench.calls
    assert folder == data_folder
    assert arguments["out"] == tmp_path / "demo" / "benchmark-photos"  # the built-in set's lies beside it
    assert arguments["title"] == "Which model finds best in photos?"
    assert arguments["notes"] == ()
