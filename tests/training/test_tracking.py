"""What TensorBoard and MLflow log of a training, read back with their own readers."""

from __future__ import annotations

import socket
import warnings

import numpy as np
import pytest

from lookalike.errors import MissingExtra, ModelError, OptionError
from lookalike.models.bundle import read_bundle_info
from lookalike.progress import SILENT
from lookalike.runtimes.load import load_encoder
from lookalike.training.refit import refit
from lookalike.training.tracking import TRACKERS, RunTracker, TrackerTarget, start_tracking
from lookalike.training.train import train

SMALL = "test_efficientnet"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # the trackers' own


@pytest.fixture(scope="module")
def tracked_run(data, weights, quick, tmp_path_factory):
    """One training logged by both trackers: the bundle, the folder of events, the URI of the store of MLflow."""
    folder = tmp_path_factory.mktemp("tracked")
    uri = f"sqlite:///{folder}/mlflow.db"
    out = folder / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where mlflow keeps the files of a local database
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            track = [f"tensorboard={folder}/events", f"mlflow={uri}"]
            train(data, SMALL, weights=weights, out=out, options=quick(), track=track)
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
    measured = info.measures["validation"]["precision@3"]["mean"]
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


class Broken:
    """A tracker that fails."""

    def log_metrics(self, _values, _step):
        raise OSError("no space left\non device")

    def close(self, _state):
        raise AssertionError("a failed tracker is not closed")


def test_a_failing_tracker_is_disabled_with_a_message(recorder):
    listener = recorder()
    tracker = RunTracker({TrackerTarget("mlflow", "sqlite:///x"): Broken()}, listener)
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.log_metrics({"loss": 1.0}, 2)
    tracker.close("finished")
    (message,) = listener.messages
    assert "mlflow at sqlite:///x failed" in message and "no space left on device" in message


class Noted:
    """Remembers how it was closed."""

    def __init__(self):
        self.states = []

    def close(self, state):
        self.states.append(state)


@pytest.mark.parametrize(
    ("raised", "state"), [(None, "finished"), (ValueError(), "failed"), (KeyboardInterrupt(), "killed")]
)
def test_a_run_is_closed_with_the_state_it_ended_in(raised, state, monkeypatch):
    noted = Noted()
    monkeypatch.setitem(TRACKERS, "mlflow", lambda *_: noted)
    try:
        with start_tracking([TrackerTarget("mlflow", "here")], "name", "key", resume=False, progress=SILENT).closing():
            if raised is not None:
                raise raised
    except BaseException as error:
        assert error is raised
    assert noted.states == [state]


class Interrupted:
    """A tracker that is interrupted the first time it receives a bundle."""

    packages = ()
    default_location = "here"
    received = []  # noqa: RUF012 - replaced by the test

    def __init__(self, *_arguments):
        pass

    def __getattr__(self, _name):
        return lambda *_: None

    def log_model(self, bundle, name):
        self.received.append((bundle, name))
        if len(self.received) == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("refitted", [False, True], ids=["train", "refit"])
def test_a_bundle_that_was_not_tracked_is_tracked_by_the_next_session(
    refitted, data, weights, quick, tmp_path, monkeypatch
):
    if refitted:
        train(data, SMALL, weights=weights, out=tmp_path / "first", options=quick(frozen=True))
    out, received = tmp_path / "model", []
    monkeypatch.setitem(TRACKERS, "mlflow", Interrupted)
    monkeypatch.setattr(Interrupted, "received", received)

    def run(**options):
        if refitted:
            return refit(data, tmp_path / "first", out=out, weights=weights, track=["mlflow"], **options)
        return train(data, SMALL, weights=weights, out=out, options=quick(frozen=True), track=["mlflow"], **options)

    with pytest.raises(KeyboardInterrupt):
        run()
    bundle = load_encoder(out)
    assert run(resume=True).fingerprint == bundle.fingerprint
    assert received == 2 * [(out, "model")]
    assert not out.with_name("model.training").exists()
    run(resume=True)
    assert len(received) == 2


def test_an_unwritable_location_is_refused_before_training(data, weights, quick, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"cannot track with tensorboard at .*file"):
        train(data, SMALL, weights=weights, options=quick(), track=[f"tensorboard={tmp_path}/file/below"])


def test_a_missing_server_is_refused_at_once(data, weights, quick):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: whoever calls is refused
        uri = f"mlflow=http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ModelError, match=r"cannot track with mlflow at http.*refused"):
            train(data, SMALL, weights=weights, options=quick(), track=[uri])


@pytest.mark.parametrize("text", ["wandb", "mlflow=", ""])
def test_an_unknown_tracker_is_refused(data, text):
    with pytest.raises(OptionError, match=r"NAME=LOCATION with NAME one of tensorboard, mlflow"):
        train(data, SMALL, track=[text])


def test_a_string_instead_of_a_list_is_refused(data):
    with pytest.raises(OptionError, match=r"write \['mlflow'\]"):
        train(data, SMALL, track="mlflow")


def test_a_missing_package_names_its_extra(data, monkeypatch):
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "mlflow" else find(name))
    with pytest.raises(MissingExtra, match=r"lookalike\[mlflow\]"):
        train(data, SMALL, track=["mlflow"])
