"""What an index keeps on disk: its description, its items, exact vectors, and the checkpoint of an unfinished build."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike._files import (
    FileRecord,
    RefusedFileError,
    checked_record,
    digest,
    open_regular,
    read_json,
    reading_errors,
    require_unchanged,
    storage_errors,
    with_digest,
    write_file,
    write_json,
    write_text,
)
from lookalike._records import read_record
from lookalike._strings import PackedStrings, iter_json_lines, read_json_lines
from lookalike._system import installed_versions
from lookalike._top_k import Ints
from lookalike.errors import StorageError
from lookalike.index.faiss_index import INDEX_FILE, ROWS_FILE, FaissIndex
from lookalike.index.filters import Value, is_value
from lookalike.types import Vectors

FORMAT = 3
BLOCK = 65_536  # vectors read, hashed or written at once
_INFO_FILE = "index.json"
ITEMS_FILE = "items.json"
KEYS_FILE = "keys.npy"
_STATE_FILE = "building.json"  # of an unfinished build
_IDS_LINE = '{"ids": ['

# a flat inner product index as `faiss.write_index` lays it out (faiss/impl/index_write.cpp), then all vectors: code,
# dimensions, vectors, two unused numbers, whether it is trained, metric type, number of float32 values that follow
_HEADER = struct.Struct("<4siqqq?iQ")
_FLAT_CODE = b"IxFI"
_UNUSED = 1 << 20
_INNER_PRODUCT = 0

Metadata = Mapping[str, Mapping[str, Value | None]]  # by item id
Labels = Mapping[str, str]  # by item id
TakeVectors = Callable[[Ints], Vectors]  # returns the vectors `(n, dim)` of rows; they may be on disk


@dataclass(frozen=True)
class OperatingPoint:
    """An index at one search depth, measured with held-out vectors as queries."""

    spec: str  # name of the `IndexSpec`
    key: str  # FAISS factory string
    vectors: int  # number of vectors in the index
    parameters: Mapping[str, int]  # FAISS search parameters
    recall: float  # index recall@10
    queries_per_second: float  # all queries in one call
    single_ms: float  # median milliseconds of one query
    bytes: int  # size in memory and on disk


@dataclass(frozen=True)
class TuningReport:
    """How an approximate index was selected."""

    reason: str  # in words
    measured: OperatingPoint  # the index itself, without the held-out vectors; `bytes` includes them
    tried: tuple[OperatingPoint, ...]  # every candidate, built from a sample of the vectors
    rejected: tuple[OperatingPoint, ...] = ()  # candidates that were built from all vectors and exceeded the budget


@dataclass(frozen=True)
class IndexInfo:
    """The description of an index, stored as index.json."""

    key: str  # FAISS factory string; Flat for exact search
    fingerprint: str  # of the model that made the embeddings
    precision: str  # in which the embeddings were computed, as `Encoder.precision`; auto if it is unknown
    dim: int  # dimensions of a vector
    count: int  # number of items
    root: str | None = None  # the folder that ids are relative to, or None
    prefilter: bool = True  # whether the memory budget leaves room for the prefilter of an exact index
    tuning: TuningReport | None = None  # how an approximate index was selected; None for an exact one
    # of the packages that wrote the index
    versions: Mapping[str, str] = field(default_factory=lambda: installed_versions("lookalike", "faiss-cpu"))
    files: Mapping[str, FileRecord] = field(default_factory=dict)  # by name; by which a change is noticed
    format: int = FORMAT  # version of the folder's layout

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> IndexInfo:
        """Validate what index.json holds; a missing, wrong or changed value raises ValueError."""
        info = read_record(cls, checked_record(values))
        if info.dim < 1 or info.count < 1:
            raise ValueError(f"dim and count must be at least 1, got {info.dim} and {info.count}")
        return info


def is_index(path: Path | str) -> bool:
    """Whether a folder holds an index."""
    return (Path(path) / _INFO_FILE).is_file()


def damaged_index(path: Path, cause: str) -> StorageError:
    """Return the error for an index folder with inconsistent content."""
    return StorageError(f"the index in {path} is damaged ({cause}); build the index again.", argument="path")


def write_info(folder: Path, info: IndexInfo) -> None:
    """Write the description of an index."""
    write_json(folder / _INFO_FILE, with_digest(asdict(info)))


def with_files(folder: Path, info: IndexInfo) -> IndexInfo:
    """Return the description with the records of the files that are in the folder."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != _INFO_FILE)
    return replace(info, files={name: FileRecord.of(folder / name) for name in names})


