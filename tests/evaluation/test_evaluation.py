"""From embeddings to an evaluation, by hand."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from lookalike.data.dataset import Dataset, Item, Split
from lookalike.errors import DataError, FingerprintMismatch, OptionError
from lookalike.evaluation import ranking
from lookalike.evaluation.evaluation import (
    DEFAULT_MEASURES,
    Evaluation,
    evaluate_embeddings,
    evaluate_validation,
)
from lookalike.evaluation.measures import Measure
from lookalike.types import Comparison, Embeddings, Estimate, Hits, l2_normalize


def embeddings(degrees, fingerprint="model"):
    angles = np.radians(list(degrees.values()))
    return Embeddings(tuple(degrees), l2_normalize(np.stack([np.cos(angles), np.sin(angles)], axis=1)), fingerprint)


# On a circle the nearest angle wins. q1 at 0°: a b c d; q2 at 50°: d c b a; q3 at 90°: d c b a.
GALLERY = embeddings({"a": 1, "b": 10, "c": 30, "d": 60})
GALLERY_LABELS = {"a": "cat", "b": "dog", "c": "cat", "d": "dog"}
QUERIES = embeddings({"q1": 0, "q2": 50, "q3": 90, "q4": 5, "q5": 6})
QUERY_LABELS = {"q1": "cat", "q2": "cat", "q3": "dog", "q4": "horse"}


@pytest.fixture
def evaluation():
    return evaluate_embeddings(QUERIES, GALLERY, QUERY_LABELS, GALLERY_LABELS)


def test_default_measures_by_hand(evaluation):
    assert tuple(evaluation.values) == DEFAULT_MEASURES == ("precision@3", "hit@3", "hit@1", "map@r", "mrr")
    assert evaluation.query_ids == ("q1", "q2", "q3")
    # relevance by rank: q1 1 0 1 0, q2 0 1 0 1, q3 1 0 1 0; R = 2
    expected = {
        "precision@3": [2 / 3, 1 / 3, 2 / 3],
        "hit@3": [1, 1, 1],
        "hit@1": [1, 0, 1],
        "map@r": [1 / 2, (1 / 2) / 2, 1 / 2],
        "mrr": [1, 1 / 2, 1],
    }
    for measure, values in expected.items():
        assert evaluation.values[measure].tolist() == pytest.approx(values), measure
    assert evaluation.mean("precision@3") == pytest.approx(5 / 9)
    assert evaluation.mean(Measure.parse("mrr")) == pytest.approx(5 / 6)
    assert evaluation.hits.ids.tolist() == [["a", "b", "c", "d"], ["d", "c", "b", "a"], ["d", "c", "b", "a"]]
    assert evaluation.hits.scores[0, 3] == pytest.approx(math.cos(math.radians(60)), abs=1e-6)


def test_excluded_queries_are_counted_by_cause(evaluation):
    assert evaluation.excluded == ("q4", "q5")
    assert evaluation.unlabelled == ("q5",)
    assert evaluation.note() == (
        "2 of 5 queries excluded: 1 with nothing relevant in the gallery, 1 without a label (first: q4)."
    )


def test_without_excluded_queries_there_is_no_note():
    labels = {"q1": "cat", "q2": "cat"}
    assert evaluate_embeddings(QUERIES.take(labels), GALLERY, labels, GALLERY_LABELS).note() == ""


def low_of(share, n):
    """Return the lower end of Wilson's score interval, from its equation (low - share)² = z² low (1 - low) / n."""
    z2 = 1.959964**2
    a, b, c = 1 + z2 / n, -(2 * share + z2 / n), share**2
    return pytest.approx((-b - (b * b - 4 * a * c) ** 0.5) / (2 * a))


def test_to_dict_is_what_evaluate_json_prints(evaluation):
    result = evaluation.to_dict()
    assert list(result) == ["measures", "queries", "excluded", "gallery"]
    assert (result["queries"], result["excluded"], result["gallery"]) == (3, 2, 4)
    assert list(result["measures"]) == list(DEFAULT_MEASURES)
    assert result["measures"]["hit@3"] == {
        "mean": 1,
        "low": pytest.approx(0.4385, abs=1e-4),
        "high": 1,
    }  # 3 / (3 + 1.96²)
    precision = result["measures"]["precision@3"]
    high = pytest.approx(1 - low_of(4 / 9, 3).expected)
    assert precision == {"mean": pytest.approx(5 / 9), "low": low_of(5 / 9, 3), "high": high}
    assert evaluation.measures["precision@3"] == Estimate(**precision)
    json.dumps(result)


