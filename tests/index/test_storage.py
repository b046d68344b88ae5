"""The files of an index."""

import json
import math
import struct
from dataclasses import asdict

import faiss
import numpy as np
import pytest

from lookalike._files import checked_record, with_digest
from lookalike._strings import PackedStrings
from lookalike.errors import StorageError
from lookalike.index import storage
from lookalike.index.storage import (
    FORMAT,
    IndexInfo,
    OperatingPoint,
    TuningReport,
    map_vectors,
    read_info,
    read_items,
    spaced,
    write_info,
    write_items,
    write_vectors,
)
from lookalike.types import l2_normalize

POINT = OperatingPoint("graph", "HNSW32", 40, {"efSearch": 16}, 0.97, 1e4, 0.1, 4000)
INFO = IndexInfo("HNSW32", "model", "float32", 16, 40, "/images", tuning=TuningReport("fast", POINT, (POINT, POINT)))


@pytest.fixture
def vectors():
    return l2_normalize(np.random.default_rng(0).normal(size=(40, 16)))


@pytest.fixture
def path(vectors, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "BLOCK", 30)
    write_vectors(tmp_path / "index.faiss", vectors)
    return tmp_path / "index.faiss"


def test_the_vectors_are_a_flat_faiss_index(vectors, path, tmp_path):
    index = faiss.read_index(str(path))
    np.testing.assert_array_equal(index.reconstruct_n(0, 40), vectors)
    assert (type(index), index.metric_type) == (faiss.IndexFlatIP, faiss.METRIC_INNER_PRODUCT)
    faiss.write_index(index, str(tmp_path / "again.faiss"))
    assert (tmp_path / "again.faiss").read_bytes() == path.read_bytes()
    np.testing.assert_array_equal(map_vectors(path), vectors)


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 99, "half"])
def test_damaged_vectors(path, content):
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(StorageError, match=r"index\.faiss is missing or damaged"):
        map_vectors(path)


def test_vectors_of_another_type(path):
    faiss.write_index(faiss.IndexFlatL2(16), str(path))
    with pytest.raises(StorageError, match="damaged"):
        map_vectors(path)
    path.write_bytes(struct.pack("<4siqqq?iQ", b"IxFI", 16, 0, 0, 0, True, 1, 0))  # Euclidean distance
    with pytest.raises(StorageError, match="damaged"):
        map_vectors(path)


@pytest.mark.parametrize("info", [INFO, IndexInfo("Flat", "model", "auto", 16, 40, prefilter=False)])
def test_the_description_survives(info, tmp_path):
    write_info(tmp_path, info)
    assert read_info(tmp_path) == info


def test_a_folder_without_a_description(tmp_path):
    with pytest.raises(StorageError, match=r"is not an index: it has no index\.json") as raised:
        read_info(tmp_path)
    assert raised.value.argument == "path"


@pytest.mark.parametrize(
    ("values", "facts"),
    [
        ({"format": 1}, f"index format 1, this version reads {FORMAT}"),
        ({"count": None}, "count is None"),
        ({"count": math.inf}, "count is inf"),
        ({"count": -1}, "at least 1"),
        ({"dim": 0}, "at least 1"),
        ({"key": 3}, "key is 3"),
        ({"root": 3}, "root is 3"),
        ({"tuning": {}}, "tuning has no"),
        (
            {"tuning": {"reason": "", "tried": [], "measured": {**asdict(POINT), "parameters": {"nprobe": "x"}}}},
            "nprobe",
        ),
        ({"tuning": {"reason": "", "tried": [{"parameters": {}}], "measured": asdict(POINT)}}, "tried has no"),
        ({"versions": 3}, "versions is 3"),
        ({"digest": "0"}, "changed"),
    ],
)
def test_a_description_that_does_not_fit(tmp_path, values, facts):
    write_info(tmp_path, INFO)
    path = tmp_path / "index.json"
    content = checked_record(json.loads(path.read_text())) | values
    path.write_text(json.dumps(content if "digest" in values else with_digest(content)))
    with pytest.raises(StorageError, match=facts):
        read_info(tmp_path)


def test_a_description_that_is_not_json(tmp_path):
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(StorageError, match="cannot be read") as raised:
        read_info(tmp_path)
    assert raised.value.argument == "path"


def test_items_are_written_one_id_per_line(tmp_path):
    ids, metadata = PackedStrings(["a", "b/\udcff.jpg", "ö"]), {"a": {"photographer": "Ä"}}
    write_items(tmp_path, ids, {"b": "hat"}, metadata)
    path = tmp_path / "items.json"
    assert len(path.read_text().splitlines()) == 6
    assert json.loads(path.read_text()) == {"ids": list(ids), "labels": {"b": "hat"}, "metadata": metadata}
    assert read_items(tmp_path) == (ids, {"b": "hat"}, metadata)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"ids": [\n"a"\n]', '{"ids": [\n"a"\n],\n"x": 3}', '{"ids": [\n3\n],\n"metadata": {}}']
)
def test_damaged_items(tmp_path, text):
    (tmp_path / "items.json").write_text(text)
    with pytest.raises(StorageError, match="again") as raised:
        read_items(tmp_path)
    assert raised.value.argument == "path"


@pytest.mark.parametrize(
    "text", ['{"ids": [\n"\\ud800.jpg"\n],\n"metadata": {}}\n', '{"ids": [\n"a"\n],\n"metadata": {"a": 3}}\n']
)
def test_ids_that_no_file_has_and_metadata_that_are_not_objects(tmp_path, text):
    (tmp_path / "items.json").write_text(text)
    with pytest.raises(StorageError, match=r"surrogate|objects"):
        read_items(tmp_path)


def test_spaced_rows_cover_the_whole_range():
    rows = spaced(np.arange(149_000), 50_000)
    assert (len(rows), rows[0], rows[-1]) == (50_000, 0, 148_999)
    assert set(np.diff(rows).tolist()) == {2, 3}
    assert spaced(np.array([4, 7]), 5).tolist() == [4, 7]
