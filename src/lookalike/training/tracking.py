"""Experiment tracking with TensorBoard and MLflow; off by default.

A tracker that fails during a run is disabled with a message: hours of training are worth more than their log.
"""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lookalike._system import disable_telemetry
from lookalike.errors import MissingExtra, ModelError, OptionError
from lookalike.progress import SILENT, Progress


class Tracker:
    """One run in one tracker; this base class logs nothing."""

    default_location = ""  # folder or URI
    packages: tuple[str, ...] = ()  # what it imports

    def __init__(self, location: str, name: str, key: str, resume: bool) -> None:
        """Start a run with a display name, or with `resume` continue the unfinished one with the same key."""

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Log parameters of the run."""

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log values of a step, counted from 1."""

    def log_file(self, path: Path) -> None:
        """Store a file."""

    def log_model(self, bundle: Path, name: str) -> None:
        """Register a bundle as a model under a name."""

    def close(self, state: str) -> None:
        """End the run: finished, failed or killed."""


class TensorBoard(Tracker):
    """Event files, one folder per run; takes values only, since the bundle has the rest."""

    default_location = "tensorboard"
    packages = ("tensorboard",)

    def __init__(self, location: str, name: str, key: str, resume: bool) -> None:
        stem = f"{name}-{key[:8]}"
        folders = sorted(Path(location).glob(f"{stem}*"), key=lambda folder: (len(folder.name), folder.name))
        new = f"{stem}-{len(folders) + 1}" if folders else stem
        folder = folders[-1] if folders and resume else Path(location) / new
        folder.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its imports use deprecated parts of other packages
            from tensorboard.summary import Writer

            self._writer = Writer(str(folder))

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Write one point per value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, state: str) -> None:  # noqa: ARG002
        """Flush the event file."""
        self._writer.close()


class MLflow(Tracker):
    """One run of the experiment `lookalike` on a tracking server or in a local database."""

    default_location = "sqlite:///mlflow.db"
    packages = ("mlflow", "sqlalchemy", "alembic", "pandas")

    _EXPERIMENT = "lookalike"
    _KEY = "lookalike.key"
    _LOADER = "lookalike.runtimes.load"
    _LONGEST_PARAM = 6000  # characters
    _PARAMS_PER_REQUEST = 100

    def __init__(self, location: str, name: str, key: str, resume: bool) -> None:
        disable_telemetry()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from mlflow import MlflowClient
        parts = urlsplit(location)
        if parts.scheme in ("http", "https"):  # MLflow itself retries for minutes where nothing listens
            port = parts.port or (443 if parts.scheme == "https" else 80)
            socket.create_connection((parts.hostname or "", port), timeout=5).close()
        self._client = MlflowClient(location)
        experiment = self._client.get_experiment_by_name(self._EXPERIMENT)
        number = experiment.experiment_id if experiment else self._client.create_experiment(self._EXPERIMENT)
        unfinished = f"tags.`{self._KEY}` = '{key}' and attributes.status != 'FINISHED'"
        runs = self._client.search_runs([number], unfinished, max_results=1) if resume else []
        if runs:
            self._client.update_run(runs[0].info.run_id, "RUNNING")
        run = runs[0] if runs else self._client.create_run(number, run_name=name, tags={self._KEY: key})
        self.run_id: str = run.info.run_id
        self._logged = set(run.data.params)

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Log the parameters that are not logged yet: MLflow refuses to log one twice."""
        from mlflow import entities

        missing = [entities.Param(k, str(v)[: self._LONGEST_PARAM]) for k, v in values.items() if k not in self._logged]
        for start in range(0, len(missing), self._PARAMS_PER_REQUEST):
            self._client.log_batch(self.run_id, params=missing[start : start + self._PARAMS_PER_REQUEST])
        self._logged |= {param.key for param in missing}

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log values of a step."""
        for name, value in values.items():
            self._client.log_metric(self.run_id, name, value, step=step)

    def log_file(self, path: Path) -> None:
        """Store a file among the run's artifacts."""
        self._client.log_artifact(self.run_id, str(path))

    def log_model(self, bundle: Path, name: str) -> None:
        """Store the bundle as a model of the run, and register it as the next version of `name`."""
        from mlflow.exceptions import MlflowException

        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mlflow warns about its own type hints while it is imported
            import mlflow.pyfunc

            model = Path(folder) / "model"
            requirements = [f"lookalike=={version('lookalike')}"]
            mlflow.pyfunc.save_model(
                str(model), loader_module=self._LOADER, data_path=str(bundle), pip_requirements=requirements
            )
            self._client.log_artifacts(self.run_id, str(model), "model")
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        self._client.create_model_version(name, f"runs:/{self.run_id}/model", self.run_id)

    def close(self, state: str) -> None:
        """End the run."""
        self._client.set_terminated(self.run_id, state.upper())


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow}


