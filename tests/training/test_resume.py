"""A run that was killed and resumed ends like one that was not, bit for bit."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from lookalike._lock import locked
from lookalike.errors import StorageError
from lookalike.models.bundle import read_bundle_info
from lookalike.models.info import LearningRates
from lookalike.runtimes.load import load_encoder
from lookalike.training.config import override_options
from lookalike.training.train import train

SMALL = "test_efficientnet"


def comparable(bundle) -> dict:
    """Everything that a bundle records, without times."""
    info = read_bundle_info(bundle).to_dict()
    del info["digest"]  # of the times, too
    for report in info["training"]:
        del report["seconds"]
        for epoch in report["epochs"]:
            del epoch["seconds"]
    return info


@pytest.fixture(scope="module")
def options(quick):
    return quick(epochs=3)


@pytest.fixture(scope="module")
def unbroken(data, weights, options, tmp_path_factory):
    """The bundle of a run that was not interrupted."""
    out = tmp_path_factory.mktemp("unbroken") / "model"
    train(data, SMALL, weights=weights, out=out, options=options)
    return out


def kill(data, weights, out, options, recorder, *, task="epoch 2/3", done=16):
    """Start a run and stop it in the middle of an epoch."""
    listener = recorder(lambda t, d: t == task and d >= done)
    with pytest.raises(KeyboardInterrupt):
        train(data, SMALL, weights=weights, out=out, options=options, progress=listener)
    assert listener.steps[-1][:2] == (task, done)


def test_killed_in_the_second_epoch_and_resumed(unbroken, data, weights, options, recorder, tmp_path):
    out = tmp_path / "model"
    kill(data, weights, out, options, recorder)
    assert [p.name for p in tmp_path.iterdir()] == ["model.training"]
    listener = recorder()
    encoder = train(data, SMALL, weights=weights, out=out, options=options, resume=True, progress=listener)
    assert [t for t in listener.tasks if t.startswith("epoch")] == ["epoch 2/3", "epoch 3/3"]
    assert f"{SMALL}: resuming after epoch 1" in listener.messages
    assert comparable(out) == comparable(unbroken)
    assert encoder.fingerprint == load_encoder(unbroken).fingerprint
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_seconds_add_up_over_all_sessions(data, weights, options, recorder, tmp_path):
    out = tmp_path / "model"
    kill(data, weights, out, options, recorder)
    checkpoint = tmp_path / "model.training" / "0" / "checkpoint.pt"
    content = torch.load(checkpoint, weights_only=True)
    assert content["seconds"] > sum(epoch["seconds"] for epoch in content["run"]["epochs"]) > 0
    torch.save({**content, "seconds": 5000.0}, checkpoint)
    train(data, SMALL, weights=weights, out=out, options=options, resume=True)
    assert 5000 < read_bundle_info(out).training[0].seconds < 5100


def test_a_time_budget_counts_the_seconds_before_the_interruption(data, weights, quick, recorder, tmp_path):
    out, options, listener = tmp_path / "model", quick(epochs=3, max_minutes=30), recorder()
    kill(data, weights, out, options, recorder)
    checkpoint = tmp_path / "model.training" / "0" / "checkpoint.pt"
    torch.save({**torch.load(checkpoint, weights_only=True), "seconds": 60.0 * 30}, checkpoint)
    train(data, SMALL, weights=weights, out=out, options=options, resume=True, progress=listener)
    assert not any(t.startswith("epoch") for t in listener.tasks)
    assert any("stopping before epoch 2/3" in text for text in listener.messages)
    (report,) = read_bundle_info(out).training
    assert len(report.epochs) == 1
    assert report.fine_tuned_share is not None


def test_killed_twice(unbroken, data, weights, options, recorder, tmp_path):
    out = tmp_path / "model"
    kill(data, weights, out, options, recorder, done=8)
    listener = recorder(lambda task, done: task == "epoch 3/3" and done == 24)
    with pytest.raises(KeyboardInterrupt):
        train(data, SMALL, weights=weights, out=out, options=options, resume=True, progress=listener)
    train(data, SMALL, weights=weights, out=out, options=options, resume=True)
    assert comparable(out) == comparable(unbroken)


def test_killed_after_the_last_epoch_before_the_bundle(unbroken, data, weights, options, recorder, tmp_path):
    out = tmp_path / "model"

    def interrupted(*args, **named):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["lookalike.training.train"], "save_bundle", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(data, SMALL, weights=weights, out=out, options=options)
    listener = recorder()
    train(data, SMALL, weights=weights, out=out, options=options, resume=True, progress=listener)
    assert not any(t.startswith("epoch") for t in listener.tasks)
    assert comparable(out) == comparable(unbroken)


def test_resuming_with_lower_learning_rates(unbroken, data, weights, options, recorder, tmp_path):
    out, listener = tmp_path / "model", recorder()
    kill(data, weights, out, options, recorder)
    lower = override_options(options, {"lr": 2e-5, "head_lr": 2e-4})
    train(data, SMALL, weights=weights, out=out, options=lower, resume=True, progress=listener)
    assert any("lr 2e-05 and head_lr 0.0002" in text for text in listener.messages)
    (report,), (before,) = (read_bundle_info(bundle).training for bundle in (out, unbroken))
    first = LearningRates(0, before.recipe["lr"], before.recipe["head_lr"])
    assert before.rates == (first,)
    assert report.rates == (first, LearningRates(1, 2e-5, 2e-4))
    losses = [[epoch.loss for epoch in each.epochs] for each in (report, before)]
    assert losses[0][0] == losses[1][0]
    assert losses[0][1] != losses[1][1]
    train(data, SMALL, weights=weights, out=out, options=lower, resume=True, progress=listener)
    assert str(out) in listener.messages[-1] and "complete" in listener.messages[-1]


def test_a_diverging_run_lowers_its_rates_and_its_bundle_says_so(data, weights, quick, recorder, tmp_path):
    out, listener = tmp_path / "model", recorder()
    high = quick(epochs=3, lr=0.05, head_lr=0.05, loss="cross-entropy")
    train(data, SMALL, weights=weights, out=out, options=high, progress=listener)
    (report,) = read_bundle_info(out).training
    assert report.rates[:2] == (LearningRates(0, 0.05, 0.05), LearningRates(0, 0.0125, 0.0125))
    assert report.warnings
    assert all(any(warning in text for text in listener.messages) for warning in report.warnings)
    assert report.options["lr"] == 0.05
    page = (out / "curves.html").read_text() if report.epochs else ""
    assert not page or "Warning:" in page


def test_finished_epochs_keep_their_learning_rates(unbroken, data, weights, options, recorder, tmp_path):
    out = tmp_path / "model"
    listener = recorder(lambda task, _: task.startswith(f"{SMALL}: closed-form head"))
    with pytest.raises(KeyboardInterrupt):
        train(data, SMALL, weights=weights, out=out, options=options, progress=listener)
    train(data, SMALL, weights=weights, out=out, options=override_options(options, {"lr": 2e-5}), resume=True)
    (report,), (before,) = (read_bundle_info(bundle).training for bundle in (out, unbroken))
    assert (report.rates, report.recipe) == (before.rates, before.recipe)
    assert report.options["lr"] == before.recipe["lr"]
    assert load_encoder(out).fingerprint == load_encoder(unbroken).fingerprint


def test_killed_in_the_first_epoch_the_features_are_cached(unbroken, data, weights, options, recorder, tmp_path):
    out = tmp_path / "model"
    kill(data, weights, out, options, recorder, task="epoch 1/3", done=8)
    progress = recorder()
    train(data, SMALL, weights=weights, out=out, options=options, resume=True, progress=progress)
    assert "epoch 1/3" in progress.tasks
    assert not [task for task in progress.tasks if task.endswith((": features", ": validation"))]
    assert comparable(out) == comparable(unbroken)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_random_weights_with_trained_statistics_resume_too(data, quick, recorder, tmp_path):
    options = quick(optimizer="sgd")
    train(data, SMALL, weights="none", out=tmp_path / "whole", options=options)
    kill(data, "none", tmp_path / "model", options, recorder, task="epoch 2/2")
    train(data, SMALL, weights="none", out=tmp_path / "model", options=options, resume=True)
    assert comparable(tmp_path / "model") == comparable(tmp_path / "whole")


def test_an_ensemble_resumes_with_the_current_backbone(data, quick, recorder, tmp_path):
    names, options = f"{SMALL}+test_resnet", quick()
    train(data, names, weights="none", out=tmp_path / "whole", options=options)
    started = []

    def in_the_second(task, done):
        started.append(task)
        return task == "epoch 2/2" and "test_resnet: features" in started

    with pytest.raises(KeyboardInterrupt):
        train(data, names, weights="none", out=tmp_path / "model", options=options, progress=recorder(in_the_second))
    listener = recorder()
    train(data, names, weights="none", out=tmp_path / "model", options=options, resume=True, progress=listener)
    assert [t for t in listener.tasks if t.startswith("epoch")] == ["epoch 2/2"]
    assert comparable(tmp_path / "model") == comparable(tmp_path / "whole")


def test_an_unreadable_file_is_still_skipped_after_resuming(crops, weights, quick, recorder, tmp_path):
    from lookalike.data.layouts import load_dataset
    from lookalike.data.validation import with_validation

    data = with_validation(load_dataset(crops), seed=0)
    data.training[3].path.write_bytes(b"")
    train(data, SMALL, weights=weights, out=tmp_path / "whole", options=quick())
    kill(data, weights, tmp_path / "model", quick(), recorder, task="epoch 2/2")
    train(data, SMALL, weights=weights, out=tmp_path / "model", options=quick(), resume=True)
    assert comparable(tmp_path / "model") == comparable(tmp_path / "whole")
    assert len(comparable(tmp_path / "model")["training"][0]["skipped"]) == 1


SCRIPT = """
import sys, time
from pathlib import Path
from lookalike import TrainingOptions, train

