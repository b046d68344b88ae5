"""The index against the slow obvious version, and its folder against damage."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lookalike._files import FileRecord
from lookalike._strings import PackedStrings
from lookalike.errors import DataError, FingerprintMismatch, OptionError, StorageError
from lookalike.evaluation.evaluation import evaluate_embeddings
from lookalike.index import index as module
from lookalike.index.filters import Filter
from lookalike.index.index import Index
from lookalike.index.storage import is_index, read_info, with_files, write_info, write_items
from lookalike.types import Embeddings, l2_normalize


def labelled(vectors, fingerprint="model"):
    return Embeddings(tuple(vectors), l2_normalize(np.array(list(vectors.values()))), fingerprint)


def some(count, dim=16, *, seed=0, name="item"):
    vectors = l2_normalize(np.random.default_rng(seed).normal(size=(count, dim)))
    return Embeddings(tuple(f"{name}{n:04}" for n in range(count)), vectors, "model")


def test_order_and_scores_by_hand():
    index = Index.build(labelled({"a": (0.6, 0.8), "b": (0.8, 0.6), "c": (0, 1), "d": (1, 0)}))
    hits = index.search(labelled({"q": (1, 0)}), top_k=3)
    assert hits.query_ids == ("q",)
    assert hits.ids.tolist() == [["d", "b", "a"]]
    np.testing.assert_array_equal(hits.scores, np.array([[1, 0.8, 0.6]], np.float32))
    assert (len(index), index.dim, index.key, index.fingerprint) == (4, 2, "Flat", "model")
    assert repr(index) == "<Index: 4 items, 2 dimensions, Flat>"
    assert "a" in index
    assert "q" not in index


def test_equal_vectors_come_in_the_order_of_their_ids():
    vector = np.random.default_rng(0).normal(size=384)
    items = labelled({f"g{n:03}": vector for n in np.random.default_rng(1).permutation(200)})
    hits = Index.build(items).search(labelled({"q": vector + 0.1}), top_k=10)
    assert hits.ids.tolist() == [[f"g{n:03}" for n in range(10)]]


def test_a_difference_below_the_sixth_decimal_is_a_tie():
    at = lambda cosine: (cosine, (1 - cosine * cosine) ** 0.5)  # noqa: E731
    tie = labelled({"b": at(0.6000003), "a": at(0.6)})
    assert Index.build(tie).search(labelled({"q": (1, 0)}), top_k=1).ids.tolist() == [["a"]]
    wider = labelled({"b": at(0.600002), "a": at(0.6)})
    assert Index.build(wider).search(labelled({"q": (1, 0)}), top_k=1).ids.tolist() == [["b"]]


@pytest.mark.parametrize("itself", [True, False])
def test_agrees_with_what_models_are_measured_by(itself):
    items = some(300, 32)
    queries = items.take(items.ids[::7]) if itself else some(40, 32, seed=5, name="query")
    top = evaluate_embeddings(queries, items, dict.fromkeys(queries.ids, "x"), dict.fromkeys(items.ids, "x")).hits
    hits = Index.build(items).search(queries, top_k=10)
    assert hits.ids.tolist() == top.ids.tolist()
    np.testing.assert_array_equal(hits.scores, top.scores)


def test_the_query_itself_is_never_its_own_hit():
    items = labelled({"a": (1, 0), "b": (0.8, 0.6), "twin": (1, 0)})
    index = Index.build(items)
    assert index.search(items, top_k=2).ids.tolist() == [["twin", "b"], ["a", "twin"], ["a", "b"]]


def test_top_k_is_at_most_what_there_is():
    items = some(4)
    index = Index.build(items)
    other = some(1, seed=1, name="query")
    assert index.search(other, top_k=4).ids.shape == (1, 4)
    assert index.search(items, top_k=3).ids.shape == (4, 3)
    for queries, top_k, facts in (
        (other, 5, "is 5.* 4 items;"),
        (items, 4, "is 4.* 3 items besides"),
        (other, 0, "got 0"),
    ):
        with pytest.raises(OptionError, match=facts) as raised:
            index.search(queries, top_k)
        assert raised.value.argument == "top_k"


def test_the_default_top_k_is_10_or_as_many_as_every_query_can_have():
    other = some(1, seed=1, name="query")
    assert Index.build(some(12)).search(other).ids.shape == (1, 10)
    few = some(4)
    assert Index.build(few).search(other).ids.shape == (1, 4)
    assert Index.build(few).search(few).ids.shape == (4, 3)
    assert Index.build(few).search(few.take(few.ids[:1])).ids.shape == (1, 3)


def test_a_pickled_index_finds_the_same(tmp_path):
    items = some(60)
    index = Index.build(items, root=tmp_path)
    copy = pickle.loads(pickle.dumps(index))
    assert (copy.info, copy.root) == (index.info, tmp_path)
    assert copy.search(items, 3).ids.tolist() == index.search(items, 3).ids.tolist()


@pytest.mark.parametrize("value", ["3", 2.5, (1,)])
def test_a_number_of_hits_that_is_not_an_integer(value):
    with pytest.raises(OptionError) as raised:
        Index.build(some(4)).search(some(1, name="query"), value)
    assert raised.value.argument == "top_k"
    assert repr(value) in str(raised.value)


@pytest.mark.parametrize("value", [np.zeros((2, 16), np.float32), ["a.jpg"], None])
def test_something_else_than_embeddings(value):
    index = Index.build(some(4))
    for argument, call in (("queries", index.search), ("embeddings", Index.build)):
        with pytest.raises(OptionError, match=r"must be .*Embeddings") as raised:
            call(value)
        assert raised.value.argument == argument


def test_no_queries():
    none = Embeddings((), np.zeros((0, 16), np.float32), "model")
    assert Index.build(some(4)).search(none, top_k=2).ids.shape == (0, 2)


def test_queries_of_another_model_are_refused():
    index = Index.build(some(4))
    with pytest.raises(FingerprintMismatch, match=r"fingerprint other.* the model model;") as mismatch:
        index.search(Embeddings(("q",), some(1).vectors, "other"), top_k=1)
    assert mismatch.value.argument == "queries"
    with pytest.raises(DataError, match="the queries have 8 dimensions, the index has 16") as raised:
        index.search(some(1, 8, name="query"), top_k=1)
    assert raised.value.argument == "queries"


def test_what_an_index_is_not_built_of():
    with pytest.raises(DataError, match="at least one embedding, got none") as raised:
        Index.build(Embeddings((), np.zeros((0, 16), np.float32), "model"))
    assert raised.value.argument == "embeddings"
    for value in (0, -0.5, 1.01, float("nan")):
        with pytest.raises(OptionError, match=str(value)) as raised:
            Index.build(some(3), min_recall=value)
        assert raised.value.argument == "min_recall"
    for argument in ("min_recall", "max_ms"):
        with pytest.raises(OptionError, match=r"must be a number.*'0\.9'") as raised:
            Index.build(some(3), **{argument: "0.9"})
        assert raised.value.argument == argument
    assert len(Index.build(some(3), min_recall=0.5)) == 3


def test_saved_and_loaded_it_finds_the_same(tmp_path):
    items = some(60)
    facts = {"item0001": {"photographer": "Ä"}, "nobody": {"x": "y"}}
    index = Index.build(items, root=tmp_path / "photos", metadata=facts)
    index.save(tmp_path / "index")
    assert sorted(p.name for p in (tmp_path / "index").iterdir()) == ["index.faiss", "index.json", "items.json"]
    loaded = Index.load(tmp_path / "index")
    queries = some(20, seed=1, name="query")
    before, after = index.search(queries), loaded.search(queries)
    assert before.ids.tolist() == after.ids.tolist()
    np.testing.assert_array_equal(before.scores, after.scores)
    assert loaded.ids == items.ids
    assert loaded.metadata == {"item0001": {"photographer": "Ä"}}
    assert loaded.path_of("a/b.jpg") == tmp_path.resolve() / "photos" / "a" / "b.jpg"
    assert loaded.path_of("/a/b.jpg") == Index.build(items).path_of("/a/b.jpg") == Path("/a/b.jpg")
    assert Index.build(items).path_of("a") is None
    assert is_index(tmp_path / "index")
    assert not is_index(tmp_path)


def test_ids_in_any_order_are_sorted_with_their_vectors():
    items = some(30)
    order = np.random.default_rng(0).permutation(30)
    mixed = Embeddings(tuple(items.ids[n] for n in order), items.vectors[order], "model")
    index = Index.build(mixed)
    assert index.ids == items.ids
    assert index.search(Embeddings(("query",), items.vectors[7:8], "model"), 1).ids[0, 0] == items.ids[7]
    assert items.ids[7] in index
    assert "query" not in index
    assert 7 not in index


def test_a_taken_place_is_kept_unless_it_is_to_be_replaced(tmp_path):
    Index.build(some(4)).save(tmp_path / "index")
    with pytest.raises(StorageError, match="already exists"):
        Index.build(some(5)).save(tmp_path / "index")
    assert len(Index.load(tmp_path / "index")) == 4
    Index.build(some(5)).save(tmp_path / "index", replace=True)
    assert len(Index.load(tmp_path / "index")) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StorageError, match="no space left on device"):
        Index.build(some(4)).save(tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_not_there(tmp_path):
    with pytest.raises(StorageError, match=r"index\.faiss cannot be written \(no such file or directory\)"):
        Index.build(some(40)).write_into(tmp_path / "missing")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def saved(tmp_path):
    Index.build(some(40)).save(tmp_path / "index")
    return tmp_path / "index"


@pytest.mark.parametrize(
    ("values", "facts"),
    [
        ({"key": "IVF16,Flat"}, "IVF16,Flat"),
        ({"count": 41}, "41 items expected, got 40 ids, 40 vectors"),
        ({"dim": 17}, "17 dimensions expected, got 16"),
    ],
)
def test_a_description_that_does_not_match(saved, values, facts):
    write_info(saved, replace(read_info(saved), **values))
    with pytest.raises(StorageError, match=facts):
        Index.load(saved)


@pytest.mark.parametrize(
    ("ids", "facts"),
    [
        (["a"], "40 items expected, got 1 ids, 40 vectors"),
        (["b", "a"] * 20, "not sorted"),
        (["a"] * 40, "not sorted"),
    ],
)
def test_items_that_do_not_match(saved, ids, facts):
    write_items(saved, PackedStrings(ids), {}, {})
    write_info(saved, with_files(saved, read_info(saved)))
    with pytest.raises(StorageError, match=facts):
        Index.load(saved)


@pytest.mark.parametrize("name", ["index.faiss", "items.json", "index.json"])
def test_changed_bytes_are_noticed(saved, name):
    path = saved / name
    content = path.read_bytes()
    for position in range(10, len(content), len(content) // 25):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        try:
            index = Index.load(saved)
        except StorageError as error:
            assert str(saved) in str(error)
        else:
            assert name == "index.json" and index.info == read_info(saved)  # a blank between values
    path.write_bytes(content)
    Index.load(saved)


def test_many_vectors_are_compared_on_request(saved, monkeypatch):
    monkeypatch.setattr("lookalike._files.HASHED_BYTES", 1000)
    path = saved / "index.faiss"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 0x40]))
    index = Index.load(saved)
    with pytest.raises(StorageError, match=r"index\.faiss: it was changed"):
        Index.load(saved, verify=True)
    with pytest.raises(StorageError, match="not a cosine"):
        index.search(Embeddings(("q",), np.full((1, 16), 0.25, np.float32), "model"), 40)
    path.write_bytes(content[:-4])
    with pytest.raises(StorageError, match="bytes"):
        Index.load(saved)


@pytest.mark.parametrize("files", [{}, {"index.faiss": FileRecord(0, "")}, {"../x": FileRecord(0, "")}])
def test_a_description_that_names_other_files(saved, files):
    write_info(saved, replace(read_info(saved), files=files))
    with pytest.raises(StorageError, match=r"index\.faiss, items\.json"):
        Index.load(saved)


def test_a_pipe_in_place_of_a_file(saved):
    for name in ("index.faiss", "items.json"):
        content = (saved / name).read_bytes()
        (saved / name).unlink()
        os.mkfifo(saved / name)
        with pytest.raises(StorageError, match="it is a pipe"):
            Index.load(saved)
        (saved / name).unlink()
        (saved / name).write_bytes(content)


def test_few_vectors_need_no_faiss(saved):
    code = f"""
