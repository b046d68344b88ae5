"""Approximate indexes: every kind by one contract, and the choice among them by what was measured."""

import json
import re
import subprocess
import sys

import faiss
import numpy as np
import pytest

from lookalike.errors import OptionError, StorageError
from lookalike.index import building, choose, index, tuning
from lookalike.index.budget import Budget
from lookalike.index.building import remove_work
from lookalike.index.faiss_index import FaissIndex
from lookalike.index.index import Index
from lookalike.index.kinds import KINDS, ROW, fitting, lists
from lookalike.index.tuning import RECALL_AT, Point, Probe, nearest_exactly
from lookalike.types import Embeddings, l2_normalize

COUNT, DIM = 3000, 64


@pytest.fixture(scope="module")
def vectors():
    """Sixty loose groups of fifty directions: neighbours are of one group, but not all alike."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(60, DIM))
    return l2_normalize(centres[np.arange(COUNT) % 60] + 0.9 * random.normal(size=(COUNT, DIM)))


@pytest.fixture(scope="module")
def queries():
    random = np.random.default_rng(1)
    centres = np.random.default_rng(0).normal(size=(60, DIM))
    return l2_normalize(centres + 0.9 * random.normal(size=(60, DIM)))


@pytest.fixture
def embeddings(vectors):
    return Embeddings(tuple(f"{n:05}" for n in range(COUNT)), vectors, "model")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Let few vectors be many."""
    monkeypatch.setattr(index, "EXACT_UNTIL", 1000)
    monkeypatch.setattr(choose, "TRIAL", 1500)
    monkeypatch.setattr(choose, "HELD_OUT", 200)
    monkeypatch.setattr(building, "_BLOCK", 700)
    monkeypatch.setattr(tuning, "_BLOCK", 700)


def exact(vectors, queries):
    return np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :RECALL_AT]


def test_exact_neighbours_block_by_block(vectors, queries):
    rows = np.arange(0, COUNT, 2)
    found, scores = nearest_exactly(lambda r: vectors[r], rows, queries)
    np.testing.assert_array_equal(found, exact(vectors[rows], queries))
    np.testing.assert_allclose(scores, -np.sort(-(queries @ vectors[rows].T), axis=1)[:, :RECALL_AT], atol=1e-6)


def shared(found, truth):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), truth.tolist(), strict=True)])


def test_recall_by_hand():
    """Two queries along the axes, neighbours at falling cosines; of three places that are asked one is wrong."""
    at = lambda cosine: (cosine, (1 - cosine * cosine) ** 0.5)  # noqa: E731
    vectors = np.array([at(1 - n / 20) for n in range(14)], np.float32)
    probe = Probe(lambda rows: vectors[rows], np.arange(14), np.array([(1, 0)], np.float32))
    assert probe.truth.tolist() == [list(range(10))]
    assert probe.share(np.array([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]])) == 1
    assert probe.share(np.array([[10, 1, 2, 3, 4, 5, 6, 7, 13, 9]])) == pytest.approx(0.8)


def test_one_as_near_as_the_last_neighbour_is_as_good():
    vectors = np.array([(1, 0)] * 30 + [(0, 1)] * 5, np.float32)
    probe = Probe(lambda rows: vectors[rows], np.arange(35), np.array([(1, 0)], np.float32))
    assert probe.share(np.arange(15, 25)[None]) == 1
    assert probe.share(np.array([[*range(15, 24), 34]])) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("count", "expected"), [(10, 1), (1000, 16), (3000, 64), (20_000, 256), (200_000, 2048), (1_000_000, 4096)]
)
def test_the_number_of_lists(count, expected):
    assert lists(count) == expected


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_every_kind_finds_stores_and_opens_again(kind, vectors, queries, tmp_path):
    key = kind.key(COUNT, DIM)
    made = FaissIndex.new(key, DIM)
    made.train(vectors)
    made.index.add(vectors)
    deep = {"nprobe": lists(COUNT), "efSearch": 512, "k_factor_rf": 64}
    made.set({knob: deep[knob] for knob in kind.knobs})
    scores, rows = made.nearest(queries, RECALL_AT)
    least = {"PQ4": 0.25, "RaBitQ": 0.5, "RaBitQ4": 0.75, "HNSW32_SQ8": 0.4}.get(key.rpartition(",")[2], 0.9)
    assert shared(rows, exact(vectors, queries)) > least
    assert (np.diff(scores, axis=1) <= 1e-6).all()
    assert made.size == pytest.approx(kind.size(COUNT, DIM) - ROW * COUNT, rel=0.1)
    made.write(tmp_path / "index.faiss")
    assert (tmp_path / "index.faiss").stat().st_size == made.size
    again = FaissIndex.read(tmp_path / "index.faiss", made.key, made.parameters)
    np.testing.assert_array_equal(again.nearest(queries, RECALL_AT)[1], rows)


