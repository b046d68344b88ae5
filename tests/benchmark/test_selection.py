from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lookalike.benchmark.selection import pareto_front, select
from lookalike.errors import OptionError

# Forty queries. Against GOOD, NEAR loses two and wins one: not significant. POOR loses twenty: significant.
GOOD = [1.0] * 30 + [0.0] * 10
NEAR = [0.0] * 2 + [1.0] * 28 + [1.0] + [0.0] * 9
POOR = [1.0] * 10 + [0.0] * 30


def accurate(count: int) -> list[float]:
    """Values of forty queries of which `count` are right."""
    return [1.0] * count + [0.0] * (40 - count)


def test_front_by_hand(make_trial):
    trials = [
        make_trial("slow best", accurate(36), 50),
        make_trial("beaten twice", accurate(20), 45),
        make_trial("cheap", accurate(10), 5),
        make_trial("as accurate, slower", accurate(30), 30),
        make_trial("middle", accurate(30), 20),
        make_trial("as fast, less accurate", accurate(8), 5),
    ]
    assert pareto_front(trials) == ["cheap", "middle", "slow best"]


def test_equal_trials_stand_on_the_front_together_by_name(make_trial):
    assert pareto_front([make_trial("b", accurate(9), 5), make_trial("a", accurate(9), 5)]) == ["a", "b"]


def test_front_leaves_out_untrained_and_untimed(make_trial):
    trials = [
        make_trial("random", accurate(40), 1, trained="untrained"),
        make_trial("no time", accurate(40), None),
        make_trial("a", accurate(9), 5),
    ]
    assert pareto_front(trials) == ["a"]
    assert pareto_front([]) == []


def test_front_of_another_measure(make_trial):
    some = make_trial("some", [1 / 3] * 40, 9)  # hit@3 is 1, precision@3 a third
    few = make_trial("few", accurate(20), 5)
    assert pareto_front([some, few]) == ["few"]
    assert pareto_front([some, few], "hit@3") == ["few", "some"]


def test_the_cheapest_that_is_not_significantly_worse_wins(make_trial):
    choice = select([make_trial("good", GOOD, 40), make_trial("near", NEAR, 16), make_trial("poor", POOR, 4)])
    assert choice.winner == "near"
    assert choice.most_accurate == "good"
    assert choice.front == ["poor", "near", "good"]
    assert choice.comparisons["near"].difference == pytest.approx(-1 / 40)
    assert not choice.comparisons["near"].significant
    assert choice.comparisons["poor"].difference == pytest.approx(-20 / 40)
    assert choice.comparisons["poor"].significant
    assert "good" not in choice.comparisons


def test_the_reason_has_the_numbers(make_trial):
    choice = select([make_trial("good", GOOD, 40), make_trial("near", NEAR, 16), make_trial("poor", POOR, 4)])
    for part in (
        "near has a top-3 accuracy of 0.725 on validation (95% interval 0.625 to 0.825) at 16.0 ms",
        "The most accurate candidate, good, reaches 0.750 at 40.0 ms",
        "difference of −0.025",
        "2.5 times faster",
        "poor, takes 4.0 ms but is significantly less accurate",
        "−0.500",
    ):
        assert part in choice.reason


def test_the_most_accurate_wins_where_all_cheaper_ones_are_worse(make_trial):
    choice = select([make_trial("good", GOOD, 40), make_trial("poor", POOR, 4)])
    assert choice.winner == choice.most_accurate == "good"
    assert "It is the most accurate candidate, and each faster one on the front is significantly" in choice.reason


def test_costs_within_one_percent_count_as_equal(make_trial):
    near, good = make_trial("near", NEAR, 100.0), make_trial("good", GOOD, 100.9)
    choice = select([near, good, make_trial("poor", POOR, 99.95)])
    assert (choice.winner, choice.front) == ("good", ["poor", "near", "good"])
    assert choice.reason.endswith("It is the most accurate candidate, and none is faster.")
    assert select([near, make_trial("good", GOOD, 101.1)]).winner == "near"


def test_of_two_that_are_equal_in_all_the_frozen_one_stays(make_trial):
    same = [make_trial("a", GOOD, 40, trained="fine-tuned"), make_trial("z", GOOD, 40, trained="frozen")]
    assert select(same).winner == "z"


