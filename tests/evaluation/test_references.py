"""The same random judged rankings through ranx and scikit-learn."""

import sys

import numpy as np
import pytest

from lookalike.evaluation.measures import Measure

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
        monkeypatch.setenv(
            "NUMBA_DISABLE_JIT", "1"
        )  # compiling its measures takes a minute, running them as Python none
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
