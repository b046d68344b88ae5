"""TensorBoard: figures as event files, one folder a run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TensorBoard:
    """A run's folder of event files; keeps figures only."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its imports use what other packages have deprecated
            from tensorboard.summary import Writer

            self._writer = Writer(str(folder))

    def params(self, values: Mapping[str, Any]) -> None:
        """Do nothing: the bundle has them."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Write one point a figure."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def file(self, path: Path) -> None:
        """Do nothing."""

    def model(self, bundle: Path, name: str) -> None:
        """Do nothing."""

    def close(self, state: str) -> None:  # noqa: ARG002
        """Write what is left."""
        self._writer.close()


def open_run(place: str, name: str, key: str, resume: bool) -> TensorBoard:
    """Write into a folder of the run's name and key below `place`; one that goes on adds to the last of them."""
    stem = f"{name}-{key[:8]}"
    before = sorted(Path(place).glob(f"{stem}*"), key=lambda folder: (len(folder.name), folder.name))
    folder = before[-1] if before and resume else Path(place) / (f"{stem}-{len(before) + 1}" if before else stem)
    folder.mkdir(parents=True, exist_ok=True)
    return TensorBoard(folder)
