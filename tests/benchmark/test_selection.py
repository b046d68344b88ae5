from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lookalike.benchmark.selection import default_measure, is_saturated, pareto_front, require_preference, select
from lookalike.errors import OptionError

# Forty queries. Against GOOD, NEAR loses two and wins one: not significant. POOR loses twenty: significant.
GOOD = [1.0] * 30 + [0.0] * 10
NEAR = [0.0] * 2 + [1.0] * 28 + [1.0] + [0.0] * 9
POOR = [1.0] * 10 + [0.0] * 30


def accurate(count: int) -> list[float]:
    """Return values of forty queries of which `count` are 1."""
    return [1.0] * count + [0.0] * (40 - count)


def front(trials, *measure) -> tuple[str, ...]:
    return tuple(trial.name for trial in pareto_front(trials, *measure))


def test_front_by_hand(make_trial):
    trials = [
        make_trial("slow best", accurate(36), 50),
        make_trial("dominated twice", accurate(20), 45),
        make_trial("cheap", accurate(10), 5),
        make_trial("as accurate, slower", accurate(30), 30),
        make_trial("middle", accurate(30), 20),
        make_trial("as fast, less accurate", accurate(8), 5),
    ]
    assert front(trials) == ("cheap", "middle", "slow best")


def test_equal_trials_are_on_the_front_in_order_of_their_names(make_trial):
    assert front([make_trial("b", accurate(9), 5), make_trial("a", accurate(9), 5)]) == ("a", "b")


def test_untrained_and_untimed_trials_are_not_on_the_front(make_trial):
    trials = [
        make_trial("random", accurate(40), 1, state="untrained"),
        make_trial("no time", accurate(40), None),
        make_trial("a", accurate(9), 5),
    ]
    assert front(trials) == ("a",)
    assert front([]) == ()


def test_front_of_another_measure(make_trial):
    some = make_trial("some", [1 / 3] * 40, 9)  # hit@3 is 1, precision@3 a third
    few = make_trial("few", accurate(20), 5)
    assert front([some, few]) == ("few",)
    assert front([some, few], "hit@3") == ("few", "some")


def test_the_cheapest_that_is_not_significantly_worse_wins(make_trial):
    selection = select([make_trial("good", GOOD, 40), make_trial("near", NEAR, 16), make_trial("poor", POOR, 4)])
    assert selection.winner == "near"
    assert selection.most_accurate == "good"
    assert selection.front == ("poor", "near", "good")
    assert selection.comparisons["near"].difference == pytest.approx(-1 / 40)
    assert not selection.comparisons["near"].significant
    assert selection.comparisons["poor"].difference == pytest.approx(-20 / 40)
    assert selection.comparisons["poor"].significant
    assert "good" not in selection.comparisons


def test_the_most_accurate_wins_where_accuracy_is_preferred(make_trial):
    trials = [make_trial("good", GOOD, 40), make_trial("near", NEAR, 16), make_trial("poor", POOR, 4)]
    selection = select(trials, prefer="accuracy")
    assert (selection.winner, selection.front) == ("good", ("poor", "near", "good"))
    assert "preferred to the cheapest one that is not significantly less accurate, near at 16.0 ms" in selection.reason
    assert "−0.025" in selection.reason
    assert select(trials, prefer="accuracy", budget_ms=20).winner == "near"
    only = [trials[0], trials[2]]  # both preferences lead to the same one
    assert select(only, prefer="accuracy") == select(only)


def test_an_unknown_preference_is_refused():
    with pytest.raises(OptionError, match="efficiency, accuracy, got 'speed'") as caught:
        require_preference("speed")
    assert caught.value.argument == "prefer"


def test_the_reason_has_the_numbers(make_trial):
    selection = select([make_trial("good", GOOD, 40), make_trial("near", NEAR, 16), make_trial("poor", POOR, 4)])
    for part in (
        "near has a top-3 accuracy of 0.725 on validation (95% interval 0.625 to 0.825) at 16.0 ms",
        "The most accurate candidate, good, reaches 0.750 at 40.0 ms",
        "difference of −0.025",
        "2.5 times faster",
        "poor, takes 4.0 ms but is significantly less accurate",
        "−0.500",
    ):
        assert part in selection.reason


def test_the_reason_names_the_ceiling_of_the_measure(make_trial):
    trials = [make_trial("good", [1 / 3] * 40, 40)]
    assert "more than 0.333 there: top-3 accuracy of the best possible" in select(trials, ceiling=1 / 3).reason
    assert "possible" not in select(trials).reason


def test_the_most_accurate_wins_where_all_cheaper_ones_are_worse(make_trial):
    selection = select([make_trial("good", GOOD, 40), make_trial("poor", POOR, 4)])
    assert selection.winner == selection.most_accurate == "good"
    assert "It is the most accurate candidate, and each faster one on the front is significantly" in selection.reason


def test_costs_within_one_percent_count_as_equal(make_trial):
    near, good = make_trial("near", NEAR, 100.0), make_trial("good", GOOD, 100.9)
    selection = select([near, good, make_trial("poor", POOR, 99.95)])
    assert (selection.winner, selection.front) == ("good", ("poor", "near", "good"))
    assert selection.reason.endswith("It is the most accurate candidate, and no other is faster.")
    assert select([near, make_trial("good", GOOD, 101.1)]).winner == "near"