@pytest.mark.parametrize("refined", ["", ",RFlat"])
def test_fewer_dimensions_are_not_those_around_a_mean(refined):
    """All vectors lie to one side: centred, as FAISS would do it, those of another length would be put first."""
    random = np.random.default_rng(0)
    made = FaissIndex.new(f"PCA16,HNSW32_SQ8{refined}", 32)
    some = l2_normalize(0.5 + random.normal(size=(3100, 32)) * np.geomspace(1, 0.01, 32))
    made.train(some[100:])
    made.index.add(some[100:])
    made.set({"efSearch": 256, "k_factor_rf": 1})
    assert shared(made.nearest(some[:100], RECALL_AT)[1], exact(some[100:], some[:100])) > 0.9


def test_where_lists_are_too_short_more_are_looked_at(vectors, queries):
    made = FaissIndex.new("IVF64,Flat", DIM)
    made.index.train(vectors)
    made.index.add(vectors)
    made.set({"nprobe": 1})
    _, rows = made.nearest(queries, 400)
    assert (rows >= 0).all()
    assert made.parameters == {"nprobe": 1}


def test_the_quickest_kind_within_the_budget_is_built(vectors, monkeypatch, heard):
    speed = {"lists of vectors in 8 bits": 1.0, "graph over whole vectors": 0.5}

    def measured(kind, made, probe):
        point = real(kind, made, probe)
        return Point(**{**point.to_dict(), "single_ms": speed.get(kind.name, 9.0)})

    real = tuning._measured
    monkeypatch.setattr(tuning, "_measured", measured)
    listener = heard()
    found = choose.choose(lambda r: vectors[r], COUNT, DIM, Budget(0.8), progress=listener)
    assert found.point.kind == "graph over whole vectors"
    assert found.point.recall >= 0.8
    assert found.point.vectors == COUNT - 200
    assert len(found.index) == COUNT
    assert len(found.tried) == len([k for k in KINDS if not k.last_resort])
    assert sorted(found.rows.tolist()) == list(range(COUNT))
    assert re.match(
        r"HNSW32,Flat \(graph over whole vectors\): of 9 kinds tried on 1500 vectors \d reached the recall, and the "
        r"quickest of them was built\. With 200 held-out vectors as queries it has recall@10 [01]\.\d+ and takes ",
        found.why,
    )
    small_enough = choose.choose(lambda r: vectors[r], COUNT, DIM, Budget(0.8, 100 * COUNT), progress=listener)
    assert small_enough.point.kind == "lists of vectors in 8 bits"
    assert small_enough.point.bytes <= 100 * COUNT


def test_held_out_vectors_do_not_find_themselves(vectors, monkeypatch):
    """With every group far from the others, a held-out vector's neighbours are its group's, never itself."""
    seen = []

    def measured(kind, made, probe):
        seen.append((len(made), made.nearest(probe.queries, 1)[0].max()))
        return real(kind, made, probe)

    real = tuning._measured
    monkeypatch.setattr(tuning, "_measured", measured)
    choose.choose(lambda r: vectors[r], COUNT, DIM, Budget(0.8))
    assert all(count <= COUNT - 200 for count, _ in seen)
    assert all(score < 0.99 for _, score in seen)


def test_what_no_index_can_do_is_told(vectors):
    with pytest.raises(
        OptionError, match="3000 vectors of 64 dimensions take at least 129 kB, and max_memory is 10 kB"
    ):
        choose.choose(lambda r: vectors[r], COUNT, DIM, Budget(0.8, 10_000))
    with pytest.raises(
        OptionError,
        match=r"no index stays within recall of at least 0.99, at most 160 kB; built were: RR64,IVF64,RaBitQ",
    ):
        choose.choose(lambda r: vectors[r], COUNT, DIM, Budget(0.99, 160_000))
    with pytest.raises(OptionError, match="at most 1e-06 ms a query; the quickest is"):
        choose.choose(lambda r: vectors[r], COUNT, DIM, Budget(0.8, None, 1e-6))


