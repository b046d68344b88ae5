"""Where a run is tracked: the protocol of a tracker, the table of them, and how a target is written."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from lookalike.errors import MissingExtra, OptionError


class Tracker(Protocol):
    """One run in one tracker; what it raises ends the tracking, never the run."""

    def params(self, values: Mapping[str, Any]) -> None:
        """Note what the run was told."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Note figures of a step, which count from 1."""

    def file(self, path: Path) -> None:
        """Keep a file, if the tracker keeps files."""

    def model(self, bundle: Path, name: str) -> None:
        """Register a bundle as a model under a name, if the tracker registers models."""

    def close(self, state: str) -> None:
        """End the run: finished, failed or killed."""


class Opener(Protocol):
    """Begins a run in a tracker, or goes on with an unfinished one."""

    def __call__(self, place: str, name: str, key: str, resume: bool) -> Tracker:
        """Open it.

        Args:
            place: folder or URI.
            name: of the run, for people.
            key: identifies the run when it is resumed.
            resume: go on with the unfinished run of that key, if there is one.

        """


@dataclass(frozen=True)
class Kind:
    """One row of the table of trackers.

    Attributes:
        words: what it is.
        default: where it writes when no place is given.
        module: holds its `open_run`.
        packages: it needs all of them, which come with the extra of its name.

    """

    words: str
    default: str
    module: str
    packages: tuple[str, ...]


TRACKERS: dict[str, Kind] = {
    "tensorboard": Kind(
        "event files in a folder; look at them with: tensorboard --logdir FOLDER",
        "tensorboard",
        "lookalike.training.tracking.tensorboard",
        ("tensorboard",),
    ),
    "mlflow": Kind(
        "a local SQLite file, or a server by its URI; the bundle becomes a registered model",
        "sqlite:///mlflow.db",
        "lookalike.training.tracking.mlflow",
        ("mlflow", "sqlalchemy", "alembic", "pandas"),
    ),
}


@dataclass(frozen=True)
class Target:
    """A tracker and where it writes."""

    tracker: str
    place: str

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read `mlflow`, or `mlflow=URI`.

        Raises:
            OptionError: an unknown tracker, or nothing after the sign.

        """
        name, separator, place = text.partition("=")
        if name not in TRACKERS or (separator and not place):
            raise OptionError(
                f"there is no tracker {text!r}; write NAME or NAME=PLACE with NAME one of {', '.join(TRACKERS)}."
            )
        return cls(name, place or TRACKERS[name].default)

    def opener(self) -> Opener:
        """Return what begins a run there.

        Raises:
            MissingExtra: its packages are not installed.

        """
        kind = TRACKERS[self.tracker]
        missing = [p for p in kind.packages if importlib.util.find_spec(p) is None]
        if missing:
            raise MissingExtra(missing[0], self.tracker, f"tracking with {self.tracker}")
        return cast("Opener", importlib.import_module(kind.module).open_run)


def parse_targets(texts: Sequence[str]) -> tuple[Target, ...]:
    """Read several targets; each once.

    Raises:
        OptionError: see `Target.parse`; also for one string in place of a list.
        MissingExtra: the packages of one are not installed.

    """
    if isinstance(texts, str):
        raise OptionError(f"track takes a list of trackers, got {texts!r}; write [{texts!r}].")
    targets = tuple(dict.fromkeys(Target.parse(text) for text in texts))
    for target in targets:
        target.opener()
    return targets
