"""Approximate indexes: every kind by one contract, and the choice among them by what was measured."""

import json

import numpy as np
import pytest

from lookalike.errors import OptionError, StorageError
from lookalike.indexing import Index, building, choose, index, tuning
from lookalike.indexing.budget import Budget
from lookalike.indexing.faiss_index import FaissIndex
from lookalike.indexing.kinds import KINDS, lists
from lookalike.indexing.tuning import RECALL_AT, Point, nearest_exactly, recall_of
from lookalike.types import Embeddings, unit

COUNT, DIM = 3000, 64


class Heard:
    def __init__(self):
        self.said = []

    def step(self, task, done, total, detail=""):
        pass

    def say(self, text):
        self.said.append(text)


@pytest.fixture(scope="module")
def vectors():
    """Sixty loose groups of fifty directions: neighbours are of one group, but not all alike."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(60, DIM))
    return unit(centres[np.arange(COUNT) % 60] + 0.9 * random.normal(size=(COUNT, DIM)))


@pytest.fixture(scope="module")
def queries():
    random = np.random.default_rng(1)
    centres = np.random.default_rng(0).normal(size=(60, DIM))
    return unit(centres + 0.9 * random.normal(size=(60, DIM)))


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
    found = nearest_exactly(lambda r: vectors[r], rows, queries)
    np.testing.assert_array_equal(found, exact(vectors[rows], queries))


def test_recall_by_hand():
    assert recall_of(np.array([[1, 2], [3, 4]]), np.array([[2, 9], [4, 3]])) == pytest.approx(0.75)


@pytest.mark.parametrize(("count", "expected"), [(10, 1), (1000, 32), (3000, 64), (200_000, 2048), (1_000_000, 4096)])
def test_the_number_of_lists(count, expected):
    assert lists(count) == expected


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
def test_every_kind_finds_stores_and_opens_again(kind, vectors, queries, tmp_path):
    made = FaissIndex.new(kind.key(COUNT), DIM)
    made.index.train(vectors)
    made.index.add(vectors)
    deep = {"nprobe": lists(COUNT), "efSearch": 512, "k_factor_rf": 64}
    made.set({knob: deep[knob] for knob in kind.knobs})
    scores, rows = made.nearest(queries, RECALL_AT)
    least = 0.5 if kind.key(COUNT).endswith("RaBitQ") else 0.75 if kind.key(COUNT).endswith("RaBitQ4") else 0.9
    assert recall_of(rows, exact(vectors, queries)) > least
    assert (np.diff(scores, axis=1) <= 1e-6).all()
    assert made.size == pytest.approx(kind.bytes_each(DIM) * COUNT, rel=0.35)
    made.write(tmp_path / "index.faiss")
    assert (tmp_path / "index.faiss").stat().st_size == made.size
    again = FaissIndex.read(tmp_path / "index.faiss", made.key, made.parameters)
    np.testing.assert_array_equal(again.nearest(queries, RECALL_AT)[1], rows)


def test_where_lists_are_too_short_more_are_looked_at(vectors, queries):
    made = FaissIndex.new("IVF64,Flat", DIM)
    made.index.train(vectors)
    made.index.add(vectors)
    made.set({"nprobe": 1})
    _, rows = made.nearest(queries, 400)
    assert (rows >= 0).all()
    assert made.parameters == {"nprobe": 1}


def test_the_quickest_kind_within_the_budget_is_built(vectors, monkeypatch):
    speed = {"lists of vectors in 8 bits": 1.0, "graph over whole vectors": 0.5}

    def measured(kind, made, probe):
        point = real(kind, made, probe)
        return Point(**{**point.to_dict(), "single_ms": speed.get(kind.name, 9.0)})

    real = tuning._measured
    monkeypatch.setattr(tuning, "_measured", measured)
    heard = Heard()
    found = choose.choose(lambda r: vectors[r], COUNT, DIM, Budget(0.8), progress=heard)
    assert found.point.kind == "graph over whole vectors"
    assert found.point.recall >= 0.8
    assert found.point.vectors == COUNT - 200
    assert len(found.index) == COUNT
    assert len(found.tried) == len(KINDS)
    assert sorted(found.rows.tolist()) == list(range(COUNT))
    assert found.why.startswith(
        "HNSW32,Flat (graph over whole vectors) is the quickest of 7 kinds that may stay within "
    )
    small_enough = choose.choose(lambda r: vectors[r], COUNT, DIM, Budget(0.8, 100 * COUNT), progress=heard)
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
    with pytest.raises(OptionError, match="3000 vectors of 64 dimensions take at least 72 kB, max_memory is 10 kB"):
        choose.choose(lambda r: vectors[r], COUNT, DIM, Budget(0.8, 10_000))
    with pytest.raises(
        OptionError, match=r"no index stays within recall of at least 0.99, at most 90 kB; the nearest is"
    ):
        choose.choose(lambda r: vectors[r], COUNT, DIM, Budget(0.99, 90_000))
    with pytest.raises(OptionError, match="at most 1e-06 ms a query; the nearest is"):
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
    assert len(facts["choice"]["tried"]) == len(KINDS)


def test_equal_vectors_come_in_the_order_of_their_ids(vectors):
    twice = np.concatenate([vectors, vectors[:1]])
    ids = (*(f"b{n:05}" for n in range(COUNT)), "a")
    made = Index.build(Embeddings(ids, twice, "model"), min_recall=0.9)
    hits = made.search(Embeddings(("query",), vectors[:1], "model"), 2)
    assert hits.ids.tolist() == [["a", "b00000"]]


def test_few_vectors_are_searched_exactly(vectors):
    few = Embeddings(tuple(map(str, range(900))), vectors[:900], "model")
    assert Index.build(few, min_recall=0.5).key == "Flat"
    with pytest.raises(
        OptionError, match="900 vectors of 64 dimensions, searched exactly, take 230 kB, max_memory is 1 kB"
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

    def say(self, text):
        self.said.append(text)


def test_a_build_that_was_stopped_goes_on(embeddings, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "_EVERY_S", -1.0)
    whole = Index.build(embeddings, min_recall=0.9, max_memory="300kB")
    work = tmp_path / "work"
    with pytest.raises(StoppedError):
        Index.build(embeddings, min_recall=0.9, max_memory="300kB", work=work, progress=Stops(1400))
    trained = []
    monkeypatch.setattr(FaissIndex, "new", lambda key, _: trained.append(key) or pytest.fail("was begun anew"))
    heard = Heard()
    made = Index.build(embeddings, min_recall=0.9, max_memory="300kB", work=work, progress=heard)
    assert made.key == whole.key
    assert not any("tried on" in text for text in heard.said)
    asked = embeddings.take(embeddings.ids[::37])
    assert made.search(asked, 10).ids.tolist() == whole.search(asked, 10).ids.tolist()


def test_what_another_run_left_is_passed_over(embeddings, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "_EVERY_S", -1.0)
    work = tmp_path / "work"
    Index.build(embeddings, min_recall=0.9, max_memory="300kB", work=work)
    heard = Heard()
    Index.build(embeddings, min_recall=0.8, max_memory="300kB", work=work, progress=heard)
    assert any("tried on" in text for text in heard.said)
    for file in work.iterdir():
        file.write_bytes(b"garbage")
    assert len(Index.build(embeddings, min_recall=0.8, max_memory="300kB", work=work)) == COUNT
