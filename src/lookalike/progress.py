"""How long work talks to whoever started it: steps of a task, and sentences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Receives what long work reports."""

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:
        """`done` of `total` units of `task` are finished; `detail` is a short text such as the loss."""

    def info(self, text: str) -> None:
        """One line for the user."""


class Silent:
    """Reports nothing."""

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:
        """Do nothing."""

    def info(self, text: str) -> None:
        """Do nothing."""


SILENT = Silent()


def counter(progress: Progress, task: str) -> Callable[[int, int], None]:
    """Return a `(done, total)` callback that reports under one task name."""
    return lambda done, total: progress.step(task, done, total)
