"""The folder that holds embeddings: vectors that can be memory-mapped, ids, and what made them.

- `vectors.npy`: float32 `(n, dim)`, unit length
- `ids.json`: n ids in the order of the vectors, one per line
- `keys.npy`: uint64 `(n,)`, the key of each image, by which a later run finds the images that did not change
- `embeddings.json`: an `EmbeddingsInfo`; written last, so its presence means that the folder is complete
- `model/`: the bundle of the encoder
- `shards/`: only while the folder is being made; a run that is killed loses at most the shard it was computing
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike._files import read_json, reading_errors, storage_errors, write_file, write_json
from lookalike._strings import PackedStrings, iter_json_lines, read_json_lines
from lookalike.errors import DataError, StorageError
from lookalike.models.pipeline import Keys, Source
from lookalike.types import Embeddings, Skipped, Vectors

EMBEDDINGS_FORMAT = 3
INFO_FILE = "embeddings.json"
IDS_FILE = "ids.json"
VECTORS_FILE = "vectors.npy"
KEYS_FILE = "keys.npy"
SHARDS_FOLDER = "shards"
_BLOCK = 4096  # vectors in memory while a folder is written
RUN_FILE = "run.json"  # inside the shards' folder: whose shards these are


@dataclass(frozen=True)
class RunInfo:
    """What decides every vector of a run.

    Attributes:
        model: the encoder's name.
        fingerprint: the encoder's.
        precision: that it computes in.

    """

    model: str
    fingerprint: str
    precision: str


@dataclass(frozen=True)
class EmbeddingsInfo:
    """The content of `embeddings.json`.

    Attributes:
        run: the encoder.
        dim: dimensions of a vector.
        count: number of vectors.
        root: the folder that every id is relative to; None if there is no such folder.
        failed: files that cannot be decoded, by the key of the image: not tried again until they change.
        retried: what every run tries again: files that could not be read for now, and folders that cannot be listed.

    """

    run: RunInfo
    dim: int
    count: int
    root: Path | None
    failed: Mapping[int, Skipped]
    retried: tuple[Skipped, ...]

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """All files and folders that have no embeddings."""
        return (*self.failed.values(), *self.retried)

    def to_dict(self) -> dict[str, Any]:
        """Return a plain structure for JSON."""
        return {
            "format": EMBEDDINGS_FORMAT,
            "run": asdict(self.run),
            "dim": self.dim,
            "count": self.count,
            "root": None if self.root is None else str(self.root),
            "failed": _failed_to_json(self.failed),
            "retried": [_skipped_to_json(file) for file in self.retried],
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> EmbeddingsInfo:
        """Undo `to_dict`; a missing or wrong field raises AttributeError, KeyError, TypeError or ValueError."""
        return cls(
            run=RunInfo(**value["run"]),
            dim=int(value["dim"]),
            count=int(value["count"]),
            root=None if value["root"] is None else Path(value["root"]),
            failed=_failed_from_json(value["failed"]),
            retried=tuple(_skipped_from_json(file) for file in value["retried"]),
        )


def _skipped_to_json(file: Skipped) -> dict[str, str]:
    return {"path": str(file.path), "cause": file.cause}


def _skipped_from_json(value: Mapping[str, str]) -> Skipped:
    return Skipped(Path(value["path"]), value["cause"])


def _failed_to_json(failed: Mapping[int, Skipped]) -> dict[str, dict[str, str]]:
    return {f"{key:016x}": _skipped_to_json(file) for key, file in failed.items()}


def _failed_from_json(value: Mapping[str, Mapping[str, str]]) -> dict[int, Skipped]:
    return {int(key, 16): _skipped_from_json(file) for key, file in value.items()}


def is_embeddings(path: Path | str) -> bool:
    """Whether a folder holds complete embeddings."""
    return (Path(path) / INFO_FILE).is_file()


def is_unfinished(path: Path | str) -> bool:
    """Whether a folder holds embeddings of a run that has not finished."""
    return not is_embeddings(path) and (Path(path) / SHARDS_FOLDER / RUN_FILE).is_file()


def read_embeddings_info(path: Path | str) -> EmbeddingsInfo:
    """Read what made the embeddings in a folder."""
    path = Path(path)
    if is_unfinished(path):
        raise StorageError(
            f"{path} holds unfinished embeddings; run the same 'lookalike embed' again to finish them.", argument="path"
        )
    if not is_embeddings(path):
        raise StorageError(
            f"{path} is not a folder of embeddings: it has no {INFO_FILE}; "
            "create one with 'lookalike embed IMAGES --out DIR'.",
            argument="path",
        )
    value = read_json(path / INFO_FILE, "embeddings record", "path")
    version = value.get("format") if isinstance(value, dict) else None
    if version != EMBEDDINGS_FORMAT:
        raise StorageError(
            f"{path} has embeddings format {version}, this version reads {EMBEDDINGS_FORMAT}; "
            "remove the folder and embed again.",
            argument="path",
        )
    try:
        return EmbeddingsInfo.from_dict(value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"{INFO_FILE}: {type(error).__name__} {error}") from error


def write_embeddings_info(folder: Path, info: EmbeddingsInfo) -> None:
    """Write the file whose presence means that the folder is complete."""
    write_json(folder / INFO_FILE, info.to_dict())


def read_run(path: Path | str) -> RunInfo | None:
    """Return what decides the shards in a folder, complete or not; None if there are no embeddings."""
    path = Path(path)
    if is_embeddings(path):
        return read_embeddings_info(path).run
    if not is_unfinished(path):
        return None
    value = read_json(path / SHARDS_FOLDER / RUN_FILE, "record of the unfinished run", "path")
    try:
        return RunInfo(**value)
    except TypeError as error:
        raise _damaged(path, f"{SHARDS_FOLDER}/{RUN_FILE}") from error


def load_embeddings(path: Path | str, *, mmap: bool = True) -> Embeddings:
    """Load the embeddings in a folder.

    Args:
        path: made by `lookalike embed`.
        mmap: leave the vectors on disk and read what is used; else load them all.

    Raises:
        StorageError: not a folder of embeddings, an unfinished one, one of another format, or a damaged one.

    """
    path = Path(path)
    info = read_embeddings_info(path)
    vectors = _read_vectors(path, mmap=mmap)
    if vectors.shape != (info.count, info.dim):
        raise _damaged(path, f"{VECTORS_FILE} has the shape {vectors.shape}, expected {(info.count, info.dim)}")
    ids = _read_ids(path)
    if len(ids) != info.count:
        raise _damaged(path, f"{IDS_FILE} holds {len(ids)} ids for {info.count} vectors")
    try:
        return Embeddings(ids, vectors, info.run.fingerprint, info.skipped, info.run.precision)
    except DataError as error:
        raise _damaged(path, str(error).rstrip(".")) from error


def _read_ids(path: Path) -> PackedStrings:
    with (
        reading_errors(path / IDS_FILE, "the ids of the embeddings", "path"),
        (path / IDS_FILE).open(encoding="utf-8") as file,
    ):
        try:
            return read_json_lines(file)
        except ValueError as error:
            raise _damaged(path, f"{IDS_FILE}: {error}") from error


def _read_vectors(path: Path, *, mmap: bool) -> Vectors:
    try:
        vectors = np.load(path / VECTORS_FILE, mmap_mode="r" if mmap else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, f"{VECTORS_FILE}: {error}") from error
    if not isinstance(vectors, np.ndarray) or vectors.dtype != np.float32:
        raise _damaged(path, f"{VECTORS_FILE} is not a float32 array")
    return vectors.view(np.ndarray)


def _damaged(path: Path, cause: str) -> StorageError:
    """Return the error for a folder whose content does not fit together."""
    return StorageError(
        f"the embeddings in {path} are damaged ({cause}); remove the folder and embed again.", argument="path"
    )


# ---------------------------------------------------------------- shards


@dataclass(frozen=True)
class Shard:
    """The vectors of some images, by the keys of the images.

    Attributes:
        keys: `(n,)`.
        vectors: `(n, dim)`.
        failed: files that cannot be decoded, by key.

    """

    keys: Keys
    vectors: Vectors
    failed: Mapping[int, Skipped]

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
    record = np.frombuffer(json.dumps(_failed_to_json(shard.failed)).encode("ascii"), dtype=np.uint8)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, vectors=shard.vectors, keys=shard.keys, failed=record)

    write_file(path, write)


def read_shard(path: Path) -> Shard | None:
    """Read one shard; None if it is missing or damaged."""
    try:
        # opened here, since np.load leaves a damaged file open
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            failed = _failed_from_json(json.loads(stored["failed"].tobytes()))
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
        raise _damaged(path, f"{KEYS_FILE}: {error}") from error
    if not isinstance(keys, np.ndarray) or keys.dtype != np.uint64 or keys.shape != (count,):
        raise _damaged(path, f"{KEYS_FILE} does not hold {count} keys")
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
    write_embeddings_info(folder, info)
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
