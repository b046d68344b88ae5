"""What is planned from rates, scores and time; the numbers are chosen so that the answer can be worked out by hand."""

import pytest

from lookalike.competition.schedule import BackboneResults, Run, fits, plan_fine_tuning

SMALL = BackboneResults("small", score=0.70, recipe_seconds=100, refit_factor=1.5)
LARGE = BackboneResults("large", score=0.72, recipe_seconds=600, refit_factor=1.5)


def test_the_largest_gain_per_minute_is_first():
    plan = plan_fine_tuning([LARGE, SMALL], 3600)

    assert (plan.backbone, plan.seconds) == ("small", 100)  # the whole recipe, in a sixth of the time


def test_the_training_and_its_refit_fit_into_what_is_left():
    plan = plan_fine_tuning([SMALL], 115)

    # 115 s, less 15 % for estimates that are too small, shared 1 : 1.5
    assert plan.seconds == pytest.approx(115 / 1.15 / 2.5)
    assert "40%" in plan.reason


def test_nothing_is_planned_that_is_too_short_to_help():
    assert plan_fine_tuning([SMALL], 0.19 * 100 * 2.5 * 1.15) is None
    assert plan_fine_tuning([], 3600) is None


def test_a_backbone_that_cannot_catch_up_is_skipped():
    best = BackboneResults("best", score=0.9, recipe_seconds=100, refit_factor=1.2, runs=(Run(1.0, 0.96),) * 3)
    weak = BackboneResults("weak", score=0.3, recipe_seconds=100, refit_factor=1.2)

    assert plan_fine_tuning([best, weak], 3600) is None


def test_several_promising_backbones_get_a_quarter_first():
    twins = [BackboneResults(name, 0.70, 1000, 1.5) for name in ("a", "b", "c")]

    # three recipes and a refit take 3 * 1.15 * 1000 + 1500 s, more than there are
    plan = plan_fine_tuning(twins, 4000)
    assert (plan.backbone, plan.seconds) == ("a", 250)
    # after a quarter of each, the best one gets the whole recipe
    tried = [
        BackboneResults(b.name, 0.70, 1000, 1.5, (Run(0.25, score),))
        for b, score in zip(twins, (0.72, 0.78, 0.74), strict=True)
    ]
    plan = plan_fine_tuning(tried, 3250)
    assert (plan.backbone, plan.seconds) == ("b", 1000)


def test_with_time_left_a_complete_backbone_is_trained_with_another_seed():
    done = BackboneResults("small", 0.70, 100, 1.5, (Run(1.0, 0.80),))

    assert plan_fine_tuning([done], 3600).backbone == "small"
    assert plan_fine_tuning([BackboneResults("small", 0.70, 100, 1.5, (Run(1.0, 0.80),) * 3)], 3600) is None


def test_short_runs_end_too():
    """A backbone whose runs never get the whole recipe, because its rate was overestimated, is not trained forever."""
    assert plan_fine_tuning([BackboneResults("small", 0.70, 100, 1.5, (Run(0.3, 0.75),) * 4)], 3600) is not None
    assert plan_fine_tuning([BackboneResults("small", 0.70, 100, 1.5, (Run(0.3, 0.75),) * 5)], 3600) is None


def test_estimates_have_a_margin():
    assert fits(100, 115)
    assert not fits(100, 114)
