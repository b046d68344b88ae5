"""The judged ranking: each rule by hand, and a slow full-matrix oracle beside the fast one."""

import math

import numpy as np
import pytest

from lookalike import _ranking
from lookalike.errors import DataError, FingerprintMismatch, OptionError
from lookalike.evaluation import ranking
from lookalike.evaluation.ranking import judge
from lookalike.evaluation.relevance import find_relevance
from lookalike.types import Embeddings, l2_normalize


def embeddings(vectors, fingerprint="model"):
    return Embeddings(tuple(vectors), l2_normalize(np.array(list(vectors.values()))), fingerprint)


def at(cosine):
    """A unit vector in the plane with this cosine to (1, 0)."""
    return (cosine, math.sqrt(1 - cosine * cosine))


QUERY = embeddings({"q": (1, 0)})
GALLERY = embeddings({"a": at(0.6), "b": at(0.8), "c": at(0.0), "d": at(1.0)})
LABELS = {"a": "cat", "b": "dog", "c": "cat", "d": "cow"}


def test_order_relevance_and_total():
    found = judge(QUERY, GALLERY, {"q": "cat"}, LABELS, depth=4)
    assert found.top.ids.tolist() == [["d", "b", "a", "c"]]
    np.testing.assert_allclose(found.top.scores, [[1, 0.8, 0.6, 0]], atol=1e-6)
    assert found.relevant.tolist() == [[False, False, True, True]]
    assert found.total.tolist() == [2]
    assert found.query_ids == ("q",)
    assert found.left_out == ()


def test_depth_cuts_the_ranking_but_not_the_top_hits():
    found = judge(QUERY, GALLERY, {"q": "cat"}, LABELS, depth=1)
    assert found.relevant.tolist() == [[False]]
    assert found.top.ids.tolist() == [["d", "b", "a", "c"]]


def test_at_most_ten_top_hits_are_kept():
    gallery = embeddings({f"g{n:02}": at(n / 20) for n in range(12)})
    found = judge(QUERY, gallery, {"q": "x"}, dict.fromkeys(gallery.ids, "x"))
    assert found.relevant.shape == (1, 12)
    assert found.top.ids.tolist() == [[f"g{n:02}" for n in range(11, 1, -1)]]


def test_ties_are_broken_by_item_id():
    gallery = embeddings({"z": at(0.6), "m": at(0.8), "b": at(0.6), "a": at(0.0), "k": at(0.6)})
    found = judge(QUERY, gallery, {"q": "x"}, {"k": "x"})
    assert found.top.ids.tolist() == [["m", "b", "k", "z", "a"]]


def test_a_difference_below_the_sixth_decimal_is_a_tie():
    gallery = embeddings({"b": at(0.6000003), "a": at(0.6)})
    assert gallery.vectors[0, 0] > gallery.vectors[1, 0]
    assert judge(QUERY, gallery, {"q": "x"}, {"a": "x"}).top.ids.tolist() == [["a", "b"]]
    wider = embeddings({"b": at(0.600002), "a": at(0.6)})
    assert judge(QUERY, wider, {"q": "x"}, {"a": "x"}).top.ids.tolist() == [["b", "a"]]


def test_equal_vectors_tie_wherever_they_stand(monkeypatch):
    monkeypatch.setattr(_ranking, "_BLOCK", 199)  # the last item alone: another routine of the BLAS
    random = np.random.default_rng(0)
    vector = random.normal(size=384)
    gallery = embeddings({f"g{n:03}": vector for n in random.permutation(200)})
    queries = embeddings({f"q{n}": vector + 0.3 * random.normal(size=384) for n in range(300)})
    found = judge(queries, gallery, dict.fromkeys(queries.ids, "x"), dict.fromkeys(gallery.ids, "x"))
    assert found.top.ids.tolist() == [[f"g{n:03}" for n in range(10)]] * 300


