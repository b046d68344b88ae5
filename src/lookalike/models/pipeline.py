"""Decoding and computing at once: batches come from threads, engines work on several, what waits for what is timed."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence

from lookalike.models.engine import Computes
from lookalike.models.stream import Batch
from lookalike.types import Vectors

_FIRST = 4
"""Batches before anything is said of the pace: the first ones wait for everything."""


class Pace:
    """Seconds spent waiting for decoded pictures and for the engines; the longer wait is what sets the pace."""

    def __init__(self) -> None:
        self.decoding = 0.0
        self.model = 0.0
        self.batches = 0

    def __str__(self) -> str:
        if self.batches < _FIRST:
            return ""
        return "decoding sets the pace" if self.decoding > self.model else "the model sets the pace"


def encode_batches(
    given: Iterator[Batch], engines: Sequence[Computes], pace: Pace
) -> Generator[tuple[Batch, list[Vectors]], None, None]:
    """Pair each batch with every engine's embeddings of it, in order; engines work on some batches ahead.

    Args:
        given: batches with pixels for each engine; none where no picture of a batch could be read.
        engines: what computes.
        pace: is told who waited for whom.

    """
    most = min(engine.in_flight for engine in engines)
    waiting: deque[tuple[Batch, list[Callable[[], Vectors]]]] = deque()

    def finished() -> tuple[Batch, list[Vectors]]:
        batch, pending = waiting[0]
        clock = time.perf_counter()
        found: list[Vectors] = []
        while pending:
            found.append(pending.pop(0)())
        waiting.popleft()
        pace.model += time.perf_counter() - clock
        return batch, found

    try:
        while True:
            clock = time.perf_counter()
            batch = next(given, None)
            pace.decoding += time.perf_counter() - clock
            if batch is None:
                break
            pace.batches += 1
            if len(waiting) == most:
                yield finished()
            clock = time.perf_counter()
            pending: list[Callable[[], Vectors]] = []
            waiting.append((batch, pending))  # before they begin, so that those that did are waited for at an error
            pending.extend(e.submit(p) for e, p in zip(engines, batch.pixels, strict=False))
            pace.model += time.perf_counter() - clock
        while waiting:
            yield finished()
    finally:
        for _, pending in waiting:  # someone stopped: what is under way ends before its pixels are given up
            for wait in pending:
                with contextlib.suppress(Exception):
                    wait()
