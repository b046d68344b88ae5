"""From cosines to probabilities: the judged hits by hand, the fit against scikit-learn."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from lookalike.data.dataset import Dataset, Item, Split
from lookalike.evaluation.calibration import (
    MIN_QUERIES,
    FirstHits,
    calibrate,
    cross_predict,
    fit_calibration,
    fit_logistic,
    judge_first_hits,
    measure_reliability,
    validation_hits,
)
from lookalike.types import Embeddings, l2_normalize


def embeddings_of(**angles):
    """Return embeddings in the plane, by their angles in degrees."""
    radians = np.radians(list(angles.values()))
    return Embeddings(tuple(angles), np.stack([np.cos(radians), np.sin(radians)], 1).astype(np.float32), "model")


def cosine(degrees):
    return pytest.approx(np.cos(np.radians(degrees)), abs=1e-6)


def test_each_query_is_judged_with_its_class_in_the_gallery_and_without():
    gallery = embeddings_of(a=0, b=25, c=50)
    labels = {"q": "x", "r": "y", "a": "x", "b": "y", "c": "y"}
    hits = judge_first_hits(embeddings_of(q=10, r=48), gallery, labels, labels)
    rows = zip(hits.labels, hits.is_present, hits.is_match, hits.scores, strict=True)
    assert sorted(rows) == [
        ("x", False, False, cosine(15)),  # without a: b
        ("x", True, True, cosine(10)),
        ("y", False, False, cosine(48)),  # without b and c: a
        ("y", True, True, cosine(2)),
    ]
    assert hits.queries == 2


def test_a_first_hit_of_another_class_does_not_match():
    labels = {"q": "x", "a": "x", "b": "y"}
    hits = judge_first_hits(embeddings_of(q=30), embeddings_of(a=0, b=20), labels, labels)
    assert hits.is_present.tolist() == [True, False]
    assert hits.is_match.tolist() == [False, False]
    assert hits.scores == pytest.approx([np.cos(np.radians(10))] * 2, abs=1e-6)


def test_a_query_is_not_its_own_hit_and_items_without_a_label_are_skipped():
    items = embeddings_of(a=0, b=10, c=30, d=31)
    labels = {"a": "x", "b": "x", "c": "y"}
    hits = judge_first_hits(items, items, labels, labels)
    assert hits.queries == 2  # c has no other item of its class
    assert hits.scores[hits.is_present].tolist() == [cosine(10), cosine(10)]
    assert hits.scores[~hits.is_present].tolist() == [cosine(30), cosine(20)]


def test_a_gallery_of_one_class_has_no_hit_without_it():
    items = embeddings_of(a=0, b=10)
    labels = {"a": "x", "b": "x"}
    assert judge_first_hits(items, items, labels, labels).is_present.tolist() == [True, True]


def test_the_fit_is_the_logistic_regression_of_scikit_learn():
    random = np.random.default_rng(0)
    scores = random.uniform(-0.2, 1, 300)
    is_match = random.uniform(size=300) < 1 / (1 + np.exp(-(9 * scores - 4)))
    positive, negative = is_match.sum(), (~is_match).sum()
    targets = np.where(is_match, (positive + 1) / (positive + 2), 1 / (negative + 2))  # Platt 1999
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    model.fit(
        np.concatenate([scores, scores])[:, None],
        np.repeat([1, 0], len(scores)),
        sample_weight=np.concatenate([targets, 1 - targets]),
    )
    slope, intercept = fit_logistic(scores, is_match)
    assert slope == pytest.approx(model.coef_[0, 0], rel=1e-4)
    assert intercept == pytest.approx(model.intercept_[0], rel=1e-4)


def test_the_fit_of_matches_that_a_threshold_separates_is_finite():
    scores = np.array([0.1, 0.2, 0.3, 0.7, 0.8, 0.9])
    slope, intercept = fit_logistic(scores, scores > 0.5)
    assert 0 < slope < 100
    assert -intercept / slope == pytest.approx(0.5, abs=1e-6)  # by symmetry


def make_hits(random, queries, *, slope=12.0, classes=10):
    """Return first hits whose matches follow a logistic curve around a cosine of 0.5."""
    scores = random.uniform(0, 1, queries)
    is_match = random.uniform(size=queries) < 1 / (1 + np.exp(-slope * (scores - 0.5)))
    labels = np.array([str(n % classes) for n in range(queries)], dtype=object)
    return FirstHits(scores, is_match, np.ones(queries, bool), labels)


def test_a_calibration_finds_the_curve_that_the_matches_follow():
    hits = make_hits(np.random.default_rng(1), 4000)
    calibration = fit_calibration(hits)
    assert calibration.slope == pytest.approx(12, abs=1)
    assert calibration.probabilities(0.5) == pytest.approx(0.5, abs=0.03)
    assert calibration.queries == 4000
    assert calibration.error < 0.03
    other = make_hits(np.random.default_rng(2), 4000)
    assert measure_reliability(calibration.probabilities(other.scores), other).error < 0.03


def test_queries_are_predicted_by_a_fit_on_other_classes():
    random = np.random.default_rng(3)
    hits = make_hits(random, 400, classes=5)  # one class per fold
    predicted = cross_predict(hits)
    rows = hits.labels == "2"
    others = fit_calibration(hits.take(~rows))
    np.testing.assert_allclose(predicted[rows], others.probabilities(hits.scores[rows]), rtol=1e-6)


@pytest.mark.parametrize("change", ["matches only", "no match", "lower cosines match"])
def test_there_is_no_calibration_where_cosines_do_not_separate(change):
    hits = make_hits(np.random.default_rng(4), 200)
    is_match = {
        "matches only": np.ones_like(hits.is_match),
        "no match": np.zeros_like(hits.is_match),
        "lower cosines match": ~hits.is_match,
    }[change]
    changed = replace(hits, is_match=is_match)
    assert fit_calibration(changed) is None


class Lines:
    def __init__(self):
        self.lines = []

    def step(self, task, done, total, detail=""):
        pass

    def info(self, text):
        self.lines.append(text)


def splits_of(tmp_path, training, validation):
    """Return a data set whose images are around four directions, and the embeddings of both splits."""
    random = np.random.default_rng(5)
    items, embeddings = [], []
    for split, count in ((Split.TRAINING, training), (Split.VALIDATION, validation)):
        part = [Item(f"{split}{n}", tmp_path / f"{split}{n}.jpg", f"class {n % 4}", split) for n in range(count)]
        vectors = np.eye(4, 8)[np.arange(count) % 4] + 0.3 * random.standard_normal((count, 8))
        items += part
        embeddings.append(Embeddings(tuple(i.id for i in part), l2_normalize(vectors), "model"))
    return Dataset(tmp_path, "class folders", tuple(items)), *embeddings


def test_validation_is_searched_among_validation_and_training_images(tmp_path):
    data, training, validation = splits_of(tmp_path, 40, 60)
    hits = validation_hits(data, validation, training)
    vectors = np.concatenate([validation.vectors, training.vectors]).astype(float)
    labels = np.array([i.label for i in (*data.validation, *data.training)])
    for row in range(60):
        cosines = vectors @ vectors[row]
        cosines[row] = -2
        others = labels != labels[row]
        assert hits.scores[row] == pytest.approx(cosines.max(), abs=1e-6)
        assert hits.is_match[row] == (labels[cosines.argmax()] == labels[row])
        assert hits.scores[60 + row] == pytest.approx(cosines[others].max(), abs=1e-6)
    assert not hits.is_match[60:].any()


def test_a_validation_gallery_of_its_own_is_searched_alone(tmp_path):
    data, training, validation = splits_of(tmp_path, 40, 60)
    data = replace(data, validation_query_ids=frozenset(validation.ids[:20]))
    queries, gallery = validation.take(validation.ids[:20]), validation.take(validation.ids[20:])
    labels = data.labels("validation")
    expected = judge_first_hits(queries, gallery, labels, labels)
    assert validation_hits(data, validation, training).scores.tolist() == expected.scores.tolist()


def test_validation_is_calibrated(tmp_path):
    progress = Lines()
    data, training, validation = splits_of(tmp_path, 40, 80)
    calibration = calibrate(data, validation, training, progress)
    assert calibration.queries == 80
    low, high = calibration.probabilities([0.3, 0.98])
    assert low < 0.3
    assert high > 0.7
    assert progress.lines == []


def test_few_validation_queries_are_not_calibrated(tmp_path):
    progress = Lines()
    data, training, validation = splits_of(tmp_path, 40, MIN_QUERIES - 1)
    assert calibrate(data, validation, training, progress) is None
    (line,) = progress.lines
    assert str(MIN_QUERIES) in line
    assert str(MIN_QUERIES - 1) in line
