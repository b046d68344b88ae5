"""Shards: what a run writes as it goes, so that a killed run loses at most the shard it was computing."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lookalike._files import storage_errors, write_file
from lookalike._strings import iter_json_lines
from lookalike.embeddings.store import (
    IDS_FILE,
    INFO_FILE,
    SHARDS_FOLDER,
    VECTORS_FILE,
    EmbeddingsInfo,
    load_embeddings,
    skipped_from_json,
    skipped_to_json,
    write_embeddings_info,
)
from lookalike.errors import DataError, StorageError
from lookalike.types import Embeddings


def shard_path(out: Path, number: int) -> Path:
    """Return the file of a shard in a folder of embeddings."""
    return out / SHARDS_FOLDER / f"{number:05}.npz"


def write_shard(path: Path, key: str, shard: Embeddings) -> None:
    """Write one shard in one step; `key` is the `sources_digest` of its images."""
    record = {"key": key, "ids": list(shard.ids), "skipped": skipped_to_json(shard.skipped)}
    text = np.frombuffer(json.dumps(record).encode("ascii"), dtype=np.uint8)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, vectors=shard.vectors, record=text)

    write_file(path, write)


def read_shard(path: Path, key: str, fingerprint: str) -> Embeddings | None:
    """Read one shard; None where it is missing, damaged, or made from other images."""
    try:
        # opened here, since np.load leaves a damaged file open
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            record = json.loads(stored["record"].tobytes())
            if record["key"] != key:
                return None
            skipped = skipped_from_json(record["skipped"])
            return Embeddings(tuple(record["ids"]), stored["vectors"], fingerprint, skipped)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, DataError):
        return None  # a disk that lost power can leave such a file; it is computed again


class FinishedShards:
    """The shards of a complete folder, by digest, to be reused where the files are unchanged."""

    def __init__(self, out: Path, info: EmbeddingsInfo | None) -> None:
        self._slices: dict[str, tuple[slice, slice]] = {}
        if info is None:
            return
        self._embeddings = load_embeddings(out)
        row = skipped = 0
        for shard in info.shards:
            self._slices[shard.digest] = slice(row, row + shard.rows), slice(skipped, skipped + shard.skipped)
            row, skipped = row + shard.rows, skipped + shard.skipped

    def get(self, key: str) -> Embeddings | None:
        """Return the shard with this digest, or None."""
        if key not in self._slices:
            return None
        rows, skipped = self._slices[key]
        every = self._embeddings
        return Embeddings(every.ids[rows], every.vectors[rows], every.fingerprint, every.skipped[skipped])


def join_shards(out: Path, info: EmbeddingsInfo) -> None:
    """Join all shards into the complete folder.

    All files are written beside the shards, then moved: a full disk leaves older ones as they were, and until the last
    file is moved every shard is still there.
    """

    def shards() -> Iterator[Embeddings]:
        for number, row in enumerate(info.shards):
            shard = read_shard(shard_path(out, number), row.digest, info.run.fingerprint)
            if shard is None or len(shard) != row.rows:
                raise StorageError(f"{shard_path(out, number)} was damaged; run the same command again.")
            yield shard

    folder = out / SHARDS_FOLDER
    _write_joined(folder, shards(), (info.count, info.dim))
    write_embeddings_info(folder, info)
    with storage_errors(out):
        (out / INFO_FILE).unlink(missing_ok=True)  # from here on the older vectors no longer count
        for name in (VECTORS_FILE, IDS_FILE, INFO_FILE):
            (folder / name).replace(out / name)


def _write_joined(folder: Path, shards: Iterable[Embeddings], shape: tuple[int, int]) -> None:
    """Write the vectors as one `.npy` file that can be mapped, and the ids, one per line; one shard is in memory.

    Not through a memory map: on a full disk that ends the process with a bus error, while writing raises.
    """

    def write_vectors(shards: Iterable[Embeddings], file: BinaryIO) -> Iterator[Embeddings]:
        for shard in shards:
            with storage_errors(folder / VECTORS_FILE):
                file.write(np.ascontiguousarray(shard.vectors, dtype="<f4").data)
            yield shard

    def write_both(vectors: Path) -> None:
        def write_ids(ids: Path) -> None:
            with vectors.open("wb") as vectors_file, ids.open("w", encoding="ascii") as ids_file:
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(vectors_file, header)
                written = write_vectors(shards, vectors_file)
                ids_file.writelines(iter_json_lines(item_id for shard in written for item_id in shard.ids))
                ids_file.write("\n")

        write_file(folder / IDS_FILE, write_ids)

    write_file(folder / VECTORS_FILE, write_both)
