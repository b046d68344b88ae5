"""Where this machine keeps graphs that it made of models, and what it found out about engines."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_MOST = 4 * 10**9
"""Bytes of compiled models that are kept."""


def cache_folder() -> Path:
    """Return the folder: LOOKALIKE_CACHE, else `lookalike` in the user's cache folder. May be removed at any time."""
    own = os.environ.get("LOOKALIKE_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lookalike"


def writable_cache(name: str) -> Path | None:
    """Return a folder inside the cache, or None where it cannot be made: what it would hold is computed again."""
    place = cache_folder() / name
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return place if os.access(place, os.W_OK) else None


def compiled_cache() -> Path | None:
    """Return the folder that OpenVINO keeps compiled models in, the oldest of them removed where they are many."""
    place = writable_cache("compiled")
    if place is None:
        return None
    with contextlib.suppress(OSError):
        files = sorted((f for f in place.iterdir() if f.is_file()), key=lambda f: -f.stat().st_mtime)
        total = 0
        for file in files:
            total += file.stat().st_size
            if total > _MOST:
                file.unlink()
    return place
