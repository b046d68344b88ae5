from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lookalike.benchmark.trial import (
    Scores,
    Timing,
    Trial,
    counted,
    hit_beside,
    interval_text,
    measure_label,
    ms_text,
    signed_text,
)
from lookalike.errors import OptionError, StorageError


def test_a_trial_comes_back_from_json_as_it_was(make_trial):
    full = make_trial("a + b", [1, 0, 1 / 3], 12.5, test=[0.5, 1], kind="ensemble", combine="aligned", note="as is")
    full = replace(full, from_random=True)
    bare = make_trial("a", [1, 0], None)
    for trial in (full, bare):
        assert Trial.from_dict(json.loads(json.dumps(trial.to_dict()))) == trial


def test_json_says_its_schema_and_members(make_trial):
    stored = make_trial("a + b", [1.0], kind="ensemble").to_dict()
    assert stored["schema"] == 2
    assert stored["members"] == ["a", "b"]
    assert stored["validation"]["values"]["precision@3"] == [1.0]


@pytest.mark.parametrize("schema", [None, 0, 1, "2"])
def test_another_schema_is_refused_with_the_way_out(make_trial, schema):
    stored = make_trial("a", [1.0]).to_dict() | {"schema": schema}
    with pytest.raises(StorageError, match=r"'a' has the schema .* reads 2; remove its file"):
        Trial.from_dict(stored)


def test_a_missing_or_unknown_field_is_refused(make_trial):
    stored = make_trial("a", [1.0]).to_dict()
    lacking = {key: value for key, value in stored.items() if key != "timing"}
    for broken in (lacking, stored | {"speed": 3}, stored | {"validation": None}, stored | {"timing": {"ms": 1}}):
        with pytest.raises(StorageError, match="'a' is not complete"):
            Trial.from_dict(broken)


def test_words_outside_the_allowed_are_refused(make_trial):
    trial = make_trial("a", [1.0])
    with pytest.raises(OptionError, match=r"trained of the trial 'a' is 'half'; allowed are 'frozen', 'fine-tuned'"):
        replace(trial, trained="half")
    with pytest.raises(OptionError, match="combine"):
        replace(trial, combine="product")


def test_scores_need_a_finite_value_for_each_query():
    with pytest.raises(OptionError, match="one value for each of the 2 scored queries, got 3"):
        Scores({}, {"hit@1": [1, 0, 1]}, ["a", "b"], 2, 0, 9)
    with pytest.raises(OptionError, match="finite values"):
        Scores({}, {"hit@1": [1, float("nan")]}, ["a", "b"], 2, 0, 9)
    with pytest.raises(OptionError, match="finite mean"):
        Scores({"hit@1": {"mean": 1.0, "low": float("nan"), "high": 1.0}}, {}, [], 0, 0, 9)


def test_an_unknown_measure_names_those_that_were_taken(make_trial):
    with pytest.raises(OptionError, match=r"'recall@5' was not taken; taken were hit@1, hit@3, map@r, precision@3"):
        make_trial("a", [1.0]).validation.mean("recall@5")


@pytest.mark.parametrize("ms", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_is_positive_and_finite(ms):
    with pytest.raises(OptionError, match="single_p50_ms must be a positive number"):
        Timing(ms, 1, 1, 1, 1, 1, 8, 1, 1, 1, "cpu")


def test_only_trained_and_timed_trials_are_candidates(make_trial):
    assert make_trial("a", [1.0]).is_candidate
    assert make_trial("a", [1.0], trained="frozen").is_candidate
    assert not make_trial("a", [1.0], trained="untrained").is_candidate
    assert not make_trial("a", [1.0], None).is_candidate
    assert not replace(make_trial("a", [1.0]), leaked=True).is_candidate


def test_labels_and_milliseconds_for_people():
    assert measure_label("precision@3") == "top-3 accuracy"
    assert measure_label("precision@10") == "top-10 accuracy"
    assert measure_label("hit@3") == "hit@3"
    assert [ms_text(v) for v in (0.8437, 0.9951, 8.24, 41.26, 99.94, 99.96, 123.4)] == [
        "0.84", "1.0", "8.2", "41.3", "99.9", "100", "123",
    ]  # fmt: skip


def test_means_differences_and_counts_for_people():
    assert interval_text({"mean": 0.9186, "low": 0.89, "high": 0.9444}) == "0.919 (0.890–0.944)"
    assert [signed_text(v) for v in (0.0251, -0.5, 0.0004, -0.0004, 0.0)] == [
        "+0.025", "−0.500", "0.000", "0.000", "0.000",
    ]  # fmt: skip
    assert [counted(n, "query", "queries") for n in (0, 1, 2, 1200)] == [
        "0 queries", "1 query", "2 queries", "1,200 queries",
    ]  # fmt: skip


def test_hit_at_k_beside_a_measure_is_of_its_own_k_or_of_three():
    beside = {
        "precision@5": "hit@5", "recall@1": "hit@1", "map@10": "hit@10", "ndcg@7": "hit@7", "hit@2": "hit@2",
        "map@r": "hit@3", "mrr": "hit@3", "points@1,5,10": "hit@3",
    }  # fmt: skip
    assert {measure: hit_beside(measure) for measure in beside} == beside
    with pytest.raises(OptionError, match="the measure 'top3' is not known"):
        hit_beside("top3")