def test_the_query_itself_is_never_its_own_hit():
    everything = embeddings({"a": at(1.0), "b": at(0.8), "c": at(0.0)})
    labels = {"a": "x", "b": "x", "c": "y"}
    found = judge(everything, everything, labels, labels)
    assert found.query_ids == ("a", "b")
    assert found.top.ids.tolist() == [["b", "c"], ["a", "c"]]
    assert found.relevant.tolist() == [[True, False], [True, False]]
    assert found.total.tolist() == [1, 1]
    assert found.left_out == ("c",)


def test_at_full_depth_the_last_place_is_the_querys_own_and_not_relevant():
    everything = embeddings({"a": at(1.0), "b": at(0.8), "c": at(0.0)})
    labels = dict.fromkeys(everything.ids, "x")
    relevance = find_relevance(everything, everything, labels, labels)
    (chunk,) = ranking.judged_chunks(everything, everything, relevance, 3)
    assert chunk.relevant.tolist() == [[True, True, False]] * 3


def test_an_equal_picture_under_another_id_is_a_hit():
    gallery = embeddings({"copy": at(1.0), "other": at(0.5)})
    assert judge(QUERY, gallery, {"q": "x"}, {"copy": "x"}).top.ids.tolist() == [["copy", "other"]]


def test_a_query_with_nothing_relevant_is_left_out_and_reported():
    queries = embeddings({"q1": at(1.0), "q2": at(0.8), "q3": at(0.6)})
    found = judge(queries, GALLERY, {"q1": "cow", "q2": "horse", "q3": "cat"}, LABELS, depth=2)
    assert found.query_ids == ("q1", "q3")
    assert found.left_out == ("q2",)
    assert found.relevant.shape == (2, 2)


def test_a_query_without_a_label_is_left_out():
    queries = embeddings({"q1": at(1.0), "q2": at(0.8), "q3": at(0.7)})
    labels = {"q1": "cow", "q3": ""}
    assert judge(queries, GALLERY, labels, LABELS).left_out == ("q2", "q3")
    assert find_relevance(queries, GALLERY, labels, LABELS).unlabelled == ("q2", "q3")


def test_a_gallery_item_without_a_label_is_found_but_never_relevant():
    found = judge(QUERY, GALLERY, {"q": "cat"}, {"a": "cat"})
    assert found.top.ids.tolist() == [["d", "b", "a", "c"]]
    assert found.relevant.tolist() == [[False, False, True, False]]


def test_k_larger_than_the_gallery_names_both():
    with pytest.raises(OptionError) as error:
        judge(QUERY, GALLERY, {"q": "cat"}, LABELS, depth=5)
    assert str(error.value) == (
        "the depth needs 5 hits, but the gallery has only 4 items; choose a smaller k or a larger gallery."
    )


def test_leave_one_out_has_one_item_less():
    labels = dict.fromkeys(GALLERY.ids, "x")
    assert judge(GALLERY, GALLERY, labels, labels, depth=3).relevant.all()
    with pytest.raises(OptionError) as error:
        judge(GALLERY, GALLERY, labels, labels, depth=4)
    assert str(error.value) == (
        "the depth needs 4 hits, but the gallery has only 3 items besides the query itself; "
        "choose a smaller k or a larger gallery."
    )


@pytest.mark.parametrize("depth", [0, -1])
def test_depth_below_one(depth):
    with pytest.raises(OptionError, match=rf"^the depth must be at least 1, got {depth}\.$"):
        judge(QUERY, GALLERY, {"q": "cat"}, LABELS, depth=depth)


def test_other_models_are_refused():
    other = embeddings({"q": (1, 0)}, fingerprint="another")
    with pytest.raises(FingerprintMismatch) as error:
        judge(other, GALLERY, {"q": "cat"}, LABELS)
    assert str(error.value) == (
        "the queries were embedded by the model another, the gallery by model; embed both with one model."
    )


def test_other_dimensions_are_refused():
    with pytest.raises(DataError, match=r"^the queries have 3 dimensions, the gallery has 2"):
        judge(embeddings({"q": (1, 0, 0)}), GALLERY, {"q": "cat"}, LABELS)


