"""`Embeddings` and `Hits` validate what they are made of."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookalike.errors import DataError
from lookalike.types import Calibration, Embeddings, Hit, Hits, QueryHits, Skipped, l2_normalize, take_shared

ROWS = np.array([[0.6, 0.8], [1.0, 0.0]], np.float32)


def test_l2_normalize() -> None:
    scaled = l2_normalize([[3, 4], [0, 0], [-2, 0]])
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [[0.6, 0.8], [0, 0], [-1, 0]], rtol=1e-6)


def test_shared_embeddings_are_in_the_order_of_the_first() -> None:
    first = Embeddings(("a", "b", "c"), np.eye(3, dtype=np.float32), "one")
    second = Embeddings(("c", "d", "a"), np.eye(3, 4, dtype=np.float32), "two")
    shared = take_shared([first, second])
    assert [e.ids for e in shared] == [("a", "c"), ("a", "c")]
    np.testing.assert_array_equal(shared[0].vectors, [[1, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(shared[1].vectors, [[0, 0, 1, 0], [1, 0, 0, 0]])


def test_embeddings() -> None:
    embeddings = Embeddings(("a", "b"), ROWS, "model", (Skipped(Path("c.jpg"), "the file is empty"),))
    assert len(embeddings) == 2
    assert embeddings.dim == 2
    assert str(embeddings.skipped[0]) == "c.jpg: the file is empty"
    assert "2 items, 2 dimensions" in repr(embeddings)


def test_ids_may_be_a_list_and_are_copied() -> None:
    ids = ["a", "b"]
    embeddings = Embeddings(ids, ROWS, "model")
    ids.append("c")
    assert embeddings.ids == ("a", "b")


def test_empty_embeddings_have_a_dimension() -> None:
    assert Embeddings((), np.empty((0, 5), np.float32), "model").dim == 5


@pytest.mark.parametrize(
    ("ids", "vectors", "argument", "facts"),
    [
        (("a", "b"), ROWS.astype(np.float64), "vectors", ("float32", "(n, dim)", "float64", "(2, 2)")),
        (("a",), ROWS[0], "vectors", ("float32", "(2,)")),
        (("a", "b"), ROWS.tolist(), "vectors", ("float32", "list")),
        (("a",), ROWS, "ids", ("1 ids", "2 vectors")),
        ("ab", ROWS, "ids", ("'ab'",)),
        ((1, 2), ROWS, "ids", ("strings", "1")),
        (("a", "a"), ROWS, "ids", ("duplicate", "'a'")),
        (("a", "b"), ROWS * np.float32([[1], [2]]), "vectors", ("'b'", "2.0000")),
        (("a", "b"), ROWS * np.float32([[1], [0]]), "vectors", ("'b'", "0.0000")),
        (("a", "b"), ROWS * np.float32([[9], [np.nan]]), "vectors", ("'b'", "nan")),
        (("a",), np.float32([[np.inf, 0]]), "vectors", ("'a'", "inf")),
    ],
    ids=["dtype", "shape", "list", "length", "text", "numbers", "duplicate", "long", "zero", "nan", "infinite"],
)
def test_embeddings_refuse(ids: Any, vectors: Any, argument: str, facts: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as caught:
        Embeddings(ids, vectors, "model")
    assert caught.value.argument == argument
    assert [fact for fact in facts if fact not in str(caught.value)] == []


def test_take_returns_the_requested_order() -> None:
    subset = Embeddings(("a", "b"), ROWS, "model").take(["b", "a"])
    assert subset.ids == ("b", "a")
    assert subset.fingerprint == "model"
    np.testing.assert_array_equal(subset.vectors, ROWS[::-1])


def test_take_names_the_first_missing_id() -> None:
    with pytest.raises(DataError, match=r"2 ids .*'x'") as caught:
        Embeddings(("a", "b"), ROWS, "model").take(["a", "x", "y"])
    assert caught.value.argument == "ids"


HITS = Hits(("q", "r"), np.array([["a", "b"], ["b", "c"]], object), np.array([[0.75, 0.5], [0.25, 0.1]], np.float32))


def test_hits_are_iterated_by_query() -> None:
    assert len(HITS) == 2
    first, second = HITS
    assert first == QueryHits("q", (Hit("a", 0.75), Hit("b", 0.5)))
    assert [(hit.id, hit.score) for hit in HITS[0]] == [("a", 0.75), ("b", 0.5)]
    assert (second.query_id, len(second), second[0].id) == ("r", 2, "b")
    assert HITS[-1] == second
    assert HITS[:1] == (first,)
    assert first[1:] == (Hit("b", 0.5),)
    with pytest.raises(IndexError):
        HITS[2]


def test_hits_print_short_and_convert_to_json() -> None:
    assert repr(HITS) == "<Hits: 2 queries, 2 hits each>"
    assert json.loads(json.dumps(HITS.to_dict())) == {
        "q": [{"id": "a", "score": 0.75}, {"id": "b", "score": 0.5}],
        "r": [{"id": "b", "score": 0.25}, {"id": "c", "score": 0.1}],
    }


def test_a_query_may_have_fewer_hits_than_others() -> None:
    ids = np.array([["a", None], [None, None]], object)
    hits = Hits(("q", "r"), ids, np.array([[0.75, np.nan], [np.nan, np.nan]], np.float32))
    assert [query.hits for query in hits] == [(Hit("a", 0.75),), ()]
    assert json.loads(json.dumps(hits.to_dict())) == {"q": [{"id": "a", "score": 0.75}], "r": []}


CALIBRATION = Calibration(slope=8.0, intercept=-4.0, queries=100, error=0.01)


def test_a_calibration_by_hand() -> None:
    probabilities = CALIBRATION.probabilities([[0.5, 0.75], [0.25, np.nan], [-400.0, 400.0]])
    expected = [[0.5, 1 / (1 + math.exp(-2))], [1 / (1 + math.exp(2)), np.nan], [0, 1]]
    np.testing.assert_allclose(probabilities, expected)


@pytest.mark.parametrize("change", [{"slope": 0.0}, {"slope": -1.0}, {"intercept": math.nan}, {"error": math.inf}])
def test_a_calibration_refuses(change: dict[str, float]) -> None:
    with pytest.raises(DataError, match="calibration"):
        replace(CALIBRATION, **change)


def test_hits_below_a_probability_are_dropped() -> None:
    everything = HITS.with_probabilities(CALIBRATION)
    np.testing.assert_allclose(everything.probabilities, CALIBRATION.probabilities([[0.75, 0.5], [0.25, 0.1]]))
    assert [hit.probability for hit in everything[0]] == pytest.approx([1 / (1 + math.exp(-2)), 0.5])
    hits = everything.with_probabilities(CALIBRATION, 0.5)
    assert [[hit.id for hit in query] for query in hits] == [["a", "b"], []]
    assert hits.ids.tolist() == [["a", "b"], [None, None]]
    assert np.isnan(hits.scores[1]).all() and np.isnan(hits.probabilities[1]).all()
    assert HITS.ids.tolist() == [["a", "b"], ["b", "c"]]
    assert [len(query) for query in HITS.with_probabilities(CALIBRATION, 0.6)] == [1, 0]


def test_hits_refuse_probabilities_of_another_shape() -> None:
    with pytest.raises(DataError, match="one probability per score"):
        replace(HITS, probabilities=np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("ids", "scores", "n_query"),
    [((2, 2), (2, 3), 2), ((2, 2), (2, 2), 1), ((2,), (2,), 2)],
    ids=["shapes", "queries", "flat"],
)
def test_hits_refuse(ids: tuple[int, ...], scores: tuple[int, ...], n_query: int) -> None:
    with pytest.raises(DataError) as caught:
        Hits(tuple("qrs"[:n_query]), np.full(ids, "a", object), np.zeros(scores, np.float32))
    assert [fact for fact in (f"{n_query} queries", str(ids), str(scores)) if fact not in str(caught.value)] == []


def test_every_row_of_a_mapped_file_is_checked_and_stays_readable(tmp_path: Path) -> None:
    rows = np.zeros((10_000, 4), np.float32)
    rows[:, 1] = 1
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    ids = tuple(map(str, range(len(rows))))
    for vectors in (mapped, mapped.view(np.ndarray), mapped[5:]):
        np.testing.assert_array_equal(Embeddings(ids[-len(vectors) :], vectors, "f").vectors, rows[-len(vectors) :])
    rows[9_000] *= 2
    np.save(tmp_path / "long.npy", rows)
    with pytest.raises(DataError, match="'9000' has length 2"):
        Embeddings(ids, np.load(tmp_path / "long.npy", mmap_mode="r"), "f")


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="reads the resident size from Linux's /proc")
def test_a_mapped_file_does_not_stay_in_memory(tmp_path: Path) -> None:
    rows = np.zeros((40_000, 64), np.float32)
    rows[:, 1] = 1
    np.save(tmp_path / "rows.npy", rows)
    embeddings = Embeddings(list(map(str, range(len(rows)))), np.load(tmp_path / "rows.npy", mmap_mode="r"), "f")
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    next(line for line in lines if line.endswith("rows.npy"))
    resident = next(line for line in lines if line.startswith("Rss:"))
    assert int(resident.split()[1]) * 1024 < embeddings.vectors.nbytes / 2


def test_a_mapped_array_that_was_written_to_keeps_its_values(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.zeros((3, 2), np.float32))
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="c")
    mapped[:, 0] = 1
    mapped.setflags(write=False)
    assert Embeddings(("a", "b", "c"), mapped, "f").vectors[:, 0].tolist() == [1, 1, 1]
    assert Embeddings(("a", "b", "c"), mapped.view(np.ndarray), "f").vectors[:, 0].tolist() == [1, 1, 1]


def test_vectors_that_are_nearly_zero_get_unit_length():
    vectors = np.array([[3e-25, 4e-25], [3.0, 4.0], [0.0, 0.0]], dtype=np.float32)

    np.testing.assert_allclose(l2_normalize(vectors), [[0.6, 0.8], [0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
