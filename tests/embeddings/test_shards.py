"""Shards: written in one step, read only if they are undamaged and of the same images."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lookalike.embeddings.shards import FinishedShards, join_shards, read_shard, shard_path, write_shard
from lookalike.embeddings.store import EmbeddingsInfo, RunInfo, ShardInfo, load_embeddings
from lookalike.errors import StorageError
from lookalike.types import Embeddings, Skipped

FIRST = Embeddings(("a.jpg", "é\n.jpg"), np.eye(2, 3, dtype=np.float32), "model")
SECOND = Embeddings(("c.jpg",), np.array([[0, 0, 1]], np.float32), "model", (Skipped("broken.jpg", "empty"),))
INFO = EmbeddingsInfo(
    run=RunInfo("resnet50", "model", "float32", 2),
    dim=3,
    count=3,
    root=None,
    shards=(ShardInfo("one", "a.jpg", 2, 0), ShardInfo("two", "broken.jpg", 1, 1)),
    skipped=SECOND.skipped,
)


@pytest.fixture
def out(tmp_path):
    write_shard(shard_path(tmp_path, 0), "one", FIRST)
    write_shard(shard_path(tmp_path, 1), "two", SECOND)
    return tmp_path


def test_a_shard_is_read_as_it_was_written(out):
    shard = read_shard(shard_path(out, 1), "two", "model")
    np.testing.assert_array_equal(shard.vectors, SECOND.vectors)
    assert (shard.ids, shard.fingerprint) == (SECOND.ids, "model")
    assert [(str(s.path), s.cause) for s in shard.skipped] == [("broken.jpg", "empty")]


def test_a_shard_of_other_images_or_a_missing_one(out):
    assert read_shard(shard_path(out, 0), "two", "model") is None
    assert read_shard(shard_path(out, 2), "two", "model") is None


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_a_truncated_shard(out, size):
    path = shard_path(out, 0)
    path.write_bytes(path.read_bytes()[:size])
    assert read_shard(path, "one", "model") is None


@pytest.mark.parametrize("record", [[], {"key": "one"}, {"key": "one", "ids": ["a"], "skipped": []}])
def test_a_shard_whose_record_does_not_match(tmp_path, record):
    text = np.frombuffer(json.dumps(record).encode(), dtype=np.uint8)
    np.savez(tmp_path / "shard.npz", vectors=FIRST.vectors, record=text)
    assert read_shard(tmp_path / "shard.npz", "one", "model") is None


def test_joined_shards(out):
    join_shards(out, INFO)
    embeddings = load_embeddings(out)
    assert embeddings.ids == (*FIRST.ids, *SECOND.ids)
    np.testing.assert_array_equal(embeddings.vectors, np.eye(3, dtype=np.float32))
    finished = FinishedShards(out, INFO)
    shard = finished.get("two")
    assert (tuple(shard.ids), len(shard.skipped)) == (("c.jpg",), 1)
    assert finished.get("three") is None
    assert FinishedShards(out / "missing", None).get("one") is None


def test_a_shard_that_is_damaged_before_it_is_joined(out):
    shard_path(out, 1).write_bytes(b"")
    with pytest.raises(StorageError, match=r"00001\.npz was damaged"):
        join_shards(out, INFO)
