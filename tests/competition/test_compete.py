"""Whole competitions with a network that trains in seconds, on real crops of four images."""

import json
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
import timm
import torch
from safetensors.torch import save_file

import lookalike as la
from lookalike._files import read_json, write_json
from lookalike.competition import run_steps
from lookalike.competition.compete import compete
from lookalike.competition.costs import estimate_costs
from lookalike.competition.log import Log
from lookalike.competition.setup import RECORD, SUBMISSION
from lookalike.errors import DataError, ModelError, OptionError, StorageError
from lookalike.evaluation import calibration
from lookalike.evaluation.submission import Submission
from lookalike.models.bundle import read_bundle_info
from lookalike.training.config import TrainingOptions

SMALL, OTHER = "test_efficientnet", "test_resnet"
OPTIONS = TrainingOptions(epochs=1, batch_size=8, precision="float32", resolution=0.5)


class Interrupt:
    """Records lines, and interrupts at the first step of a task that contains `at`."""

    def __init__(self, at=None):
        self.at, self.lines = at, []

    def step(self, task, done, total, detail=""):  # noqa: ARG002
        if self.at is not None and self.at in task:
            raise KeyboardInterrupt

    def info(self, text):
        self.lines.append(text)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        save_file(timm.create_model(SMALL, num_classes=0).state_dict(), path)
    return {SMALL: path}


@pytest.fixture
def run(data_folder, tmp_path, weights):
    def run(progress=None, **options):
        values = {"group": "us", "out": tmp_path / "out", "deadline": "20min", "backbones": [SMALL], "top_k": 5}
        values |= {"weights": weights, "options": OPTIONS, "progress": progress or Interrupt(), **options}
        return compete(data_folder, **values)

    return run


def require_valid(folder, data_folder):
    content = json.loads((folder / SUBMISSION).read_text())
    data = la.load_dataset(data_folder)
    submission = Submission(content["groupname"], {q: tuple(names) for q, names in content["images"].items()})
    submission.check([i.id for i in data.query], [i.id for i in data.gallery], 5)


@pytest.mark.slow
def test_a_competition(run, data_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "MIN_QUERIES", 2)
    result = run()

    out = tmp_path / "out"
    require_valid(out, data_folder)
    written = [entry for entry in result.log if entry.outcome == "kept"]
    assert written[0].step == "first submission"
    assert written[0].score is None
    scores = [entry.score for entry in written[1:]]
    assert scores == sorted(scores)  # a submission is replaced only by a better one
    assert result.score == scores[-1]
    assert [e.submission for e in written] == [f"submissions/{n:03}.json" for n in range(1, len(written) + 1)]
    assert (out / SUBMISSION).read_bytes() == (out / written[-1].submission).read_bytes()
    assert f"training {SMALL} fine-tuned" in {entry.step for entry in result.log}
    assert "Competition: photos" in (out / "report.html").read_text()
    assert str(result.submission) in str(result)

    assert read_bundle_info(out / "best").calibration is not None
    la.submit(data_folder, out / "best", group="us", top_k=5, out=tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (out / SUBMISSION).read_bytes()


def test_a_function_is_a_candidate_and_its_models_need_it(run, data_folder, tmp_path):
    def mean_colour(pixels):
        return pixels.mean(axis=(1, 2)) / 255

    colours = la.as_encoder(mean_colour, dim=3, name="colours", fingerprint="1", size=16)
    result = run(backbones=[colours], weights="pretrained")

    steps = {entry.step for entry in result.log if entry.outcome == "kept"}
    assert {"first submission", "frozen colours", "colours frozen on all labelled images"} <= steps
    best = tmp_path / "out" / "best"
    with pytest.raises(ModelError) as caught:
        la.submit(data_folder, best, out=tmp_path / "again.json")
    assert caught.value.argument == "functions"
    la.submit(data_folder, best, group="us", top_k=5, out=tmp_path / "again.json", functions=[colours])
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "out" / SUBMISSION).read_bytes()
    with pytest.raises(OptionError) as unknown:
        run(weights="pretrained", backbones=["auto"])
    assert "colours" in str(unknown.value)