def test_of_two_equal_ones_the_frozen_one_wins(make_trial):
    same = [make_trial("a", GOOD, 40, state="fine-tuned"), make_trial("z", GOOD, 40, state="frozen")]
    assert select(same).winner == "z"


def test_a_single_candidate_wins(make_trial):
    selection = select([make_trial("only", GOOD, 40)])
    assert (selection.winner, selection.front, dict(selection.comparisons)) == ("only", ("only",), {})
    assert "no other is faster" in selection.reason


def test_values_are_paired_by_query_not_by_position(make_trial):
    good = make_trial("good", GOOD, 40)
    near = make_trial("near", NEAR, 16)
    measured = near.validation
    turned = replace(
        measured,
        values={name: values[::-1] for name, values in measured.values.items()},
        query_ids=measured.query_ids[::-1],
    )
    straight = select([good, near]).comparisons["near"]
    assert select([good, replace(near, validation=turned)]).comparisons["near"] == straight


def test_queries_of_only_one_trial_are_not_compared(make_trial):
    good, near = make_trial("good", GOOD, 40), make_trial("near", NEAR, 16)
    measured = near.validation
    fewer = replace(
        measured, values={n: v[2:] for n, v in measured.values.items()}, query_ids=measured.query_ids[2:], queries=38
    )
    # Without its two losses, near wins one query of the 38 that both have.
    assert select([good, replace(near, validation=fewer)]).comparisons["near"].difference == pytest.approx(1 / 38)


def test_the_budget_excludes_and_the_reason_names_what(make_trial):
    trials = [make_trial("good", GOOD, 40), make_trial("near", NEAR, 16), make_trial("poor", POOR, 4)]
    selection = select(trials, budget_ms=10)
    assert selection.winner == selection.most_accurate == "poor"
    assert selection.excluded == {
        "good": "over the budget: 40.0 ms per image, the limit is 10.0",
        "near": "over the budget: 16.0 ms per image, the limit is 10.0",
    }
    assert (
        "The budget of 10 ms excluded 2 candidates, the most accurate of them good (0.750 at 40.0 ms)."
        in selection.reason
    )


def test_a_time_equal_to_the_budget_is_within_it(make_trial):
    selection = select([make_trial("good", GOOD, 40), make_trial("poor", POOR, 4)], budget_ms=40)
    assert selection.winner == "good"
    assert selection.reason.endswith("The budget of 40 ms excluded no candidate.")


def test_an_error_for_an_impossible_budget_names_the_fastest(make_trial):
    trials = [make_trial("good", GOOD, 40), make_trial("poor", POOR, 4.21)]
    with pytest.raises(OptionError, match=r"the fastest, poor, takes 4\.2 ms.*4\.3") as caught:
        select(trials, budget_ms=3)
    assert caught.value.argument == "budget_ms"
    assert select(trials, budget_ms=4.3).winner == "poor"
    with pytest.raises(OptionError, match=r"good, takes 40\.0 ms"):
        select(trials[:1], budget_ms=3)


def test_one_excluded_candidate_is_in_the_singular(make_trial):
    selection = select([make_trial("good", GOOD, 40), make_trial("poor", POOR, 4)], budget_ms=10)
    assert selection.reason.endswith("The budget of 10 ms excluded 1 candidate, good (0.750 at 40.0 ms).")


def test_untrained_and_untimed_trials_never_win(make_trial):
    selection = select(
        [
            make_trial("lucky", accurate(40), 1, state="untrained"),
            make_trial("no time", accurate(40), None),
            make_trial("poor", POOR, 4),
        ]
    )
    assert selection.winner == "poor"
    assert selection.excluded == {"lucky": "untrained: its weights are random", "no time": "its time was not measured"}


def test_a_leaked_trial_never_wins(make_trial):
    seen = replace(make_trial("seen", accurate(40), 1), leaked=True)
    selection = select([seen, make_trial("a", GOOD, 5)])
    assert (selection.winner, selection.front) == ("a", ("a",))
    assert selection.excluded == {"seen": "it may have been trained on images that it is evaluated on"}


@pytest.mark.parametrize("budget", [None, 5])
def test_only_untrained_trials_are_refused(make_trial, budget):
    random, untimed = make_trial("random", GOOD, 1, state="untrained"), make_trial("no time", GOOD, None)
    with pytest.raises(OptionError, match=r"random: untrained"):
        select([random], budget_ms=budget)
    with pytest.raises(OptionError, match=r"none of 2 trials .*random: untrained.*no time: its time"):
        select([random, untimed], budget_ms=budget)
    with pytest.raises(OptionError, match="0 trials"):
        select([], budget_ms=budget)


