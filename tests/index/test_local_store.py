"""A changed index on a disk that is damaged, full or read-only, and what a new snapshot takes from the one before."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from lookalike.errors import StorageError
from lookalike.index import autotune, local_store, snapshot
from lookalike.index.index import Index
from lookalike.types import Embeddings, l2_normalize


def some(count, *, seed=0, name="item"):
    vectors = l2_normalize(np.random.default_rng(seed).normal(size=(count, 16)))
    return Embeddings(tuple(f"{name}{n:04}" for n in range(count)), vectors, "model")


QUERY = some(1, seed=9, name="query")
YEARS = {f"item{n:04}": {"year": 2000 + n % 5} for n in range(40)}


def hits_of(index, where=None):
    return [(hit.id, hit.score) for hit in index.search(QUERY, 5, where)[0]]


@pytest.fixture
def folder(tmp_path):
    """An index of 40 items, of which one was replaced."""
    Index.build(some(40), metadata=YEARS).save(tmp_path / "index")
    index = Index.load(tmp_path / "index")
    index.add(some(1, seed=3), labels={"item0000": "hat"}, replace=True)
    index.compact()
    index.close()
    return tmp_path / "index"


def snapshot_of(folder):
    (path,) = (folder / "snapshots").iterdir()
    return path


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize("create", [os.mkfifo, Path.touch])
def test_keys_that_cannot_be_read_are_ignored(tmp_path, create):
    Index.build(some(4)).save(tmp_path / "index")
    create(tmp_path / "index" / "keys.npy")
    index = Index.load(tmp_path / "index")
    index.add(some(1, seed=3, name="new"))
    assert len(index) == 5
    index.close()


def test_a_pipe_in_place_of_the_items_is_refused(folder):
    (folder / "items.sqlite").unlink()
    os.mkfifo(folder / "items.sqlite")
    with pytest.raises(StorageError, match="it is a pipe"):
        Index.load(folder)


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_a_damaged_snapshot_is_built_again(folder, damage, caplog):
    expected = hits_of(Index.load(folder))
    for name in ("index.faiss", "ids.bin", "rids.npy", "snapshot.json"):
        before = snapshot_of(folder)
        damage(before / name)
        assert hits_of(Index.load(folder)) == expected
        assert snapshot_of(folder) != before
        assert caplog.records[-1].getMessage().endswith("It is built again.")
    assert len(caplog.records) == 4


def test_large_files_of_a_changed_index_are_compared_on_request(folder, monkeypatch, caplog):
    monkeypatch.setattr(snapshot, "HASHED_BYTES", 100)
    expected, before = hits_of(Index.load(folder)), snapshot_of(folder)
    flip(before / "index.faiss")
    Index.load(folder).close()
    assert snapshot_of(folder) == before
    assert hits_of(Index.load(folder, verify=True)) == expected
    assert snapshot_of(folder) != before


@pytest.mark.parametrize("content", [b"", b"not SQLite" * 100])
def test_damaged_items_are_refused(folder, content):
    items = folder / "items.sqlite"
    items.write_bytes(content)
    with pytest.raises(
        StorageError, match=r"items\.sqlite cannot be used .*; check the disk, or build the index again"
    ):
        Index.load(folder)
    assert items.read_bytes() == content


def test_a_damaged_page_is_noticed_on_request(folder):
    items = folder / "items.sqlite"
    content = items.read_bytes()
    items.write_bytes(content[:16_384] + bytes(16_384) + content[32_768:])
    with pytest.raises(StorageError, match=r"items\.sqlite"):
        Index.load(folder, verify=True)


def test_a_full_disk_refuses_a_change_and_keeps_the_rest(folder, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    index = Index.load(folder)
    before = hits_of(index), list(index.iter_items()), snapshot_of(folder)
    connection = index._store._writer.connection
    (pages,) = connection.execute("pragma page_count").fetchone()
    connection.execute(f"pragma max_page_count = {pages}")
    with pytest.raises(StorageError, match="free some space"):
        index.add(some(200, name="more"))
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(StorageError, match="no space left"):
        index.compact()
    assert (hits_of(index), list(index.iter_items()), snapshot_of(folder)) == before
    connection.execute("pragma max_page_count = 1000000")
    index.add(some(200, name="more"))
    assert len(index) == 240


@pytest.fixture
def shared(folder):
    """The index in a folder that every user may read."""
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        yield folder.rename(Path(parent) / "index")


@contextlib.contextmanager
def read_only(folder):
    """Make a folder read-only for this process; root, for whom no folder is, becomes nobody."""
    was_root, folders = os.getuid() == 0, [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    if was_root:
        os.setresuid(65_534, 65_534, 0)
    try:
        yield
    finally:
        if was_root:
            os.setresuid(0, 0, 0)
        for path in folders:
            path.chmod(0o755)


def test_an_index_in_a_read_only_folder_is_searched_but_not_changed(shared):
    with read_only(shared):
        index = Index.load(shared)
        assert [item for item, _ in hits_of(index, "label == 'hat'")] == ["item0000"]
        assert index.get("item0001").metadata == {"year": 2001}
        for change in (lambda: index.add(some(1, name="new")), lambda: index.remove(["item0000"]), index.compact):
            with pytest.raises(StorageError) as refused:
                change()
            assert str(shared) in str(refused.value)
        assert len(hits_of(index)) == 5


def test_a_change_in_a_folder_that_others_can_only_read_is_seen(shared):
    with read_only(shared):
        reader = Index.load(shared)
        assert len(reader) == 40
    Index.load(shared).remove(["item0000"])
    assert len(reader) == 39


def test_the_first_change_of_an_index_in_a_read_only_folder(tmp_path, monkeypatch):
    Index.build(some(5)).save(tmp_path / "index")
    index = Index.load(tmp_path / "index")

    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(StorageError, match="read-only file system"):
        index.remove(["item0000"])
    assert len(hits_of(index)) == 5


@pytest.mark.parametrize("name", ["year", "label"])
def test_a_new_snapshot_reads_only_the_values_of_new_items(folder, name, monkeypatch):
    index = Index.load(folder)
    where = "year == 2001" if name == "year" else "label == 'hat' or label == 'cap'"
    hits_of(index, where)
    index.update("item0001", label="cap", metadata={"year": 2000})
    index.update("item0002", metadata={"year": 2001})
    index.remove(["item0006", "item0000"])
    index.compact()
    monkeypatch.setattr(local_store, "FETCH", 0)  # a column that is read as a whole would be empty
    expected = ["item0001"]
    if name == "year":
        expected = ["item0002", *(f"item{n:04}" for n in range(11, 40, 5))]
    assert sorted(hit.id for hit in index.search(QUERY, 20, where)[0]) == expected
    assert len(index._store.view().columns[name]._texts) == (name == "label")


def test_a_changed_index_of_many_items_gets_inverted_lists(embeddings, queries, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(local_store, "EXACT_UNTIL", 1000)
    monkeypatch.setattr(autotune, "_TIMED_SECONDS", 0)
    metadata = {item: {"n": n % 100} for n, item in enumerate(embeddings.ids)}
    exact = Index.build(embeddings, metadata=metadata)
    exact.save(tmp_path / "index")
    index = Index.load(tmp_path / "index")
    index.remove(["00000"])
    assert index.compact(min_recall=0.9)
    assert index.key.startswith("IVF")
    queries = Embeddings(tuple(f"q{n}" for n in range(60)), queries, "model")
    for where, recall in (("n != 0", 0.9), ("n == 7", 1.0)):
        pairs = list(zip(index.search(queries, 10, where), exact.search(queries, 10, where), strict=True))
        assert np.mean([len({h.id for h in a} & {h.id for h in b}) / 10 for a, b in pairs]) >= recall
        scores = {(b.query_id, hit.id): hit.score for _, b in pairs for hit in b}
        assert all(scores.get((a.query_id, hit.id), hit.score) == hit.score for a, _ in pairs for hit in a)
    flip(snapshot_of(tmp_path / "index") / "approximate" / "index.faiss")
    assert Index.load(tmp_path / "index").key == index.key
    assert len(caplog.records) == 1
