"""Bundles whatever they hold: weights for torch, or graphs that were exported for another runtime.

An exported bundle is a folder of

- `bundle.json`: as of any bundle; its members say which runtime computes them and in what precision
- `member-0.xml` with `member-0.bin`, or `member-0.onnx`: a member's graph; `member-1`, ... of an ensemble
- `alignments.npz`: the rotations of an ensemble that is aligned
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lookalike._files import file_digest, new_folder, storage_errors, write_json
from lookalike._versions import versions_of
from lookalike.errors import LookalikeError, ModelError
from lookalike.models.encoder import Encoder
from lookalike.models.facts import FACTS, described, read_facts
from lookalike.runtimes.choice import remembered
from lookalike.runtimes.exported import ExportedMember
from lookalike.runtimes.members import SUFFIXES, member_of, parts_of
from lookalike.types import Vectors

_ALIGNMENTS = "alignments.npz"


def is_exported(facts: Mapping[str, Any]) -> bool:
    """Whether these are the facts of an exported bundle."""
    rows = facts.get("members")
    return isinstance(rows, list) and any(isinstance(row, dict) and "runtime" in row for row in rows)


def load_bundle(path: Path | str, *, single: bool = False, precision: str = "auto") -> Encoder:
    """Load an encoder from a bundle, exported or not.

    Args:
        path: the bundle.
        single: it will embed single pictures rather than many. Where an runtime was chosen for the model before, it is
            taken, which spares importing torch; of an exported model the files' sizes are looked at, not all that is
            in them.
        precision: with `single`, what that runtime must compute in; auto takes the fastest.

    Raises:
        ModelError: no bundle, of a newer format, damaged, or changed since it was saved.
        MissingExtra: the runtime that it was exported for is not installed.

    """
    path = Path(path)
    facts = read_facts(path)
    if not is_exported(facts):
        quick = remembered(path, facts, precision=precision, single=True) if single else None
        if quick is not None:
            return quick
        from lookalike.models.torch_bundle import load_bundle as load_weights

        return load_weights(path)
    try:
        members = [_load_member(path, row, single=single) for row in facts["members"]]
        encoder = Encoder(members, facts["how"] or "aligned", _read_alignments(path, facts["members"]))
    except LookalikeError:
        raise
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ModelError(
            f"{path / FACTS} is damaged ({type(error).__name__}: {str(error).rstrip('.')}); export the model again."
        ) from error
    if encoder.fingerprint != facts.get("fingerprint"):
        raise ModelError(f"{path} was changed after it was exported (its fingerprint differs); export the model again.")
    return encoder


def save_bundle(
    encoder: Encoder,
    out: Path | str,
    *,
    facts: Mapping[str, Any] | None = None,
    replace: bool = False,
    further: Callable[[Path], object] | None = None,
) -> Path:
    """Write an encoder as a bundle: its weights, or where it was exported its graphs.

    Args:
        encoder: what to save.
        out: the folder; must be free unless `replace`.
        facts: further content of `bundle.json`.
        replace: take the place of an older bundle.
        further: writes further files into the folder before it is put in place.

    Raises:
        StorageError: when the place is taken or cannot be written.
        ModelError: for an ensemble of which some members were exported and others not.

    """
    members = [m for m in encoder.members if isinstance(m, ExportedMember)]
    if not members:
        from lookalike.models.torch_bundle import save_bundle as save_weights

        return save_weights(encoder, out, facts=facts, replace=replace, further=further)
    if len(members) < len(encoder.members):
        raise ModelError(f"of {encoder.name} some members were exported and others not; export all of them or none.")
    out = Path(out)
    with new_folder(out, replace=replace) as folder:
        rows = [_copy_member(m, n, folder) for n, m in enumerate(members)]
        for row, alignment in zip(rows, encoder.alignments, strict=True):
            row["aligned"] = alignment is not None
        if any(row["aligned"] for row in rows):
            with storage_errors(out):
                np.savez(
                    folder / _ALIGNMENTS,
                    allow_pickle=False,
                    **{str(n): a for n, a in enumerate(encoder.alignments) if a is not None},
                )
        versions = {**(facts or {}).get("versions", {}), **versions_of("lookalike")}
        write_json(folder / FACTS, described(encoder, rows, facts, versions))
        if further is not None:
            further(folder)
    return out


def graph_file(number: int, runtime: str) -> str:
    """Return the name of a member's graph."""
    return f"member-{number}{SUFFIXES[runtime]}"


def _load_member(path: Path, row: Mapping[str, Any], *, single: bool) -> ExportedMember:
    file = path / str(row["file"])
    parts = parts_of(file)
    same = {part.name: part.stat().st_size for part in parts} == row["bytes"]
    if not same or (not single and {part.name: file_digest(part) for part in parts} != row["digests"]):
        raise ModelError(f"{path} was changed after it was exported ({file.name} differs); export the model again.")
    return member_of(file, row, single=single)


def _copy_member(member: ExportedMember, number: int, folder: Path) -> dict[str, Any]:
    """Copy a member's graph under its number, and return its row."""
    target = folder / graph_file(number, member.runtime)
    for part in parts_of(member.file):
        with storage_errors(target):
            shutil.copyfile(part, target.with_suffix(part.suffix))
    parts = parts_of(target)
    sizes = {part.name: part.stat().st_size for part in parts}
    return {**member.row, "file": target.name, "bytes": sizes, "digests": {p.name: file_digest(p) for p in parts}}


def _read_alignments(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[Vectors | None]:
    if not any(row["aligned"] for row in rows):
        return [None] * len(rows)
    with (path / _ALIGNMENTS).open("rb") as handle, np.load(handle, allow_pickle=False) as stored:
        return [stored[str(n)] if row["aligned"] else None for n, row in enumerate(rows)]
