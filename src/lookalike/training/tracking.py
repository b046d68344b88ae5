"""Experiment tracking, off by default: any number of trackers for one run.

A tracker that fails during a run is disabled with a message: hours of training are worth more than their log.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookalike.errors import MissingExtra, ModelError, OptionError
from lookalike.progress import SILENT, Progress
from lookalike.training.trackers import TRACKERS, Tracker


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
