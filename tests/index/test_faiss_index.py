"""Approximate indexes: every spec by one contract."""

import subprocess
import sys

import faiss
import numpy as np
import pytest

from lookalike.errors import StorageError
from lookalike.index.autotune import RECALL_AT, SPECS, ivf_nlist
from lookalike.index.faiss_index import ApproximateIndex, FaissIndex, nearest_by_faiss
from lookalike.types import l2_normalize

COUNT, DIM = 3000, 64
FEW_BITS = {"RaBitQ": 0.5, "RaBitQ4": 0.75, "HNSW32_SQ8": 0.4}


def exact(vectors, queries):
    return np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :RECALL_AT]


def recall(positions, truth):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(positions.tolist(), truth.tolist(), strict=True)])


def create(key, vectors):
    index = FaissIndex.create(key, vectors.shape[1])
    index.train(vectors)
    index.add(vectors)
    return index


def test_the_nearest_in_blocks_are_those_of_all(vectors, queries):
    scores, rows = nearest_by_faiss(queries, [vectors[:1500], vectors[1500:2995], vectors[2995:]], RECALL_AT)
    products = queries @ vectors.T
    assert rows.tolist() == np.argsort(-products, axis=1)[:, :RECALL_AT].tolist()
    np.testing.assert_allclose(scores, -np.sort(-products, axis=1)[:, :RECALL_AT], atol=1e-6)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_search_write_and_read(spec, vectors, queries, tmp_path):
    index = create(spec.key(COUNT, DIM), vectors)
    index.set_parameters({"nprobe": ivf_nlist(COUNT), "efSearch": 512, "k_factor_rf": 64})
    scores, positions = index.nearest(queries, RECALL_AT)
    assert recall(positions, exact(vectors, queries)) > FEW_BITS.get(index.key.rpartition(",")[2], 0.9)
    assert (np.diff(scores, axis=1) <= 1e-6).all()
    path = tmp_path / "index.faiss"
    index.write(path)
    assert path.stat().st_size == index.size
    again = FaissIndex.read(path, index.key, index.parameters)
    np.testing.assert_array_equal(again.nearest(queries, RECALL_AT)[1], positions)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_a_file_that_lost_its_end_is_reported(spec, vectors, tmp_path):
    """A limit on the size of files has the effect of a full disk."""
    code = f"""
import resource, signal
from pathlib import Path
import numpy as np
from lookalike.errors import StorageError
from lookalike.index.faiss_index import FaissIndex
index = FaissIndex.create({spec.key(COUNT, DIM)!r}, {DIM})
vectors = np.load({str(tmp_path / "vectors.npy")!r})
index.train(vectors)
index.add(vectors)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (index.size - 100, index.size - 100))
try:
    index.write(Path({str(tmp_path / "index.faiss")!r}))
except StorageError as error:
    print(error)
"""
    np.save(tmp_path / "vectors.npy", vectors)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "cannot be written" in done.stdout, done.stderr


@pytest.mark.parametrize("refined", ["", ",RFlat"])
def test_principal_components_are_not_centred(refined):
    """All vectors lie to one side: centred, as FAISS does it, those of another length would come first."""
    random = np.random.default_rng(0)
    some = l2_normalize(0.5 + random.normal(size=(3100, 32)) * np.geomspace(1, 0.01, 32))
    index = create(f"PCA16,HNSW32_SQ8{refined}", some[100:])
    index.set_parameters({"efSearch": 256, "k_factor_rf": 1})
    assert recall(index.nearest(some[:100], RECALL_AT)[1], exact(some[100:], some[:100])) > 0.9


@pytest.mark.parametrize("key", ["HNSW32,Flat", "PCA32,HNSW32_SQ8", "PCA32,HNSW32_SQ8,RFlat"])
def test_graphs_are_built_with_64_candidates(key, vectors, tmp_path):
    create(key, vectors[:300]).write(tmp_path / "index")
    index = faiss.read_index(str(tmp_path / "index"))
    graph = faiss.downcast_index(index.base_index if "RFlat" in key else index)
    graph = faiss.downcast_index(graph.index) if "PCA" in key else graph
    assert graph.hnsw.efConstruction == 64


def test_lists_that_are_too_short(vectors, queries):
    index = create("IVF64,Flat", vectors)
    index.set_parameters({"nprobe": 1})
    _, positions = index.nearest(queries, 400)
    assert (positions >= 0).all()
    assert index.parameters == {"nprobe": 1}


def test_a_graph_that_does_not_reach_enough_vectors():
    """Half of the vectors are equal: a graph finds few of them."""
    random = np.random.default_rng(0)
    vectors = l2_normalize(random.normal(size=(2000, DIM)))
    vectors[500:1500] = vectors[500]
    index = create("HNSW4,Flat", vectors)
    queries = l2_normalize(random.normal(size=(5, DIM)))
    scores, positions = index.nearest(queries, 1990)
    assert (positions >= 0).all()
    assert all(len(set(row)) == 1990 for row in positions.tolist())
    np.testing.assert_allclose(scores, -np.sort(-(queries @ vectors.T), axis=1)[:, :1990], atol=1e-6)