class Hang:
    def info(self, text): pass
    def step(self, task, done, total, detail=""):
        if task == "epoch 2/3" and done >= 16:
            print("in the middle", flush=True)
            time.sleep(600)

root, weights, out = map(Path, sys.argv[1:])
options = TrainingOptions(epochs=3, batch_size=8, precision="float32", resolution=0.5)
train(root, "test_efficientnet", weights=weights, out=out, options=options, progress=Hang())
"""


@pytest.mark.slow
def test_killed_by_the_system_in_another_process(unbroken, data, weights, options, tmp_path):
    out = tmp_path / "model"
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(data.root), str(weights), str(out)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here: more would round otherwise
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=one_thread) as process:
        assert process.stdout.readline() == "in the middle\n"
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert sorted(p.name for p in tmp_path.iterdir()) == [".model.lock", "model.training"]
    train(data, SMALL, weights=weights, out=out, options=options, resume=True)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert comparable(out) == comparable(unbroken)


# ---------------------------------------------------------------- what does not fit together


def test_a_second_run_to_the_same_folder_is_refused_before_it_works(data, weights, options, tmp_path):
    out = tmp_path / "model"
    with locked(out), pytest.raises(StorageError, match="another run") as raised:
        train(data, SMALL, weights=weights, out=out, options=options)
    assert raised.value.argument == "out"
    assert not list(tmp_path.iterdir())


def test_an_unfinished_run_is_not_overwritten(data, weights, options, recorder, tmp_path):
    out = tmp_path / "model"
    kill(data, weights, out, options, recorder)
    before = (tmp_path / "model.training" / "0" / "checkpoint.pt").read_bytes()
    with pytest.raises(StorageError, match="unfinished run") as raised:
        train(data, SMALL, weights=weights, out=out, options=options)
    assert raised.value.argument == "resume"
    with pytest.raises(StorageError, match="belongs to a run with other data, weights or options"):
        train(data, SMALL, weights="none", out=out, options=options, resume=True)
    assert (tmp_path / "model.training" / "0" / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("change", ["options", "data"])
def test_a_run_with_other_options_or_data_is_not_resumed(change, crops, weights, quick, recorder, tmp_path):
    from lookalike.data.layouts import load_dataset
    from lookalike.data.validation import with_validation

    out = tmp_path / "model"
    data = with_validation(load_dataset(crops), seed=0)
    kill(data, weights, out, quick(), recorder, task="epoch 2/2")
    options = quick(label_smoothing=0.2) if change == "options" else quick()
    if change == "data":
        (crops / "training" / "cat" / "cat0.png").unlink()
        data = with_validation(load_dataset(crops), seed=0)
    with pytest.raises(StorageError, match="belongs to a run with other data, weights or options"):
        train(data, SMALL, weights=weights, out=out, options=options, resume=True)


def test_resuming_a_finished_run_returns_its_bundle(unbroken, data, weights, options, recorder, tmp_path):
    out = shutil.copytree(unbroken, tmp_path / "model")
    left = tmp_path / "model.training" / "0"
    left.mkdir(parents=True)  # killed between saving the bundle and tidying up
    listener = recorder()
    encoder = train(data, SMALL, weights=weights, out=out, options=options, resume=True, progress=listener)
    assert listener.tasks == []
    (message,) = listener.messages
    assert str(out) in message and "complete" in message
    assert encoder.fingerprint == load_encoder(unbroken).fingerprint
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_resuming_into_the_bundle_of_another_run_is_refused(unbroken, data, weights, quick, tmp_path):
    out = shutil.copytree(unbroken, tmp_path / "model")
    for other_weights, options in (
        ("none", quick(epochs=3)),
        (weights, quick(epochs=4)),
        (weights, quick(epochs=3, lr=1e-5)),
    ):
        with pytest.raises(StorageError, match="exists") as raised:
            train(data, SMALL, weights=other_weights, out=out, options=options, resume=True)
        assert str(out) in str(raised.value)
    assert comparable(out) == comparable(unbroken)
