"""What a frozen backbone sees, without its head, by the runtime that is quickest for many pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from lookalike.errors import ModelError, StorageError
from lookalike.models.engine import LEAST_COSINE, Computes
from lookalike.runtimes import openvino
from lookalike.runtimes.choice import WORTH_IT
from lookalike.runtimes.kept import make_graph
from lookalike.runtimes.members import open_session
from lookalike.types import Pixels, Vectors

if TYPE_CHECKING:
    from lookalike.models.member import TrainableEncoder

_TOLERANCE = 1e-3
"""How much longer or shorter than torch's a row of features may be, as a share."""


def quick_features(member: TrainableEncoder, count: int, shown: Callable[[], Pixels | None]) -> Computes | None:
    """Return what computes a member's pooled features `(n, features)` float32 faster than torch does.

    Args:
        member: on a CPU; its head is not looked at.
        count: pictures that there are.
        shown: returns a few of them, `(n, h, w, 3)` uint8, to see that the features are torch's; None where none can
            be read.

    Returns:
        None where torch is to be taken: there are few pictures, or no other runtime computes the same.

    """
    if count < WORTH_IT or member.runs_on != "cpu" or not openvino.is_installed():
        return None
    pixels = shown()
    if pixels is None:
        return None
    try:
        session = open_session(make_graph(member, head=False), openvino.RUNTIME, "float32")
    except (ModelError, StorageError):
        return None
    return session if _same(member.features(pixels), session.submit(pixels)()) else None


def _same(expected: Vectors, found: Vectors) -> bool:
    lengths, others = (np.linalg.norm(rows, axis=1) for rows in (expected, found))
    cosines = (expected * found).sum(1) / np.maximum(lengths * others, 1e-12)
    near = np.abs(others - lengths) <= _TOLERANCE * lengths
    return bool((cosines >= LEAST_COSINE["float32"]).all() and near.all())