import sys, numpy
from lookalike.index.index import Index
from lookalike.types import Embeddings
index = Index.load({str(saved)!r})
index.search(Embeddings(("q",), numpy.eye(16, dtype=numpy.float32)[:1], "model"), 3)
print([name for name in ("faiss", "torch", "openvino") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("order", ["faiss, torch", "torch, faiss"])
def test_faiss_and_torch_live_in_one_process(order):
    """Both bring an OpenMP runtime; on some systems the second one to be loaded ends the process."""
    code = f"""
import {order}, numpy
x = numpy.random.default_rng(0).random((2000, 64), numpy.float32)
index = faiss.IndexFlatIP(64)
index.add(x)
for _ in range(3):
    index.search(x[:500], 10)
    torch.nn.functional.conv2d(torch.rand(2, 3, 32, 32), torch.rand(8, 3, 3, 3))
print("alive")
"""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (done.stdout, done.returncode) == ("alive\n", 0), done.stderr


COLOURS = {"a": (1, 0), "b": (0.8, 0.6), "c": (0.6, 0.8), "d": (0, 1)}


def coloured():
    return Index.build(
        labelled(COLOURS),
        labels={"a": "hat", "b": "cafe\u0301", "other": "hat"},
        metadata={"a": {"year": 2019, "sold": True}, "b": {"year": 2020}, "c": {"year": 2021.5, "gro\u0308ße": "M"}},
    )


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        ("year >= 2020", ["b", "c", None, None]),
        ("label == 'hat'", ["a", None, None, None]),
        ("label == 'café' or größe == 'M'", ["b", "c", None, None]),
        ("year is none or sold == true", ["a", "d", None, None]),
        ("not sold == true", ["b", "c", "d", None]),
        ("id in ['d', 'x'] or id < 'b'", ["a", "d", None, None]),
        ("price > 3", [None] * 4),
    ],
)
def test_only_items_that_fit_a_filter_are_hits(where, ids, tmp_path):
    index = coloured()
    index.save(tmp_path / "index")
    for same in (index, Index.load(tmp_path / "index"), pickle.loads(pickle.dumps(index)), index.with_root(tmp_path)):
        hits = same.search(labelled({"q": (1, 0)}), 4, where)
        assert hits.ids.tolist() == [ids]
        assert [hit.id for hit in hits[0]] == [item for item in ids if item]
        assert np.isnan(hits.scores).tolist() == [[item is None for item in ids]]
        assert hits.to_dict()["q"] == [{"id": hit.id, "score": round(hit.score, 6)} for hit in hits[0]]
    assert index.search(labelled({"q": (1, 0)}), 4, Filter.parse(where)).ids.tolist() == [ids]