def test_ties_beyond_what_is_fetched_first_go_to_the_lower_row(vectors):
    """Forty equal vectors at the end of the index have the lowest rows."""
    index = create("HNSW32,Flat", np.concatenate([vectors, np.repeat(vectors[:1], 40, axis=0)]))
    index.set_parameters({"efSearch": 512})
    rows = np.concatenate([np.arange(40, 40 + COUNT), np.arange(40)])
    hits, scores = ApproximateIndex(index, rows).search(vectors[:1], np.array([1]), 3)
    assert hits.tolist() == [[0, 2, 3]]
    np.testing.assert_array_equal(scores, np.ones((1, 3), np.float32))


@pytest.fixture(scope="module", params=SPECS, ids=lambda s: s.name)
def tuned(request, vectors):
    """An index of each spec whose search depth reaches a recall of about .95 without a filter."""
    key = request.param.key(COUNT, DIM)
    index = create(key, vectors)
    index.set_parameters({"nprobe": 16, "efSearch": 32, "k_factor_rf": 16})
    return index


@pytest.mark.parametrize("share", [0.5, 0.1, 0.02, 0.001, 0])
@pytest.mark.parametrize("correlated", [False, True])
def test_a_filter_allows_the_nearest_among_what_fits(tuned, vectors, queries, share, correlated):
    """A random filter, and one that allows only what is far from most queries."""
    order = np.argsort(vectors[:, 0]) if correlated else np.random.default_rng(3).permutation(COUNT)
    allowed = np.zeros(COUNT, dtype=bool)
    allowed[order[: int(share * COUNT)]] = True
    rows = np.random.default_rng(4).permutation(COUNT)  # of each position
    by_row = np.zeros(COUNT, dtype=bool)
    by_row[rows] = allowed
    hits, scores = ApproximateIndex(tuned, rows).search(queries, np.full(len(queries), -1), 10, by_row)
    count = min(10, int(allowed.sum()))
    assert by_row[hits[:, :count]].all() and (hits[:, count:] == -1).all()
    assert not np.isnan(scores[:, :count]).any() and np.isnan(scores[:, count:]).all()
    assert (np.diff(scores[:, :count], axis=1) <= 0).all()
    assert all(len(set(row)) == count for row in hits[:, :count].tolist())
    if count:
        cosines = np.where(allowed, queries @ vectors.T, -2)
        truth = rows[np.argsort(-cosines, axis=1, kind="stable")[:, :count]]
        assert recall(hits[:, :count], truth) > FEW_BITS.get(tuned.key.rpartition(",")[2], 0.9)


def test_vectors_come_back(tuned, vectors):
    rows = np.random.default_rng(4).permutation(COUNT)
    index = ApproximateIndex(tuned, rows)
    some = np.array([2999, 0, 1500, 0])
    back = index.vectors(some)
    expected = np.empty_like(vectors)
    expected[rows] = vectors
    cosines = np.einsum("ij,ij->i", l2_normalize(back), expected[some])
    assert cosines.min() > {"RaBitQ": 0.6, "RaBitQ4": 0.8, "HNSW32_SQ8": 0.6}.get(tuned.key.rpartition(",")[2], 0.99)


def test_a_query_is_not_its_own_hit_under_a_filter(vectors):
    index = ApproximateIndex(create("IVF16,Flat", vectors), np.arange(COUNT))
    allowed = np.arange(COUNT) < 3
    hits, scores = index.search(vectors[:2], np.array([0, -1]), 3, allowed)
    assert sorted(hits[0].tolist()) == [-1, 1, 2]
    assert sorted(hits[1].tolist()) == [0, 1, 2]
    assert np.isnan(scores).sum() == 1


@pytest.mark.parametrize("name", ["rows.npy", "index.faiss"])
@pytest.mark.parametrize("content", [None, b"", b"garbage" * 20])
def test_damaged_files(vectors, tmp_path, name, content):
    ApproximateIndex(create("HNSW4,Flat", vectors), np.arange(COUNT)).write(tmp_path)
    path = tmp_path / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(StorageError, match="missing or damaged"):
        ApproximateIndex.read(tmp_path, "HNSW4,Flat", {})


@pytest.mark.parametrize("key", ["IVF4,Flat", "HNSW4,SQ8", "HNSW4", "Flat", "nonsense"])
def test_an_index_of_another_kind(vectors, tmp_path, key):
    ApproximateIndex(create("HNSW4,Flat" if key != "HNSW4" else "IVF4,Flat", vectors), np.arange(COUNT)).write(tmp_path)
    with pytest.raises(StorageError, match="missing or damaged"):
        ApproximateIndex.read(tmp_path, key, {})


@pytest.mark.parametrize(
    "rows",
    [np.full(COUNT, COUNT), np.arange(5), np.arange(COUNT) // 2, np.arange(COUNT)[:, None], np.arange(COUNT) / 1],
)
def test_rows_that_do_not_match(vectors, tmp_path, rows):
    ApproximateIndex(create("HNSW4,Flat", vectors), rows).write(tmp_path)
    with pytest.raises(StorageError, match="do not match its vectors"):
        ApproximateIndex.read(tmp_path, "HNSW4,Flat", {})