def require_unchanged_index(path: Path, info: IndexInfo, *, verify: bool) -> None:
    """Raise `StorageError` if a file of an index was changed; vectors of more than 32 MB are hashed if `verify`."""
    names = {INDEX_FILE, ITEMS_FILE} if info.tuning is None else {INDEX_FILE, ITEMS_FILE, ROWS_FILE}
    if set(info.files) != names:
        raise damaged_index(path, f"its files are not {', '.join(sorted(names))}")
    try:
        require_unchanged(path, info.files, vectors=INDEX_FILE, verify=verify)
    except RefusedFileError as error:
        raise damaged_index(path, str(error)) from error


def read_info(path: Path) -> IndexInfo:
    """Read the description of an index."""
    if not is_index(path):
        raise StorageError(
            f"{path} is not an index: it has no {_INFO_FILE}; create one with 'lookalike index'.", argument="path"
        )
    values = read_json(path / _INFO_FILE, "the index's description", argument="path")
    version = values.get("format") if isinstance(values, dict) else None
    if version != FORMAT:
        raise StorageError(
            f"{path} has index format {version}, this version reads {FORMAT}; build the index again.", argument="path"
        )
    try:
        return IndexInfo.from_dict(values)
    except ValueError as error:
        raise damaged_index(path, f"{_INFO_FILE}: {error}") from error


def write_items(folder: Path, ids: PackedStrings, labels: Labels, metadata: Metadata) -> None:
    """Write ids, labels and metadata as one JSON object, one id per line."""
    text = _item_text(labels, metadata)

    def write(path: Path) -> None:
        with path.open("w", encoding="ascii") as file:
            file.write(_IDS_LINE[:-1])
            file.writelines(iter_json_lines(ids))
            file.write(f",\n{text[1:]}\n")

    write_file(folder / ITEMS_FILE, write)


def read_items(folder: Path) -> tuple[PackedStrings, Labels, Metadata]:
    """Read ids, labels and metadata; ids some lines at a time: parsing them at once takes several times the memory."""
    path = folder / ITEMS_FILE
    with reading_errors(path, "the index's items", argument="path"), path.open(encoding="utf-8") as file:
        if file.readline() != f"{_IDS_LINE}\n":
            raise ValueError("it does not begin with the ids")
        ids = read_json_lines(itertools.takewhile(lambda line: line[0] != "]", file))
        return ids, *_parse_item_text("{" + file.read())


def write_labels_and_metadata(path: Path, labels: Labels, metadata: Metadata) -> None:
    """Write labels and metadata of items that are not in an index yet; no file if there are none."""
    if labels or metadata:
        write_text(path, _item_text(labels, metadata) + "\n")
    else:
        with storage_errors(path):
            path.unlink(missing_ok=True)


def read_labels_and_metadata(path: Path) -> tuple[Labels, Metadata]:
    """Undo `write_labels_and_metadata`."""
    if not path.exists():
        return {}, {}
    with reading_errors(path, "the labels of the items", argument="path"), open_regular(path) as file:
        return _parse_item_text(file.read().decode("utf-8"))


def _item_text(labels: Labels, metadata: Metadata) -> str:
    return json.dumps({"labels": labels, "metadata": metadata})


def _parse_item_text(text: str) -> tuple[Labels, Metadata]:
    content = json.loads(text)
    labels, metadata = content.get("labels", {}), content.get("metadata")
    if not isinstance(metadata, dict):
        raise ValueError("it has no metadata")
    if not all(isinstance(values, dict) for values in metadata.values()):
        raise ValueError("not all metadata are objects")
    if not all(value is None or is_value(value) for values in metadata.values() for value in values.values()):
        raise ValueError("not all metadata are text, numbers or booleans")
    if not (isinstance(labels, dict) and all(isinstance(label, str) for label in labels.values())):
        raise ValueError("not all labels are text")
    return labels, metadata


def write_keys(folder: Path, ids: Sequence[str], keys: npt.NDArray[np.uint64]) -> None:
    """Write the keys of the images, by which the first change learns the states of their files; not read before."""
    with storage_errors(folder):
        np.save(folder / KEYS_FILE, keys[sorted(range(len(ids)), key=list(ids).__getitem__)])


def write_vectors(path: Path, vectors: Vectors) -> None:
    """Write vectors as a flat FAISS index, without importing FAISS."""
    count, dim = vectors.shape
    with storage_errors(path), path.open("wb") as file:
        file.write(_HEADER.pack(_FLAT_CODE, dim, count, _UNUSED, _UNUSED, True, _INNER_PRODUCT, count * dim))
        for start in range(0, count, BLOCK):
            file.write(np.ascontiguousarray(vectors[start : start + BLOCK], dtype="<f4").data)