def test_a_single_candidate_wins(make_trial):
    choice = select([make_trial("only", GOOD, 40)])
    assert (choice.winner, choice.front, dict(choice.comparisons)) == ("only", ["only"], {})
    assert "none is faster" in choice.reason


def test_pairs_are_made_by_query_not_by_place(make_trial):
    """The same values in reversed order belong to the same queries when their ids are reversed too."""
    good = make_trial("good", GOOD, 40)
    near = make_trial("near", NEAR, 16)
    scores = near.validation
    turned = replace(
        scores,
        values={name: values[::-1] for name, values in scores.values.items()},
        query_ids=scores.query_ids[::-1],
    )
    straight = select([good, near]).comparisons["near"]
    assert select([good, replace(near, validation=turned)]).comparisons["near"] == straight


def test_queries_that_one_lacks_are_left_out_of_the_pairs(make_trial):
    good, near = make_trial("good", GOOD, 40), make_trial("near", NEAR, 16)
    scores = near.validation
    fewer = replace(
        scores, values={n: v[2:] for n, v in scores.values.items()}, query_ids=scores.query_ids[2:], queries=38
    )
    # Without its two losses, near wins one query of the 38 that both have.
    assert select([good, replace(near, validation=fewer)]).comparisons["near"].difference == pytest.approx(1 / 38)


def test_no_common_query_is_an_error(make_trial):
    near = make_trial("near", NEAR, 16)
    strange = replace(near.validation, query_ids=[f"x{n}" for n in range(40)])
    with pytest.raises(OptionError, match="share none"):
        select([make_trial("good", GOOD, 40), replace(near, validation=strange)])


def test_the_budget_excludes_and_says_what(make_trial):
    trials = [make_trial("good", GOOD, 40), make_trial("near", NEAR, 16), make_trial("poor", POOR, 4)]
    choice = select(trials, budget_ms=10)
    assert choice.winner == choice.most_accurate == "poor"
    assert choice.excluded == {
        "good": "over the budget: 40.0 ms per image, allowed are 10.0",
        "near": "over the budget: 16.0 ms per image, allowed are 10.0",
    }
    assert (
        "The budget of 10 ms excluded 2 candidates, the most accurate of them good (0.750 at 40.0 ms)." in choice.reason
    )


def test_a_time_equal_to_the_budget_is_within_it(make_trial):
    choice = select([make_trial("good", GOOD, 40), make_trial("poor", POOR, 4)], budget_ms=40)
    assert choice.winner == "good"
    assert choice.reason.endswith("The budget of 40 ms excluded nothing.")


def test_nothing_within_the_budget_names_the_fastest(make_trial):
    trials = [make_trial("good", GOOD, 40), make_trial("poor", POOR, 4.21)]
    with pytest.raises(
        OptionError, match=r"at most 3 ms per image; the fastest of 2, poor, takes 4.2 ms.* 4.3 or more\.$"
    ):
        select(trials, budget_ms=3)
    assert select(trials, budget_ms=4.3).winner == "poor"
    with pytest.raises(OptionError, match=r"at most 3 ms per image; the only one, good, takes 40.0 ms, so give"):
        select(trials[:1], budget_ms=3)


def test_one_candidate_over_the_budget_is_told_as_one(make_trial):
    choice = select([make_trial("good", GOOD, 40), make_trial("poor", POOR, 4)], budget_ms=10)
    assert choice.reason.endswith("The budget of 10 ms excluded 1 candidate, good (0.750 at 40.0 ms).")


def test_untrained_and_untimed_are_never_chosen(make_trial):
    choice = select(
        [
            make_trial("lucky", accurate(40), 1, trained="untrained"),
            make_trial("no time", accurate(40), None),
            make_trial("poor", POOR, 4),
        ]
    )
    assert choice.winner == "poor"
    assert choice.excluded == {"lucky": "untrained: its weights are random", "no time": "its time was not measured"}


def test_what_was_trained_on_images_that_it_is_measured_on_is_never_chosen(make_trial):
    seen = replace(make_trial("seen", accurate(40), 1), leaked=True)
    choice = select([seen, make_trial("a", GOOD, 5)])
    assert (choice.winner, choice.front) == ("a", ["a"])
    assert choice.excluded == {"seen": "its training may have seen images that it is measured on"}


