"""A small encoder with seeded random weights."""

from __future__ import annotations

import pytest

from lookalike.backbones import build_member
from lookalike.encoding import Encoder


class Heard:
    """A progress that writes down what is said, and stops the run when it is told a number."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.said: list[str] = []
        self.stop_at = stop_at

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:  # noqa: ARG002
        if task == "embedding" and self.stop_at is not None and done >= self.stop_at:
            raise KeyboardInterrupt

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def heard() -> type[Heard]:
    return Heard


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """0.1 million parameters, pictures of 160 × 160; do not change it."""
    return Encoder([build_member("test_efficientnet", "none")])
