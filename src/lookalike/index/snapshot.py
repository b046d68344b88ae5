"""Snapshots: the items of a changed index at one moment, in files that never change and that searches map into memory.

A snapshot holds the vectors in float32, and, where the index may be approximate, inverted lists over them. SQLite has
all that it holds, so a damaged snapshot is built again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from lookalike._files import (
    HASHED_BYTES,
    FileRecord,
    checked_record,
    read_json,
    storage_errors,
    with_digest,
    write_json,
)
from lookalike._records import read_record
from lookalike._strings import PackedStrings
from lookalike._top_k import Ints
from lookalike.errors import StorageError
from lookalike.index.autotune import SNAPSHOT_SPEC, Budget, RecallProbe, build, tune
from lookalike.index.exact import ExactIndex
from lookalike.index.faiss_index import INDEX_FILE, ROWS_FILE, ApproximateIndex
from lookalike.index.storage import BuildCheckpoint, create_vectors, spaced
from lookalike.progress import Progress
from lookalike.types import Vectors

FOLDER = "snapshots"
FORMAT = 1
HELD_OUT = 256  # vectors that measure the recall of inverted lists, and are not in them
_IDS_FILE, _RIDS_FILE, _INFO_FILE, _APPROXIMATE = "ids.bin", "rids.npy", "snapshot.json", "approximate"


@dataclass(frozen=True)
class SnapshotInfo:
    """The description of a snapshot, stored as snapshot.json."""

    count: int  # items
    key: str = ExactIndex.key  # of the approximate index: a FAISS factory string; Flat without one
    parameters: Mapping[str, int] = field(default_factory=dict)  # its search depth
    recall: float = 1.0  # its index recall@10
    prefilter: bool = True
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    format: int = FORMAT


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The items of a snapshot; rows are in the order of the ids.

    Attributes:
        ids: their ids.
        rids: `(n,)` their row numbers in SQLite.
        exact: their vectors.
        approximate: an index of the same rows, or None.
        info: its description.

    """

    ids: PackedStrings
    rids: Ints
    exact: ExactIndex
    approximate: ApproximateIndex | None
    info: SnapshotInfo

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False) -> Snapshot:
        """Map a snapshot; `StorageError` if it is missing or damaged. `verify` reads files above 32 MB, too."""
        try:
            info = read_record(SnapshotInfo, checked_record(read_json(folder / _INFO_FILE, "the snapshot")))
            for name, record in info.files.items():
                record.require(folder / name, digest_up_to=None if verify else HASHED_BYTES)
            ids = PackedStrings.from_bytes((folder / _IDS_FILE).read_bytes())
            rids = np.load(folder / _RIDS_FILE, allow_pickle=False)
        except (OSError, ValueError, AttributeError) as error:
            raise StorageError(f"the snapshot {folder} is damaged ({error}).", argument="path") from error
        exact = ExactIndex.read(folder, prefilter=info.prefilter)
        approximate = None
        if info.key != ExactIndex.key:
            approximate = ApproximateIndex.read(folder / _APPROXIMATE, info.key, info.parameters)
        if not info.count == len(ids) == len(rids) == len(exact) or info.format != FORMAT:
            raise StorageError(f"the snapshot {folder} is damaged (its files do not match).", argument="path")
        return cls(ids, rids, exact, approximate, info)

    def rows_of(self, rids: Ints) -> Ints:
        """Return the rows of row numbers in SQLite, -1 for those that the snapshot does not have."""
        order, ascending = self._order
        positions = np.minimum(np.searchsorted(ascending, rids), len(order) - 1)
        if not len(order):
            return np.full(len(rids), -1, np.int64)
        return np.where(ascending[positions] == rids, order[positions], -1)

    @cached_property
    def _order(self) -> tuple[Ints, Ints]:
        order = np.argsort(self.rids)
        return order, self.rids[order]


def write_snapshot(
    folder: Path,
    ids: PackedStrings,
    rids: Ints,
    blocks: Iterable[Vectors],
    dim: int,
    *,
    min_recall: float | None,
    prefilter: bool,
    progress: Progress,
) -> None:
    """Write a snapshot into a new folder, durably.

    Args:
        folder: it must not exist.
        ids: sorted.
        rids: `(n,)` in the order of the ids.
        blocks: vectors in ascending order of `rids`.
        dim: their dimensions.
        min_recall: of inverted lists, which are measured with the last vectors of the snapshot held out; None for
            exact search only.
        prefilter: as `ExactIndex.prefilter`.
        progress: receives messages.

    """
    folder.mkdir(parents=True)
    with storage_errors(folder):
        vectors = create_vectors(folder / INDEX_FILE, len(ids), dim)
        by_rid, start = np.argsort(rids), 0
        for block in blocks:
            vectors[by_rid[start : start + len(block)]] = block
            start += len(block)
        if isinstance(vectors, np.memmap):
            vectors.flush()
    approximate = None
    if min_recall is not None:
        approximate = _build_lists(folder / _APPROXIMATE, vectors, min_recall, progress)
    finish_snapshot(folder, ids, rids, approximate or SnapshotInfo(len(ids), prefilter=prefilter))


def _build_lists(folder: Path, vectors: Vectors, min_recall: float, progress: Progress) -> SnapshotInfo:
    """Build inverted lists; the deepest search is taken that the recall of held-out vectors asks for."""
    rows = np.arange(len(vectors), dtype=np.int64)
    held_out = spaced(rows, HELD_OUT)

    def take(rows: Ints) -> Vectors:
        return np.asarray(vectors[rows])

    probe = RecallProbe(take, np.setdiff1d(rows, held_out), take(held_out), progress)
    lists = build(SNAPSHOT_SPEC, probe, BuildCheckpoint(), progress)
    point = tune(SNAPSHOT_SPEC, lists, probe, Budget(min_recall))
    lists.add(take(held_out))
    folder.mkdir()
    ApproximateIndex(lists, np.concatenate([probe.rows, held_out])).write(folder)
    return SnapshotInfo(len(vectors), point.key, point.parameters, point.recall)


def finish_snapshot(folder: Path, ids: PackedStrings, rids: Ints, info: SnapshotInfo) -> None:
    """Write the remaining files of a snapshot, whose vectors are there, and make all of them durable."""
    with storage_errors(folder):
        (folder / _IDS_FILE).write_bytes(ids.to_bytes())
        np.save(folder / _RIDS_FILE, rids)
        names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
        records = {name: FileRecord.of(folder / name) for name in names}
    write_json(folder / _INFO_FILE, with_digest(asdict(info) | {"files": {n: asdict(r) for n, r in records.items()}}))
    for path in [*folder.rglob("*"), folder, folder.parent]:
        sync_path(path)


def link_approximate(folder: Path, index_folder: Path) -> None:
    """Give a snapshot the approximate index of a folder."""
    (folder / _APPROXIMATE).mkdir()
    for name in (INDEX_FILE, ROWS_FILE):
        link_or_copy(index_folder / name, folder / _APPROXIMATE / name)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file that never changes a second name; copy it where the file system has no links."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def sync_path(path: Path) -> None:
    """Make a file or folder durable, as far as the file system can."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)
