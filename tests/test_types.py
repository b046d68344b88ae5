"""`Embeddings` and `Hits` refuse to be born wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lookalike.errors import DataError
from lookalike.types import Embeddings, Hits, Skipped, unit

ROWS = np.array([[0.6, 0.8], [1.0, 0.0]], np.float32)


def test_unit_scales_rows() -> None:
    scaled = unit([[3, 4], [0, 0], [-2, 0]])
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [[0.6, 0.8], [0, 0], [-1, 0]], rtol=1e-6)


def test_embeddings() -> None:
    embeddings = Embeddings(("a", "b"), ROWS, "model", (Skipped(Path("c.jpg"), "the file is empty"),))
    assert len(embeddings) == 2
    assert embeddings.dim == 2
    assert str(embeddings.skipped[0]) == "c.jpg: the file is empty"


def test_no_embeddings_have_a_dimension() -> None:
    assert Embeddings((), np.empty((0, 5), np.float32), "model").dim == 5


def refusal(ids: tuple[str, ...], vectors: np.ndarray) -> str:
    with pytest.raises(DataError) as caught:
        Embeddings(ids, vectors, "model")
    return str(caught.value)


@pytest.mark.parametrize(
    ("ids", "vectors", "sentence"),
    [
        (
            ("a", "b"),
            ROWS.astype(np.float64),
            "embeddings must be a float32 array of shape (n, dim), got float64 of shape (2, 2).",
        ),
        (("a",), ROWS[0], "embeddings must be a float32 array of shape (n, dim), got float32 of shape (2,)."),
        (("a",), ROWS, "embeddings need one id a row: got 1 ids for 2 rows."),
        (("a", "a"), ROWS, "embeddings need distinct ids, but 'a' stands more than once."),
        (("a", "b"), ROWS * np.float32([[1], [2]]), "embeddings must have unit length, but 'b' has length 2.0000."),
        (("a", "b"), ROWS * np.float32([[1], [0]]), "embeddings must have unit length, but 'b' has length 0.0000."),
        (("a", "b"), ROWS * np.float32([[9], [np.nan]]), "embeddings must have unit length, but 'b' has length nan."),
        (("a",), np.float32([[np.inf, 0]]), "embeddings must have unit length, but 'a' has length inf."),
    ],
    ids=["dtype", "shape", "length", "twice", "long", "zero", "nan", "infinite"],
)
def test_embeddings_refuse(ids: tuple[str, ...], vectors: np.ndarray, sentence: str) -> None:
    assert refusal(ids, vectors) == sentence


def test_take_keeps_the_order_asked_for() -> None:
    taken = Embeddings(("a", "b"), ROWS, "model").take(["b", "a"])
    assert taken.ids == ("b", "a")
    assert taken.fingerprint == "model"
    np.testing.assert_array_equal(taken.vectors, ROWS[::-1])


def test_take_names_what_is_missing() -> None:
    with pytest.raises(DataError) as caught:
        Embeddings(("a", "b"), ROWS, "model").take(["a", "x", "y"])
    assert str(caught.value) == "2 ids have no embedding, the first is 'x'."


HITS = Hits(("q", "r"), np.array([["a", "b"], ["b", "c"]], object), np.array([[0.9, 0.5], [0.25, 0.1]], np.float32))


def test_hits() -> None:
    assert len(HITS) == 2
    assert next(iter(HITS.rows())) == ("q", [("a", pytest.approx(0.9)), ("b", 0.5)])
    assert json.loads(json.dumps(HITS.to_dict())) == {
        "q": [{"id": "a", "score": 0.9}, {"id": "b", "score": 0.5}],
        "r": [{"id": "b", "score": 0.25}, {"id": "c", "score": 0.1}],
    }


@pytest.mark.parametrize(
    ("ids", "scores", "n_query"),
    [((2, 2), (2, 3), 2), ((2, 2), (2, 2), 1), ((2,), (2,), 2)],
    ids=["shapes", "queries", "flat"],
)
def test_hits_refuse(ids: tuple[int, ...], scores: tuple[int, ...], n_query: int) -> None:
    with pytest.raises(DataError) as caught:
        Hits(tuple("qrs"[:n_query]), np.full(ids, "a", object), np.zeros(scores, np.float32))
    assert str(caught.value) == (
        f"hits need ids and scores of one shape (n_query, k) for {n_query} queries, got {ids} and {scores}."
    )


def test_of_a_mapped_file_every_row_is_checked_and_stays_readable(tmp_path):
    rows = np.zeros((10_000, 4), np.float32)
    rows[:, 1] = 1
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    ids = tuple(map(str, range(len(rows))))
    for given in (mapped, mapped.view(np.ndarray)):
        np.testing.assert_array_equal(Embeddings(ids, given, "f").vectors, rows)
    rows[9_000] *= 2
    np.save(tmp_path / "long.npy", rows)
    with pytest.raises(DataError, match="'9000' has length 2"):
        Embeddings(ids, np.load(tmp_path / "long.npy", mmap_mode="r"), "f")


def test_a_mapped_array_that_was_written_to_keeps_what_was_written(tmp_path):
    np.save(tmp_path / "rows.npy", np.zeros((3, 2), np.float32))
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="c")
    mapped[:, 0] = 1
    assert Embeddings(("a", "b", "c"), mapped, "f").vectors[:, 0].tolist() == [1, 1, 1]
