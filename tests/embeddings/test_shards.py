"""Shards of embeddings: one that is damaged is computed again, or reported before it is joined."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lookalike.embeddings import shards as shards_module
from lookalike.embeddings.folder import EmbeddingsInfo, RunInfo, load_embeddings, read_embeddings_info
from lookalike.embeddings.shards import Shard, StoredVectors, join_shards, read_shard, shard_path, write_shard
from lookalike.errors import StorageError
from lookalike.models.pipeline import File
from lookalike.types import Embeddings, Skipped

BROKEN = Skipped(Path("broken.jpg"), "empty")
FIRST = Shard(np.array([7, 3], np.uint64), np.eye(2, 3, dtype=np.float32), {})
SECOND = Shard(np.array([5], np.uint64), np.array([[0, 0, 1]], np.float32), {2**64 - 1: BROKEN})
KEYS = np.array([5, 7, 3], np.uint64)
INFO = EmbeddingsInfo(
    run=RunInfo("resnet50", "model", "float32"), dim=3, count=3, root=None, failed=SECOND.failed, retried=()
)


@pytest.fixture
def shards(tmp_path):
    write_shard(shard_path(tmp_path, 0), FIRST)
    write_shard(shard_path(tmp_path, 4), SECOND)
    return tmp_path


def test_a_shard_is_read_as_it_was_written(shards):
    shard = read_shard(shard_path(shards, 4))
    np.testing.assert_array_equal(shard.vectors, SECOND.vectors)
    np.testing.assert_array_equal(shard.keys, SECOND.keys)
    assert shard.failed == SECOND.failed


def test_a_shard_of_embeddings():
    sources = [File(name, Path(name)) for name in ("a", "b", "c", "d")]
    keys = np.array([4, 3, 2, 1], np.uint64)
    skipped = (Skipped(Path("b"), "corrupt"), Skipped(Path("d"), "too many open files", temporary=True))
    embeddings = Embeddings(("a", "c"), np.eye(2, 3, dtype=np.float32), "model", skipped)
    shard = Shard.of(sources, keys, embeddings)
    assert (shard.keys.tolist(), shard.failed) == ([4, 2], {3: skipped[0]})
    assert shard.embeddings(sources, keys, "model") is None  # d is tried again
    again = shard.embeddings(sources[:3], keys[:3], "model")
    assert (again.ids, again.skipped) == (("a", "c"), skipped[:1])
    assert shard.embeddings(sources[:2], keys[:2], "model") is None
    assert shard.embeddings(sources[::2], keys[::2], "model") is None


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_a_missing_or_truncated_shard(shards, size):
    path = shard_path(shards, 0)
    path.write_bytes(path.read_bytes()[:size])
    assert read_shard(path) is None
    path.unlink()
    assert read_shard(path) is None


@pytest.mark.parametrize(
    "arrays",
    [
        {"failed": b"[]"},
        {"failed": b'{"x": {}}'},
        {"keys": np.zeros(1, np.uint64)},
        {"keys": np.zeros(2, np.int64)},
        {"vectors": np.zeros(2, np.float32)},
        {"vectors": np.zeros((2, 3))},
    ],
)
def test_a_shard_whose_content_does_not_match(tmp_path, arrays):
    content = {"keys": FIRST.keys, "vectors": FIRST.vectors, "failed": b"{}", **arrays}
    content["failed"] = np.frombuffer(content["failed"], np.uint8)
    np.savez(tmp_path / "shard.npz", **content)
    assert read_shard(tmp_path / "shard.npz") is None


def test_a_compressed_shard(tmp_path):
    content = {"keys": FIRST.keys, "vectors": np.zeros((2, 4096), np.float32), "failed": np.frombuffer(b"{}", np.uint8)}
    np.savez(tmp_path / "shard.npz", **content)
    assert read_shard(tmp_path / "shard.npz") is not None
    np.savez_compressed(tmp_path / "shard.npz", **content)
    assert read_shard(tmp_path / "shard.npz") is None


def test_rows_are_found_by_key(shards):
    stored = StoredVectors(shards, None)
    assert stored.find(np.array([5, 9, 7, 2**64 - 1], np.uint64)).tolist() == [2, -1, 0, -1]
    assert stored.failed == SECOND.failed
    assert stored.next_number == 5
    assert StoredVectors(shards / "missing", None).find(KEYS).tolist() == [-1, -1, -1]


@pytest.mark.parametrize("block", [1, 2, 4096])
def test_joined_shards(shards, monkeypatch, block):
    monkeypatch.setattr(shards_module, "_BLOCK", block)
    stored = StoredVectors(shards, None)
    join_shards(shards, INFO, ["c", "a", "b"], KEYS, stored.find(KEYS), stored)
    embeddings = load_embeddings(shards)
    assert list(embeddings.ids) == ["c", "a", "b"]
    np.testing.assert_array_equal(embeddings.vectors, np.eye(3, dtype=np.float32)[[2, 0, 1]])
    info = read_embeddings_info(shards)
    assert replace(info, files={}) == INFO
    assert set(info.files) == {"vectors.npy", "ids.json", "keys.npy"}
    assert StoredVectors(shards, info).find(KEYS).tolist() == [0, 1, 2]


def test_a_shard_that_is_damaged_before_it_is_joined(shards):
    stored = StoredVectors(shards, None)
    shard_path(shards, 4).write_bytes(b"")
    with pytest.raises(StorageError, match=r"00004\.npz was damaged"):
        join_shards(shards, INFO, ["c", "a", "b"], KEYS, stored.find(KEYS), stored)