def test_only_untrained_is_an_error_with_and_without_budget(make_trial):
    for budget in (None, 5):
        with pytest.raises(OptionError) as caught:
            select([make_trial("random", GOOD, 1, trained="untrained")], budget_ms=budget)
        assert str(caught.value) == (
            "the only trial, random, cannot be chosen (untrained: its weights are random); "
            "benchmark at least one backbone with trained weights."
        )
    with pytest.raises(OptionError, match=r"^there is no trial to choose from; benchmark"):
        select([])
    both = [make_trial("random", GOOD, 1, trained="untrained"), make_trial("no time", GOOD, None)]
    with pytest.raises(OptionError, match="none of the 2 trials can be chosen, since each is untrained, untimed, or"):
        select(both)


def test_test_scores_are_ignored(make_trial):
    blind = [make_trial("good", GOOD, 40), make_trial("near", NEAR, 16), make_trial("poor", POOR, 4)]
    seeing = [
        make_trial("good", GOOD, 40, test=accurate(1)),
        make_trial("near", NEAR, 16, test=accurate(2)),
        make_trial("poor", POOR, 4, test=accurate(40)),
    ]
    assert select(seeing) == select(blind)


def test_ties_in_cost_go_to_the_more_accurate_then_the_name(make_trial):
    assert select([make_trial("a", NEAR, 9), make_trial("b", GOOD, 9)]).winner == "b"
    assert select([make_trial("b", GOOD, 9), make_trial("a", GOOD, 9)]).winner == "a"


def test_ties_in_cost_and_accuracy_go_to_the_frozen_one_before_the_name(make_trial):
    """By name each first one here would win, and be called the most accurate."""
    tuned, frozen = make_trial("a", GOOD, 9), make_trial("b", GOOD, 9, trained="frozen")
    choice = select([tuned, frozen])
    assert (choice.front, choice.winner, choice.most_accurate) == (["b", "a"], "b", "b")
    better = make_trial("a", [1.0] * 31 + [0.0] * 9, 9)  # one query more, which is not significant
    assert select([better, frozen]).winner == "a"


def test_of_equal_ones_the_one_that_is_not_even_called_fine_tuned_wins(make_trial):
    """Validation took both back to their pretrained weights, so that they are what their frozen forms are."""
    names = ("x fine-tuned", "x frozen")
    assert select([make_trial(name, GOOD, 9, trained="frozen") for name in names]).winner == "x frozen"
    pairs = ("x fine-tuned + y fine-tuned", "x fine-tuned + y frozen", "x frozen + y frozen")
    trials = [make_trial(name, GOOD, 9, trained="frozen", kind="ensemble", combine="concat") for name in pairs]
    assert pareto_front(trials) == list(reversed(pairs))
    assert select(trials).winner == "x frozen + y frozen"


def test_what_is_hardly_faster_is_not_called_one_times_faster(make_trial):
    choice = select([make_trial("good", GOOD, 40), make_trial("near", NEAR, 39)])
    assert "is not significant, and the chosen one is faster." in choice.reason


@pytest.mark.parametrize("budget", [0, -1, float("nan"), float("inf")])
def test_a_budget_is_a_positive_number(make_trial, budget):
    with pytest.raises(OptionError, match="--budget-ms must be a positive number"):
        select([make_trial("good", GOOD)], budget_ms=budget)


def test_names_are_distinct(make_trial):
    with pytest.raises(OptionError, match="'good' stands more than once"):
        select([make_trial("good", GOOD), make_trial("good", GOOD)])


def test_an_unknown_measure_is_refused(make_trial):
    with pytest.raises(OptionError, match="'recall@9' was not taken"):
        select([make_trial("good", GOOD)], measure="recall@9")


def test_a_choice_goes_to_json(make_trial):
    stored = json.loads(json.dumps(select([make_trial("good", GOOD, 40), make_trial("poor", POOR, 4)]).to_dict()))
    assert stored["winner"] == "good"
    assert stored["comparisons"]["poor"]["significant"] is True
    assert stored["budget_ms"] is None


def test_two_that_are_equal_in_everything_are_not_called_faster(make_trial):
    choice = select([make_trial("a", GOOD, 9), make_trial("b", GOOD, 9)])
    assert choice.front == ["a", "b"]
    assert choice.reason.endswith("It is the most accurate candidate, and none is faster.")
