"""The model hub: asked once whether it answers, so that a machine without a network hears so in seconds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from huggingface_hub import constants
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

ANSWER_SECONDS = 5.0


def hub_silence() -> str:
    """Say why the hub does not answer; empty when it does.

    The client's own downloads try each of two file names six times with growing pauses, 47 s in all, before they give
    up. This asks once, through the same client, so its proxy and endpoint settings hold.
    """
    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_SECONDS)
    except Exception as error:  # the client's and its transport's own kinds, by version
        return first_line(error)
    return ""


@contextlib.contextmanager
def cache_only() -> Iterator[None]:
    """Let the hub's client look into its cache on disk alone."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def first_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of its text, without a full stop."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')[:160]}" if lines else type(error).__name__
