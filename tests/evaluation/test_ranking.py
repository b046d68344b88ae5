"""The judged ranking: each rule by hand, and a slow full-matrix oracle for the fast one."""

import math
from typing import NamedTuple

import numpy as np
import pytest

from lookalike import _top_k
from lookalike.errors import DataError, FingerprintMismatch
from lookalike.evaluation import ranking
from lookalike.evaluation.ranking import find_relevance, iter_judged
from lookalike.types import Embeddings, Hits, l2_normalize


def embeddings(vectors, fingerprint="model"):
    return Embeddings(tuple(vectors), l2_normalize(np.array(list(vectors.values()))), fingerprint)


def at(cosine):
    """A unit vector in the plane with this cosine to (1, 0)."""
    return (cosine, math.sqrt(1 - cosine * cosine))


class Judged(NamedTuple):
    relevant: np.ndarray
    total: np.ndarray
    hits: Hits


def judge(queries, gallery, query_labels, gallery_labels, depth=None):
    """Return the relevance and the judged rankings of all queries at once."""
    relevance = find_relevance(queries, gallery, query_labels, gallery_labels)
    depth = relevance.max_depth if depth is None else depth
    relevant, total, hits = zip(*iter_judged(queries, gallery, relevance, depth), strict=True)
    joined = Hits(relevance.query_ids, np.concatenate([h.ids for h in hits]), np.concatenate([h.scores for h in hits]))
    return relevance, Judged(np.concatenate(relevant), np.concatenate(total), joined)


def ranked_ids(*case):
    return judge(*case)[1].hits.ids.tolist()


QUERY = embeddings({"q": (1, 0)})
GALLERY = embeddings({"a": at(0.6), "b": at(0.8), "c": at(0.0), "d": at(1.0)})
LABELS = {"a": "cat", "b": "dog", "c": "cat", "d": "cow"}


def test_order_relevance_and_total():
    relevance, judged = judge(QUERY, GALLERY, {"q": "cat"}, LABELS, 4)
    assert judged.hits.ids.tolist() == [["d", "b", "a", "c"]]
    np.testing.assert_allclose(judged.hits.scores, [[1, 0.8, 0.6, 0]], atol=1e-6)
    assert judged.relevant.tolist() == [[False, False, True, True]]
    assert judged.total.tolist() == [2]
    assert relevance.query_ids == ("q",)
    assert relevance.excluded == ()


def test_depth_cuts_the_ranking_but_not_the_top_hits():
    _, judged = judge(QUERY, GALLERY, {"q": "cat"}, LABELS, 1)
    assert judged.relevant.tolist() == [[False]]
    assert judged.hits.ids.tolist() == [["d", "b", "a", "c"]]


def test_at_most_ten_top_hits_are_kept():
    gallery = embeddings({f"g{n:02}": at(n / 20) for n in range(12)})
    _, judged = judge(QUERY, gallery, {"q": "x"}, dict.fromkeys(gallery.ids, "x"))
    assert judged.relevant.shape == (1, 12)
    assert judged.hits.ids.tolist() == [[f"g{n:02}" for n in range(11, 1, -1)]]


def test_ties_are_broken_by_item_id():
    gallery = embeddings({"z": at(0.6), "m": at(0.8), "b": at(0.6), "a": at(0.0), "k": at(0.6)})
    assert ranked_ids(QUERY, gallery, {"q": "x"}, {"k": "x"}) == [["m", "b", "k", "z", "a"]]


def test_a_difference_below_the_sixth_decimal_is_a_tie():
    gallery = embeddings({"b": at(0.6000003), "a": at(0.6)})
    assert gallery.vectors[0, 0] > gallery.vectors[1, 0]
    assert ranked_ids(QUERY, gallery, {"q": "x"}, {"a": "x"}) == [["a", "b"]]
    wider = embeddings({"b": at(0.600002), "a": at(0.6)})
    assert ranked_ids(QUERY, wider, {"q": "x"}, {"a": "x"}) == [["b", "a"]]


