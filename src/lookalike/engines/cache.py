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