def test_an_index_by_budget_finds_what_the_exact_one_does(embeddings, tmp_path):
    whole = Index.build(embeddings)
    made = Index.build(embeddings, min_recall=0.95)
    assert made.key != "Flat"
    assert len(made) == COUNT
    asked = embeddings.take(embeddings.ids[::37])
    expected, found = whole.search(asked, 10), made.search(asked, 10)
    shared = [len(set(a) & set(b)) / 10 for a, b in zip(expected.ids, found.ids, strict=True)]
    assert np.mean(shared) > 0.9
    assert not any(query in hits for query, hits in zip(found.query_ids, found.ids, strict=True))
    made.save(tmp_path / "index")
    again = Index.load(tmp_path / "index")
    assert again.key == made.key
    assert again.search(asked, 10).ids.tolist() == found.ids.tolist()
    np.testing.assert_array_equal(again.search(asked, 10).scores, found.scores)
    facts = json.loads((tmp_path / "index" / "index.json").read_text())
    assert facts["choice"]["measured"]["recall"] >= 0.95
    assert facts["choice"]["why"].startswith(made.key)
    assert len(facts["choice"]["tried"]) == len([k for k in KINDS if not k.last_resort])


@pytest.mark.parametrize("key", ["HNSW32,Flat", "PCA32,HNSW32_SQ8", "PCA32,HNSW32_SQ8,RFlat"])
def test_graphs_are_built_with_enough_candidates(key, vectors, tmp_path):
    made = FaissIndex.new(key, DIM)
    made.train(vectors)
    made.index.add(vectors[:100])
    made.write(tmp_path / "index")
    read = faiss.read_index(str(tmp_path / "index"))
    inner = read.base_index if "RFlat" in key else read
    inner = faiss.downcast_index(inner)
    inner = faiss.downcast_index(inner.index) if "PCA" in key else inner
    assert inner.hnsw.efConstruction == 64


def test_equal_vectors_come_in_the_order_of_their_ids(vectors):
    twice = np.concatenate([vectors, vectors[:1]])
    ids = (*(f"b{n:05}" for n in range(COUNT)), "a")
    made = Index.build(Embeddings(ids, twice, "model"), min_recall=0.9)
    hits = made.search(Embeddings(("query",), vectors[:1], "model"), 2)
    assert hits.ids.tolist() == [["a", "b00000"]]


def test_few_vectors_are_searched_exactly(vectors, heard):
    few = Embeddings(tuple(map(str, range(900))), vectors[:900], "model")
    listener = heard()
    assert Index.build(few, min_recall=0.5, progress=listener).key == "Flat"
    assert listener.said == ["900 vectors are few enough to be searched exactly, with recall of at least 0.5"]
    with pytest.raises(
        OptionError, match="900 vectors of 64 dimensions, searched exactly, take 230 kB, and max_memory is 1 kB"
    ):
        Index.build(few, min_recall=0.5, max_memory="1kB")


def test_an_exact_index_that_is_too_large_is_refused(embeddings):
    with pytest.raises(OptionError, match="allow more, or ask for less than all with min_recall"):
        Index.build(embeddings, max_memory="500kB")


@pytest.mark.parametrize("name", ["rows.npy", "index.faiss"])
@pytest.mark.parametrize("content", [None, b"", b"garbage" * 20])
def test_a_damaged_folder_is_refused(embeddings, tmp_path, name, content):
    Index.build(embeddings, min_recall=0.8, max_memory="300kB").save(tmp_path / "index")
    place = tmp_path / "index" / name
    place.unlink() if content is None else place.write_bytes(content)
    with pytest.raises(StorageError, match="make the index again"):
        Index.load(tmp_path / "index")


class StoppedError(Exception):
    pass


class Stops:
    """Stops a build once so many vectors are in."""

    def __init__(self, at):
        self.at, self.said = at, []

    def step(self, task, done, total, detail=""):  # noqa: ARG002
        if task.startswith("building") and done >= self.at:
            raise StoppedError

    def info(self, text):
        self.said.append(text)


