"""Budgets, and the index that is selected within one."""

import dataclasses

import numpy as np
import pytest

from lookalike.errors import OptionError, StorageError
from lookalike.index import autotune as module
from lookalike.index import index as index_module
from lookalike.index.autotune import (
    SPECS,
    Budget,
    IndexSpec,
    RecallProbe,
    autotune,
    format_size,
    ivf_nlist,
    parse_size,
)
from lookalike.index.faiss_index import FaissIndex
from lookalike.index.index import Index
from lookalike.index.storage import BuildCheckpoint, remove_checkpoint
from lookalike.progress import SILENT
from lookalike.types import Embeddings, l2_normalize

COUNT, DIM = 3000, 64
MEMORY = 300_000  # too small for a graph over these vectors


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500MB", 500_000_000),
        ("1.5GiB", 1_610_612_736),
        ("2g", 2_000_000_000),
        ("64 kB", 64_000),
        ("300000000", 300_000_000),
        (4096, 4096),
        (".5M", 500_000),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-5MB", "5 bananas", "0", "1,5GB", "5iB"])
def test_invalid_sizes(text):
    with pytest.raises(OptionError, match="500MB") as raised:
        parse_size(text)
    assert raised.value.argument == "max_memory"


def test_sizes_for_people():
    assert [format_size(n) for n in (1, 12, 2048, 614_400_000, 2_048_000_000)] == [
        "1 byte",
        "12 bytes",
        "2.05 kB",
        "614 MB",
        "2.05 GB",
    ]


@pytest.mark.parametrize(
    ("argument", "value"),
    [("min_recall", 0), ("min_recall", 1.01), ("max_memory", 0), ("max_ms", 0), ("max_ms", float("nan"))],
)
def test_limits_out_of_range(argument, value):
    with pytest.raises(OptionError, match=rf"{argument}.* got {value}") as raised:
        Budget(**{argument: value})
    assert raised.value.argument == argument


def test_a_budget_in_words():
    assert str(Budget.parse(0.95, "600MB", 2)) == "recall of at least 0.95, at most 600 MB, at most 2 ms per query"
    assert Budget().exact
    assert not Budget(0.99).exact


@pytest.mark.parametrize(
    ("count", "expected"), [(10, 1), (1000, 16), (3000, 64), (20_000, 256), (200_000, 2048), (1_000_000, 4096)]
)
def test_number_of_lists(count, expected):
    assert ivf_nlist(count) == expected


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_size_of_a_spec(spec: IndexSpec, vectors):
    index = FaissIndex.create(spec.key(COUNT, DIM), DIM)
    index.train(vectors)
    index.add(vectors)
    assert index.size == pytest.approx(spec.size(COUNT, DIM) - module.ROW_BYTES * COUNT, rel=0.1)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_fixed_bytes_of_a_spec(spec: IndexSpec):
    """With few vectors of many dimensions nearly all bytes are shared."""
    index = FaissIndex.create(spec.key(300, 256), 256)
    index.train(l2_normalize(np.random.default_rng(0).normal(size=(300, 256))))
    assert index.size == pytest.approx(spec.fixed_bytes(300, 256), rel=0.05, abs=3000)


def test_recall_by_hand():
    """One query along an axis, neighbours at falling cosines."""
    cosines = 1 - np.arange(14) / 20
    vectors = np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1).astype(np.float32)
    probe = RecallProbe(vectors.__getitem__, np.arange(14), np.array([(1, 0)], np.float32), SILENT)
    assert probe.neighbours.tolist() == [list(range(10))]
    assert probe.recall(np.array([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]])) == 1
    assert probe.recall(np.array([[10, 1, 2, 3, 4, 5, 6, 7, 13, 9]])) == pytest.approx(0.8)


def test_recall_counts_ties_with_the_last_neighbour():
    vectors = np.array([(1, 0)] * 30 + [(0, 1)] * 5, np.float32)
    probe = RecallProbe(vectors.__getitem__, np.arange(35), np.array([(1, 0)], np.float32), SILENT)
    assert probe.recall(np.arange(15, 25)[None]) == 1
    assert probe.recall(np.array([[*range(15, 24), 34]])) == pytest.approx(0.9)