def test_the_default_measure_is_one_that_validation_can_show(make_trial):
    """The intervals of these trials are 0.1 to both sides, so those above 0.9 reach 1."""
    near, far = [make_trial("a", accurate(39), 5), make_trial("b", accurate(35), 5)], make_trial("c", accurate(20), 5)
    assert default_measure([near[1], far], 1.0) == ("precision@3", "")
    measure, note = default_measure([near[0], far], 1.0)  # 39 of 40 is 0.975
    assert measure == "map@r" and "0.975" in note
    assert default_measure(near[:1], 1.0)[0] == "precision@3"  # there is nothing to tell apart
    measure, note = default_measure([far], 1 / 3)
    assert measure == "map@r" and "0.333" in note


def test_a_measure_is_saturated_if_most_intervals_reach_its_largest_value(make_trial):
    many, few = [make_trial(n, accurate(37), 5) for n in "ab"], [make_trial(n, accurate(20), 5) for n in "cd"]
    assert is_saturated([*many, few[0]], "precision@3")  # 37 of 40 is 0.925, with an interval to 1.025
    assert not is_saturated([*many, *few], "precision@3")
    assert not is_saturated([many[0], replace(many[1], leaked=True)], "precision@3")
    assert not is_saturated([], "precision@3")


def test_the_reason_has_the_note_on_the_measure(make_trial):
    note = "The measure is map@r, because of this."
    assert note in select([make_trial("a", GOOD, 5)], measure_note=note).reason


def test_the_reason_names_a_candidate_that_is_better_on_query_and_gallery(make_trial):
    winner = make_trial("a", GOOD, 5, test=accurate(10))
    trials = [winner, make_trial("b", GOOD, 50, test=accurate(30)), make_trial("c", GOOD, 50, test=accurate(11))]
    sentence = "On query and gallery, which never decide, b is significantly better than the winner: +0.500 (95%"
    assert sentence in select(trials).reason and select(trials).winner == "a"
    more = [*trials, make_trial("d", GOOD, 60, test=accurate(39))]
    assert "d is the best of 2 candidates that are significantly better" in select(more).reason
    leaked = [*trials[:1], replace(trials[1], leaked=True), trials[2]]
    for others in (leaked, [trials[0], trials[2]], [replace(winner, test=None), *trials[1:]]):
        assert "query and gallery" not in select(others).reason


def test_test_scores_do_not_decide(make_trial):
    blind = [make_trial("good", GOOD, 40), make_trial("near", NEAR, 16), make_trial("poor", POOR, 4)]
    seeing = [
        make_trial("good", GOOD, 40, test=accurate(1)),
        make_trial("near", NEAR, 16, test=accurate(2)),
        make_trial("poor", POOR, 4, test=accurate(40)),
    ]
    with_scores, without = select(seeing), select(blind)
    assert replace(with_scores, reason="") == replace(without, reason="")
    assert with_scores.reason.startswith(without.reason)


def test_ties_in_cost_are_broken_by_accuracy_then_name(make_trial):
    assert select([make_trial("a", NEAR, 9), make_trial("b", GOOD, 9)]).winner == "b"
    assert select([make_trial("b", GOOD, 9), make_trial("a", GOOD, 9)]).winner == "a"


def test_ties_in_cost_and_accuracy_are_broken_by_frozen_before_name(make_trial):
    tuned, frozen = make_trial("a", GOOD, 9), make_trial("b", GOOD, 9, state="frozen")
    selection = select([tuned, frozen])
    assert (selection.front, selection.winner, selection.most_accurate) == (("b", "a"), "b", "b")
    better = make_trial("a", [1.0] * 31 + [0.0] * 9, 9)  # one query more, which is not significant
    assert select([better, frozen]).winner == "a"


def test_of_equal_ones_the_one_without_fine_tuned_members_wins(make_trial):
    """The states of the members count, whatever the names say."""
    states = {"a": ("fine-tuned", "fine-tuned"), "b": ("frozen", "frozen + trained head"), "c": ("frozen", "frozen")}
    trials = [
        make_trial(name, GOOD, 9, state="mixed", kind="ensemble", members={"x frozen": first, "y fine-tuned": second})
        for name, (first, second) in states.items()
    ]
    assert front(trials) == ("c", "b", "a")
    assert select(trials).winner == "c"


def test_a_ratio_that_rounds_to_one_is_not_printed(make_trial):
    selection = select([make_trial("good", GOOD, 40), make_trial("near", NEAR, 39)])
    assert "is not significant, and the winner is faster." in selection.reason


def test_an_unknown_measure_is_refused(make_trial):
    with pytest.raises(OptionError, match="'recall@9'"):
        select([make_trial("good", GOOD)], measure="recall@9")


def test_a_selection_goes_to_json(make_trial):
    stored = json.loads(json.dumps(select([make_trial("good", GOOD, 40), make_trial("poor", POOR, 4)]).to_dict()))
    assert stored["winner"] == "good"
    assert stored["comparisons"]["poor"]["significant"] is True
    assert stored["budget_ms"] is None


def test_no_reason_calls_an_equal_one_faster(make_trial):
    selection = select([make_trial("a", GOOD, 9), make_trial("b", GOOD, 9)])
    assert selection.front == ("a", "b")
    assert selection.reason.endswith("It is the most accurate candidate, and no other is faster.")