@pytest.mark.slow
def test_a_backbone_that_is_slow_when_frozen_is_tried_in_the_time_that_fine_tuning_leaves(run, weights, monkeypatch):
    def estimate(setup, name):
        costs = estimate_costs(setup, name)
        return replace(costs, frozen=600.0) if name == OTHER else costs  # half of the time

    monkeypatch.setattr(run_steps, "estimate_costs", estimate)
    monkeypatch.setattr(run_steps, "plan_fine_tuning", lambda *_: None)
    result = run(backbones=[SMALL, OTHER], weights=weights | {OTHER: "none"})

    outcomes = [entry.outcome for entry in result.log if entry.step == f"frozen {OTHER}"]
    assert outcomes[:2] == ["dropped", "started"]
    assert outcomes[2:] in (["kept"], ["dropped"])  # by its measures


@pytest.mark.slow
def test_an_interrupted_competition_has_a_valid_submission_and_resumes(run, data_folder, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(Interrupt(at="epoch"))
    require_valid(out, data_folder)
    before = Log(out / "log.jsonl").entries
    record = read_json(out / RECORD, "record")

    result = run()

    assert list(result.log[: len(before)]) == before
    assert read_json(out / RECORD, "record") == record  # the clock has not stopped
    steps = [entry.step for entry in result.log if entry.outcome == "kept"]
    assert steps.count("first submission") == 1
    assert result.log[-1].outcome == "finished"
    scores = [entry.score for entry in result.log if entry.outcome == "kept" and entry.score is not None]
    assert scores == sorted(scores)
    assert f"frozen {SMALL}" not in {entry.step for entry in result.log[len(before) :]}  # it was finished before
    require_valid(out, data_folder)


@pytest.mark.slow
def test_a_run_that_cannot_read_its_models_keeps_a_better_submission(run, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        run(Interrupt(at="epoch"))
    before = Log(tmp_path / "out" / "log.jsonl").submitted

    def fail(*_):
        raise ValueError("damaged")

    monkeypatch.setattr(run_steps, "read_candidate", fail)
    with pytest.raises(KeyboardInterrupt):
        run(Interrupt(at="epoch"))

    log = Log(tmp_path / "out" / "log.jsonl")
    assert [e.reason for e in log.entries if e.step == f"reading {SMALL} frozen"] == ["ValueError: damaged"]
    assert log.submitted == before


@pytest.mark.slow
def test_a_refit_that_was_not_submitted_before_a_kill_is_submitted_by_the_next_run(run, tmp_path, monkeypatch):
    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_steps.StepRunner, "_submit_refit", kill)
        run()
    step = f"{SMALL} frozen on all labelled images"
    assert not Log(tmp_path / "out" / "log.jsonl").has(step, "kept")

    with pytest.raises(KeyboardInterrupt):
        run(Interrupt(at="epoch"))

    log = Log(tmp_path / "out" / "log.jsonl")
    assert log.submitted.step == step
    assert log.submitted.models.refitted == (f"{SMALL} frozen",)


def test_a_submission_that_was_logged_before_a_kill_is_written_by_the_next_run(run, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(Interrupt(at="leaks"))
    content = (out / SUBMISSION).read_bytes()
    (out / SUBMISSION).unlink()

    with pytest.raises(KeyboardInterrupt):
        run(Interrupt(at="leaks"))

    assert (out / SUBMISSION).read_bytes() == content
    assert "Competition: photos" in (out / "report.html").read_text()  # of the first run

    log, secret = out / "log.jsonl", tmp_path / "secret.json"
    secret.write_text("secret")
    log.write_text(log.read_text().replace("submissions/001.json", str(secret)))
    with pytest.raises(StorageError, match=r"submissions/secret\.json does not exist"):
        run()
    assert (out / SUBMISSION).read_bytes() == content


def test_a_date_is_a_deadline_however_long_the_start_takes(run, tmp_path):
    ends = datetime.now().astimezone().replace(microsecond=0) + timedelta(hours=1)
    with pytest.raises(KeyboardInterrupt):
        run(Interrupt(at="query"), deadline=ends.isoformat())

    assert read_json(tmp_path / "out" / RECORD, "record")["ends"] == ends.timestamp()


@pytest.mark.parametrize(
    ("name", "value"), [("group", "them"), ("top_k", 4), ("measure", "map@r"), ("transductive", False)]
)
def test_other_rules_in_the_same_folder_are_refused(run, name, value):
    with pytest.raises(KeyboardInterrupt):
        run(Interrupt(at="query"))

    with pytest.raises(StorageError) as caught:
        run(**{name: value})

    assert caught.value.argument == "out"
    assert name in str(caught.value)


def test_after_the_deadline_nothing_changes(run, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(Interrupt(at="features"))
    submission = (out / SUBMISSION).read_bytes()
    record = read_json(out / RECORD, "record")
    write_json(out / RECORD, {**record, "started": 0.0, "ends": 1.0})

    progress = Interrupt()
    result = run(progress)

    assert (out / SUBMISSION).read_bytes() == submission
    assert result.score is None
    assert result.model == f"{SMALL} frozen, head fitted to the gallery"
    assert any("is over" in line for line in progress.lines)


def test_a_run_that_resumes_measures_no_rates(run, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        run(Interrupt(at="query"))
    monkeypatch.setattr(run_steps, "estimate_costs", None)  # a call would fail

    with pytest.raises(KeyboardInterrupt):
        run(Interrupt(at="query"))


def test_another_competition_in_the_folder_is_refused(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(Interrupt(at="query"))

    with pytest.raises(StorageError) as caught:
        run(options=replace_epochs(2))

    assert caught.value.argument == "out"
    assert "options" in str(caught.value)


def replace_epochs(epochs):
    return TrainingOptions(**{**OPTIONS.to_dict(), "epochs": epochs})


def test_a_query_that_cannot_be_read_gets_gallery_images(run, data_folder, tmp_path):
    broken = next((data_folder / "test" / "query").iterdir())
    broken.write_bytes(b"no image")
    progress = Interrupt(at="leaks")

    with pytest.raises(KeyboardInterrupt):
        run(progress)

    require_valid(tmp_path / "out", data_folder)
    assert any(f"test/query/{broken.name}" in line for line in progress.lines)


def test_a_backbone_without_weights_is_skipped(run, weights, tmp_path):
    progress = Interrupt(at="leaks")
    with pytest.raises(KeyboardInterrupt):
        run(progress, backbones=[SMALL, "test_resnet"], weights={**weights, "test_resnet": tmp_path / "missing.pth"})

    (failed,) = [e for e in Log(tmp_path / "out" / "log.jsonl").entries if e.outcome == "failed"]
    assert failed.step == "measuring test_resnet"


@pytest.mark.parametrize(
    ("options", "error", "argument"),
    [
        ({"group": " "}, OptionError, "group"),
        ({"deadline": "soon"}, OptionError, "deadline"),
        ({"top_k": 13}, OptionError, "top_k"),
        ({"backbones": []}, OptionError, "backbones"),
        ({"backbones": ["nosuch"], "weights": "none"}, ModelError, "backbones"),
        ({"measure": "points@1,5,10"}, OptionError, "measure"),  # validation has 8 images
        ({"out": 3}, OptionError, "out"),
    ],
)
def test_bad_input(run, options, error, argument, tmp_path):
    with pytest.raises(error) as caught:
        run(**options)

    assert caught.value.argument == argument
    assert not (tmp_path / "out").exists()


def test_data_without_queries(tmp_path, sample_images):
    for name, image in sample_images.items():
        (tmp_path / "data" / "training" / name).mkdir(parents=True)
        for number in range(5):
            image.save(tmp_path / "data" / "training" / name / f"{number}.png")

    with pytest.raises(DataError) as caught:
        compete(tmp_path / "data", group="us", out=tmp_path / "out", backbones=[SMALL], weights="none")

    assert caught.value.argument == "data"
