"""The items of a changeable index in SQLite: the only truth about them; one transaction per change.

A row never changes: an item that is replaced or updated gets a new row number (`rid`). The log names the rows that were
added and removed; a reader looks at these again.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lookalike._files import reading_errors, require_regular
from lookalike.errors import StorageError
from lookalike.index.store import (
    Add,
    Change,
    FileState,
    IndexedItem,
    Remove,
    Unchanged,
    Update,
    existing_ids,
    unknown_ids,
)
from lookalike.types import Vectors

FORMAT = 1
FETCH = 4096  # rows read at once
_BUSY_SECONDS = 60.0  # how long a change waits for that of another process
_PAGE_BYTES = 16_384  # with the default of 4,096, vectors of 512 dimensions take nearly twice the space
_VARIABLES = 500  # in one statement

_SCHEMA = """
create table items(
    rid integer primary key autoincrement, id text not null unique, label text, metadata text,
    path text, size integer, mtime_ns integer, digest text);
create index other_paths on items(rid) where path is not id;
create table vectors(rid integer primary key, vector blob not null);
create table log(seq integer primary key autoincrement, op text not null, rid integer not null);
create table snapshots(number integer primary key autoincrement, name text not null, seq integer not null);
create table meta(name text primary key, value not null);
"""
_COLUMNS = "items.id, label, metadata, path, size, mtime_ns, digest"


class SqliteItems:
    """A connection to the items; one thread at a time may use it.

    In a folder that cannot be written, where SQLite cannot make the files of its log, it reads the file alone.

    Attributes:
        connection: the connection of Python's `sqlite3`.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._log = path.with_name(f"{path.name}-wal")
        self._only_file: int | None = None  # the time of change of a file that is read alone
        with reading_errors(path, "the file of items", argument="path"):
            require_regular(path)  # SQLite would wait for a pipe
        self.connection = _connect(path, "mode=rw")
        with sqlite_errors(path):
            try:
                version = self.meta("format")
            except sqlite3.OperationalError:
                if os.access(path.parent, os.W_OK) or self._log.exists():
                    raise
                self.connection.close()
                self._only_file = path.stat().st_mtime_ns
                self.connection = _connect(path, "mode=ro&immutable=1")
                version = self.meta("format")
            self.connection.execute("pragma synchronous = full")
        if version != FORMAT:
            raise StorageError(
                f"{path} has format {version}, this version reads {FORMAT}; build the index again.", argument="path"
            )

    @classmethod
    def create(
        cls, path: Path, rows: Iterable[tuple[IndexedItem, bytes]], meta: Mapping[str, str | float], snapshot: str
    ) -> None:
        """Write a new file with items, numbered from 1, and the name of their snapshot, and make it durable."""
        connection = _connect(path, "mode=rwc")
        with sqlite_errors(path), contextlib.closing(connection):
            connection.execute(f"pragma page_size = {_PAGE_BYTES}")
            connection.execute("pragma journal_mode = off")
            connection.execute("pragma synchronous = off")
            connection.executescript(f"begin; {_SCHEMA}")
            for item, vector in rows:
                _insert(connection, item, vector)
            values = {"format": FORMAT, **meta}
            connection.executemany("insert into meta values (?, ?)", values.items())
            connection.execute("insert into snapshots(name, seq) values (?, 0)", (snapshot,))
            connection.execute("commit")
            connection.execute("pragma journal_mode = wal")
        with path.open("rb") as file:
            os.fsync(file.fileno())

    def meta(self, name: str) -> Any:
        """Return a fact about all items."""
        row = self.connection.execute("select value from meta where name = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def data_version(self) -> int:
        """Return a number that changes when another connection commits."""
        with sqlite_errors(self.path):
            return int(self.connection.execute("pragma data_version").fetchone()[0])

    @property
    def is_outdated(self) -> bool:
        """Whether the file, read alone, was changed by a process that may write it: it must be opened again."""
        before = self._only_file
        return before is not None and (self._log.exists() or self.path.stat().st_mtime_ns != before)

    def require_sound(self) -> None:
        """Read all of the file; `StorageError` if it is damaged."""
        with sqlite_errors(self.path):
            (answer,) = self.connection.execute("pragma quick_check(1)").fetchone()
        if answer != "ok":
            raise StorageError(f"{self.path} is damaged ({answer}); build the index again.", argument="path")

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """See one state of the items while the block runs."""
        with sqlite_errors(self.path):
            self.connection.execute("begin")
            try:
                yield self.connection
            finally:
                self.connection.execute("rollback")

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Commit what the block changes when it ends, durably; nothing of it after an error."""
        with sqlite_errors(self.path):
            self.connection.execute("begin immediate")
            try:
                yield self.connection
                self.connection.execute("commit")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("rollback")
                raise

    def apply(self, change: Change) -> int:
        """Make a change; return how many items were replaced."""
        with self.writing() as connection:
            if isinstance(change, Add):
                return _add(connection, change)
            if isinstance(change, Remove):
                _delete(connection, self.rids_of(change.ids).values())
                return 0
            return _update(connection, self, change)

    def rows(self, rids: Sequence[int]) -> dict[int, IndexedItem]:
        """Return items by row number, without those that are gone."""
        rows = _select(self.connection, f"rid, {_COLUMNS}", "items", "rid", rids)
        return {rid: _read_item(values) for rid, *values in rows}

    def rids_of(self, ids: Sequence[str]) -> dict[str, int]:
        """Return row numbers by id; `OptionError` for an id that has no item."""
        rids = _find(self.connection, ids)
        missing = [item for item in ids if item not in rids]
        if missing:
            raise unknown_ids(missing)
        return rids

    def get(self, ids: Sequence[str]) -> list[IndexedItem | None]:
        """Return items by id; None for an id that has no item. A relative path is relative to the root."""
        items = {item.id: item for item in map(_read_item, _select(self.connection, _COLUMNS, "items", "id", ids))}
        return [items.get(item) for item in ids]

    def page(self, after: str | None, limit: int) -> list[IndexedItem]:
        """Return the first items in the order of their ids, after an id."""
        condition, values = ("", []) if after is None else ("where id > cast(? as text)", [_text(after)])
        statement = f"select {_COLUMNS} from items {condition} order by id limit ?"
        return list(map(_read_item, self.connection.execute(statement, [*values, limit])))

    def vectors_of(self, rids: Sequence[int], dim: int) -> Vectors:
        """Return the vectors `(n, dim)` of rows."""
        blobs: dict[int, bytes] = dict(_select(self.connection, "rid, vector", "vectors", "rid", rids))
        return as_vectors([blobs[rid] for rid in rids], dim)

    def close(self) -> None:
        """Close the connection."""
        with sqlite_errors(self.path):
            self.connection.close()


@contextlib.contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Turn an error of SQLite into `StorageError`."""
    try:
        yield
    except sqlite3.Error as error:
        cause, advice = str(error), "check the disk, or build the index again"
        if "locked" in cause or "busy" in cause:
            cause, advice = "another process is changing it", "try again"
        elif "full" in cause:
            advice = "free some space"
        elif "readonly" in cause or "read-only" in cause or "unable to open" in cause:
            advice = "check the permissions of its folder, which must be writable"
        raise StorageError(f"{path} cannot be used ({cause}); {advice}.", argument="path") from error


def as_vectors(blobs: Sequence[bytes], dim: int) -> Vectors:
    """Return the vectors `(n, dim)` that SQLite holds as bytes."""
    return np.frombuffer(b"".join(blobs), dtype="<f4").reshape(-1, dim)


def as_blob(vector: Vectors) -> bytes:
    """Return a vector as SQLite holds it."""
    return np.ascontiguousarray(vector, dtype="<f4").tobytes()


def read_metadata(text: str | None) -> dict[str, Any]:
    """Return the metadata of an item."""
    metadata: dict[str, Any] = json.loads(text) if text else {}
    return metadata


def _connect(path: Path, parameters: str) -> sqlite3.Connection:
    with sqlite_errors(path):
        # without isolation level, transactions begin where they are written
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?{parameters}",
            uri=True,
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.text_factory = lambda data: data.decode("utf-8", "surrogatepass")
        return connection


def _text(value: str | None) -> str | bytes | None:
    """Return text for `cast(? as text)`: a file name that is not valid Unicode as its bytes."""
    return value if value is None or value.isascii() else value.encode("utf-8", "surrogatepass")


def _values(item: IndexedItem) -> tuple[Any, ...]:
    """Return an item as SQLite holds it, in the order of its columns."""
    metadata = {name: value for name, value in item.metadata.items() if value is not None}
    file = item.file
    return (
        _text(item.id),
        _text(item.label),
        json.dumps(metadata) if metadata else None,
        None if item.path is None else _text(item.path.as_posix()),
        *((None, None, None) if file is None else (file.size, file.mtime_ns, file.digest)),
    )


def _insert(connection: sqlite3.Connection, item: IndexedItem, vector: bytes) -> int:
    cursor = connection.execute(
        "insert into items(id, label, metadata, path, size, mtime_ns, digest) values (cast(? as text), "
        "cast(? as text), ?, cast(? as text), ?, ?, ?)",
        _values(item),
    )
    connection.execute("insert into vectors values (?, ?)", (cursor.lastrowid, vector))
    return int(cursor.lastrowid or 0)


def _add(connection: sqlite3.Connection, change: Add) -> int:
    existing = _find(connection, [item.id for item in change.items])
    if existing and not change.replace:
        raise existing_ids(existing, len(change.items))
    _delete(connection, existing.values())
    rids = [_insert(connection, item, as_blob(row)) for item, row in zip(change.items, change.vectors, strict=True)]
    _log(connection, "add", rids)
    return len(existing)


def _update(connection: sqlite3.Connection, items: SqliteItems, change: Update) -> int:
    (rid,) = items.rids_of([change.id]).values()
    (item,) = items.get([change.id])
    assert item is not None  # its row was found, in the same transaction
    item = replace(
        item,
        label=item.label if isinstance(change.label, Unchanged) else change.label,
        metadata={**item.metadata, **change.metadata},
        path=item.path if isinstance(change.path, Unchanged) else change.path,
        file=item.file if isinstance(change.file, Unchanged) else change.file,
    )
    vector = change.vector
    if vector is None:
        (blob,) = connection.execute("select vector from vectors where rid = ?", (rid,)).fetchone()
    else:
        blob = as_blob(vector)
    _delete(connection, [rid])
    _log(connection, "add", [_insert(connection, item, blob)])
    return 1


def _delete(connection: sqlite3.Connection, rids: Iterable[int]) -> None:
    rows = [(rid,) for rid in rids]
    connection.executemany("delete from items where rid = ?", rows)
    connection.executemany("delete from vectors where rid = ?", rows)
    _log(connection, "remove", [rid for (rid,) in rows])


def _log(connection: sqlite3.Connection, op: str, rids: Iterable[int]) -> None:
    connection.executemany("insert into log(op, rid) values (?, ?)", [(op, rid) for rid in rids])


def _find(connection: sqlite3.Connection, ids: Sequence[str]) -> dict[str, int]:
    return dict(_select(connection, "id, rid", "items", "id", ids))


def _select(
    connection: sqlite3.Connection, columns: str, table: str, key: str, values: Sequence[Any]
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a table whose key is one of the values."""
    marker = "cast(? as text)" if key == "id" else "?"
    for start in range(0, len(values), _VARIABLES):
        part = values[start : start + _VARIABLES]
        places = ", ".join([marker] * len(part))
        statement = f"select {columns} from {table} where {key} in ({places})"
        yield from connection.execute(statement, [_text(value) if key == "id" else value for value in part])


def _read_item(row: Sequence[Any]) -> IndexedItem:
    item_id, label, metadata, path, size, mtime_ns, digest = row
    file = None if size is None else FileState(size, mtime_ns, digest)
    return IndexedItem(item_id, label, read_metadata(metadata), None if path is None else Path(path), file)
