"""Bundles whatever they hold: weights for torch, or graphs that were exported for another runtime.

An exported bundle is a folder of

- `bundle.json`: as of any bundle, with `runtime`, `precision`, and what the graphs were found to lose
- `member-0.xml` with `member-0.bin`, or `member-0.onnx`: a member's graph; `member-1`, ... of an ensemble
- `alignments.npz`: the rotations of an ensemble that is aligned
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.encoding import Encoder, Preprocessing
from lookalike.encoding.encoder import joint_fingerprint
from lookalike.encoding.facts import FACTS, FORMAT, read_facts
from lookalike.engines.cache import cache_folder
from lookalike.engines.exported import ExportedMember, Session
from lookalike.engines.onnx import RUNTIME as ONNX
from lookalike.engines.onnx import OnnxSession
from lookalike.engines.openvino import RUNTIME as OPENVINO
from lookalike.engines.openvino import OpenVINOSession
from lookalike.errors import LookalikeError, ModelError
from lookalike.files import digest, file_digest, new_folder, write_json
from lookalike.types import Vectors

SUFFIXES = {OPENVINO: ".xml", ONNX: ".onnx"}
ALIGNMENTS = "alignments.npz"


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
    if "runtime" not in facts:
        from lookalike.backbones import load_bundle as load_weights

        return load_weights(path)
    try:
        members = [_member(row, path, facts, single=single) for row in facts["members"]]
        alignments = _read_alignments(path, facts["members"])
        encoder = Encoder(members, facts["how"] or "aligned", alignments)
    except LookalikeError:
        raise
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ModelError(
            f"{path / FACTS} is damaged ({type(error).__name__}: {str(error).rstrip('.')}); export the model again."
        ) from error
    if encoder.fingerprint != facts.get("fingerprint"):
        raise ModelError(f"{path} was changed after it was exported (its fingerprint differs); export the model again.")
    return encoder


def save_bundle(encoder: Encoder, out: Path, *, facts: Mapping[str, Any] | None = None, replace: bool = False) -> None:
    """Write an encoder as a bundle: its weights, or where it was exported a copy of what it was loaded from.

    Args:
        encoder: what to save.
        out: the folder; must be free unless `replace`.
        facts: further content of `bundle.json`.
        replace: take the place of an older bundle.

    Raises:
        StorageError: when the place is taken or cannot be written.

    """
    origins = {m.origin for m in encoder.members if isinstance(m, ExportedMember)}
    if not origins:
        from lookalike.backbones import save_bundle as save_weights

        save_weights(encoder, out, facts=facts, replace=replace)
        return
    origin = origins.pop()
    if origin is None:
        raise ModelError(f"{encoder.name} was never saved; export it first.")
    with new_folder(out, replace=replace) as folder:
        shutil.copytree(origin, folder, dirs_exist_ok=True)
        if facts:
            write_json(folder / FACTS, {**read_facts(origin), **facts})


def graph_file(number: int, runtime: str) -> str:
    """Return the name of a member's graph."""
    return f"member-{number}{SUFFIXES[runtime]}"


def write_facts(
    folder: Path,
    encoder: Encoder,
    *,
    runtime: str,
    precision: str,
    origin: Mapping[str, Any],
    facts: Mapping[str, Any],
    versions: Mapping[str, str],
) -> None:
    """Complete a folder that holds the graphs: the alignments, and `bundle.json`.

    Args:
        folder: with a graph for each member.
        encoder: what the graphs were made of.
        runtime: of the graphs.
        precision: of the graphs.
        origin: the `bundle.json` of the encoder.
        facts: further content.
        versions: that made the graphs.

    """
    if any(a is not None for a in encoder.alignments):
        np.savez(folder / ALIGNMENTS, **{str(n): a for n, a in enumerate(encoder.alignments) if a is not None})  # type: ignore[arg-type]
    rows = []
    for n, (member, old) in enumerate(zip(encoder.members, origin["members"], strict=True)):
        file = folder / graph_file(n, runtime)
        own = digest(member.fingerprint, precision, _graph_digest(file)) if precision == "int8" else member.fingerprint
        sizes = {part.name: part.stat().st_size for part in _parts(file)}
        rows.append({**old, "fingerprint": own, "file": file.name, "bytes": sizes})
    write_json(
        folder / FACTS,
        {
            **origin,
            "format": FORMAT,
            "runtime": runtime,
            "precision": precision,
            "members": rows,
            **facts,
            "exported_from": encoder.fingerprint,
            "versions": dict(versions),
            "fingerprint": joint_fingerprint([row["fingerprint"] for row in rows], encoder.how, encoder.alignments),
        },
    )


def _graph_digest(file: Path) -> str:
    """Return the fingerprint of all that a graph is kept in."""
    return digest(*(file_digest(part) for part in _parts(file)))


def _parts(file: Path) -> list[Path]:
    weights = file.with_suffix(".bin")
    return [file, weights] if weights.is_file() else [file]


def _member(row: Mapping[str, Any], path: Path, facts: Mapping[str, Any], *, single: bool) -> ExportedMember:
    file = path / str(row["file"])
    sizes = {part.name: part.stat().st_size for part in _parts(file)}
    if sizes != row["bytes"]:
        raise ModelError(f"{path} was changed after it was exported ({file.name} differs); export the model again.")
    return ExportedMember(
        backbone=str(row["backbone"]),
        preprocessing=Preprocessing.from_dict(row["preprocessing"]),
        dim=int(row["head"]["dim"]),
        fingerprint=str(row["fingerprint"]),
        trained=str(row["origin"].get("trained", "frozen")),
        session=open_session(file, str(facts["runtime"]), str(facts["precision"]), single=single),
        origin=path,
    )


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


def _read_alignments(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[Vectors | None]:
    if not any(row["aligned"] for row in rows):
        return [None] * len(rows)
    with (path / ALIGNMENTS).open("rb") as handle, np.load(handle, allow_pickle=False) as stored:
        return [stored[str(n)] if row["aligned"] else None for n, row in enumerate(rows)]
