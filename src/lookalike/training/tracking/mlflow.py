"""MLflow: runs with parameters, figures and files, and bundles as registered models that load back."""

from __future__ import annotations

import logging
import socket
import tempfile
import time
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

EXPERIMENT = "lookalike"
_KEY = "lookalike.key"
_LOADER = "lookalike.runtimes.pyfunc"
_LONGEST = 6000  # characters of a parameter that MLflow takes
_AT_ONCE = 100  # parameters a request
_STATES = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


class MLflow:
    """One run on a tracking server or in a local database."""

    def __init__(self, client: Any, run: Any) -> None:
        self._client = client
        self._id = run.info.run_id
        self._params = dict(run.data.params)

    def params(self, values: Mapping[str, Any]) -> None:
        """Log what is not logged yet: MLflow takes no parameter twice."""
        from mlflow.entities import Param

        fresh = {k: str(v)[:_LONGEST] for k, v in values.items() if k not in self._params}
        rows = [Param(k, v) for k, v in fresh.items()]
        for start in range(0, len(rows), _AT_ONCE):
            self._client.log_batch(self._id, params=rows[start : start + _AT_ONCE])
        self._params |= fresh

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log figures of a step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(k, v, now, step) for k, v in values.items()])

    def file(self, path: Path) -> None:
        """Keep a file among the run's artifacts."""
        self._client.log_artifact(self._id, str(path))

    def model(self, bundle: Path, name: str) -> None:
        """Keep the bundle as a model of the run, and register it as the next version of `name`."""
        from mlflow.exceptions import MlflowException

        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mlflow's own type hints make it warn while it is imported
            import mlflow.pyfunc

            made = Path(folder) / "model"
            needs = [f"lookalike=={version('lookalike')}"]
            mlflow.pyfunc.save_model(str(made), loader_module=_LOADER, data_path=str(bundle), pip_requirements=needs)
            self._client.log_artifacts(self._id, str(made), "model")
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        self._client.create_model_version(name, f"runs:/{self._id}/model", self._id)

    def close(self, state: str) -> None:
        """End the run."""
        self._client.set_terminated(self._id, _STATES[state])


def _require_server(place: str) -> None:
    """Raise `OSError` at once when nothing listens at an http(s) URI: MLflow itself tries for minutes."""
    parts = urlsplit(place)
    if parts.scheme in ("http", "https"):
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=5).close()


def open_run(place: str, name: str, key: str, resume: bool) -> MLflow:
    """Begin a run in the experiment `lookalike`, or go on with the last one of that key that did not finish."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient
    for noisy in ("mlflow", "alembic"):  # of tables they make
        logging.getLogger(noisy).setLevel(logging.WARNING)
    _require_server(place)
    client = MlflowClient(place)
    found = client.get_experiment_by_name(EXPERIMENT)
    experiment = found.experiment_id if found else client.create_experiment(EXPERIMENT)
    unfinished = f"tags.`{_KEY}` = '{key}' and attributes.status != 'FINISHED'"
    runs = client.search_runs([experiment], unfinished, max_results=1) if resume else []
    if runs:
        client.update_run(runs[0].info.run_id, "RUNNING")
        return MLflow(client, runs[0])
    return MLflow(client, client.create_run(experiment, run_name=name, tags={_KEY: key}))
