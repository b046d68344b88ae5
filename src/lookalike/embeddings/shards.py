"""Shards: what a run keeps while it is under way, so that a killed one loses at most the shard it was at."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from lookalike._files import digest, storage_errors, write_file
from lookalike._strings import iter_json_lines
from lookalike.embeddings.store import IDS, SHARDS, VECTORS, skipped_files, skipped_rows
from lookalike.errors import DataError
from lookalike.types import Embeddings

if TYPE_CHECKING:
    from lookalike.models.stream import Source


def shard_path(out: Path, number: int) -> Path:
    """Where a shard lies in an embeddings folder."""
    return out / SHARDS / f"{number:05}.npz"


def sources_digest(fingerprint: str, sources: Sequence[Source]) -> str:
    """Fingerprint of a model and of files: ids, sizes, times of change to the nanosecond, and whether they can be read.

    A path alone would keep the embedding of a picture that was replaced by another.
    """
    parts: list[bytes | str] = [fingerprint]
    for source in sources:
        parts.append(os.fsencode(source.id))
        try:
            status = source.path.stat()
        except OSError:
            parts.append("missing")
        else:
            parts.append(f"{status.st_size} {status.st_mtime_ns} {os.access(source.path, os.R_OK)}")
    return digest(*parts)


def write_shard(path: Path, key: str, shard: Embeddings) -> None:
    """Write one shard in one step.

    Args:
        path: the file.
        key: `sources_digest` of its sources.
        shard: their embeddings.

    Raises:
        StorageError: when the disk does not take it.

    """
    facts = {"key": key, "ids": list(shard.ids), "skipped": skipped_rows(shard.skipped)}
    text = np.frombuffer(json.dumps(facts).encode("ascii"), dtype=np.uint8)

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as handle:
            np.savez(handle, vectors=shard.vectors, facts=text)

    write_file(path, fill)


def read_shard(path: Path, key: str, fingerprint: str) -> Embeddings | None:
    """Read one shard; None when it is not there, damaged, or made from other sources."""
    try:
        # opened here, since np.load leaves a damaged file open
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as stored:
            facts = json.loads(stored["facts"].tobytes())
            if facts["key"] != key:
                return None
            return Embeddings(tuple(facts["ids"]), stored["vectors"], fingerprint, skipped_files(facts["skipped"]))
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, DataError):
        return None  # a disk that lost power can leave such a file; it is computed again


def write_joined(folder: Path, shards: Iterable[Embeddings], shape: tuple[int, int]) -> None:
    """Write shards under each other as one `.npy` file that can be mapped, and one list of ids, each in its own line.

    Not through a mapped file: on a full disk that ends the process with a bus error, writing raises. One shard is in
    memory.

    Args:
        folder: where both files come to be.
        shards: in their order.
        shape: of all vectors together.

    Raises:
        StorageError: when the disk does not take it.

    """

    def written(vectors: BinaryIO) -> Iterator[Embeddings]:
        for shard in shards:
            with storage_errors(folder / VECTORS):
                vectors.write(np.ascontiguousarray(shard.vectors, dtype="<f4").data)
            yield shard

    def fill_vectors(temporary: Path) -> None:
        def fill_ids(other: Path) -> None:
            with temporary.open("wb") as vectors, other.open("w", encoding="ascii") as ids:
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(vectors, header)
                for text in iter_json_lines(name for shard in written(vectors) for name in shard.ids):
                    ids.write(text)
                ids.write("\n")

        write_file(folder / IDS, fill_ids)

    write_file(folder / VECTORS, fill_vectors)
