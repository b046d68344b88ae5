"""Measures: their text, each value worked out by hand, and random rankings through ranx and scikit-learn."""

import math
import sys

import numpy as np
import pytest

from lookalike.errors import DataError, OptionError
from lookalike.evaluation.measures import REGISTRY, Depth, Measure, parse_measures

# ranks                       1  2  3  4  5  6  7  8  9 10
RANKING = np.array(
    [
        [0, 1, 1, 0, 0, 0, 0, 0, 0, 1],
        [1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ],
    dtype=bool,
)
TOTAL = np.array([4, 1, 2, 1])

# hits at ranks 2, 3 and 10; the best order of R = 4 has ranks 1 to 4
NDCG_10 = (1 / math.log2(3) + 1 / 2 + 1 / math.log2(11)) / (1 + 1 / math.log2(3) + 1 / 2 + 1 / math.log2(5))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("precision@1", [0, 1, 0, 0]),
        ("precision@3", [2 / 3, 1 / 3, 0, 0]),
        ("hit@1", [0, 1, 0, 0]),
        ("hit@3", [1, 1, 0, 0]),
        ("hit@10", [1, 1, 1, 0]),
        ("recall@3", [2 / 4, 1, 0, 0]),
        ("recall@10", [3 / 4, 1, 1 / 2, 0]),
        # relevant at ranks 2 and 3 of the first three, R = 4: (1/2 + 2/3) / 4
        ("map@3", [(1 / 2 + 2 / 3) / 4, 1, 0, 0]),
        ("map@10", [(1 / 2 + 2 / 3 + 3 / 10) / 4, 1, (1 / 10) / 2, 0]),
        # the third query has R = 2, so its hit at rank 10 does not count
        ("map@r", [(1 / 2 + 2 / 3) / 4, 1, 0, 0]),
        ("mrr", [1 / 2, 1, 1 / 10, 0]),
        # gains 1, 1/log2(3), 1/2 at ranks 1 to 3; the best order of R = 4 has all three
        ("ndcg@3", [(1 / math.log2(3) + 1 / 2) / (1 + 1 / math.log2(3) + 1 / 2), 1, 0, 0]),
        # the best order of R = 2 has its hits at ranks 1 and 2
        ("ndcg@10", [NDCG_10, 1, (1 / math.log2(11)) / (1 + 1 / math.log2(3)), 0]),
        ("points@1,5,10", [300 + 100, 600 + 300 + 100, 100, 0]),
    ],
)
def test_values_by_hand(text, expected):
    values = Measure.parse(text).values(RANKING, TOTAL)
    assert values.dtype == np.float64
    assert values.shape == (4,)
    assert values.tolist() == pytest.approx(expected, abs=1e-12)


def test_map_at_r_of_the_paper():
    # Musgrave et al. 2020: with R = 10, the rank of each hit among the first 10 counts, not only their number.
    only_first = np.zeros((1, 10), dtype=bool)
    only_first[0, 0] = True
    first_and_last = only_first.copy()
    first_and_last[0, 9] = True
    total = np.array([10])
    assert Measure.parse("map@r").values(only_first, total)[0] == pytest.approx(1 / 10)
    assert Measure.parse("map@r").values(first_and_last, total)[0] == pytest.approx((1 + 2 / 10) / 10)


def test_map_divides_by_all_relevant_items_not_by_k():
    assert Measure.parse("map@1").values(np.array([[True]]), np.array([5]))[0] == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    "text", ["precision@3", "hit@12", "recall@1", "map@10", "map@r", "mrr", "ndcg@5", "points@1,5,10"]
)
def test_a_measure_is_a_value(text):
    measure = Measure.parse(text)
    assert str(measure) == text
    assert Measure.parse(str(measure)) == measure
    assert len({measure, Measure.parse(text)}) == 1
    assert Measure.parse(measure) is measure
    with pytest.raises(AttributeError):
        measure.k = 4


def test_measures_are_ordered_by_kind_then_number():
    measures = [Measure.parse(m) for m in ("precision@10", "mrr", "precision@3", "hit@1")]
    assert [str(m) for m in sorted(measures)] == ["hit@1", "mrr", "precision@3", "precision@10"]


def test_upper_case_and_spaces_are_accepted():
    assert str(Measure.parse(" MAP@R ")) == "map@r"


@pytest.mark.parametrize(
    "text",
    [
        *("precision", "precision@", "precision@0", "precision@03", "precision@-1", "precision@3.0", "precision@k"),
        *("precision@３", "mrr@3", "map@rr", "accuracy@3", "points@1,5", "", 3, None),
    ],
)
def test_bad_text_lists_what_is_allowed(text):
    with pytest.raises(OptionError) as error:
        Measure.parse(text)
    assert error.value.argument == "measures"
    with pytest.raises(OptionError) as error:
        Measure.parse(text, argument="stop_on")
    assert error.value.argument == "stop_on"
    assert "precision@k, hit@k, recall@k, map@k, map@r, mrr, ndcg@k, points@1,5,10" in str(error.value)


@pytest.mark.parametrize(("pattern", "k"), [("precision@k", None), ("precision@k", 0), ("mrr", 3), ("nothing", None)])
def test_an_impossible_measure_is_refused(pattern, k):
    with pytest.raises(OptionError, match="is not known"):
        Measure(pattern, k)