@pytest.mark.parametrize(
    ("query_labels", "gallery_labels", "part"), [({}, LABELS, "1 query"), ({"q": "cat"}, {"zz": "cat"}, "4 gallery")]
)
def test_no_labels_are_an_error(query_labels, gallery_labels, part):
    with pytest.raises(DataError) as error:
        judge(QUERY, GALLERY, query_labels, gallery_labels)
    assert str(error.value) == (
        f"none of the {part} images has a label, so nothing can be measured; "
        "add a labels.csv, class folders or a manifest."
    )


def test_an_empty_part_is_an_error():
    empty = Embeddings((), np.zeros((0, 2), dtype=np.float32), "model")
    with pytest.raises(DataError, match=r"^the gallery part has no embedding; nothing can be measured\.$"):
        judge(QUERY, empty, {"q": "cat"}, LABELS)


def test_no_query_that_counts_is_an_error():
    with pytest.raises(DataError, match=r"^none of the 1 queries has an item of its label in the gallery of 4; "):
        judge(QUERY, GALLERY, {"q": "Cat"}, LABELS)


def oracle(queries, gallery, query_labels, gallery_labels):
    """Rank by the definition: every pair, Python's own sort, nothing clever."""
    ranked = {}
    for q, left in zip(queries.ids, queries.vectors.astype(np.float64), strict=True):
        pairs = [
            (-round(float(np.sum(left * right)), 6), g)
            for g, right in zip(gallery.ids, gallery.vectors.astype(np.float64), strict=True)
            if g != q
        ]
        order = [g for _, g in sorted(pairs)]
        label = query_labels.get(q)
        relevant = [label is not None and gallery_labels.get(g) == label for g in order]
        if any(relevant):
            ranked[q] = (order, relevant)
    return ranked


def random_case(seed):
    """Few distinct directions, so that ties abound; some queries are in the gallery, some items have no label."""
    random = np.random.default_rng(seed)
    directions = random.normal(size=(6, 5))
    names = [f"i{n:02}" for n in random.permutation(45)]
    vectors = {n: directions[random.integers(6)] + (random.random() < 0.4) * random.normal(size=5) for n in names}
    labels = {n: f"class{random.integers(12)}" for n in names if random.random() < 0.85}
    return (
        embeddings({n: vectors[n] for n in names[:25]}),
        embeddings({n: vectors[n] for n in names[12:]}),
        {n: labels[n] for n in names[:25] if n in labels},
        {n: labels[n] for n in names[12:] if n in labels},
    )


@pytest.mark.parametrize("depth", [1, 5, 32])
@pytest.mark.parametrize("seed", range(8))
def test_judge_agrees_with_the_full_matrix(seed, depth):
    case = random_case(seed)
    expected = oracle(*case)
    found = judge(*case, depth=depth)
    assert found.query_ids == tuple(expected)
    assert set(found.left_out) == set(case[0].ids) - set(expected)
    assert found.relevant.tolist() == [relevant[:depth] for _, relevant in expected.values()]
    assert found.total.tolist() == [sum(relevant) for _, relevant in expected.values()]
    assert found.top.ids.tolist() == [order[:10] for order, _ in expected.values()]


def test_chunks_do_not_change_the_result(monkeypatch):
    case = random_case(3)
    whole = judge(*case)
    monkeypatch.setattr(ranking, "_CHUNK_CELLS", 3 * len(case[1]))
    monkeypatch.setattr(_ranking, "_BLOCK", 4)
    chunks = list(ranking.judged_chunks(case[0], case[1], find_relevance(*case), 5))
    assert len(chunks) > 2
    assert max(len(chunk.query_ids) for chunk in chunks) == 3
    parts = judge(*case)
    assert parts.relevant.tolist() == whole.relevant.tolist()
    assert parts.top.ids.tolist() == whole.top.ids.tolist()
    assert parts.top.scores.tolist() == whole.top.scores.tolist()