def test_print_shows_a_table(evaluation):
    assert str(evaluation).splitlines() == [
        "measure        mean     95 % interval",
        "precision@3  0.5556  0.1507 to 0.8980",
        "hit@3        1.0000  0.4385 to 1.0000",
        "hit@1        0.6667  0.2077 to 0.9385",
        "map@r        0.4167  0.0911 to 0.8358",
        "mrr          0.8333  0.3100 to 0.9823",
        "",
        "3 queries, 2 excluded, 4 gallery images",
    ]
    assert repr(evaluation) == "<Evaluation: precision@3 0.5556, 3 queries, 4 gallery images>"


def test_per_class(evaluation):
    classes = evaluation.per_class()
    assert {name: (c.mean, c.queries) for name, c in classes.items()} == {
        "cat": (pytest.approx(1 / 2), 2),
        "dog": (pytest.approx(2 / 3), 1),
    }
    assert classes["cat"].low == low_of(1 / 2, 2)
    assert classes["dog"].low == low_of(2 / 3, 1)
    assert classes["dog"].low < 0.1 and classes["dog"].high > 0.97  # one query says little
    assert evaluation.per_class("hit@1")["cat"] == (1 / 2, 2, low_of(1 / 2, 2), 1 - low_of(1 / 2, 2).expected)


def test_leave_one_out_by_hand():
    labels = {"a": "cat", "b": "cat", "c": "dog", "d": "dog"}
    evaluation = evaluate_embeddings(GALLERY, GALLERY, labels, labels, ["precision@1", "mrr", "map@r"])
    # a: b c d, b: a c d, c: b a d (20°, 29°, 30°), d: c b a; R = 1
    assert evaluation.values["precision@1"].tolist() == [1, 1, 0, 1]
    assert evaluation.values["mrr"].tolist() == pytest.approx([1, 1, 1 / 3, 1])
    assert evaluation.values["map@r"].tolist() == [1, 1, 0, 1]
    assert evaluation.hits.ids.shape == (4, 3)
    assert evaluation.gallery == 4


def test_a_worst_ranked_query_in_its_own_gallery_does_not_count_itself():
    everything = embeddings({"a": 0, "b": 10, "c": 180})
    labels = {"a": "x", "b": "y", "c": "x"}
    evaluation = evaluate_embeddings(everything, everything, labels, labels, ["mrr"])
    assert evaluation.query_ids == ("a", "c")
    assert evaluation.values["mrr"].tolist() == [1 / 2, 1 / 2]


def test_a_measure_deeper_than_the_gallery_names_both():
    with pytest.raises(OptionError, match=r"precision@5 needs 5 hits.*only 4 items;"):
        evaluate_embeddings(QUERIES, GALLERY, QUERY_LABELS, GALLERY_LABELS, ["hit@1", "precision@5"])
    with pytest.raises(OptionError, match=r"points@1,5,10 needs 10 hits.*only 4 items;"):
        evaluate_embeddings(QUERIES, GALLERY, QUERY_LABELS, GALLERY_LABELS, ["points@1,5,10"])
    with pytest.raises(OptionError, match=r"hit@4 needs 4 hits.*only 3 items besides the query"):
        evaluate_embeddings(GALLERY, GALLERY, GALLERY_LABELS, GALLERY_LABELS, ["hit@4"])


def test_other_models_are_refused():
    with pytest.raises(FingerprintMismatch):
        evaluate_embeddings(embeddings({"q1": 0}, "another"), GALLERY, QUERY_LABELS, GALLERY_LABELS)


def test_chunks_do_not_change_the_result(monkeypatch, evaluation):
    monkeypatch.setattr(ranking, "_CHUNK_QUERIES", 1)
    again = evaluate_embeddings(QUERIES, GALLERY, QUERY_LABELS, GALLERY_LABELS)
    assert again.to_dict() == evaluation.to_dict()
    assert list(again.hits) == list(evaluation.hits)
    assert all(again.values[m].tolist() == evaluation.values[m].tolist() for m in DEFAULT_MEASURES)


