"""Shards, in which the embeddings of a folder are kept until all of them are computed, and the complete folder."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike._files import FileRecord, open_regular, require_uncompressed, storage_errors, write_file
from lookalike._strings import iter_json_lines
from lookalike.embeddings.folder import (
    DATA_FILES,
    IDS_FILE,
    INFO_FILE,
    KEYS_FILE,
    SHARDS_FOLDER,
    VECTORS_FILE,
    EmbeddingsInfo,
    damaged_embeddings,
    failed_from_json,
    failed_to_json,
    is_embeddings,
    load_embeddings,
    require_unchanged_embeddings,
    write_embeddings_info,
)
from lookalike.errors import StorageError
from lookalike.models.pipeline import Keys, Source
from lookalike.types import Embeddings, Skipped, Vectors

_BLOCK = 4096  # vectors in memory while a folder is written


@dataclass(frozen=True)
class Shard:
    """The vectors of some images, by the keys of the images."""

    keys: Keys  # `(n,)`
    vectors: Vectors  # `(n, dim)`
    failed: Mapping[int, Skipped]  # files that cannot be decoded, by key

    @classmethod
    def of(cls, sources: Sequence[Source], keys: Keys, embeddings: Embeddings) -> Shard:
        """Give the embeddings of images their keys; files that could not be read for now get none."""
        by_id = dict(zip((source.id for source in sources), keys.tolist(), strict=True))
        readable = np.array([by_id.pop(item_id) for item_id in embeddings.ids], np.uint64)
        skipped = zip(by_id.values(), embeddings.skipped, strict=True)
        return cls(readable, embeddings.vectors, {key: file for key, file in skipped if not file.temporary})

    def embeddings(self, sources: Sequence[Source], keys: Keys, fingerprint: str) -> Embeddings | None:
        """Undo `of`; None if the shard is not of exactly these images."""
        ids = {key: source.id for key, source in zip(keys.tolist(), sources, strict=True)}
        if [key for key in ids if key not in self.failed] != self.keys.tolist() or not self.failed.keys() <= ids.keys():
            return None
        return Embeddings(
            [ids[key] for key in self.keys.tolist()], self.vectors, fingerprint, tuple(self.failed.values())
        )


def shard_path(out: Path, number: int) -> Path:
    """Return the file of a shard in a folder of embeddings."""
    return out / SHARDS_FOLDER / f"{number:05}.npz"


def write_shard(path: Path, shard: Shard) -> None:
    """Write one shard in one step."""
    record = np.frombuffer(json.dumps(failed_to_json(shard.failed)).encode("ascii"), dtype=np.uint8)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, vectors=shard.vectors, keys=shard.keys, failed=record)

    write_file(path, write)


def read_shard(path: Path) -> Shard | None:
    """Read one shard; None if it is missing or damaged."""
    try:
        # opened here, since np.load leaves a damaged file open
        with open_regular(path) as file:
            require_uncompressed(file)
            with np.load(file, allow_pickle=False) as stored:
                failed = failed_from_json(json.loads(stored["failed"].tobytes()))
                shard = Shard(stored["keys"], stored["vectors"], failed)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile):
        return None  # a disk that lost power can leave such a file; it is computed again
    valid = shard.vectors.dtype == np.float32 and shard.keys.dtype == np.uint64 and shard.vectors.ndim == 2
    return shard if valid and shard.keys.shape == shard.vectors.shape[:1] else None


class StoredVectors:
    """The vectors of a complete folder and of the shards that a stopped run left, by the keys of their images.

    A row is a position in the complete folder, or behind it in one of the shards.
    """

    def __init__(self, out: Path, info: EmbeddingsInfo | None) -> None:
        self._out = out
        if info is not None:
            require_unchanged_embeddings(out, info)
        self._keys = [_read_keys(out, info.count) if info is not None else np.zeros(0, np.uint64)]
        self._numbers = [-1]  # of the shards, after the complete folder
        self.failed = dict(info.failed) if info is not None else {}
        for path in sorted((out / SHARDS_FOLDER).glob("*.npz")):
            shard = read_shard(path)
            if shard is not None and path.stem.isdecimal():
                self.add(int(path.stem), shard)

    @cached_property
    def complete(self) -> Embeddings:
        """The embeddings of the complete folder, memory-mapped."""
        return load_embeddings(self._out)

    @property
    def next_number(self) -> int:
        """The number of a new shard."""
        return max(self._numbers) + 1

    def add(self, number: int, shard: Shard) -> None:
        """Add a shard; its vectors are read from its file when they are needed."""
        self._keys.append(shard.keys)
        self._numbers.append(number)
        self.failed.update(shard.failed)

    def find(self, keys: Keys) -> npt.NDArray[np.int64]:
        """Return the row of each image, -1 where there is none."""
        stored = np.concatenate(self._keys)
        if not len(stored):
            return np.full(len(keys), -1)
        order = np.argsort(stored, kind="stable")
        rows = order[np.searchsorted(stored, keys, sorter=order).clip(max=len(stored) - 1)]
        return np.where(stored[rows] == keys, rows, -1)

    def read(self, rows: npt.NDArray[np.int64], dim: int) -> Vectors:
        """Return the vectors at some rows; each shard among them is read once."""
        vectors = np.empty((len(rows), dim), np.float32)
        ends = np.cumsum([len(keys) for keys in self._keys])
        parts = np.searchsorted(ends, rows, side="right")
        for part in np.unique(parts).tolist():
            selected = parts == part
            start = ends[part] - len(self._keys[part])
            vectors[selected] = self._part(part)[rows[selected] - start]
        return vectors

    def _part(self, part: int) -> Vectors:
        if part == 0:
            return self.complete.vectors
        path = shard_path(self._out, self._numbers[part])
        shard = read_shard(path)
        if shard is None or not np.array_equal(shard.keys, self._keys[part]):
            raise StorageError(f"{path} was damaged; run the same command again.")
        return shard.vectors


def _read_keys(path: Path, count: int) -> Keys:
    try:
        keys = np.load(path / KEYS_FILE, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise damaged_embeddings(path, f"{KEYS_FILE}: {error}") from error
    if not isinstance(keys, np.ndarray) or keys.dtype != np.uint64 or keys.shape != (count,):
        raise damaged_embeddings(path, f"{KEYS_FILE} does not hold {count} keys")
    return keys


def join_shards(
    out: Path, info: EmbeddingsInfo, ids: Iterable[str], keys: Keys, rows: npt.NDArray[np.int64], stored: StoredVectors
) -> None:
    """Write the complete folder: the ids, keys and vectors at `rows`, one block of vectors in memory.

    All files are written next to the shards: a full disk leaves older ones as they were.
    """
    folder = out / SHARDS_FOLDER
    with (
        storage_errors(folder),
        # not a memory map: on a full disk that ends the process with a bus error, while writing raises
        (folder / VECTORS_FILE).open("wb") as vectors_file,
        (folder / KEYS_FILE).open("wb") as keys_file,
        (folder / IDS_FILE).open("w", encoding="ascii") as ids_file,
    ):
        np.lib.format.write_array_header_1_0(vectors_file, _array_header("<f4", (info.count, info.dim)))
        for start in range(0, len(rows), _BLOCK):
            vectors_file.write(stored.read(rows[start : start + _BLOCK], info.dim).astype("<f4").data)
        np.lib.format.write_array_header_1_0(keys_file, _array_header("<u8", keys.shape))
        keys_file.write(keys.astype("<u8").data)
        ids_file.writelines(iter_json_lines(ids))
        ids_file.write("\n")
    write_embeddings_info(folder, replace(info, files={name: FileRecord.of(folder / name) for name in DATA_FILES}))
    with storage_errors(out):
        (out / INFO_FILE).unlink(missing_ok=True)  # from here on the older vectors no longer count
    finish_join(out)


def _array_header(kind: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"descr": kind, "fortran_order": False, "shape": shape}


def finish_join(out: Path) -> None:
    """Move the files of a joined folder out of the shards' folder, where a run that was killed has left them."""
    folder = out / SHARDS_FOLDER
    if is_embeddings(out) or not (folder / INFO_FILE).is_file():
        return
    with storage_errors(out):
        for name in (VECTORS_FILE, KEYS_FILE, IDS_FILE, INFO_FILE):
            if (folder / name).exists():
                (folder / name).replace(out / name)
