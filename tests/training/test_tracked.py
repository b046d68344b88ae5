"""What TensorBoard and MLflow are told of a training, read back with their own readers."""

from __future__ import annotations

import socket
import warnings

import numpy as np
import pytest

from lookalike.errors import MissingExtra, ModelError, OptionError
from lookalike.models.facts import read_facts
from lookalike.models.torch_bundle import load_bundle
from lookalike.training.refit import refit
from lookalike.training.tracking.target import Target
from lookalike.training.tracking.tracked import Tracked, begin_tracked
from lookalike.training.train import train

SMALL = "test_efficientnet"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # the trackers' own


@pytest.fixture(scope="module")
def tracked_run(data, weights, quick, tmp_path_factory):
    """One training told to both trackers: the bundle, the folder of events, the URI of the database."""
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
def test_tensorboard_has_a_point_an_epoch(tracked_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, events, _ = tracked_run
    read = EventAccumulator(str(next(events.glob("model-*"))))
    read.Reload()
    history = read_facts(out)["training"][0]["history"]
    tensors = {name: [t.tensor_proto for t in read.Tensors(name)] for name in read.Tags()["tensors"]}
    from tensorboard.util.tensor_util import make_ndarray

    found = [float(make_ndarray(t)) for t in tensors[f"{SMALL}/loss"]]
    assert found == pytest.approx([epoch["loss"] for epoch in history], rel=1e-6)
    assert len(tensors[f"{SMALL}/measure"]) == 2
    assert {"validation/map_at_r", "validation/precision_at_3"} <= tensors.keys()


@pytest.mark.slow
def test_mlflow_has_the_recipe_the_figures_the_curves_and_a_model_that_loads_back(tracked_run, data):
    import mlflow

    out, _, uri = tracked_run
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("lookalike").experiment_id])
    facts = read_facts(out)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "model"
    assert run.data.params["data"] == data.fingerprint
    assert run.data.params[f"{SMALL}/loss"] == "subcenter-arcface"
    points = client.get_metric_history(run.info.run_id, f"{SMALL}/loss")
    assert [p.step for p in points] == [1, 2]
    assert [p.value for p in points] == [epoch["loss"] for epoch in facts["training"][0]["history"]]
    measured = facts["measures"]["validation"]["precision@3"]["mean"]
    assert run.data.metrics["validation/precision_at_3"] == measured
    assert {f.path for f in client.list_artifacts(run.info.run_id)} >= {"curves.png", "curves.html", "model"}

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    import mlflow.pyfunc

    images = [str(item.path) for item in data.gallery]
    back = mlflow.pyfunc.load_model("models:/model/1")
    expected = load_bundle(out).embed(images).vectors
    assert np.array_equal(back.predict(images), expected)
    np.testing.assert_allclose(back.predict([images[1], images[0], images[1]]), expected[[1, 0, 1]], atol=1e-5)


def test_a_run_that_goes_on_is_the_same_run_and_a_fresh_one_another(tmp_path):
    from mlflow import MlflowClient

    target = Target("mlflow", f"sqlite:///{tmp_path}/mlflow.db")
    found = []
    for resume, state in ((False, "killed"), (True, "killed"), (False, "finished"), (True, "finished")):
        tracked = begin_tracked([target], "name", "key", resume=resume)
        found.append(next(iter(tracked._trackers.values()))._id)
        tracked.params({"a": 1})
        tracked.close(state)
    assert found[0] == found[1] == found[3] != found[2]
    client = MlflowClient(target.place)
    assert client.get_run(found[0]).info.status == "FINISHED"

    events = Target("tensorboard", str(tmp_path / "events"))
    for resume in (False, True, False):
        begin_tracked([events], "name", "0123456789", resume=resume).close("finished")
    assert sorted(p.name for p in (tmp_path / "events").iterdir()) == ["name-01234567", "name-01234567-2"]


