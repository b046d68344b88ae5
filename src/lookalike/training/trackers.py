"""The trackers: TensorBoard, MLflow, and Weights & Biases."""

from __future__ import annotations

import contextlib
import io
import re
import secrets
import socket
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lookalike._system import disable_telemetry


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


class WandB(Tracker):
    """One run of a project of Weights & Biases; with `WANDB_MODE=offline` only in the folder `wandb`."""

    default_location = "lookalike"
    packages = ("wandb",)

    _START_S = 30.0  # until a server that does not answer is an error
    _END_S = 600.0  # for what is not uploaded yet; the rest stays on disk for 'wandb sync'
    _OFFLINE = ("offline", "dryrun", "disabled")

    def __init__(self, location: str, name: str, key: str, resume: bool) -> None:
        disable_telemetry()
        entity, _, project = location.rpartition("/")
        with _quiet():
            import wandb

            defaults = wandb.setup().settings
            if defaults.mode not in self._OFFLINE and not wandb.login(prompt=False):
                raise PermissionError("no API key: run 'wandb login', or set WANDB_MODE=offline")
            self._run = wandb.init(
                project=project,
                entity=entity or None,
                name=name,
                id=self._run_id(Path(defaults.wandb_dir), key[:8], resume),
                resume="allow",
                reinit="create_new",  # a run of the caller stays as it is
                settings=self._settings(wandb),
            )
            self._run.define_metric("*", step_metric="step")  # its own step must never fall, as that of a new backbone

    @classmethod
    def _settings(cls, wandb: Any) -> Any:
        """Return settings that log what Lookalike logs, and nothing about the machine, its code or its terminal."""
        return wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            symlink=False,
            init_timeout=cls._START_S,
            finish_timeout=cls._END_S,
        )

    @staticmethod
    def _run_id(folder: Path, stem: str, resume: bool) -> str:
        """Return a new id, or the one of the last run on this machine that has the same stem."""
        runs = sorted(path.name.partition("run-")[2] for path in folder.glob(f"*run-*-{stem}-*"))  # DATE_TIME-ID
        return runs[-1].partition("-")[2] if resume and runs else f"{stem}-{secrets.token_hex(4)}"

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Add to the run's config."""
        self._run.config.update(dict(values), allow_val_change=True)  # type: ignore[no-untyped-call]

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log values of a step, which is a value itself."""
        self._run.log({**values, "step": step})

    def log_file(self, path: Path) -> None:
        """Store a file among the run's files."""
        with _quiet():
            self._run.save(path, base_path=path.parent, policy="now", glob=False)

    def log_model(self, bundle: Path, name: str) -> None:
        """Store the bundle as the next version of an artifact of the type `model`."""
        import wandb

        artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name), type="model")
        for path in sorted(path for path in bundle.rglob("*") if path.is_file()):
            artifact.add_file(str(path), name=path.relative_to(bundle).as_posix())
        self._run.log_artifact(artifact)

    def close(self, state: str) -> None:
        """End the run."""
        with _quiet():
            self._run.finish(exit_code=0 if state == "finished" else 1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the warnings and the lines that a tracker writes for the users of its own commands."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}