def test_equal_vectors_tie_in_every_block(monkeypatch):
    monkeypatch.setattr(_top_k, "_BLOCK", 199)  # the last item alone: another routine of the BLAS
    random = np.random.default_rng(0)
    vector = random.normal(size=384)
    gallery = embeddings({f"g{n:03}": vector for n in random.permutation(200)})
    queries = embeddings({f"q{n}": vector + 0.3 * random.normal(size=384) for n in range(300)})
    case = (queries, gallery, dict.fromkeys(queries.ids, "x"), dict.fromkeys(gallery.ids, "x"))
    assert ranked_ids(*case) == [[f"g{n:03}" for n in range(10)]] * 300


def test_the_query_itself_is_never_its_own_hit():
    everything = embeddings({"a": at(1.0), "b": at(0.8), "c": at(0.0)})
    labels = {"a": "x", "b": "x", "c": "y"}
    relevance, judged = judge(everything, everything, labels, labels)
    assert relevance.query_ids == ("a", "b")
    assert relevance.excluded == ("c",)
    assert judged.hits.ids.tolist() == [["b", "c"], ["a", "c"]]
    assert judged.relevant.tolist() == [[True, False], [True, False]]
    assert judged.total.tolist() == [1, 1]


def test_at_full_depth_the_query_itself_is_last_and_not_relevant():
    everything = embeddings({"a": at(1.0), "b": at(0.8), "c": at(0.0)})
    labels = dict.fromkeys(everything.ids, "x")
    relevance = find_relevance(everything, everything, labels, labels)
    ((relevant, _, _),) = iter_judged(everything, everything, relevance, 3)
    assert relevant.tolist() == [[True, True, False]] * 3


def test_the_file_of_a_query_under_other_ids_is_never_its_hit(monkeypatch):
    monkeypatch.setattr(ranking, "_CHUNK_CELLS", 5)  # one query at a time
    queries = embeddings({"a": at(1.0), "q": at(1.0), "r": at(0.8)})
    gallery = embeddings({"d": at(0.0), "link": at(1.0), "a": at(1.0), "b": at(0.8), "second": at(1.0)})
    labels = {"a": "x", "q": "x", "r": "y", "link": "x", "second": "x", "b": "y", "d": "x"}
    same = {"a": ["link", "a"], "q": {"link", "second", "elsewhere"}}
    relevance = find_relevance(queries, gallery, labels, labels, same)
    assert relevance.max_depth == 3
    assert relevance.total.tolist() == [2, 2, 1]
    judged = list(iter_judged(queries, gallery, relevance, 5))
    assert [hits.ids.tolist() for _, _, hits in judged] == [
        [["second", "b", "d"]],
        [["a", "b", "d"]],
        [["b", "a", "link"]],
    ]
    assert [relevant.tolist() for relevant, _, _ in judged] == [
        [[True, False, True, False, False]],
        [[True, False, True, False, False]],
        [[True, False, False, False, False]],
    ]


def test_an_equal_image_under_another_id_is_a_hit():
    gallery = embeddings({"copy": at(1.0), "other": at(0.5)})
    assert ranked_ids(QUERY, gallery, {"q": "x"}, {"copy": "x"}) == [["copy", "other"]]


def test_a_query_with_nothing_relevant_is_excluded():
    queries = embeddings({"q1": at(1.0), "q2": at(0.8), "q3": at(0.6)})
    relevance, judged = judge(queries, GALLERY, {"q1": "cow", "q2": "horse", "q3": "cat"}, LABELS, 2)
    assert relevance.query_ids == ("q1", "q3")
    assert relevance.excluded == ("q2",)
    assert relevance.unlabelled == ()
    assert judged.relevant.shape == (2, 2)


def test_a_query_without_a_label_is_excluded():
    queries = embeddings({"q1": at(1.0), "q2": at(0.8), "q3": at(0.7)})
    labels = {"q1": "cow", "q3": ""}
    relevance = find_relevance(queries, GALLERY, labels, LABELS)
    assert relevance.excluded == relevance.unlabelled == ("q2", "q3")


