"""The store that an index folder becomes at its first change: SQLite for the items, snapshots for fast searches."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lookalike._files import open_regular, require_uncompressed, storage_errors
from lookalike._strings import PackedStrings
from lookalike._top_k import Floats
from lookalike.errors import StorageError
from lookalike.index.autotune import EXACT_UNTIL
from lookalike.index.exact import ExactIndex
from lookalike.index.faiss_index import INDEX_FILE, ROWS_FILE
from lookalike.index.filters import ID, LABEL, Filter, Value, ValueColumn
from lookalike.index.folder_store import FolderStore
from lookalike.index.snapshot import (
    FOLDER,
    Snapshot,
    SnapshotInfo,
    finish_snapshot,
    link_approximate,
    link_or_copy,
    sync_path,
    write_snapshot,
)
from lookalike.index.sqlite_items import FETCH, SqliteItems, as_blob, as_vectors, read_metadata, sqlite_errors
from lookalike.index.storage import ITEMS_FILE, KEYS_FILE, IndexInfo, create_vectors, map_vectors
from lookalike.index.store import CHANGED_FILE, Change, FileState, Ids, IndexedItem, located
from lookalike.index.view import Delta, View
from lookalike.models.pipeline import File, image_keys
from lookalike.progress import SILENT, Progress
from lookalike.types import Vectors, l2_normalize

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_ATTEMPTS = 5  # to open a snapshot, which another process may replace meanwhile
_COMPACTING = "compacting.lock"


class LocalStore:
    """The items of an index folder that was changed; safe to use from several threads and processes."""

    def __init__(self, folder: Path, dim: int, *, verify: bool = False) -> None:
        self.folder, self.dim = folder, dim
        self._verify = verify
        self._lock = threading.RLock()  # of the reading connection, and of the next view
        self._write_lock = threading.Lock()
        self._open()

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalStore, (self.folder, self.dim)

    def _open(self) -> None:
        path = self.folder / CHANGED_FILE
        self._process = os.getpid()
        self._reader, self._writer = SqliteItems(path), SqliteItems(path)
        if self._reader.meta("dim") != self.dim:
            raise StorageError(f"{path} does not belong to the index; build the index again.", argument="path")
        if self._verify:
            self._reader.require_sound()
        self._version = -1
        self._view = self._empty()
        self._written: tuple[str, Snapshot | None] = "", None  # opened before searches need it
        self.refresh()
        self._verify = False

    def _empty(self) -> View:
        return View(self.dim, 0, 0, None, np.zeros(0, bool), Delta(self.dim), np.zeros(0, bool))

    def __len__(self) -> int:
        return len(self.view())

    def __contains__(self, item: object) -> bool:
        return isinstance(item, str) and self.get([item]) != [None]

    @property
    def ids(self) -> PackedStrings:
        """The ids of all items, sorted."""
        return self.view().ids

    @property
    def other_paths(self) -> Mapping[str, Path | None]:
        """The files of the items whose file is not their id relative to the root, by id."""
        return self.view().paths

    @property
    def key(self) -> str:
        """How vectors are searched: a FAISS factory string, Flat for exact search."""
        snapshot = self.view().snapshot
        return ExactIndex.key if snapshot is None else snapshot.info.key

    @property
    def pending(self) -> int:
        """Items that were added or removed since the last snapshot, which make searches slower."""
        return self.view().pending

    def view(self, names: Collection[str] = ()) -> View:
        """Return the current state of the items, with the values under the names that a filter compares."""
        with self._lock:
            self._refresh(names)
            return self._view

    def search(
        self, queries: Vectors, query_ids: Sequence[str], top_k: int, where: Filter | None = None
    ) -> tuple[Ids, Floats]:
        """Return ids and cosines `(n_query, top_k)`, filled up with None and nan; a query is never its own hit."""
        return self.view(() if where is None else where.names()).search(queries, query_ids, top_k, where)

    def get(self, ids: Sequence[str]) -> list[IndexedItem | None]:
        """Return items by id, None for an id that has no item."""
        with self._reading() as reader:
            return reader.get(ids)

    def items(self, after: str | None, limit: int) -> list[IndexedItem]:
        """Return the first items in the order of their ids, after an id."""
        with self._reading() as reader:
            return reader.page(after, limit)

    def vectors_of(self, ids: Sequence[str]) -> Vectors:
        """Return the vectors `(n, dim)` of items; `OptionError` for an id that has no item."""
        with self._reading() as reader:
            rids = reader.rids_of(ids)
            return reader.vectors_of([rids[item] for item in ids], self.dim)

    def apply(self, change: Change) -> int:
        """Make a change durable and visible, and return how many items were replaced."""
        self._require_process()
        with self._write_lock:
            replaced = self._writer.apply(change)
        self.refresh()
        return replaced

    def refresh(self) -> bool:
        """See what was changed, by this process or another; return whether anything was."""
        return self._refresh(())

    def _refresh(self, names: Collection[str]) -> bool:
        self._require_process()
        with self._lock:
            if self._reader.is_outdated:
                self.close()
                self._open()
            version = self._reader.data_version()
            if version == self._version and all(name in self._view.columns or name == ID for name in names):
                return False
            try:
                self._view = self._load(names)
                self._version = version
            except BaseException:  # a delta may have been extended in part
                self._view, self._version = self._empty(), -1
                raise
            return True

    def compact(self, min_recall: float | None = None, progress: Progress = SILENT) -> bool:
        """Write a new snapshot of all items, while searches and changes continue.

        Return False if another process does so. `min_recall` is the recall of inverted lists above 20,000 items, 1 for
        exact search; None for that of the last snapshot.
        """
        self._require_process()
        compacted = self._compact(min_recall, progress)
        self.refresh()
        return compacted

    def copy_into(self, folder: Path) -> None:
        """Copy the files of the store into another folder, as of now."""
        with storage_errors(folder), self._lock:
            for attempt in range(_ATTEMPTS):
                with sqlite_errors(folder), contextlib.closing(sqlite3.connect(folder / CHANGED_FILE)) as copy:
                    self._reader.connection.backup(copy)
                    (name,) = copy.execute("select name from snapshots").fetchone()
                try:
                    shutil.copytree(self.folder / FOLDER / name, folder / FOLDER / name, dirs_exist_ok=True)
                    return
                except OSError:  # another process may have replaced it meanwhile
                    if attempt == _ATTEMPTS - 1:
                        raise

    def close(self) -> None:
        """Close the files; the store must not be used afterwards."""
        self._reader.close()
        self._writer.close()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[SqliteItems]:
        self._require_process()
        with self._lock, self._reader.reading():
            yield self._reader

    def _require_process(self) -> None:
        """Open the files again in a forked process, which must not use the connections of its parent."""
        if os.getpid() != self._process:
            self._inherited = (self._reader, self._writer)  # closing them would harm the parent
            self._lock, self._write_lock = threading.RLock(), threading.Lock()
            self._open()

    def _load(self, names: Collection[str]) -> View:
        """Return the current state; where the snapshot is damaged, build it again from what SQLite holds."""
        for attempt in range(_ATTEMPTS):
            with self._reader.reading():
                current = self._snapshot_row()
                try:
                    return self._with_columns(self._advanced(self._based_on(*current)), names)
                except StorageError as error:
                    if attempt == _ATTEMPTS - 1:
                        raise
                    damage = error
            with self._reader.reading():
                replaced = self._snapshot_row() != current  # by another process, meanwhile
            if not replaced:
                logging.getLogger("lookalike").warning("%s It is built again.", damage)
                if not self._compact(None, SILENT):
                    time.sleep(attempt)
        raise AssertionError  # the last attempt returns or raises

    def _snapshot_row(self) -> tuple[int, str, int]:
        """Return number, name and last change of the current snapshot."""
        number, name, seq = self._reader.connection.execute(
            "select number, name, seq from snapshots order by number desc limit 1"
        ).fetchone()
        return number, name, seq

    def _based_on(self, number: int, name: str, seq: int) -> View:
        """Return the view, or one of the current snapshot where that is another."""
        if self._view.number == number:
            return self._view
        written, snapshot = self._written
        if snapshot is None or written != name:
            snapshot = Snapshot.open(self.folder / FOLDER / name, verify=self._verify)
        self._written = "", None
        if snapshot.exact.dim != self.dim:
            raise StorageError(f"the snapshot {name} has vectors of other dimensions.", argument="path")
        rows = self._reader.connection.execute("select id, path from items where path is not id")
        paths = {item: None if path is None else Path(path) for item, path in rows}
        return replace(
            self._empty(),
            number=number,
            seq=seq,
            snapshot=snapshot,
            alive=np.ones(len(snapshot.rids), bool),
            paths=paths,
            columns=self._carried_columns(snapshot),
        )

    def _carried_columns(self, snapshot: Snapshot) -> dict[str, ValueColumn]:
        """Return the columns of the view for the rows of a new snapshot: only what the old one lacks is read."""
        view = self._view
        if view.snapshot is None or not view.columns:
            return {}
        rows = view.snapshot.rows_of(snapshot.rids)
        new = np.flatnonzero(rows < 0).tolist()
        items = self._reader.rows(snapshot.rids[new].tolist())
        others = {row: items[rid] for row in new if (rid := int(snapshot.rids[row])) in items}

        def value(name: str, item: IndexedItem) -> Value | None:
            return item.label if name == LABEL else item.metadata.get(name)

        return {
            name: column.take(rows, {row: value(name, item) for row, item in others.items()})
            for name, column in view.columns.items()
        }

    def _advanced(self, view: View) -> View:
        """Return a view with the changes since its last one."""
        connection = self._reader.connection
        (seq,) = connection.execute("select max(seq) from log").fetchone()
        if seq is None or seq <= view.seq:
            return view
        touched = connection.execute("select distinct rid from log where seq > ?", (view.seq,))
        rids = [rid for (rid,) in touched]
        items = self._reader.rows(rids)
        paths = dict(view.paths)
        for item in items.values():
            if item.path is not None and item.path.as_posix() == item.id:
                paths.pop(item.id, None)
            else:
                paths[item.id] = item.path
        current_rows = dict(zip(rids, view.rows_of(rids), strict=True))
        gone = np.array([row for rid, row in current_rows.items() if row >= 0 and rid not in items], int)
        new = {rid: item for rid, item in items.items() if current_rows[rid] < 0}
        size = len(view.alive)
        alive, delta_alive = view.alive, np.append(view.delta_alive, np.ones(len(new), bool))
        if (gone < size).any():
            alive = alive.copy()
            alive[gone[gone < size]] = False
        delta_alive[gone[gone >= size] - size] = False
        if new:
            view.delta.append(list(new), list(new.values()), self._reader.vectors_of(list(new), self.dim))
        return replace(view, seq=seq, alive=alive, delta_alive=delta_alive, paths=paths)

    def _with_columns(self, view: View, names: Collection[str]) -> View:
        """Return the view with the values under these names of its snapshot's items."""
        missing = [name for name in names if name not in view.columns and name != ID]
        if not missing or view.snapshot is None:
            return view
        values: dict[str, list[Value | None]] = {name: [None] * len(view.alive) for name in missing}
        columns = "rid, label, metadata" if missing != [LABEL] else "rid, label, null"
        cursor = self._reader.connection.execute(f"select {columns} from items")
        while part := cursor.fetchmany(FETCH):
            rows = view.snapshot.rows_of(np.array([rid for rid, *_ in part], np.int64))
            for row, (_, label, text) in zip(rows.tolist(), part, strict=True):
                if row < 0:
                    continue
                metadata = read_metadata(text)
                for name in missing:
                    values[name][row] = label if name == LABEL else metadata.get(name)
        new = {name: ValueColumn(values[name], len(view.alive)) for name in missing}
        return replace(view, columns={**view.columns, **new})

    def _compact(self, min_recall: float | None, progress: Progress) -> bool:
        with _exclusive(self.folder / _COMPACTING) as acquired:
            if not acquired:
                return False
            source = SqliteItems(self.folder / CHANGED_FILE)
            name = secrets.token_hex(8)
            folder = self.folder / FOLDER / name
            with contextlib.closing(source):
                try:
                    with source.reading() as connection:
                        recall = source.meta("min_recall") if min_recall is None else min_recall
                        (seq,) = connection.execute(
                            "select max(seq) from (select seq from log union all select seq from snapshots)"
                        ).fetchone()
                        pairs = connection.execute("select id, rid from items order by id")
                        rids: list[int] = []
                        ids = PackedStrings(_take_first(pairs, rids))
                        write_snapshot(
                            folder,
                            ids,
                            np.array(rids, np.int64),
                            _blocks(source, self.dim),
                            self.dim,
                            min_recall=recall if recall < 1 and len(ids) > EXACT_UNTIL else None,
                            prefilter=bool(source.meta("prefilter")),
                            progress=progress,
                        )
                    self._written = name, Snapshot.open(folder)
                    with source.writing() as connection:
                        _publish(connection, name, seq, recall)
                except BaseException:
                    shutil.rmtree(folder, ignore_errors=True)
                    raise
            remove_leftovers(self.folder, name)
            return True