def create_vectors(path: Path, count: int, dim: int) -> Vectors:
    """Create a flat FAISS index of `count` vectors `(n, dim)`, which are to be written into the returned array."""
    with path.open("wb") as file:
        file.write(_HEADER.pack(_FLAT_CODE, dim, count, _UNUSED, _UNUSED, True, _INNER_PRODUCT, count * dim))
        file.flush()
        size = _HEADER.size + 4 * count * dim
        if hasattr(os, "posix_fallocate"):  # a full disk ends a process that writes into a hole of a mapped file
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    if not count:
        return np.zeros((0, dim), np.float32)
    return np.memmap(path, dtype="<f4", mode="r+", offset=_HEADER.size, shape=(count, dim))


def map_vectors(path: Path) -> Vectors:
    """Map the vectors `(n, dim)` of a flat FAISS index from disk, without importing FAISS."""
    try:
        with open_regular(path) as file:
            header = file.read(_HEADER.size)
        code, dim, count, _, _, _, similarity, values = _HEADER.unpack(header)
        if (code, similarity, values) != (_FLAT_CODE, _INNER_PRODUCT, count * dim):
            raise ValueError("unexpected header")
        if path.stat().st_size != _HEADER.size + 4 * values:
            raise ValueError("unexpected size")
        if not count:
            return np.zeros((0, dim), np.float32)
        return np.memmap(path, dtype="<f4", mode="r", offset=_HEADER.size, shape=(count, dim))
    except (OSError, ValueError, struct.error, OverflowError) as error:
        raise StorageError(f"{path} is missing or damaged; build the index again.", argument="path") from error


class BuildCheckpoint:
    """A folder for an unfinished build; None saves nothing."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._vectors = ""
        self.tried: dict[str, list[OperatingPoint]] = {}  # the candidates that were tried, by budget

    def open(self, take: TakeVectors, count: int) -> None:
        """Use the folder for these vectors; what an earlier run saved for others is ignored."""
        if self._folder is None:
            return
        path = self._folder / _STATE_FILE
        if self._folder.exists() and not path.is_file():
            raise StorageError(
                f"{self._folder} already exists and is not a build folder; rename or remove it.", argument="checkpoint"
            )
        rows = np.arange(count, dtype=np.int64)
        blocks = (take(rows[start : start + BLOCK]).tobytes() for start in range(0, count, BLOCK))
        self._vectors = digest(str(installed_versions("lookalike", "faiss-cpu")), str(count), *map(digest, blocks))
        # a damaged state is written again
        with contextlib.suppress(StorageError, ValueError, KeyError, TypeError, AttributeError):
            state = read_json(path, "build state")
            if state["vectors"] == self._vectors:
                self.tried = {
                    budget: [read_record(OperatingPoint, point) for point in points]
                    for budget, points in state["tried"].items()
                }
        self.save_tried()

    def save_tried(self) -> None:
        """Save the candidates that were tried."""
        if self._folder is not None:
            tried = {budget: [asdict(point) for point in points] for budget, points in self.tried.items()}
            write_json(self._folder / _STATE_FILE, {"vectors": self._vectors, "tried": tried})

    def load_index(self, key: str) -> FaissIndex | None:
        """Return the unfinished index with this factory string, or None."""
        path = self._index_path(key)
        if path is None or not path.is_file():
            return None
        try:
            return FaissIndex.read(path, key, {}, writable=True)
        except StorageError:
            return None

    def save_index(self, index: FaissIndex) -> None:
        """Save an unfinished index in place of its earlier state."""
        path = self._index_path(index.key)
        if path is not None:
            write_file(path, index.write)

    def _index_path(self, key: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{digest(self._vectors, key)}.faiss"


def remove_checkpoint(folder: Path | str) -> None:
    """Remove what `Index.build` saved in its checkpoint folder, and the folder where nothing else is in it."""
    folder = Path(folder)
    if not (folder / _STATE_FILE).is_file():
        return
    with contextlib.suppress(OSError):  # a leftover does no harm
        for file in [*folder.glob("*.faiss"), folder / _STATE_FILE]:
            file.unlink()
        folder.rmdir()


def spaced(rows: Ints, limit: int) -> Ints:
    """Return at most `limit` rows, evenly spaced from the first to the last."""
    return rows[np.linspace(0, len(rows) - 1, min(limit, len(rows)), dtype=np.int64)]
