"""From a graph in a file to a member."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lookalike._files import digest, file_digest
from lookalike.errors import ModelError
from lookalike.models.preprocessing import Preprocessing
from lookalike.runtimes.cache import compiled_cache
from lookalike.runtimes.exported import ExportedMember, Session
from lookalike.runtimes.onnx import RUNTIME as ONNX
from lookalike.runtimes.onnx import OnnxSession
from lookalike.runtimes.openvino import RUNTIME as OPENVINO
from lookalike.runtimes.openvino import OpenVINOSession

SUFFIXES = {OPENVINO: ".xml", ONNX: ".onnx"}


def open_member(
    file: Path, row: Mapping[str, Any], *, runtime: str, precision: str, single: bool = False, kept: bool = True
) -> ExportedMember:
    """Make a member of a graph that was just written.

    Args:
        file: of the graph.
        row: what its bundle says of the member that the graph was made of.
        runtime: openvino or onnxruntime.
        precision: that it is computed in; a graph of int8 is another model, with a fingerprint of its own.
        single: for single pictures rather than many.
        kept: whether the graph will be opened from there again.

    """
    fingerprint = str(row["fingerprint"])
    if precision == "int8":
        fingerprint = digest(fingerprint, precision, *(file_digest(part) for part in parts_of(file)))
    own = {**row, "runtime": runtime, "precision": precision, "file": file.name, "fingerprint": fingerprint}
    return member_of(file, own, single=single, kept=kept)


def open_session(file: Path, runtime: str, precision: str, *, single: bool = False, kept: bool = True) -> Session:
    """Load a graph.

    Args:
        file: of the graph.
        runtime: openvino or onnxruntime.
        precision: that it is computed in.
        single: for single pictures rather than many.
        kept: whether the graph will be opened from there again: what compiling gives is kept too.

    Raises:
        ModelError: another runtime, or a damaged file.
        MissingExtra: the runtime is not installed.

    """
    if runtime == OPENVINO:
        return OpenVINOSession(file, precision, throughput=not single, cache=compiled_cache() if kept else None)
    if runtime == ONNX:
        return OnnxSession(file, precision)
    raise ModelError(f"there is no runtime named {runtime!r}; known are {', '.join(SUFFIXES)}.")


def member_of(file: Path, row: Mapping[str, Any], *, single: bool, kept: bool = True) -> ExportedMember:
    """Make a member of a graph and of what its bundle says of it."""
    return ExportedMember(
        backbone=str(row["backbone"]),
        preprocessing=Preprocessing.from_dict(row["preprocessing"]),
        dim=int(row["head"]["dim"]),
        fingerprint=str(row["fingerprint"]),
        trained=str(row["origin"].get("trained", "frozen")),
        session=open_session(file, str(row["runtime"]), str(row["precision"]), single=single, kept=kept),
        file=file,
        row=row,
    )


def parts_of(file: Path) -> list[Path]:
    """Return all files that a graph is kept in."""
    weights = file.with_suffix(".bin")
    return [file, weights] if file.suffix == SUFFIXES[OPENVINO] else [file]
