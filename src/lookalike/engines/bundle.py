"""Bundles whatever they hold: weights for torch, or graphs that were exported for another runtime.

An exported bundle is a folder of

- `bundle.json`: as of any bundle; its members say which runtime computes them and in what precision
- `member-0.xml` with `member-0.bin`, or `member-0.onnx`: a member's graph; `member-1`, ... of an ensemble
- `alignments.npz`: the rotations of an ensemble that is aligned
"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.encoding import Encoder, Preprocessing
from lookalike.encoding.facts import FACTS, FORMAT, read_facts
from lookalike.engines.cache import cache_folder
from lookalike.engines.exported import ExportedMember, Session
from lookalike.engines.onnx import RUNTIME as ONNX
from lookalike.engines.onnx import OnnxSession
from lookalike.engines.openvino import RUNTIME as OPENVINO
from lookalike.engines.openvino import OpenVINOSession
from lookalike.errors import LookalikeError, ModelError
from lookalike.files import digest, file_digest, new_folder, storage_errors, write_json
from lookalike.types import Vectors

SUFFIXES = {OPENVINO: ".xml", ONNX: ".onnx"}
_ALIGNMENTS = "alignments.npz"


def is_exported(facts: Mapping[str, Any]) -> bool:
    """Whether these are the facts of an exported bundle."""
    return any("runtime" in row for row in facts.get("members", ()))


def load_bundle(path: Path | str, *, single: bool = False) -> Encoder:
    """Load an encoder from a bundle, exported or not.

    Args:
        path: the bundle.
        single: it will embed single pictures rather than many.

    Raises:
        ModelError: no bundle, of a newer format, damaged, or changed since it was saved.
        MissingExtra: the runtime that it was exported for is not installed.

    """
    path = Path(path)
    facts = read_facts(path)
    if not is_exported(facts):
        from lookalike.backbones import load_bundle as load_weights

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
        from lookalike.backbones import save_bundle as save_weights

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
        description = {
            "format": FORMAT,
            "name": encoder.name,
            "type": "ensemble" if encoder.is_ensemble else "single",
            "how": encoder.how if encoder.is_ensemble else None,
            "dim": encoder.dim,
            **(facts or {}),
            "members": rows,
            "versions": {**(facts or {}).get("versions", {}), "lookalike": importlib.metadata.version("lookalike")},
            "fingerprint": encoder.fingerprint,
        }
        write_json(folder / FACTS, description)
        if further is not None:
            further(folder)
    return out


def open_member(
    file: Path, row: Mapping[str, Any], *, runtime: str, precision: str, single: bool = False
) -> ExportedMember:
    """Make a member of a graph that was just written.

    Args:
        file: of the graph.
        row: what its bundle says of the member that the graph was made of.
        runtime: openvino or onnxruntime.
        precision: that it is computed in; a graph of int8 is another model, with a fingerprint of its own.
        single: for single pictures rather than many.

    """
    sizes = {part.name: part.stat().st_size for part in _parts(file)}
    fingerprint = str(row["fingerprint"])
    if precision == "int8":
        fingerprint = digest(fingerprint, precision, *(file_digest(part) for part in _parts(file)))
    own = {**row, "runtime": runtime, "precision": precision, "file": file.name, "bytes": sizes}
    return _member(file, {**own, "fingerprint": fingerprint}, single=single)


def open_session(file: Path, runtime: str, precision: str, *, single: bool = False) -> Session:
    """Load a graph.

    Args:
        file: of the graph.
        runtime: openvino or onnxruntime.
        precision: that it is computed in.
        single: for single pictures rather than many.

    Raises:
        ModelError: another runtime, or a damaged file.
        MissingExtra: the runtime is not installed.

    """
    if runtime == OPENVINO:
        return OpenVINOSession(file, precision, throughput=not single, cache=cache_folder() / "compiled")
    if runtime == ONNX:
        return OnnxSession(file, precision)
    raise ModelError(f"there is no runtime named {runtime!r}; known are {', '.join(SUFFIXES)}.")


def graph_file(number: int, runtime: str) -> str:
    """Return the name of a member's graph."""
    return f"member-{number}{SUFFIXES[runtime]}"


def _load_member(path: Path, row: Mapping[str, Any], *, single: bool) -> ExportedMember:
    file = path / str(row["file"])
    if {part.name: part.stat().st_size for part in _parts(file)} != row["bytes"]:
        raise ModelError(f"{path} was changed after it was exported ({file.name} differs); export the model again.")
    return _member(file, row, single=single)


def _member(file: Path, row: Mapping[str, Any], *, single: bool) -> ExportedMember:
    return ExportedMember(
        backbone=str(row["backbone"]),
        preprocessing=Preprocessing.from_dict(row["preprocessing"]),
        dim=int(row["head"]["dim"]),
        fingerprint=str(row["fingerprint"]),
        trained=str(row["origin"].get("trained", "frozen")),
        session=open_session(file, str(row["runtime"]), str(row["precision"]), single=single),
        file=file,
        row=row,
    )


def _copy_member(member: ExportedMember, number: int, folder: Path) -> dict[str, Any]:
    """Copy a member's graph under its number, and return its row."""
    target = folder / graph_file(number, member.runtime)
    for part in _parts(member.file):
        with storage_errors(target):
            shutil.copyfile(part, target.with_suffix(part.suffix))
    sizes = {part.name: part.stat().st_size for part in _parts(target)}
    return {**member.row, "file": target.name, "bytes": sizes}


def _parts(file: Path) -> list[Path]:
    weights = file.with_suffix(".bin")
    return [file, weights] if file.suffix == SUFFIXES[OPENVINO] else [file]


def _read_alignments(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[Vectors | None]:
    if not any(row["aligned"] for row in rows):
        return [None] * len(rows)
    with (path / _ALIGNMENTS).open("rb") as handle, np.load(handle, allow_pickle=False) as stored:
        return [stored[str(n)] if row["aligned"] else None for n, row in enumerate(rows)]
