"""Checkpoints: one file, replaced in one step, readable without running pickled code."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import torch

from lookalike._files import write_file
from lookalike.errors import StorageError

_NAME = "checkpoint.pt"


def save_checkpoint(folder: Path, content: dict[str, Any]) -> None:
    """Write the state of a run (tensors, numbers, strings, lists and dicts of them)."""
    buffer = io.BytesIO()
    torch.save(content, buffer)

    def fill(path: Path) -> None:
        path.write_bytes(buffer.getbuffer())

    write_file(folder / _NAME, fill)


def load_checkpoint(folder: Path, key: str) -> dict[str, Any] | None:
    """Read the state of a run back, or None when there is none.

    Args:
        folder: where `save_checkpoint` wrote.
        key: of the run that wants to go on; must be the stored one.

    Raises:
        StorageError: the file is damaged, or belongs to a run with other data or options.

    """
    path = folder / _NAME
    if not path.is_file():
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about the pickle's protocol; what cannot be read raises
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler fed with garbage raises what it likes: KeyError, struct.error, ...
        raise StorageError(f"the checkpoint {path} is damaged; remove {folder} and start again.") from error
    if not isinstance(content, dict) or content.get("key") != key:
        raise StorageError(
            f"the checkpoint in {folder} belongs to a run with other data, weights or options; "
            "resume with the options it was started with (learning rates may be others), or remove it."
        )
    return content
