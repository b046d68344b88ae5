from __future__ import annotations

from dataclasses import replace

import pytest

from lookalike.benchmark.leaderboard import build_leaderboard
from lookalike.benchmark.selection import select
from lookalike.evaluation.evaluation import Estimate

HALF = [1.0, 1.0, 0.0, 0.0]
MOST = [1.0, 1.0, 1.0, 0.0]


def accuracies(board):
    return [(row.trial.name, board.scores(row.trial).mean(board.measure)) for row in board.rows]


def with_measures(trial, **shares):
    """Add measures to validation, each with an interval of 0.1 to both sides."""
    more = {name.replace("_", "@"): Estimate(share, share - 0.1, share + 0.1) for name, share in shares.items()}
    scores = trial.validation
    values = {**scores.values, **dict.fromkeys(more, scores.values["hit@3"])}
    return replace(trial, validation=replace(scores, measures={**scores.measures, **more}, values=values))


def test_rows_are_in_order_of_test_accuracy_with_untrained_ones_last(trials):
    selection = select(trials)
    board = build_leaderboard(trials, selection)
    assert board.measured_on == "test"
    assert accuracies(board) == [
        ("lite_0 + lite_2 fine-tuned", 0.75),
        ("lite_2 fine-tuned", 0.5),
        ("lite_0 frozen", 0.25),
        ("random", 1.0),
    ]
    assert board.winner.trial.name == selection.winner
    assert "labelled queries and gallery (4 queries against 50 images; 2 queries without" in board.caption


def test_validation_is_shown_if_a_trial_has_no_test_scores(make_trial):
    for test in (None, MOST):
        trials = [make_trial("a", HALF, test=test), make_trial("b", MOST)]
        board = build_leaderboard(trials, select(trials))
        assert board.measured_on == "validation"
        assert accuracies(board) == [("b", 0.75), ("a", 0.5)]
        assert "measured on validation" in board.caption


def test_cells_have_every_interval_and_missing_ones_a_dash(make_trial):
    trials = [make_trial("a", HALF), make_trial("b", MOST, None)]
    board = build_leaderboard(trials, select(trials))
    assert board.columns == (
        "model", "type", "top-3 accuracy", "hit@3", "hit@1", "map@r", "validation top-3 accuracy", "ms p50",
        "ms decode", "ms model", "ms p95", "ms batched", "dimensions", "memory MB",
    )  # fmt: skip
    assert board.cells(board.rows[1]) == (
        "a", "single", "0.500 (0.400–0.600)", "0.500 (0.400–0.600)", "0.250 (0.000–1.000)", "0.250 (0.000–1.000)",
        "0.500 (0.400–0.600)", "10.0", "2.0", "8.0", "15.0", "5.0", "512", "900",
    )  # fmt: skip
    assert board.cells(board.rows[0])[7:] == ("–", "–", "–", "–", "–", "512", "–")


def test_short_rows_have_the_columns_of_the_header_and_a_star(trials):
    board = build_leaderboard(trials, select(trials))
    assert {len(row) for row in board.short_rows(50)} == {len(board.header)}
    assert [row[0].startswith("★ ") for row in board.short_rows(50)] == [False, False, True, False]
    first = dict(zip(board.header, board.short_rows(50)[0], strict=True))
    assert (first["top-3 accuracy"], first["95% interval"], first["hit@3"]) == ("0.750", "0.650–0.850", "0.750")
    assert (first["ms p50"], first["ms decode"], first["ms model"]) == ("20.0", "4.0", "16.0")
    assert board.short_rows(50)[-1][2] == "untrained: 1.000"


def test_short_rows_include_the_winner(trials):
    board = build_leaderboard(trials, select(trials))
    assert [row[0] for row in board.short_rows(2)] == ["lite_0 + lite_2 fine-tuned", "★ lite_0 frozen"]
    assert [row[0] for row in board.short_rows(1)] == ["★ lite_0 frozen"]
    assert len(board.short_rows(50)) == len(board.rows)


def test_the_front_ignores_the_budget(trials):
    board = build_leaderboard(trials, select(trials, budget_ms=10))
    assert {row.trial.name for row in board.rows if row.on_front} == {"lite_0 frozen", "lite_0 + lite_2 fine-tuned"}


def test_hit_at_k_has_the_k_of_the_measure(make_trial):
    trials = [with_measures(make_trial("a", HALF), precision_5=0.25, hit_5=0.875)]
    board = build_leaderboard(trials, select(trials, measure="precision@5"))
    assert board.header[2:7] == ("top-5 accuracy", "95% interval", "hit@5", "hit@1", "map@r")
    assert board.cells(board.rows[0])[2:4] == ("0.250 (0.150–0.350)", "0.875 (0.775–0.975)")


@pytest.mark.parametrize(
    ("measure", "columns"),
    [
        ("hit@1", ("hit@1", "map@r")),
        ("hit@3", ("hit@3", "hit@1", "map@r")),
        ("map@r", ("map@r", "hit@3", "hit@1")),
        ("mrr", ("mrr", "hit@3", "hit@1", "map@r")),
        ("precision@1", ("top-1 accuracy", "hit@1", "map@r")),
    ],
)
def test_no_measure_has_two_columns(make_trial, measure, columns):
    trials = [with_measures(make_trial("a", HALF), hit_1=0.25, precision_1=0.25, map_r=0.5, mrr=0.75)]
    board = build_leaderboard(trials, select(trials, measure=measure))
    assert board.columns[2 : board.columns.index(f"validation {columns[0]}")] == columns
    assert len(set(board.columns)) == len(board.columns) == len(board.cells(board.rows[0]))


def test_models_trained_from_random_weights_are_marked(make_trial):
    trials = [
        make_trial("a fine-tuned", MOST, from_random=True),
        make_trial("b fine-tuned", HALF),
        make_trial("a untrained", HALF, state="untrained", from_random=True),
    ]
    board = build_leaderboard(trials, select(trials))
    assert [row.name for row in board.rows] == ["a fine-tuned †", "b fine-tuned", "a untrained"]
    assert board.short_rows(50)[0][0] == "★ a fine-tuned †"
    assert "† trained from random weights" in board.caption
    assert "†" not in build_leaderboard(trials[1:2], select(trials[1:2])).caption


def test_numbers_of_one_are_in_the_singular(make_trial):
    trial = make_trial("a", [1.0])
    trial = replace(trial, validation=replace(trial.validation, excluded=1, gallery=1))
    board = build_leaderboard([trial], select([trial]))
    assert "(1 query against 1 image; 1 query without a relevant image excluded)" in board.caption
    trials = [with_measures(trial, precision_1=1.0)]
    caption = build_leaderboard(trials, select(trials, measure="precision@1")).caption
    assert caption.startswith("Top-1 accuracy is precision@1, whether the nearest gallery image has")
