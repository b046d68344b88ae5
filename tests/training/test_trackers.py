"""What each tracker logs of a training, read back with its own reader."""

from __future__ import annotations

import json
import re
import socket
import struct
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import wandb

from lookalike.errors import ModelError
from lookalike.models.bundle import read_bundle_info
from lookalike.progress import SILENT
from lookalike.runtimes.load import load_encoder
from lookalike.training.tracking import TrackerTarget, start_tracking
from lookalike.training.train import train

SMALL = "test_efficientnet"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # the trackers' own


def keep_wandb_in(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let wandb start again, offline, with all its files in one folder."""
    wandb.teardown()
    patch.setenv("WANDB_MODE", "offline")
    for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
        patch.setenv(f"WANDB_{name}", str(folder))


def runs_of_wandb(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"))


def read_wandb(path: Path) -> list:
    """Read the records of a run: a log in blocks of 32 KiB, as LevelDB writes it, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, parts, records = path.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # full, or the last part
            records.append(Record.FromString(parts))
            parts = b""
    return records


@pytest.fixture(scope="module")
def tracked_run(data, weights, quick, tmp_path_factory):
    """One training logged by all trackers: the bundle, the folder of events, the URI of the store of MLflow."""
    folder = tmp_path_factory.mktemp("tracked")
    uri = f"sqlite:///{folder}/mlflow.db"
    out = folder / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where mlflow keeps the files of a local database
        keep_wandb_in(folder, patch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            track = [f"tensorboard={folder}/events", f"mlflow={uri}", "wandb=us/lookalike"]
            train(data, SMALL, weights=weights, out=out, options=quick(), track=track)
    wandb.teardown()
    return out, folder / "events", uri


@pytest.mark.slow
def test_tensorboard_has_one_point_per_epoch(tracked_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, events, _ = tracked_run
    read = EventAccumulator(str(next(events.glob("model-*"))))
    read.Reload()
    (report,) = read_bundle_info(out).training
    tensors = {name: [t.tensor_proto for t in read.Tensors(name)] for name in read.Tags()["tensors"]}
    from tensorboard.util.tensor_util import make_ndarray

    losses = [float(make_ndarray(t)) for t in tensors[f"{SMALL}/loss"]]
    assert losses == pytest.approx([epoch.loss for epoch in report.epochs], rel=1e-6)
    assert len(tensors[f"{SMALL}/measure"]) == 2
    assert {"validation/map_at_r", "validation/precision_at_3"} <= tensors.keys()


@pytest.mark.slow
def test_mlflow_has_recipe_measures_curves_and_a_model_that_loads_back(tracked_run, data):
    import mlflow

    out, _, uri = tracked_run
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("lookalike").experiment_id])
    info = read_bundle_info(out)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "model"
    assert run.data.params["data"] == data.fingerprint
    assert run.data.params[f"{SMALL}/loss"] == "cross-entropy"
    points = client.get_metric_history(run.info.run_id, f"{SMALL}/loss")
    assert [p.step for p in points] == [1, 2]
    assert [p.value for p in points] == [epoch.loss for epoch in info.training[0].epochs]
    measured = info.measures["validation"]["precision@3"].mean
    (point,) = client.get_metric_history(run.info.run_id, "validation/precision_at_3")
    assert point.value == measured
    assert {f.path for f in client.list_artifacts(run.info.run_id)} >= {"curves.png", "curves.html", "model"}

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    import mlflow.pyfunc

    images = [str(item.path) for item in data.gallery]
    back = mlflow.pyfunc.load_model("models:/model/1")
    expected = load_encoder(out).embed(images).vectors
    assert np.array_equal(back.predict(images), expected)
    np.testing.assert_allclose(back.predict([images[1], images[0], images[1]]), expected[[1, 0, 1]], atol=1e-5)


def test_a_resumed_run_is_the_same_run_and_a_new_one_is_another(tmp_path):
    from mlflow import MlflowClient

    target = TrackerTarget("mlflow", f"sqlite:///{tmp_path}/mlflow.db")
    runs = []
    for resume, state in ((False, "killed"), (True, "killed"), (False, "finished"), (True, "finished")):
        tracker = start_tracking([target], "name", "key", resume=resume, progress=SILENT)
        runs.append(next(iter(tracker._trackers.values())).run_id)
        tracker.log_params({"a": 1})
        tracker.close(state)
    assert runs[0] == runs[1] == runs[3] != runs[2]
    client = MlflowClient(target.location)
    assert client.get_run(runs[0]).info.status == "FINISHED"

    events = TrackerTarget("tensorboard", str(tmp_path / "events"))
    for resume in (False, True, False):
        start_tracking([events], "name", "0123456789", resume=resume, progress=SILENT).close("finished")
    assert sorted(p.name for p in (tmp_path / "events").iterdir()) == ["name-01234567", "name-01234567-2"]


def test_a_resumed_run_of_wandb_is_the_same_run_and_a_new_one_is_another(tmp_path, monkeypatch, capfd):
    keep_wandb_in(tmp_path, monkeypatch)
    target = TrackerTarget("wandb", "lookalike")
    ids = []
    for resume, state in ((False, "killed"), (True, "failed"), (False, "finished"), (True, "finished")):
        time.sleep(1.1)  # wandb names the folder of a run by the second, and renames a run whose folder exists
        tracker = start_tracking([target], "name", "0123456789", resume=resume, progress=SILENT)
        ids.append(next(iter(tracker._trackers.values()))._run.id)
        tracker.log_params({"a": 1})
        tracker.log_params({"a": 2})
        tracker.close(state)
    assert ids[0] == ids[1] != ids[2] == ids[3]
    assert all(re.fullmatch(r"01234567-[0-9a-f]{8}", run_id) for run_id in ids)
    wandb.teardown()  # what is not written yet is written now
    exits = [r.exit.exit_code for path in runs_of_wandb(tmp_path) for r in read_wandb(path) if r.HasField("exit")]
    assert sorted(exits) == [0, 0, 1, 1]
    assert wandb.run is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_wandb_has_recipe_measures_curves_and_the_bundle(tracked_run, data):
    out, events, _ = tracked_run
    (path,) = runs_of_wandb(events.parent)
    records = read_wandb(path)
    info = read_bundle_info(out)
    (run,) = [r.run for r in records if r.HasField("run")][:1]
    assert (run.entity, run.project, run.display_name) == ("us", "lookalike", "model")
    updates = [*run.config.update, *(u for r in records if r.HasField("config") for u in r.config.update)]
    config = {u.key or "/".join(u.nested_key): json.loads(u.value_json) for u in updates}
    assert config["data"] == data.fingerprint
    assert config[f"{SMALL}/loss"] == "cross-entropy"
    logged = [
        {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in r.history.item}
        for r in records
        if r.HasField("history")
    ]
    points = [(values["step"], values[f"{SMALL}/loss"]) for values in logged if f"{SMALL}/loss" in values]
    assert points == [(n, epoch.loss) for n, epoch in enumerate(info.training[0].epochs, 1)]
    (measured,) = [v["validation/precision_at_3"] for v in logged if "validation/precision_at_3" in v]
    assert measured == info.measures["validation"]["precision@3"].mean
    files = {f.path for r in records if r.HasField("files") for f in r.files.files}
    assert {"curves.png", "curves.html"} <= files
    for name in ("curves.png", "curves.html"):
        assert (path.parent / "files" / name).read_bytes() == (out / name).read_bytes()
    (artifact,) = [r.request.log_artifact.artifact for r in records if r.request.HasField("log_artifact")] or [
        r.artifact for r in records if r.HasField("artifact")
    ]
    assert (artifact.name, artifact.type) == ("model", "model")
    assert {e.path for e in artifact.manifest.contents} == {p.name for p in out.iterdir()}
    assert not any(r.HasField("exit") and r.exit.exit_code for r in records)


def test_wandb_without_a_key_is_refused(data, weights, quick, tmp_path, monkeypatch):
    keep_wandb_in(tmp_path, monkeypatch)
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(ModelError, match=r"wandb login.*WANDB_MODE=offline"):
        train(data, SMALL, weights=weights, options=quick(), track=["wandb"])
    wandb.teardown()


def test_a_missing_server_is_refused_at_once(data, weights, quick):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: whoever calls is refused
        uri = f"mlflow=http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ModelError, match=r"cannot track with mlflow at http.*refused"):
            train(data, SMALL, weights=weights, options=quick(), track=[uri])
