from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lookalike.benchmark.trial import (
    Trial,
    format_difference,
    format_estimate,
    format_ms,
    matching_hit,
)
from lookalike.errors import OptionError, StorageError
from lookalike.types import Estimate


def test_a_trial_is_read_back_from_json(make_trial):
    full = make_trial("a + b", [1, 0, 1 / 3], 12.5, test=[0.5, 1], kind="ensemble", combination="aligned", note="as is")
    full = replace(full, from_random=True)
    bare = make_trial("a", [1, 0], None)
    for trial in (full, bare):
        assert Trial.from_dict(json.loads(json.dumps(trial.to_dict()))) == trial


def test_json_has_version_and_members(make_trial):
    members = {"a": "fine-tuned", "b": "frozen"}
    stored = make_trial("a + b", [1.0], kind="ensemble", members=members).to_dict()
    assert stored["version"] == 4
    assert stored["members"] == (
        {"name": "a", "backbone": "", "state": "fine-tuned"}, {"name": "b", "backbone": "", "state": "frozen"},
    )  # fmt: skip
    assert stored["validation"]["values"]["precision@3"] == (1.0,)


@pytest.mark.parametrize("version", [None, 0, 3, "4"])
def test_another_version_is_refused(make_trial, version):
    stored = make_trial("a", [1.0]).to_dict() | {"version": version}
    with pytest.raises(StorageError, match=r"'a' has version .* reads version 4"):
        Trial.from_dict(stored)


def test_a_missing_or_wrong_field_is_refused(make_trial):
    stored = make_trial("a", [1.0]).to_dict()
    lacking = {key: value for key, value in stored.items() if key != "dim"}
    wrong = [{"speed": 3}, {"validation": None}, {"timing": {"ms": 1}}, {"dim": "512"}, {"members": ["a"]}]
    wrong += [{"state": "melted"}, {"kind": "triple"}, {"leaked": None}]
    for broken in (lacking, *(stored | change for change in wrong)):
        with pytest.raises(StorageError, match="'a' is damaged") as caught:
            Trial.from_dict(broken)
        assert caught.value.argument == "stored"


def test_a_summary_has_no_values_per_query(make_trial):
    trial = make_trial("a", [1.0, 0.0], test=[0.5])
    summary = trial.summary()
    assert not (summary.validation.values or summary.validation.query_ids or summary.test.values)
    assert summary.validation.measures == trial.validation.measures
    assert Trial.from_dict(json.loads(json.dumps(summary.to_dict()))) == summary
    with pytest.raises(OptionError, match=r"precision@3"):
        summary.validation.by_query("precision@3")


def test_an_error_for_an_unknown_measure_lists_the_available_ones(make_trial):
    with pytest.raises(OptionError, match=r"'recall@5'.* hit@1, hit@3, map@r, precision@3"):
        make_trial("a", [1.0]).validation.mean("recall@5")


def test_only_trained_and_timed_trials_are_candidates(make_trial):
    assert make_trial("a", [1.0]).is_candidate
    assert make_trial("a", [1.0], state="frozen").is_candidate
    assert not make_trial("a", [1.0], state="untrained").is_candidate
    assert not make_trial("a", [1.0], None).is_candidate
    assert not replace(make_trial("a", [1.0]), leaked=True).is_candidate


def test_format_milliseconds():
    assert [format_ms(v) for v in (0.8437, 0.9951, 8.24, 41.26, 99.94, 99.96, 123.4)] == [
        "0.84", "1.0", "8.2", "41.3", "99.9", "100", "123",
    ]  # fmt: skip


def test_format_means_and_differences():
    assert format_estimate(Estimate(0.9186, 0.89, 0.9444)) == "0.919 (0.890–0.944)"
    assert [format_difference(v) for v in (0.0251, -0.5, 0.0004, -0.0004, 0.0)] == [
        "+0.025", "−0.500", "0.000", "0.000", "0.000",
    ]  # fmt: skip


def test_matching_hit_has_the_k_of_the_measure_or_three():
    hits = {
        "precision@5": "hit@5", "recall@1": "hit@1", "map@10": "hit@10", "ndcg@7": "hit@7", "hit@2": "hit@2",
        "map@r": "hit@3", "mrr": "hit@3", "points@1,5,10": "hit@3",
    }  # fmt: skip
    assert {measure: matching_hit(measure) for measure in hits} == hits
    with pytest.raises(OptionError, match="the measure 'top3' is not known"):
        matching_hit("top3")