def test_an_item_that_fits_is_not_its_own_hit():
    hits = coloured().search(labelled({"a": (1, 0), "q": (1, 0)}), 2, "year < 2021")
    assert hits.ids.tolist() == [["b", None], ["a", "b"]]


def test_what_is_not_a_filter_is_refused_before_the_search():
    with pytest.raises(OptionError, match="at character 6") as caught:
        coloured().search(labelled({"q": (1, 0)}), 2, "year = 3")
    assert caught.value.argument == "where"


@pytest.mark.parametrize("value", [float("nan"), 2**60, [1], {"a": 1}])
def test_metadata_that_a_filter_cannot_compare(value):
    with pytest.raises(OptionError) as caught:
        Index.build(labelled(COLOURS), metadata={"a": {"year": value}})
    assert caught.value.argument == "metadata"
    with pytest.raises(OptionError, match="reserved"):
        Index.build(labelled(COLOURS), metadata={"a": {"label": "hat"}})


@pytest.mark.parametrize(
    ("labels", "metadata", "facts"),
    [
        ({"item0000": 3}, {}, "labels are text"),
        ([], {}, "labels are text"),
        ({}, {"item0000": {"year": [1]}}, "numbers or booleans"),
        ({}, {"item0000": {"year": float("nan")}}, "numbers or booleans"),
    ],
)
def test_labels_and_metadata_of_other_types(saved, labels, metadata, facts):
    write_items(saved, Index.load(saved).ids, labels, metadata)
    write_info(saved, with_files(saved, read_info(saved)))
    with pytest.raises(StorageError, match=facts):
        Index.load(saved)


