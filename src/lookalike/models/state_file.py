"""Reading a state dict from a file that anybody may have made: nothing in it is ever run."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from lookalike.errors import ModelError

State = Mapping[str, torch.Tensor]
_DAMAGED = (
    *(SafetensorError, pickle.UnpicklingError, struct.error),
    *(RuntimeError, EOFError, ValueError, OSError, LookupError),
)


def read_state(path: Path) -> State:
    """Read a state dict from a safetensors file, or from a torch file with `weights_only=True`.

    Raises:
        ModelError: the file is missing, is a folder, is corrupt, holds code, or holds something else than tensors.

    """
    if path.is_dir():
        raise ModelError(
            f"{path} is a folder; --weights takes a safetensors file (a bundle goes to --model or --bundle)."
        )
    if not path.is_file():
        raise ModelError(f"the weights file {path} does not exist; check the path.")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else _load_torch(path)
    except _DAMAGED as error:
        raise ModelError(_unreadable(path, error)) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not state or not all(map(_is_entry, state, state.values())):
        raise ModelError(
            f"{path} holds no state dict (names to tensors); save the model's state_dict() as safetensors."
        )
    return state


def _load_torch(path: Path) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about the pickle's protocol; what cannot be read raises
        return torch.load(path, map_location="cpu", weights_only=True)


def _is_entry(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, torch.Tensor)


def _unreadable(path: Path, error: Exception) -> str:
    """Say why a file was refused; torch's own text would advise to load it with code and all."""
    text = str(error)
    foreign = re.search(r"GLOBAL (\S+)", text)
    if foreign:
        return (
            f"{path} is a pickle that needs the Python object {foreign.group(1)}, and loading such a file can run any "
            "code, so it is refused; save the model's state_dict() as safetensors where you trust the file."
        )
    if isinstance(error, pickle.UnpicklingError | EOFError | LookupError) or not text.strip():
        cause = "no torch file, or half of one"
    else:
        cause = text.strip().splitlines()[0].split(". ")[0].rstrip(".")[:160]
    return f"{path} is corrupt or not a weights file ({cause}); fetch it again."


def mismatch(wanted: State, got: State) -> str:
    """Say how two state dicts differ in names or shapes; empty when they do not."""
    missing = [k for k in wanted if k not in got]
    unknown = [k for k in got if k not in wanted]
    shapes = [k for k in wanted if k in got and wanted[k].shape != got[k].shape]
    parts = []
    if missing:
        parts.append(f"{len(missing)} of {len(wanted)} tensors are missing (first {missing[0]})")
    if unknown:
        parts.append(f"{len(unknown)} are unknown (first {unknown[0]})")
    if shapes:
        k = shapes[0]
        parts.append(
            f"{len(shapes)} have another shape (first {k}: {tuple(got[k].shape)}, not {tuple(wanted[k].shape)})"
        )
    return ", ".join(parts)
