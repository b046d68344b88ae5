"""Pillow's warnings about odd files, which the errors of reading say better."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator

_lock = threading.Lock()
_readers = 0
_filters: warnings.catch_warnings[None] | None = None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's warnings about odd files while any thread reads one.

    `warnings.catch_warnings` restores the filters that it met, which are another thread's where readings overlap, and
    the silence would then last for good; so the first reader in enters it and the last one out leaves it.
    """
    global _readers, _filters  # noqa: PLW0603 - the filters are the process's own, so is this
    with _lock:
        if _filters is None:
            _filters = warnings.catch_warnings()
            _filters.__enter__()
            warnings.simplefilter("ignore")
        _readers += 1
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if not _readers:
                _filters.__exit__(None, None, None)
                _filters = None