def test_a_measure_that_was_not_taken(evaluation):
    with pytest.raises(OptionError, match=r"ndcg@3.*precision@3, hit@3, hit@1, map@r, mrr") as caught:
        evaluation.mean("ndcg@3")
    assert caught.value.argument == "measure"
    assert tuple(evaluation.measures) == DEFAULT_MEASURES


def test_compare_pairs_by_query_id():
    forward = evaluate_embeddings(QUERIES, GALLERY, QUERY_LABELS, GALLERY_LABELS, ["mrr"])
    order = ("q3", "q5", "q1", "q2", "q4")
    backward = evaluate_embeddings(QUERIES.take(order), GALLERY, QUERY_LABELS, GALLERY_LABELS, ["mrr"])
    assert backward.query_ids == ("q3", "q1", "q2")
    same = forward.compare(backward, "mrr")
    assert (same.difference, same.low, same.high, same.significant) == (0, 0, 0, False)


def test_the_comparison_with_another_model_is_printed_and_in_json(evaluation):
    assert not evaluation.against and "against" not in evaluation.to_dict()
    comparison = Comparison(0.02, 0.005, 0.037)
    compared = replace(
        evaluation,
        values={"mrr": evaluation.values["mrr"]},
        against={"mrr": comparison},
        against_model="other (frozen)",
    )
    header, row, *_ = str(compared).splitlines()
    assert header.endswith("95 % interval  vs other (frozen)")
    assert row.endswith("0.9823  +0.0200 (95 % interval +0.0050 to +0.0370), significant")
    content = json.loads(json.dumps(compared.to_dict()))
    assert content["against_model"] == "other (frozen)"
    assert content["against"] == {"mrr": {"difference": 0.02, "low": 0.005, "high": 0.037, "significant": True}}


def test_compare_refuses_other_queries(evaluation):
    fewer = evaluate_embeddings(QUERIES.take(["q1", "q3"]), GALLERY, QUERY_LABELS, GALLERY_LABELS)
    with pytest.raises(DataError, match="'q2'"):
        evaluation.compare(fewer, "mrr")


def test_attributes_must_fit_together():
    hits = Hits(("q1",), np.array([["a"]], dtype=object), np.ones((1, 1), dtype=np.float32))
    with pytest.raises(DataError, match=r"mrr.*1 queries.*\(2,\)"):
        Evaluation(("q1",), ("x",), {"mrr": np.ones(2)}, (), (), 1, hits)
    with pytest.raises(DataError, match=r"labels and hits.*1 queries"):
        Evaluation(("q2",), ("x",), {"mrr": np.ones(1)}, (), (), 1, hits)
    with pytest.raises(DataError, match="got 1 and 0"):
        Evaluation(("q1",), ("x",), {}, (), (), 1, hits)


def test_compare_needs_an_evaluation(evaluation):
    with pytest.raises(OptionError, match="must be an Evaluation, got str") as caught:
        evaluation.compare("runs/first/best", "mrr")
    assert caught.value.argument == "other"


def test_a_link_within_validation_is_not_a_hit(tmp_path):
    """`a2` is a link to `a`, and nearest to it; without it, the nearest to `a` is `b`, of another class."""
    positions, labels = {"a": 0, "a2": 0, "b": 10, "c": 30}, {"a": "cat", "a2": "cat", "b": "dog", "c": "cat"}
    for name in ("a", "b", "c"):
        (tmp_path / name).touch()
    (tmp_path / "a2").symlink_to("a")
    items = tuple(Item(name, tmp_path / name, label, Split.VALIDATION) for name, label in labels.items())
    evaluation = evaluate_validation(Dataset(tmp_path, "by hand", items), embeddings(positions), ["hit@1", "mrr"])
    assert evaluation.query_ids == ("a", "a2", "c")
    assert evaluation.per_query("hit@1").tolist() == [0, 0, 0]
    assert evaluation.per_query("mrr").tolist() == [0.5, 0.5, 0.5]