def make_local_store(folder: Path, source: FolderStore, info: IndexInfo) -> None:
    """Make the folder of an index a local store with the same items, in one step.

    Where another process has done it meanwhile, its result is used.
    """
    name = secrets.token_hex(8)
    snapshot, temporary = folder / FOLDER / name, folder / f".{CHANGED_FILE}.{name}"
    target = folder / CHANGED_FILE
    try:
        with storage_errors(folder):
            snapshot.mkdir(parents=True)
            _write_first_snapshot(snapshot, folder, source, info)
            recall = 1.0 if info.tuning is None else info.tuning.measured.recall
            meta = {"dim": info.dim, "min_recall": recall, "prefilter": info.prefilter}
            SqliteItems.create(temporary, _rows(folder, source, snapshot, info), meta, name)
            try:
                target.hardlink_to(temporary)  # unlike a renaming, it fails where the name is taken
            except FileExistsError:
                raise
            except OSError:  # a file system without links
                temporary.rename(target)
            sync_path(folder)
    except BaseException as error:
        shutil.rmtree(snapshot, ignore_errors=True)
        if not target.exists() or not isinstance(error, Exception):
            raise
        return
    finally:
        temporary.unlink(missing_ok=True)
    remove_leftovers(folder, name)


def _write_first_snapshot(snapshot: Path, folder: Path, source: FolderStore, info: IndexInfo) -> None:
    """Write a snapshot with the files of an index; an approximate one gets vectors, as exact as it stores them."""
    count = len(source.ids)
    described = SnapshotInfo(count, prefilter=info.prefilter)
    if isinstance(source.vector_index, ExactIndex):
        link_or_copy(folder / INDEX_FILE, snapshot / INDEX_FILE)
    else:
        vectors = create_vectors(snapshot / INDEX_FILE, count, info.dim)
        for rows, block in source.vector_index.blocks():
            vectors[rows] = l2_normalize(block)
        link_approximate(snapshot, folder)
        assert info.tuning is not None  # as every approximate index has
        measured = info.tuning.measured
        described = replace(described, key=info.key, parameters=measured.parameters, recall=measured.recall)
    finish_snapshot(snapshot, source.ids, np.arange(1, count + 1), described)


