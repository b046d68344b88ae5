"""A member whose graph another runtime computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lookalike.models.preprocessing import Preprocessing
from lookalike.types import Pixels, Vectors


class Session(Protocol):
    """A graph that a runtime has loaded."""

    @property
    def runtime(self) -> str:
        """Its name."""

    @property
    def precision(self) -> str:
        """What it computes in: float32, bfloat16 or int8."""

    @property
    def batch_size(self) -> int:
        """Images that are best given at once."""

    @property
    def in_flight(self) -> int:
        """How many batches it works on at once."""

    def submit(self, pixels: Pixels) -> Callable[[], Vectors]:
        """Begin to compute; the function that is returned waits for the end, and is called once."""


@dataclass(frozen=True)
class ExportedMember:
    """An runtime: what a member was, and the session that computes it.

    Attributes:
        backbone, preprocessing, dim, fingerprint, trained: as in `Engine`.
        session: computes.
        file: of its graph.
        row: what a bundle says of it.

    """

    backbone: str
    preprocessing: Preprocessing
    dim: int
    fingerprint: str
    trained: str
    session: Session
    file: Path
    row: Mapping[str, Any]

    @property
    def runtime(self) -> str:
        """The session's."""
        return self.session.runtime

    @property
    def precision(self) -> str:
        """The session's."""
        return self.session.precision

    @property
    def runs_on(self) -> str:
        """The kind of device."""
        return "cpu"

    @property
    def batch_size(self) -> int:
        """The session's."""
        return self.session.batch_size

    @property
    def in_flight(self) -> int:
        """The session's."""
        return self.session.in_flight

    def encode(self, pixels: Pixels) -> Vectors:
        """Return the embeddings `(n, dim)` float32, unit length, of `(n, h, w, 3)` uint8 pixels."""
        return self.submit(pixels)()

    def submit(self, pixels: Pixels) -> Callable[[], Vectors]:
        """Begin to do what `encode` does."""
        return self.session.submit(pixels)
