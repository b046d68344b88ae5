"""A run in all the trackers that were asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lookalike.errors import ModelError
from lookalike.progress import SILENT, Progress
from lookalike.training.tracking.target import Target, Tracker


class Tracked:
    """Passes what a run reports on to its trackers; one that fails on the way is let go of with a word."""

    def __init__(self, trackers: Mapping[Target, Tracker], progress: Progress = SILENT) -> None:
        self._trackers = dict(trackers)
        self._progress = progress

    def params(self, values: Mapping[str, Any]) -> None:
        """Note what the run was told."""
        self._each(lambda tracker: tracker.params(values))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Note figures of a step, counted from 1, under plain names: `@` is written `_at_`."""
        plain = {name.replace("@", "_at_"): float(value) for name, value in values.items()}
        self._each(lambda tracker: tracker.metrics(plain, step))

    def file(self, path: Path) -> None:
        """Keep a file."""
        if path.is_file():
            self._each(lambda tracker: tracker.file(path))

    def model(self, bundle: Path, name: str) -> None:
        """Register a bundle."""
        self._each(lambda tracker: tracker.model(bundle, name))

    def close(self, state: str) -> None:
        """End the run everywhere."""
        self._each(lambda tracker: tracker.close(state))

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """End the run as the block ends: finished, failed, or killed by an interrupt."""
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
            except Exception as error:  # hours of training are worth more than their record
                del self._trackers[target]
                cause = " ".join(str(error).split()) or type(error).__name__
                self._progress.info(f"tracking with {target.tracker} at {target.place} ended, the run goes on: {cause}")


UNTRACKED = Tracked({})


def begin_tracked(
    targets: Sequence[Target], name: str, key: str, *, resume: bool = False, progress: Progress = SILENT
) -> Tracked:
    """Begin a run in every tracker.

    Args:
        targets: where.
        name: of the run, for people.
        key: what identifies it when it goes on after an interruption.
        resume: go on with the unfinished run of that key where there is one.
        progress: is told of a tracker that fails on the way.

    Raises:
        ModelError: a tracker cannot be reached.

    """
    opened: dict[Target, Tracker] = {}
    for target in targets:
        try:
            opened[target] = target.opener()(target.place, name, key, resume)
        except Exception as error:
            Tracked(opened).close("failed")
            cause = " ".join(str(error).split()) or type(error).__name__
            raise ModelError(
                f"cannot track with {target.tracker} at {target.place} ({cause}); correct the place, or leave it out."
            ) from error
    return Tracked(opened, progress)
