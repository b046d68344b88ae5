"""Reading an embeddings folder: what is wrong with it is said in one sentence."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from lookalike.embeddings.embed import embed_to

from lookalike import _strings
from lookalike.embeddings.store import is_embeddings, load_embeddings, read_embedding_facts
from lookalike.errors import StorageError


@pytest.fixture
def out(encoder, sources, tmp_path):
    embed_to(sources, encoder, tmp_path / "emb", shard_size=4)
    return tmp_path / "emb"


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_vectors_are_mapped_or_loaded(out):
    mapped, loaded = load_embeddings(out), load_embeddings(out, mmap=False)
    np.testing.assert_array_equal(mapped.vectors, loaded.vectors)
    assert isinstance(mapped.vectors.base, np.memmap)
    assert not isinstance(loaded.vectors.base, np.memmap)
    assert not mapped.vectors.flags.writeable


@pytest.mark.parametrize("place", ["missing", "pictures"])
def test_no_embeddings_folder(tmp_path, folder, place):
    assert not is_embeddings(tmp_path / place)
    with pytest.raises(StorageError, match=f"{place} is not an embeddings folder: it has no embeddings.json; make one"):
        load_embeddings(tmp_path / place)


def test_another_format(out):
    change(out / "embeddings.json", format=2)
    with pytest.raises(StorageError, match="has embeddings format 2, this version reads 1"):
        load_embeddings(out)


@pytest.mark.parametrize("text", ["[]", "7", '{"format": 1}', '{"format": 1, "model": "m", "shards": 3}'])
def test_a_description_that_is_none(out, text):
    (out / "embeddings.json").write_text(text)
    with pytest.raises(StorageError, match=r"damaged|format None"):
        read_embedding_facts(out)


def test_a_description_cut_short(out):
    (out / "embeddings.json").write_text('{"format": 1,')
    with pytest.raises(StorageError, match="cannot be read"):
        load_embeddings(out)


@pytest.mark.parametrize("size", [0, 60, 10_000])
@pytest.mark.parametrize("mmap", [True, False])
def test_vectors_cut_short(out, size, mmap):
    content = (out / "vectors.npy").read_bytes()
    (out / "vectors.npy").write_bytes(content[:size])
    with pytest.raises(StorageError, match=r"are damaged \(vectors\.npy.*\); remove the folder and embed again\.$"):
        load_embeddings(out, mmap=mmap)


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (np.zeros((10, 512), np.float64), "no float32 array"),
        (np.zeros((9, 512), np.float32), r"shape \(9, 512\), not \(10, 512\)"),
        (np.zeros((10, 512), np.float32), "unit length"),
    ],
)
def test_vectors_that_are_others(out, array, what):
    np.save(out / "vectors.npy", array)
    with pytest.raises(StorageError, match=f"are damaged .*{what}"):
        load_embeddings(out)


def test_pickled_vectors_are_not_run(out):
    (out / "vectors.npy").write_bytes(pickle.dumps([1]))
    with pytest.raises(StorageError, match="damaged"):
        load_embeddings(out, mmap=False)


@pytest.mark.parametrize(
    ("ids", "what"),
    [(["a"], "1 ids for 10 vectors"), ({"a": 1}, "not all ids are text"), (["a"] * 10, "duplicate id 'a'")],
)
def test_ids_that_do_not_fit(out, ids, what):
    (out / "ids.json").write_text(json.dumps(ids))
    with pytest.raises(StorageError, match=what):
        load_embeddings(out)


@pytest.mark.parametrize("together", [1, 3, 4096])
@pytest.mark.parametrize("indent", [None, 0, 2])
def test_ids_in_lines_or_in_one(out, indent, together, monkeypatch):
    monkeypatch.setattr(_strings, "_CHUNK", together)
    odd = ["]", "[", '"a", ', "line\nbreak", "\udcff.jpg", "\ud800", ",", "ö", "\\", "x" * 3]
    (out / "ids.json").write_text(json.dumps(odd, indent=indent).replace("\\u00f6", "ö"), encoding="utf-8")
    found = load_embeddings(out).ids
    assert list(found) == odd
    assert found == tuple(odd)


def test_ids_that_are_no_json(out):
    (out / "ids.json").write_text("x\n")
    with pytest.raises(StorageError, match=r"are damaged \(ids\.json: .*\); remove the folder and embed again\.$"):
        load_embeddings(out)


def test_ids_are_written_a_line_each(out):
    lines = (out / "ids.json").read_text().splitlines()
    assert (len(lines), lines[0], lines[-1]) == (12, "[", "]")


def test_missing_parts(out):
    (out / "ids.json").unlink()
    with pytest.raises(StorageError, match=r"ids\.json does not exist"):
        load_embeddings(out)


def test_facts_come_back_as_they_were(out):
    facts = read_embedding_facts(out)
    assert type(facts).from_dict(json.loads(json.dumps(facts.to_dict()))) == facts
