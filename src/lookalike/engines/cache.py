"""Where this machine keeps graphs that it made of models, and what it found out about engines."""

from __future__ import annotations

import os
from pathlib import Path


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