def _rows(folder: Path, source: FolderStore, snapshot: Path, info: IndexInfo) -> Iterator[tuple[IndexedItem, bytes]]:
    """Yield items with their vectors, and with the states of the files that did not change since they were embedded."""
    vectors = map_vectors(snapshot / INDEX_FILE)
    root = None if info.root is None else Path(info.root)
    try:
        with open_regular(folder / KEYS_FILE) as stored:
            require_uncompressed(stored)
            keys = np.load(stored, allow_pickle=False)
    except (OSError, EOFError, ValueError):  # an index that was built in Python has none
        keys = np.zeros(0, np.uint64)
    for row, item in enumerate(source.items(None, len(source))):
        path, file = located(item.path, root), None
        if len(keys) == len(source) and path is not None and image_keys([File(item.id, path)])[0] == keys[row]:
            with contextlib.suppress(OSError):
                status = path.stat()
                file = FileState(status.st_size, status.st_mtime_ns)
        yield replace(item, file=file), as_blob(vectors[row])


def remove_leftovers(folder: Path, current: str) -> None:
    """Remove older snapshots and what the folder held before its first change; processes that map them keep them."""
    with contextlib.suppress(OSError):
        for path in (folder / FOLDER).iterdir():
            if path.name != current:
                shutil.rmtree(path, ignore_errors=True)
        for name in (INDEX_FILE, ROWS_FILE, ITEMS_FILE, KEYS_FILE):
            (folder / name).unlink(missing_ok=True)
        for path in folder.glob(f".{CHANGED_FILE}.*"):
            path.unlink()


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[bool]:
    """Hold the lock of a file while the block runs; yield whether no other process or thread held it."""
    if fcntl is None:
        yield True
        return
    with storage_errors(path), path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _publish(connection: sqlite3.Connection, name: str, seq: int, min_recall: float) -> None:
    """Make a snapshot the current one; the log keeps what came after the one before."""
    (before,) = connection.execute("select max(seq) from snapshots").fetchone()
    connection.execute("delete from log where seq <= ?", (before,))
    connection.execute("delete from snapshots")
    connection.execute("insert into snapshots(name, seq) values (?, ?)", (name, seq))
    connection.execute("update meta set value = ? where name = 'min_recall'", (min_recall,))


def _take_first(pairs: Iterable[tuple[str, int]], second: list[int]) -> Iterator[str]:
    """Yield the first of each pair, and append the other to a list."""
    for first, other in pairs:
        second.append(other)
        yield first


def _blocks(source: SqliteItems, dim: int) -> Iterator[Vectors]:
    """Yield all vectors, in the order of their row numbers."""
    cursor = source.connection.execute("select vector from vectors order by rid")
    while blobs := cursor.fetchmany(FETCH):
        yield as_vectors([blob for (blob,) in blobs], dim)