class Broken:
    """A tracker that cannot be written to any more."""

    def metrics(self, _values, _step):
        raise OSError("no space left\non device")

    def close(self, _state):
        raise AssertionError("it was let go of")


def test_a_tracker_that_fails_on_the_way_ends_alone(recorder):
    listener = recorder()
    tracked = Tracked({Target("mlflow", "sqlite:///x"): Broken()}, listener)
    tracked.metrics({"loss": 1.0}, 1)
    tracked.metrics({"loss": 1.0}, 2)
    tracked.close("finished")
    assert listener.said == ["tracking with mlflow at sqlite:///x ended, the run goes on: no space left on device"]


class Noted:
    """Remembers how it was closed."""

    def __init__(self):
        self.states = []

    def close(self, state):
        self.states.append(state)


@pytest.mark.parametrize(
    ("raised", "state"), [(None, "finished"), (ValueError(), "failed"), (KeyboardInterrupt(), "killed")]
)
def test_a_run_is_closed_as_it_ended(raised, state, monkeypatch):
    noted = Noted()
    monkeypatch.setattr(Target, "opener", lambda _self: lambda *_: noted)
    try:
        with begin_tracked([Target("mlflow", "here")], "name", "key").closing():
            if raised is not None:
                raise raised
    except BaseException as error:
        assert error is raised
    assert noted.states == [state]


class Interrupted:
    """A tracker that is interrupted when the bundle is handed over, unless it was before."""

    def __init__(self):
        self.handed = []

    def __getattr__(self, _name):
        return lambda *_: None

    def model(self, bundle, name):
        self.handed.append((bundle, name))
        if len(self.handed) == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("refitted", [False, True], ids=["train", "refit"])
def test_a_bundle_that_no_tracker_was_told_of_is_handed_over_by_the_next_sitting(
    refitted, data, weights, quick, tmp_path, monkeypatch
):
    if refitted:
        train(data, SMALL, weights=weights, out=tmp_path / "first", options=quick(frozen=True))
    out, noted = tmp_path / "model", Interrupted()
    monkeypatch.setattr(Target, "opener", lambda _self: lambda *_: noted)

    def run(**given):
        if refitted:
            return refit(data, tmp_path / "first", out=out, weights=weights, track=["mlflow"], **given)
        return train(data, SMALL, weights=weights, out=out, options=quick(frozen=True), track=["mlflow"], **given)

    with pytest.raises(KeyboardInterrupt):
        run()
    left = load_bundle(out)
    assert run(resume=True).fingerprint == left.fingerprint
    assert noted.handed == 2 * [(out, "model")]
    assert not out.with_name("model.training").exists()
    run(resume=True)
    assert len(noted.handed) == 2


def test_a_place_that_cannot_be_written_is_refused_before_training(data, weights, quick, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"cannot track with tensorboard at .*file"):
        train(data, SMALL, weights=weights, options=quick(), track=[f"tensorboard={tmp_path}/file/below"])


def test_a_server_that_is_not_there_is_refused_at_once(data, weights, quick):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: whoever calls is refused
        place = f"mlflow=http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ModelError, match=r"cannot track with mlflow at http.*refused"):
            train(data, SMALL, weights=weights, options=quick(), track=[place])


@pytest.mark.parametrize("text", ["wandb", "mlflow=", ""])
def test_an_unknown_tracker_is_refused(data, text):
    with pytest.raises(OptionError, match=r"there is no tracker .*; write NAME or NAME=PLACE with NAME one of"):
        train(data, SMALL, track=[text])


def test_one_text_in_place_of_a_list_is_refused(data):
    with pytest.raises(OptionError, match=r"write \['mlflow'\]"):
        train(data, SMALL, track="mlflow")


def test_a_missing_package_names_its_extra(data, monkeypatch):
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "mlflow" else find(name))
    with pytest.raises(MissingExtra, match=r"lookalike\[mlflow\]"):
        train(data, SMALL, track=["mlflow"])
