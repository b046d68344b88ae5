"""The folder that holds embeddings: vectors that can be memory-mapped, ids, and what made them.

- `vectors.npy`: float32 `(n, dim)`, unit length
- `ids.json`: n ids in the order of the vectors, one per line
- `embeddings.json`: an `EmbeddingsInfo`; written last, so its presence means that the folder is complete
- `model/`: the bundle of the encoder
- `shards/`: only while the folder is being made; a run that is killed loses at most the shard it was computing
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lookalike._files import read_json, reading_errors, storage_errors, write_file, write_json
from lookalike._strings import PackedStrings, iter_json_lines, read_json_lines
from lookalike.errors import DataError, StorageError
from lookalike.types import Embeddings, Skipped, Vectors

EMBEDDINGS_FORMAT = 2
INFO_FILE = "embeddings.json"
IDS_FILE = "ids.json"
VECTORS_FILE = "vectors.npy"
SHARDS_FOLDER = "shards"
RUN_FILE = "run.json"  # inside the shards' folder: whose shards these are


@dataclass(frozen=True)
class ShardInfo:
    """One shard's share of the vectors.

    Attributes:
        digest: of its images.
        first: id of its first image, readable or not.
        rows: number of its vectors.
        skipped: number of its files that were skipped.

    """

    digest: str
    first: str
    rows: int
    skipped: int


@dataclass(frozen=True)
class RunInfo:
    """What decides every shard of a run.

    Attributes:
        model: the encoder's name.
        fingerprint: the encoder's.
        precision: that it computes in.
        shard_size: images per shard.

    """

    model: str
    fingerprint: str
    precision: str
    shard_size: int


@dataclass(frozen=True)
class EmbeddingsInfo:
    """The content of `embeddings.json`.

    Attributes:
        run: the encoder and the shard size.
        dim: dimensions of a vector.
        count: number of vectors.
        root: the folder that every id is relative to; None if there is no such folder.
        shards: in the order of the vectors.
        skipped: files that could not be read, in the order of the shards, then folders that could not be listed.

    """

    run: RunInfo
    dim: int
    count: int
    root: Path | None
    shards: tuple[ShardInfo, ...]
    skipped: tuple[Skipped, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a plain structure for JSON."""
        return {
            "format": EMBEDDINGS_FORMAT,
            **asdict(self),
            "root": None if self.root is None else str(self.root),
            "skipped": skipped_to_json(self.skipped),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> EmbeddingsInfo:
        """Undo `to_dict`; a missing or wrong field raises KeyError, TypeError or ValueError."""
        return cls(
            run=RunInfo(**value["run"]),
            dim=int(value["dim"]),
            count=int(value["count"]),
            root=None if value["root"] is None else Path(value["root"]),
            shards=tuple(ShardInfo(**shard) for shard in value["shards"]),
            skipped=skipped_from_json(value["skipped"]),
        )


def skipped_to_json(skipped: Iterable[Skipped]) -> list[dict[str, str]]:
    """Return skipped files as a plain structure for JSON."""
    return [{"path": str(s.path), "cause": s.cause} for s in skipped]


def skipped_from_json(value: Iterable[Mapping[str, str]]) -> tuple[Skipped, ...]:
    """Undo `skipped_to_json`."""
    return tuple(Skipped(Path(s["path"]), s["cause"]) for s in value)


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
            f"{path} has embeddings format {version}, this version reads {EMBEDDINGS_FORMAT}; embed again.",
            argument="path",
        )
    try:
        return EmbeddingsInfo.from_dict(value)
    except (KeyError, TypeError, ValueError) as error:
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


def shard_path(out: Path, number: int) -> Path:
    """Return the file of a shard in a folder of embeddings."""
    return out / SHARDS_FOLDER / f"{number:05}.npz"


def shard_digest(key: str, skipped: Iterable[Skipped]) -> str:
    """Return the digest that a shard is stored with; none if files were skipped that are to be tried again."""
    return "" if any(file.temporary for file in skipped) else key


def write_shard(path: Path, key: str, shard: Embeddings) -> None:
    """Write one shard in one step; `key` is the `sources_digest` of its images."""
    record = {
        "key": shard_digest(key, shard.skipped),
        "ids": list(shard.ids),
        "skipped": skipped_to_json(shard.skipped),
    }
    text = np.frombuffer(json.dumps(record).encode("ascii"), dtype=np.uint8)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, vectors=shard.vectors, record=text)

    write_file(path, write)


def read_shard(path: Path, key: str, fingerprint: str) -> Embeddings | None:
    """Read one shard; None if it is missing, damaged, or made from other images."""
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

    All files are written next to the shards, then moved: a full disk leaves older ones as they were, and until the last
    file is moved every shard is still there.
    """
    folder = out / SHARDS_FOLDER
    with (
        storage_errors(folder),
        # not a memory map: on a full disk that ends the process with a bus error, while writing raises
        (folder / VECTORS_FILE).open("wb") as vectors_file,
        (folder / IDS_FILE).open("w", encoding="ascii") as ids_file,
    ):
        header = {"descr": "<f4", "fortran_order": False, "shape": (info.count, info.dim)}
        np.lib.format.write_array_header_1_0(vectors_file, header)

        def write_vectors() -> Iterator[str]:
            """Write the vectors of a shard when the first of its ids is requested: one shard is in memory."""
            for number, row in enumerate(info.shards):
                shard = read_shard(shard_path(out, number), row.digest, info.run.fingerprint)
                if shard is None or len(shard) != row.rows:
                    raise StorageError(f"{shard_path(out, number)} was damaged; run the same command again.")
                vectors_file.write(np.ascontiguousarray(shard.vectors, dtype="<f4").data)
                yield from shard.ids

        ids_file.writelines(iter_json_lines(write_vectors()))
        ids_file.write("\n")
    write_embeddings_info(folder, info)
    with storage_errors(out):
        (out / INFO_FILE).unlink(missing_ok=True)  # from here on the older vectors no longer count
        for name in (VECTORS_FILE, IDS_FILE, INFO_FILE):
            (folder / name).replace(out / name)
