"""Saving an encoder as a folder that holds all it needs: weights, preprocessing, classes, how it was made."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from lookalike._files import new_folder, write_json
from lookalike._versions import versions_of
from lookalike.errors import LookalikeError, ModelError, StorageError
from lookalike.models.adapt import Adaptation
from lookalike.models.encoder import Encoder
from lookalike.models.facts import FACTS, WEIGHTS, alignment_key, described, read_facts
from lookalike.models.heads import ProjectionHead
from lookalike.models.member import TrainableEncoder, members_of
from lookalike.models.preprocessing import Preprocessing
from lookalike.models.registry import BackboneRow
from lookalike.models.state_file import mismatch, read_state
from lookalike.models.weights import blank_backbone, own_randomness


def save_bundle(
    encoder: Encoder,
    out: Path | str,
    *,
    facts: Mapping[str, Any] | None = None,
    replace: bool = False,
    further: Callable[[Path], object] | None = None,
) -> Path:
    """Write a bundle in one step.

    Args:
        encoder: what to save.
        out: the folder; must be free unless `replace`.
        facts: further content of `bundle.json`, such as classes, training data fingerprint and measures.
        replace: take the place of an older bundle.
        further: writes further files into the folder before it is put in place.

    Raises:
        StorageError: when the place is taken or cannot be written.
        ModelError: for an encoder that was exported.

    """
    state: dict[str, torch.Tensor] = {}
    rows = []
    for n, (member, alignment) in enumerate(zip(members_of(encoder), encoder.alignments, strict=True)):
        state.update({f"members.{n}.{k}": v for k, v in member.state().items()})
        if alignment is not None:
            state[alignment_key(n)] = torch.from_numpy(np.ascontiguousarray(alignment))
        rows.append({**member_row(member), "aligned": alignment is not None})
    description = described(encoder, rows, facts, versions())
    out = Path(out)
    with new_folder(out, replace=replace) as folder:
        try:
            save_file(state, folder / WEIGHTS)
        except SafetensorError as error:  # its writer wraps the operating system's errors
            raise StorageError(
                f"{out} cannot be written ({error}); free some space or choose another place."
            ) from error
        (folder / WEIGHTS).chmod(0o644)
        write_json(folder / FACTS, description)
        if further is not None:
            further(folder)
    return out


def member_row(member: TrainableEncoder) -> dict[str, Any]:
    """Return what `bundle.json` says of a member."""
    return {
        "backbone": member.backbone,
        "timm_name": member.timm_name,
        "head": {"kind": "ProjectionHead", "features": member.features_width, "dim": member.dim},
        "preprocessing": member.preprocessing.to_dict(),
        **({} if member.adaptation.changes_nothing else {"adaptation": member.adaptation.to_dict()}),
        "origin": member.origin,
        "fingerprint": member.fingerprint,
    }


def load_bundle(path: Path | str) -> Encoder:
    """Load an encoder from a bundle; its fingerprint is taken again and must be the stored one.

    Raises:
        ModelError: no bundle, of a newer format, damaged, or changed since it was saved.

    """
    path = Path(path)
    facts = read_facts(path)
    state = dict(read_state(path / WEIGHTS))
    try:
        members, alignments = [], []
        for n, row in enumerate(facts["members"]):
            prefix = f"members.{n}."
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            alignment = own.pop("alignment", None)
            alignments.append(None if alignment is None else alignment.numpy())
            members.append(_member(row, own, path))
        encoder = Encoder(members, facts["how"] or "aligned", alignments)
    except ModelError:
        raise
    except (LookalikeError, KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{path / FACTS} is damaged ({type(error).__name__}: {str(error).rstrip('.')}); make the bundle again."
        ) from error
    if encoder.fingerprint != facts.get("fingerprint"):
        raise ModelError(f"{path} was changed after it was saved (its fingerprint differs); make the bundle again.")
    return encoder


def _member(row: Mapping[str, Any], state: dict[str, torch.Tensor], path: Path) -> TrainableEncoder:
    preprocessing = Preprocessing.from_dict(row["preprocessing"])
    module = blank_backbone(BackboneRow(row["backbone"], row["timm_name"]))
    adaptation = Adaptation.from_dict(row.get("adaptation"))
    adaptation.repeat(module, preprocessing)
    with own_randomness(0):
        head = ProjectionHead(row["head"]["features"], row["head"]["dim"])
    name, timm_name, origin = row["backbone"], row["timm_name"], row["origin"]
    member = TrainableEncoder(name, timm_name, module, head, preprocessing, origin, adaptation=adaptation)
    problem = mismatch(member.state(), state)
    if problem:
        raise ModelError(f"{path / WEIGHTS} does not fit {path / FACTS}: {problem}; make the bundle again.")
    member.load_state(state)
    return member


def versions() -> dict[str, str]:
    """Versions that a bundle was made with."""
    names = ("lookalike", "torch", "timm", "numpy", "pillow", "pytorch-metric-learning")
    return {"python": platform.python_version(), **versions_of(*names)}