def test_the_vectors_of_items_come_back(embeddings, monkeypatch):
    ids = ["00007", "02999", "00007"]
    expected = embeddings.vectors[[7, 2999, 7]]
    np.testing.assert_allclose(Index.build(embeddings).vectors_of(ids), expected, atol=1e-6)
    monkeypatch.setattr(module, "EXACT_UNTIL", 1000)
    approximate = Index.build(embeddings, min_recall=0.95)
    assert np.einsum("ij,ij->i", approximate.vectors_of(ids), expected).min() > 0.95
    assert approximate.vectors_of([]).shape == (0, embeddings.dim)
    with pytest.raises(OptionError, match="'nothing'"):
        approximate.vectors_of(["00007", "nothing"])


@pytest.mark.parametrize("share", [2, 50, 1000])
def test_a_filter_on_an_approximate_index(embeddings, monkeypatch, share):
    monkeypatch.setattr(module, "EXACT_UNTIL", 1000)
    metadata = {item: {"n": n % share} for n, item in enumerate(embeddings.ids)}
    whole = Index.build(embeddings, metadata=metadata)
    approximate = Index.build(embeddings, metadata=metadata, min_recall=0.95)
    queries = embeddings.take(embeddings.ids[::37])
    expected, hits = (index.search(queries, 10, "n == 0") for index in (whole, approximate))
    agree = [
        len({hit.id for hit in a} & {hit.id for hit in b}) / len(a) for a, b in zip(expected, hits, strict=True) if a
    ]
    assert np.mean(agree) > 0.9
    assert {hit.id for query in hits for hit in query} <= set(embeddings.ids[::share])