def test_a_build_that_was_stopped_goes_on(embeddings, tmp_path, monkeypatch, heard):
    monkeypatch.setattr(building, "_EVERY_S", -1.0)
    whole = Index.build(embeddings, min_recall=0.9, max_memory="300kB")
    work = tmp_path / "work"
    with pytest.raises(StoppedError):
        Index.build(embeddings, min_recall=0.9, max_memory="300kB", work=work, progress=Stops(1400))
    trained = []
    monkeypatch.setattr(FaissIndex, "new", lambda key, _: trained.append(key) or pytest.fail("was begun anew"))
    listener = heard()
    made = Index.build(embeddings, min_recall=0.9, max_memory="300kB", work=work, progress=listener)
    assert made.key == whole.key
    assert not any(text.startswith("  tried on") for text in listener.said)
    asked = embeddings.take(embeddings.ids[::37])
    assert made.search(asked, 10).ids.tolist() == whole.search(asked, 10).ids.tolist()


def test_what_another_run_left_is_passed_over(embeddings, tmp_path, monkeypatch, heard):
    monkeypatch.setattr(building, "_EVERY_S", -1.0)
    work = tmp_path / "work"
    Index.build(embeddings, min_recall=0.9, max_memory="300kB", work=work)
    listener = heard()
    Index.build(embeddings, min_recall=0.8, max_memory="300kB", work=work, progress=listener)
    assert any(text.startswith("  tried on") for text in listener.said)
    for file in work.iterdir():
        file.write_bytes(b"garbage")
    assert len(Index.build(embeddings, min_recall=0.8, max_memory="300kB", work=work)) == COUNT


def test_other_vectors_under_the_same_ids_are_not_mixed_in(embeddings, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "_EVERY_S", -1.0)
    work = tmp_path / "work"
    with pytest.raises(StoppedError):
        Index.build(embeddings, min_recall=0.9, max_memory="300kB", work=work, progress=Stops(1400))
    turned = l2_normalize(np.roll(embeddings.vectors, 1, axis=1))
    changed = Embeddings(embeddings.ids, turned, embeddings.fingerprint)
    made = Index.build(changed, min_recall=0.9, max_memory="300kB", work=work)
    asked = Embeddings(tuple(f"query{n}" for n in range(50)), turned[:50], "model")
    found = made.search(asked, 1).ids[:, 0].tolist()
    assert found == [f"{n:05}" for n in range(50)]