@pytest.fixture
def small(monkeypatch):
    """Let a few vectors be many."""
    monkeypatch.setattr(index_module, "EXACT_UNTIL", 1000)
    monkeypatch.setattr(module, "SAMPLE", 1500)
    monkeypatch.setattr(module, "HELD_OUT", 200)
    monkeypatch.setattr(module, "BLOCK", 700)
    monkeypatch.setattr(module, "_CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(module, "time_single", lambda _search, queries: float(len(queries)))  # milliseconds: all alike


def select(vectors, budget, progress=SILENT):
    return autotune(vectors.__getitem__, len(vectors), DIM, budget, BuildCheckpoint(), progress)


def test_the_fastest_spec_within_the_budget_is_built(small, vectors, monkeypatch, recording_progress):
    milliseconds = {SPECS[0].name: 0.5, SPECS[4].name: 1.0}

    def tune(spec, *arguments):
        return dataclasses.replace(real(spec, *arguments), single_ms=milliseconds.get(spec.name, 9.0))

    real = module.tune
    monkeypatch.setattr(module, "tune", tune)
    listener = recording_progress()
    index, report = select(vectors, Budget(0.8), listener)
    measured = report.measured
    assert (measured.spec, measured.vectors, len(index)) == (SPECS[0].name, COUNT - 200, COUNT)
    assert measured.recall >= 0.8
    assert [point.spec for point in report.tried] == [spec.name for spec in SPECS]
    assert {point.vectors for point in report.tried} == {1500}
    assert report.rejected == ()
    rows, _ = index.search(vectors[:1], np.array([-1]), COUNT)
    assert sorted(rows[0].tolist()) == list(range(COUNT))
    assert measured.key in report.reason
    smaller = select(vectors, Budget(0.8, MEMORY), listener)[1].measured
    assert smaller.spec == SPECS[4].name
    assert smaller.bytes <= MEMORY


def test_held_out_vectors_do_not_find_themselves(small, vectors, monkeypatch):
    nearest = []

    def tune(spec, index, probe, budget):
        nearest.append((len(index), index.nearest(probe.queries, 1)[0].max()))
        return real(spec, index, probe, budget)

    real = module.tune
    monkeypatch.setattr(module, "tune", tune)
    select(vectors, Budget(0.8))
    assert all(count <= COUNT - 200 and score < 0.99 for count, score in nearest)


@pytest.mark.parametrize(
    ("budget", "argument", "facts"),
    [
        (Budget(0.8, 10_000), "max_memory", "3000 vectors of 64 dimensions take at least 129 kB.* 10 kB"),
        (Budget(0.99, 160_000), "min_recall", "recall of at least 0.99, at most 160 kB.* RR64,IVF64,RaBitQ"),
        (Budget(0.8, None, 1e-6), "max_ms", "at most 1e-06 ms per query; the fastest is"),
    ],
)
def test_no_index_is_within_the_budget(small, vectors, budget, argument, facts):
    with pytest.raises(OptionError, match=facts) as raised:
        select(vectors, budget)
    assert raised.value.argument == argument


@pytest.mark.parametrize("limit", [60_000, 150_000, 222_892, 300_000])
def test_the_files_are_within_the_memory(small, embeddings, tmp_path, limit):
    try:
        index = Index.build(embeddings, min_recall=0.15, max_memory=limit)
    except OptionError:
        assert limit < 150_000
        return
    index.save(tmp_path / "index")
    assert sum((tmp_path / "index" / name).stat().st_size for name in ("index.faiss", "rows.npy")) <= limit + 128


class StoppedError(Exception):
    pass


class Stops:
    """Stops a build once this many vectors are added."""

    def __init__(self, at):
        self.at = at

    def step(self, task, done, total, detail=""):  # noqa: ARG002
        if task.startswith("building") and done >= self.at:
            raise StoppedError

    def info(self, text):
        pass


@pytest.fixture
def interrupted(small, embeddings, tmp_path):
    """The checkpoint of an interrupted build."""
    checkpoint = tmp_path / "checkpoint"
    with pytest.raises(StoppedError):
        Index.build(embeddings, min_recall=0.7, max_memory=MEMORY, checkpoint=checkpoint, progress=Stops(1400))
    return checkpoint


def test_an_interrupted_build_resumes(interrupted, embeddings, monkeypatch, recording_progress):
    whole = Index.build(embeddings, min_recall=0.7, max_memory=MEMORY)
    monkeypatch.setattr(FaissIndex, "create", lambda key, dim: pytest.fail(f"{key}, {dim} was built again"))
    listener = recording_progress()
    index = Index.build(embeddings, min_recall=0.7, max_memory=MEMORY, checkpoint=interrupted, progress=listener)
    assert index.key == whole.key
    assert not any(text.startswith("  tried on") for text in listener.messages)
    queries = embeddings.take(embeddings.ids[::37])
    assert index.search(queries, 10).ids.tolist() == whole.search(queries, 10).ids.tolist()


def test_another_budget_tries_again(small, embeddings, tmp_path, recording_progress):
    checkpoint = tmp_path / "checkpoint"
    Index.build(embeddings, min_recall=0.7, max_memory=MEMORY, checkpoint=checkpoint)
    listener = recording_progress()
    Index.build(embeddings, min_recall=0.6, max_memory=MEMORY, checkpoint=checkpoint, progress=listener)
    assert any(text.startswith("  tried on") for text in listener.messages)
    for file in checkpoint.iterdir():
        file.write_bytes(b"garbage")
    assert len(Index.build(embeddings, min_recall=0.6, max_memory=MEMORY, checkpoint=checkpoint)) == COUNT


def test_the_checkpoint_of_other_vectors_is_ignored(interrupted, embeddings):
    rolled = l2_normalize(np.roll(embeddings.vectors, 1, axis=1))
    changed = Embeddings(embeddings.ids, rolled, embeddings.fingerprint)
    index = Index.build(changed, min_recall=0.7, max_memory=MEMORY, checkpoint=interrupted)
    queries = Embeddings(tuple(f"query{n}" for n in range(50)), rolled[:50], "model")
    hits = index.search(queries, 1).ids[:, 0].tolist()
    assert np.mean([hit == f"{n:05}" for n, hit in enumerate(hits)]) > 0.9


def test_removing_a_checkpoint_leaves_other_files(small, embeddings, tmp_path):
    folder = tmp_path / "checkpoint"
    Index.build(embeddings, min_recall=0.9, checkpoint=folder)
    (folder / "mine.txt").write_text("mine")
    remove_checkpoint(folder)
    remove_checkpoint(folder)
    assert [p.name for p in folder.iterdir()] == ["mine.txt"]
    with pytest.raises(StorageError, match="checkpoint already exists") as raised:
        Index.build(embeddings, min_recall=0.9, checkpoint=folder)
    assert raised.value.argument == "checkpoint"
    Index.build(embeddings, checkpoint=folder)  # an exact index needs no such folder
    Index.build(embeddings, min_recall=0.9, checkpoint=str(tmp_path / "other"))
    remove_checkpoint(tmp_path / "other")
    assert not (tmp_path / "other").exists()