@dataclass(frozen=True)
class TrackerTarget:
    """A tracker's name and where it writes."""

    tracker: str
    location: str

    def __str__(self) -> str:
        return f"{self.tracker} at {self.location}"


def parse_targets(texts: Sequence[str]) -> tuple[TrackerTarget, ...]:
    """Read targets, each `mlflow` or `mlflow=URI`; duplicates count once."""
    targets = []
    for text in texts:
        name, separator, location = text.partition("=")
        if name not in TRACKERS or (separator and not location):
            raise OptionError(
                f"`track` takes NAME or NAME=LOCATION with NAME one of {', '.join(TRACKERS)}, got {text!r}.",
                argument="track",
            )
        missing = [p for p in TRACKERS[name].packages if importlib.util.find_spec(p) is None]
        if missing:
            raise MissingExtra(missing[0], name, f"tracking with {name}")
        targets.append(TrackerTarget(name, location or TRACKERS[name].default_location))
    return tuple(dict.fromkeys(targets))


class RunTracker:
    """Logs one run to any number of trackers."""

    def __init__(self, trackers: Mapping[TrackerTarget, Tracker], progress: Progress) -> None:
        self._trackers = dict(trackers)
        self._progress = progress

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Log parameters of the run."""
        self._each(lambda tracker: tracker.log_params(values))

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log values of a step, counted from 1; `@` in a name becomes `_at_`, which every tracker accepts."""
        plain = {name.replace("@", "_at_"): float(value) for name, value in values.items()}
        self._each(lambda tracker: tracker.log_metrics(plain, step))

    def log_file(self, path: Path) -> None:
        """Store a file if it exists."""
        if path.is_file():
            self._each(lambda tracker: tracker.log_file(path))

    def log_model(self, bundle: Path, name: str) -> None:
        """Register a bundle as a model."""
        self._each(lambda tracker: tracker.log_model(bundle, name))

    def close(self, state: str) -> None:
        """End the run everywhere: finished, failed or killed."""
        self._each(lambda tracker: tracker.close(state))

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """End the run with the block: finished, failed, or killed by an interrupt."""
        try:
            yield
        except Exception:
            self.close("failed")
            raise
        except BaseException:
            self.close("killed")
            raise
        self.close("finished")

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for target, tracker in list(self._trackers.items()):
            try:
                act(tracker)
            except Exception as error:
                del self._trackers[target]
                self._progress.info(f"{target} failed and was disabled ({_cause(error)}); training continues")


NO_TRACKER = RunTracker({}, SILENT)


def start_tracking(
    targets: Sequence[TrackerTarget], name: str, key: str, *, resume: bool, progress: Progress
) -> RunTracker:
    """Start a run in every tracker, or continue the unfinished one."""
    trackers: dict[TrackerTarget, Tracker] = {}
    for target in targets:
        try:
            trackers[target] = TRACKERS[target.tracker](target.location, name, key, resume)
        except Exception as error:
            RunTracker(trackers, progress).close("failed")
            raise ModelError(
                f"cannot track with {target} ({_cause(error)}); correct the location, or remove it from `track`.",
                argument="track",
            ) from error
    return RunTracker(trackers, progress)


def _cause(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
