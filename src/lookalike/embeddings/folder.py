"""The folder that holds embeddings: vectors that can be memory-mapped, ids, and what made them.

- `vectors.npy`: float32 `(n, dim)`, unit length
- `ids.json`: n ids in the order of the vectors, one per line
- `keys.npy`: uint64 `(n,)`, the key of each image, by which a later run finds the images that did not change
- `labels.json`: labels and metadata by id, if the images have some
- `embeddings.json`: an `EmbeddingsInfo`; written last, so its presence means that the folder is complete
- `model/`: the bundle of the encoder
- `shards/`: only while the folder is being made; a run that is killed loses at most the shard it was computing
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lookalike._arguments import checked_arguments
from lookalike._files import (
    FileRecord,
    RefusedFileError,
    checked_record,
    read_json,
    reading_errors,
    require_unchanged,
    with_digest,
    write_json,
)
from lookalike._records import read_record
from lookalike._strings import PackedStrings, read_json_lines
from lookalike.errors import DataError, StorageError
from lookalike.types import Embeddings, Skipped, Vectors

EMBEDDINGS_FORMAT = 4
INFO_FILE = "embeddings.json"
IDS_FILE = "ids.json"
VECTORS_FILE = "vectors.npy"
KEYS_FILE = "keys.npy"
LABELS_FILE = "labels.json"
DATA_FILES = (VECTORS_FILE, IDS_FILE, KEYS_FILE)
SHARDS_FOLDER = "shards"
RUN_FILE = "run.json"  # inside the shards' folder: whose shards these are


@dataclass(frozen=True)
class RunInfo:
    """What decides every vector of a run."""

    model: str  # the encoder's name
    fingerprint: str  # the encoder's
    precision: str  # that it computes in


@dataclass(frozen=True)
class EmbeddingsInfo:
    """The content of `embeddings.json`."""

    run: RunInfo
    dim: int  # dimensions of a vector
    count: int
    root: Path | None  # the folder that every id is relative to; None if there is no such folder
    # files that cannot be decoded, by the key of the image: not tried again until they change
    failed: Mapping[int, Skipped]
    # what every run tries again: files that could not be read for now, and folders that cannot be listed
    retried: tuple[Skipped, ...]
    files: Mapping[str, FileRecord] = field(default_factory=dict)  # sizes and digests of the other files, by name

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """All files and folders that have no embeddings."""
        return (*self.failed.values(), *self.retried)

    def to_dict(self) -> dict[str, Any]:
        """Return a plain structure for JSON."""
        return with_digest(
            {
                "format": EMBEDDINGS_FORMAT,
                "run": asdict(self.run),
                "dim": self.dim,
                "count": self.count,
                "root": None if self.root is None else str(self.root),
                "failed": failed_to_json(self.failed),
                "retried": [_skipped_to_json(file) for file in self.retried],
                "files": {name: asdict(record) for name, record in self.files.items()},
            }
        )

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> EmbeddingsInfo:
        """Undo `to_dict`; a wrong field raises AttributeError, KeyError, OverflowError, TypeError or ValueError."""
        value = checked_record(value)
        return cls(
            run=read_record(RunInfo, value["run"]),
            dim=int(value["dim"]),
            count=int(value["count"]),
            root=None if value["root"] is None else Path(value["root"]),
            failed=failed_from_json(value["failed"]),
            retried=tuple(_skipped_from_json(file) for file in value["retried"]),
            files={name: read_record(FileRecord, value["files"][name]) for name in DATA_FILES},
        )


def _skipped_to_json(file: Skipped) -> dict[str, str]:
    return {"path": str(file.path), "cause": file.cause}


def _skipped_from_json(value: Mapping[str, str]) -> Skipped:
    return Skipped(Path(value["path"]), value["cause"])


def failed_to_json(failed: Mapping[int, Skipped]) -> dict[str, dict[str, str]]:
    """Return a plain structure for JSON of files that cannot be decoded, by key."""
    return {f"{key:016x}": _skipped_to_json(file) for key, file in failed.items()}


def failed_from_json(value: Mapping[str, Mapping[str, str]]) -> dict[int, Skipped]:
    """Undo `failed_to_json`."""
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
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise damaged_embeddings(path, f"{INFO_FILE}: {type(error).__name__} {error}") from error


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
        return read_record(RunInfo, value)
    except ValueError as error:
        raise damaged_embeddings(path, f"{SHARDS_FOLDER}/{RUN_FILE}: {error}") from error


@checked_arguments()
def load_embeddings(path: Path | str, *, mmap: bool = True, verify: bool = False) -> Embeddings:
    """Load the embeddings in a folder; files that were changed after they were written are refused.

    Args:
        path: made by `lookalike embed`.
        mmap: leave the vectors on disk and read what is used; else load them all.
        verify: also compare the digest of more than 32 MB of vectors, of which otherwise only the size is compared.

    Raises:
        StorageError: not a folder of embeddings, an unfinished one, one of another format, or a damaged one.
    """
    path = Path(path)
    info = read_embeddings_info(path)
    require_unchanged_embeddings(path, info, verify=verify)
    vectors = _read_vectors(path, mmap=mmap)
    if vectors.shape != (info.count, info.dim):
        raise damaged_embeddings(
            path, f"{VECTORS_FILE} has the shape {vectors.shape}, expected {(info.count, info.dim)}"
        )
    ids = _read_ids(path)
    if len(ids) != info.count:
        raise damaged_embeddings(path, f"{IDS_FILE} holds {len(ids)} ids for {info.count} vectors")
    try:
        return Embeddings(ids, vectors, info.run.fingerprint, info.skipped, info.run.precision)
    except DataError as error:
        raise damaged_embeddings(path, str(error).rstrip(".")) from error


def require_unchanged_embeddings(path: Path, info: EmbeddingsInfo, *, verify: bool = False) -> None:
    """Raise `StorageError` if a file was changed after it was written; `verify` as in `load_embeddings`."""
    try:
        require_unchanged(path, info.files, vectors=VECTORS_FILE, verify=verify)
    except RefusedFileError as error:
        raise damaged_embeddings(path, str(error)) from error


def _read_ids(path: Path) -> PackedStrings:
    with (
        reading_errors(path / IDS_FILE, "the ids of the embeddings", "path"),
        (path / IDS_FILE).open(encoding="utf-8") as file,
    ):
        try:
            return read_json_lines(file)
        except ValueError as error:
            raise damaged_embeddings(path, f"{IDS_FILE}: {error}") from error


def _read_vectors(path: Path, *, mmap: bool) -> Vectors:
    try:
        vectors = np.load(path / VECTORS_FILE, mmap_mode="r" if mmap else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise damaged_embeddings(path, f"{VECTORS_FILE}: {error}") from error
    if not isinstance(vectors, np.ndarray) or vectors.dtype != np.float32:
        raise damaged_embeddings(path, f"{VECTORS_FILE} is not a float32 array")
    return vectors.view(np.ndarray)


def damaged_embeddings(path: Path, cause: str) -> StorageError:
    """Return the error for a folder whose content does not fit together."""
    return StorageError(
        f"the embeddings in {path} are damaged ({cause}); remove the folder and embed again.", argument="path"
    )