def test_a_gallery_item_without_a_label_is_a_hit_but_never_relevant():
    _, judged = judge(QUERY, GALLERY, {"q": "cat"}, {"a": "cat"})
    assert judged.hits.ids.tolist() == [["d", "b", "a", "c"]]
    assert judged.relevant.tolist() == [[False, False, True, False]]


def test_leave_one_out_has_one_item_less():
    labels = dict.fromkeys(GALLERY.ids, "x")
    relevance, judged = judge(GALLERY, GALLERY, labels, labels)
    assert relevance.max_depth == 3
    assert judged.relevant.all()


def test_other_models_are_refused():
    other = embeddings({"q": (1, 0)}, fingerprint="another")
    with pytest.raises(FingerprintMismatch, match=r"\banother\b.*\bmodel;"):
        judge(other, GALLERY, {"q": "cat"}, LABELS)


def test_other_dimensions_are_refused():
    with pytest.raises(DataError, match=r"\b3 dimensions.*\b2\b"):
        judge(embeddings({"q": (1, 0, 0)}), GALLERY, {"q": "cat"}, LABELS)


@pytest.mark.parametrize(
    ("query_labels", "gallery_labels", "split"), [({}, LABELS, "1 query"), ({"q": "cat"}, {"zz": "cat"}, "4 gallery")]
)
def test_no_labels_are_an_error(query_labels, gallery_labels, split):
    with pytest.raises(DataError, match=rf"none of the {split} images has a label") as caught:
        judge(QUERY, GALLERY, query_labels, gallery_labels)
    assert caught.value.argument == "data"


def test_an_empty_split_is_an_error():
    empty = Embeddings((), np.zeros((0, 2), dtype=np.float32), "model")
    with pytest.raises(DataError, match="the gallery split has no embedding"):
        judge(QUERY, empty, {"q": "cat"}, LABELS)


def test_no_query_that_counts_is_an_error():
    with pytest.raises(DataError, match=r"\b1 queries\b.*\bgallery of 4;"):
        judge(QUERY, GALLERY, {"q": "Cat"}, LABELS)


def oracle(queries, gallery, query_labels, gallery_labels):
    """Rank by the definition: every pair, Python's own sort, nothing clever."""
    ranked = {}
    for q, vector in zip(queries.ids, queries.vectors.astype(np.float64), strict=True):
        pairs = [
            (-round(float(np.sum(vector * other)), 6), g)
            for g, other in zip(gallery.ids, gallery.vectors.astype(np.float64), strict=True)
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
def test_agrees_with_the_full_matrix(seed, depth):
    case = random_case(seed)
    expected = oracle(*case)
    relevance, judged = judge(*case, depth)
    assert relevance.query_ids == tuple(expected)
    assert set(relevance.excluded) == set(case[0].ids) - set(expected)
    assert judged.relevant.tolist() == [relevant[:depth] for _, relevant in expected.values()]
    assert judged.total.tolist() == [sum(relevant) for _, relevant in expected.values()]
    assert judged.hits.ids.tolist() == [order[:10] for order, _ in expected.values()]


def test_chunks_do_not_change_the_result(monkeypatch):
    case = random_case(3)
    _, whole = judge(*case)
    monkeypatch.setattr(ranking, "_CHUNK_CELLS", 3 * len(case[1]))
    monkeypatch.setattr(_top_k, "_BLOCK", 4)
    chunks = list(iter_judged(case[0], case[1], find_relevance(*case), 5))
    assert len(chunks) > 2
    assert max(len(total) for _, total, _ in chunks) == 3
    _, joined = judge(*case)
    assert joined.relevant.tolist() == whole.relevant.tolist()
    assert joined.hits.ids.tolist() == whole.hits.ids.tolist()
    assert joined.hits.scores.tolist() == whole.hits.scores.tolist()
