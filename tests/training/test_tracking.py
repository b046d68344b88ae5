"""How a run is tracked: which trackers, what happens when one fails, and how a run ends."""

from __future__ import annotations

import pytest

from lookalike.errors import MissingExtra, ModelError, OptionError
from lookalike.progress import SILENT
from lookalike.runtimes.load import load_encoder
from lookalike.training.refit import refit
from lookalike.training.trackers import TRACKERS
from lookalike.training.tracking import RunTracker, TrackerTarget, start_tracking
from lookalike.training.train import train

SMALL = "test_efficientnet"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # the trackers' own


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


@pytest.mark.parametrize("text", ["comet", "mlflow=", "wandb=", ""])
def test_an_unknown_tracker_is_refused(data, text):
    with pytest.raises(OptionError, match=r"NAME=LOCATION with NAME one of tensorboard, mlflow, wandb"):
        train(data, SMALL, track=[text])


def test_a_string_instead_of_a_list_is_refused(data):
    with pytest.raises(OptionError, match=r"write \['mlflow'\]"):
        train(data, SMALL, track="mlflow")


@pytest.mark.parametrize("tracker", TRACKERS)
def test_a_missing_package_names_its_extra(tracker, data, monkeypatch):
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == tracker else find(name))
    with pytest.raises(MissingExtra, match=f"the extra {tracker}"):
        train(data, SMALL, track=[tracker])