def test_what_was_kept_is_removed_and_nothing_else(embeddings, tmp_path):
    work = tmp_path / "work"
    Index.build(embeddings, min_recall=0.9, work=work)
    (work / "mine.txt").write_text("mine")
    remove_work(work)
    assert [p.name for p in work.iterdir()] == ["mine.txt"]
    remove_work(work)
    assert (work / "mine.txt").read_text() == "mine"
    with pytest.raises(StorageError, match="was not made for building an index; rename or remove it"):
        Index.build(embeddings, min_recall=0.9, work=work)
    Index.build(embeddings, work=work)  # an exact index needs no such folder
    (work / "mine.txt").unlink()
    Index.build(embeddings, min_recall=0.9, work=str(tmp_path / "other"))
    remove_work(tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("limit", [60_000, 150_000, 222_892, 300_000])
def test_the_files_stay_within_the_memory(embeddings, tmp_path, limit):
    try:
        made = Index.build(embeddings, min_recall=0.15, max_memory=limit)
    except OptionError:
        assert limit < 150_000
        return
    made.save(tmp_path / "index")
    assert sum((tmp_path / "index" / name).stat().st_size for name in ("index.faiss", "rows.npy")) <= limit + 128


def test_time_is_kept_by_exact_indexes_too(embeddings):
    with pytest.raises(
        OptionError, match=r"searched exactly, take .* ms a query, and max_ms is 1e-09; allow more, or ask"
    ):
        Index.build(embeddings, max_ms=1e-9)
    few = embeddings.take(embeddings.ids[:900])
    with pytest.raises(OptionError, match=r"900 vectors .* searched exactly, take .* ms a query, .*; allow more\.$"):
        Index.build(few, min_recall=0.5, max_ms=1e-9)
    assert Index.build(embeddings, max_ms=1e9).key == "Flat"


def test_few_vectors_that_are_too_large_whole_are_kept_smaller(embeddings, monkeypatch):
    monkeypatch.setattr(index, "EXACT_UNTIL", 10 * COUNT)
    assert Index.build(embeddings, min_recall=0.9).key == "Flat"
    assert Index.build(embeddings, min_recall=0.9, max_memory="300kB").key != "Flat"


def test_a_graph_that_cannot_reach_all_compares_with_all():
    """Half of the vectors are equal: a graph finds its way to few of them."""
    random = np.random.default_rng(0)
    vectors = l2_normalize(random.normal(size=(2000, DIM)))
    vectors[500:1500] = vectors[500]
    made = FaissIndex.new("HNSW4,Flat", DIM)
    made.index.add(vectors)
    made.set({"efSearch": 16})
    queries = l2_normalize(random.normal(size=(5, DIM)))
    scores, rows = made.nearest(queries, 1990)
    assert (rows >= 0).all()
    assert all(len(set(row)) == 1990 for row in rows.tolist())
    np.testing.assert_allclose(scores, -np.sort(-(queries @ vectors.T), axis=1)[:, :1990], atol=1e-6)


def test_a_tie_at_the_last_place_goes_to_the_lower_id(vectors):
    """Forty equal vectors, more than are fetched at first."""
    many = np.concatenate([vectors, np.repeat(vectors[:1], 40, axis=0)])
    ids = (*(f"b{n:05}" for n in range(COUNT)), *(f"a{n:02}" for n in range(40)))
    made = Index.build(Embeddings(ids, many, "model"), min_recall=0.95)
    assert made.key != "Flat"
    hits = made.search(Embeddings(("query",), vectors[:1], "model"), 3)
    assert hits.ids.tolist() == [["a00", "a01", "a02"]]


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_a_file_that_lost_its_end_is_not_taken_for_whole(kind, vectors, tmp_path):
    """A limit on the size of files does what a full disk does."""
    code = f"""
import resource, signal
from pathlib import Path
import numpy as np
from lookalike.errors import StorageError
from lookalike.index.faiss_index import FaissIndex
made = FaissIndex.new({kind.key(COUNT, DIM)!r}, {DIM})
vectors = np.load({str(tmp_path / "vectors.npy")!r})
made.index.train(vectors)
made.index.add(vectors)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (made.size - 100, made.size - 100))
try:
    made.write(Path({str(tmp_path / "index.faiss")!r}))
except StorageError as error:
    print(error)
"""
    np.save(tmp_path / "vectors.npy", vectors)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "cannot be written" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "change", [{"key": None}, {"choice": {}}, {"choice": None}, {"choice": {"parameters": {"nprobe": "many"}}}]
)
def test_a_description_that_does_not_fit(embeddings, tmp_path, change):
    Index.build(embeddings, min_recall=0.8, max_memory="300kB").save(tmp_path / "index")
    path = tmp_path / "index" / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(StorageError, match="make the index again"):
        Index.load(tmp_path / "index")


def test_rows_that_do_not_fit(embeddings, tmp_path):
    Index.build(embeddings, min_recall=0.8, max_memory="300kB").save(tmp_path / "index")
    np.save(tmp_path / "index" / "rows.npy", np.full(COUNT, COUNT))
    with pytest.raises(StorageError, match="do not fit its vectors; make the index again"):
        Index.load(tmp_path / "index")


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_what_all_vectors_share_is_counted(kind):
    """Of few vectors with many dimensions nearly everything is shared."""
    vectors = l2_normalize(np.random.default_rng(0).normal(size=(300, 256)))
    made = FaissIndex.new(kind.key(300, 256), 256)
    made.train(vectors)
    empty = made.size
    assert empty == pytest.approx(kind.shared(300, 256), rel=0.05, abs=3000)


def test_a_part_of_the_vectors_is_spread_over_all():
    rows = building.evenly(np.arange(149_000), 50_000)
    assert (len(rows), rows[0], rows[-1]) == (50_000, 0, 148_999)
    assert set(np.diff(rows).tolist()) == {2, 3}


def test_kinds_that_cost_much_to_learn_are_a_last_resort():
    """With what all vectors share: a bit a dimension would fit into 9 MB without its rotation and centres."""
    assert [k.name for k in fitting(100_000, 512, 9_000_000)] == ["lists of product codes"]
    assert "lists of product codes" not in [k.name for k in fitting(100_000, 512, 12_000_000)]
    assert "lists of product codes" not in [k.name for k in fitting(100_000, 512, None)]
    assert fitting(100_000, 512, 8_000_000) == []