def test_an_approximate_index(embeddings, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "EXACT_UNTIL", 1000)
    whole, approximate = Index.build(embeddings), Index.build(embeddings, min_recall=0.95)
    queries = embeddings.take(embeddings.ids[::37])
    expected, hits = whole.search(queries, 10), approximate.search(queries, 10)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(expected.ids, hits.ids, strict=True)]) > 0.9
    assert not any(query in ids for query, ids in zip(hits.query_ids, hits.ids, strict=True))
    assert approximate.info.tuning.measured.recall >= 0.95
    assert approximate.info.tuning.measured.key == approximate.key != "Flat"
    approximate.save(tmp_path / "index")
    loaded = Index.load(tmp_path / "index")
    assert replace(loaded.info, files={}) == approximate.info
    for copy in (loaded, pickle.loads(pickle.dumps(loaded)), pickle.loads(pickle.dumps(approximate))):
        again = copy.search(queries, 10)
        assert again.ids.tolist() == hits.ids.tolist()
        np.testing.assert_array_equal(again.scores, hits.scores)


def test_equal_vectors_of_an_approximate_index_come_in_the_order_of_their_ids(embeddings, monkeypatch):
    monkeypatch.setattr(module, "EXACT_UNTIL", 1000)
    vectors = np.concatenate([embeddings.vectors, embeddings.vectors[:1]])
    index = Index.build(Embeddings((*(f"b{i}" for i in embeddings.ids), "a"), vectors, "model"), min_recall=0.9)
    hits = index.search(Embeddings(("query",), vectors[:1], "model"), 2)
    assert hits.ids.tolist() == [["a", "b00000"]]


def test_few_vectors_are_searched_exactly(embeddings, recording_progress):
    few, listener = embeddings.take(embeddings.ids[:900]), recording_progress()
    assert Index.build(few, min_recall=0.5, progress=listener).key == "Flat"
    assert len(listener.messages) == 1
    assert Index.build(embeddings, min_recall=0.9).key == "Flat"
    assert Index.build(embeddings, max_ms=1e9).key == "Flat"
    assert Index.build(embeddings, min_recall=0.9, max_memory="300kB").key != "Flat"


@pytest.mark.parametrize(
    ("count", "options", "argument", "facts"),
    [
        (
            900,
            {"min_recall": 0.5, "max_memory": "1kB"},
            "max_memory",
            r"900 vectors of 64 .* 230 kB.* 1 kB; allow more\.$",
        ),
        (3000, {"max_memory": "500kB"}, "max_memory", "768 kB.* 500 kB; allow more, or a smaller `min_recall`"),
        (3000, {"max_ms": 1e-9}, "max_ms", "ms per query.* 1e-09; allow more, or a smaller `min_recall`"),
        (900, {"min_recall": 0.5, "max_ms": 1e-9}, "max_ms", r"ms per query.* 1e-09; allow more\.$"),
    ],
)
def test_exact_search_beyond_the_budget(embeddings, count, options, argument, facts):
    with pytest.raises(OptionError, match=facts) as raised:
        Index.build(embeddings.take(embeddings.ids[:count]), **options)
    assert raised.value.argument == argument


@pytest.mark.parametrize(("memory", "prefilter"), [(None, True), (60 * 16 * 4, False), (60 * (16 * 4 + 24), True)])
def test_the_prefilter_is_within_the_memory(tmp_path, memory, prefilter):
    index = Index.build(some(60), max_memory=memory)
    index.save(tmp_path / "index")
    assert index.info.prefilter is Index.load(tmp_path / "index").info.prefilter is prefilter