def test_depth():
    assert Measure.parse("precision@7").depth == 7
    assert Measure.parse("points@1,5,10").depth == 10
    assert Measure.parse("map@r").depth is Depth.RELEVANT
    assert Measure.parse("mrr").depth is Depth.GALLERY


def test_titles_and_definitions():
    assert Measure.parse("precision@3").title == "top-3 accuracy"
    assert Measure.parse("hit@3").title == "hit@3"
    assert "divided by k" in Measure.parse("precision@3").definition
    assert "Musgrave" in Measure.parse("map@r").definition
    assert all(row.definition and row.pattern == key for key, row in REGISTRY.items())


def test_a_ranking_that_is_too_shallow_is_refused():
    with pytest.raises(DataError, match=r"precision@11.*\b11 hits.*\b10\."):
        Measure.parse("precision@11").values(RANKING, TOTAL)
    with pytest.raises(DataError, match=r"map@r.*\b12 hits.*\b10\."):
        Measure.parse("map@r").values(RANKING, np.array([1, 12, 1, 1]))


def test_a_query_with_nothing_relevant_is_refused():
    with pytest.raises(DataError, match=r"recall@3 .*nothing relevant"):
        Measure.parse("recall@3").values(RANKING, np.array([1, 0, 1, 1]))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match=r"\(4, 10\) and \(3,\)"):
        Measure.parse("mrr").values(RANKING, TOTAL[:3])


def test_parse_measures_keeps_each_once_in_order():
    assert [str(m) for m in parse_measures(["mrr", "hit@1", Measure("mrr")])] == ["mrr", "hit@1"]
    assert [str(m) for m in parse_measures("hit@3")] == ["hit@3"]


def test_no_measure_is_an_error():
    with pytest.raises(OptionError) as caught:
        parse_measures([])
    assert caught.value.argument == "measures"


N_QUERY, N_GALLERY = 40, 30


@pytest.fixture(scope="module")
def judged():
    random = np.random.default_rng(7)
    relevant = random.random((N_QUERY, N_GALLERY)) < random.uniform(0.03, 0.6, (N_QUERY, 1))
    relevant[np.arange(N_QUERY), random.integers(0, N_GALLERY, N_QUERY)] = True
    return relevant, relevant.sum(axis=1)


RANX = {
    "precision@1": "precision@1",
    "precision@3": "precision@3",
    "hit@1": "hit_rate@1",
    "hit@5": "hit_rate@5",
    "recall@10": "recall@10",
    "map@3": "map@3",
    "map@10": "map@10",
    "map@30": "map",
    "mrr": "mrr",
    "ndcg@5": "ndcg@5",
    "ndcg@30": "ndcg",
}


@pytest.fixture
def ranx(monkeypatch):
    if "ranx" not in sys.modules:
        monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # compiling its measures takes a minute
    return pytest.importorskip("ranx")


@pytest.mark.slow  # importing ranx takes several seconds
@pytest.mark.filterwarnings("ignore:unsafe cast from uint64 to int64")  # numba about ranx, where it does compile
def test_all_measures_agree_with_ranx(judged, ranx):
    relevant, total = judged
    qrels = ranx.Qrels({f"q{q:02}": {f"g{g}": 1 for g in np.flatnonzero(row)} for q, row in enumerate(relevant)})
    run = ranx.Run({f"q{q:02}": {f"g{g}": float(N_GALLERY - g) for g in range(N_GALLERY)} for q in range(N_QUERY)})
    theirs = ranx.evaluate(qrels, run, list(RANX.values()), return_mean=False)
    for ours, name in RANX.items():
        values = Measure.parse(ours).values(relevant, total)
        np.testing.assert_allclose(values, theirs[name], atol=1e-12, err_msg=ours)


def test_map_of_the_whole_gallery_is_average_precision(judged):
    from sklearn.metrics import average_precision_score

    relevant, total = judged
    expected = [average_precision_score(row, -np.arange(N_GALLERY)) for row in relevant]
    np.testing.assert_allclose(Measure.parse(f"map@{N_GALLERY}").values(relevant, total), expected, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3, 10, 30])
def test_ndcg_agrees_with_scikit_learn(judged, k):
    from sklearn.metrics import ndcg_score

    relevant, total = judged
    scores = -np.arange(N_GALLERY)[None]
    expected = [ndcg_score(row[None].astype(int), scores, k=k) for row in relevant]
    np.testing.assert_allclose(Measure.parse(f"ndcg@{k}").values(relevant, total), expected, atol=1e-12)


def test_map_at_r_is_map_at_each_querys_own_r(judged):
    relevant, total = judged
    expected = [
        Measure.parse(f"map@{r}").values(row[None], np.array([r]))[0] for row, r in zip(relevant, total, strict=True)
    ]
    np.testing.assert_allclose(Measure.parse("map@r").values(relevant, total), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("measure", "ceiling"),
    [("precision@3", (1 / 3 + 2 / 3 + 1) / 3), ("recall@2", (1 + 1 + 2 / 5) / 3), ("map@r", 1), ("mrr", 1),
     ("hit@3", 1), ("points@1,5,10", 1000)],
)  # fmt: skip
def test_the_ceiling_by_hand(measure, ceiling):
    """Three queries with 1, 2 and 5 relevant items."""
    assert Measure.parse(measure).ceiling(np.array([1, 2, 5])) == pytest.approx(ceiling)
