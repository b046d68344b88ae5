"""Checkpoints: one file, replaced atomically, readable without running pickled code."""

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
    """Write the state of a run: tensors, numbers, strings, and lists and dictionaries of them."""
    buffer = io.BytesIO()  # for a full disk torch raises no OSError
    torch.save(content, buffer)
    write_file(folder / _NAME, lambda path: path.write_bytes(buffer.getbuffer()))


def load_checkpoint(folder: Path | None, key: str) -> dict[str, Any] | None:
    """Read the state of the run with this key, or None if there is no checkpoint."""
    if folder is None or not (folder / _NAME).is_file():
        return None
    path = folder / _NAME
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about the pickle protocol
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # garbage makes an unpickler raise anything: KeyError, struct.error, ...
        raise StorageError(f"the checkpoint {path} is damaged; remove {folder} and start again.") from error
    if not isinstance(content, dict) or content.get("key") != key:
        raise StorageError(
            f"the checkpoint in {folder} belongs to a run with other data, weights or options; resume with the "
            "original options (only `lr` and `head_lr` may differ), or remove the folder."
        )
    return content
