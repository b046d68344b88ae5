from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from itertools import combinations

import pytest

from lookalike.benchmark.latex import latex_escape, latex_name
from lookalike.benchmark.leaderboard import RunDescription, build_leaderboard, write_leaderboard
from lookalike.benchmark.selection import select
from lookalike.benchmark.trial import Trial
from lookalike.models.backbone_files import without_folders
from lookalike.models.encoder import COMBINATIONS
from lookalike.types import Estimate

HALF = [1.0, 1.0, 0.0, 0.0]
MOST = [1.0, 1.0, 1.0, 0.0]


def accuracies(board):
    return [(row.trial.name, board.split_measures(row.trial).mean(board.measure)) for row in board.rows]


def with_measures(trial, **shares):
    """Add measures to validation, each with an interval of 0.1 to both sides."""
    more = {name.replace("_", "@"): Estimate(share, share - 0.1, share + 0.1) for name, share in shares.items()}
    measured = trial.validation
    values = {**measured.values, **dict.fromkeys(more, measured.values["hit@3"])}
    return replace(trial, validation=replace(measured, measures={**measured.measures, **more}, values=values))


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


def test_the_record_in_the_bundle_shows_no_folder(make_trial):
    trials = [make_trial("onnx:/srv/my models/a.onnx frozen", HALF, 4), make_trial("hf:/srv/b frozen", MOST, 40)]
    selection = select(trials)
    assert "/srv" in selection.reason
    record = build_leaderboard(trials, selection).record(selection, 3)
    assert "/srv" not in str(record)
    assert (record.candidate, record.seed, record.measure) == (without_folders(selection.winner), 3, selection.measure)
    assert record.candidate in record.reason
    assert [(row.name, row.accuracy.mean, row.ms, row.winner) for row in record.leaderboard] == [
        ("hf:b frozen", 0.75, 40, selection.winner.startswith("hf:")),
        ("onnx:a.onnx frozen", 0.5, 4, selection.winner.startswith("onnx:")),
    ]


def test_cells_have_every_interval_and_missing_ones_a_dash(make_trial):
    trials = [make_trial("a", HALF), make_trial("b", MOST, None)]
    board = build_leaderboard(trials, select(trials))
    assert board.columns == (
        "model", "type", "top-3 accuracy", "vs winner", "hit@3", "hit@1", "map@r", "validation top-3 accuracy",
        "ms p50", "ms decode", "ms model", "ms p95", "ms batched", "dimensions", "memory MB",
    )  # fmt: skip
    assert board.cells(board.rows[1]) == (
        "a", "single, fine-tuned", "0.500 (0.400–0.600)", "–", "0.500 (0.400–0.600)", "0.250 (0.000–1.000)",
        "0.250 (0.000–1.000)", "0.500 (0.400–0.600)", "10.0", "2.0", "8.0", "15.0", "5.0", "512", "900",
    )  # fmt: skip
    assert board.cells(board.rows[0])[8:] == ("–", "–", "–", "–", "–", "512", "–")


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
    assert board.header[2:8] == ("top-5 accuracy", "95% interval", "vs winner", "hit@5", "hit@1", "map@r")
    assert board.cells(board.rows[0])[2:5] == ("0.250 (0.150–0.350)", "–", "0.875 (0.775–0.975)")


@pytest.mark.parametrize(
    ("measure", "columns"),
    [
        ("hit@1", ("hit@1", "map@r")),
        ("hit@3", ("hit@3", "hit@1", "map@r")),
        ("map@r", ("map@r", "precision@3", "hit@3", "hit@1")),
        ("mrr", ("mrr", "hit@3", "hit@1", "map@r")),
        ("precision@1", ("top-1 accuracy", "hit@1", "map@r")),
    ],
)
def test_no_measure_has_two_columns(make_trial, measure, columns):
    trials = [with_measures(make_trial("a", HALF), hit_1=0.25, precision_1=0.25, map_r=0.5, mrr=0.75)]
    board = build_leaderboard(trials, select(trials, measure=measure))
    end = board.columns.index(f"validation {columns[0]}")
    assert board.columns[2:end] == (columns[0], "vs winner", *columns[1:])
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


@pytest.fixture
def written(tmp_path):
    """Write the leaderboard of some trials and return the text of a file by suffix."""

    def write(trials: list[Trial], description: RunDescription | None = None):
        selection = select(trials)
        board = build_leaderboard(trials, selection)
        write_leaderboard(tmp_path, board, selection, description or RunDescription())
        return lambda suffix: (tmp_path / f"leaderboard.{suffix}").read_text(encoding="utf-8")

    return write


def table_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def test_csv(trials, written):
    rows = list(csv.DictReader(written(trials)("csv").splitlines()))
    assert len(rows) == 4
    expected = {
        "model": "lite_0 + lite_2 fine-tuned", "type": "ensemble", "state": "fine-tuned", "from_random": "no",
        "top_3_accuracy": "0.75", "top_3_accuracy_low": "0.65", "top_3_accuracy_high": "0.85",
        "hit@3": "0.75", "hit@3_low": "0.65", "hit@1": "0.375", "hit@1_high": "1.0", "map@r": "0.375",
        "validation_top_3_accuracy": "0.75", "validation_top_3_accuracy_low": "0.65",
        "ms_p50": "20", "ms_decode": "4.0", "ms_model": "16.0", "ms_p95": "30.0", "ms_batched": "10.0",
        "dimensions": "512", "memory_mb": "900.0",
    }  # fmt: skip
    assert {name: rows[0][name] for name in expected} == expected
    assert [row["winner"] for row in rows].count("yes") == 1
    assert rows[-1]["state"] == "untrained"


def test_csv_names_are_not_formulas(make_trial, written):
    (row,) = csv.DictReader(written([make_trial("=HYPERLINK(1)", MOST)])("csv").splitlines())
    assert row["model"] == "'=HYPERLINK(1)"


def test_csv_of_a_trial_without_time_has_empty_fields(make_trial, written):
    first, _ = csv.DictReader(written([make_trial("a", HALF), make_trial("b", MOST, None)])("csv").splitlines())
    assert (first["model"], first["ms_p50"], first["memory_mb"]) == ("b", "", "")


def test_json_holds_trials_selection_and_description(trials, written):
    description = RunDescription(data="photos: 9 images", settings={"seed": 7}, skipped=("a.jpg: empty",))
    stored = json.loads(written(trials, description)("json"))
    assert stored["selection"]["winner"] == select(trials).winner
    assert stored["description"]["settings"] == {"seed": 7}
    assert stored["description"]["skipped"] == ["a.jpg: empty"]
    row = stored["rows"][0]
    assert (row.pop("winner"), row.pop("on_front")) == (False, True)
    assert row.pop("vs_winner") == {"difference": 0.5, "low": 0.0, "high": 1.0, "significant": False}
    assert Trial.from_dict(row) == trials[1].summary()


def test_markdown_marks_the_winner_and_the_untrained(trials, written):
    table = table_of(written(trials)("md"))
    assert len(table) == 2 + len(trials)
    assert {line.count("|") for line in table} == {16}
    assert [line.startswith("| **lite") and "(winner)" in line for line in table] == [False] * 4 + [True, False]
    assert "| untrained: 1.000 (0.900–1.100) |" in table[-1]


def test_markdown_escapes_names_and_lists_notes(make_trial, written):
    text = written([make_trial("a|b_c*d", MOST, note="uses *half*."), make_trial("c", HALF)])("md")
    assert r"| **a\|b\_c\*d** (winner) |" in text
    assert text.endswith("\n\n- a\\|b\\_c\\*d: uses \\*half\\*.\n")


def test_latex(trials, written):
    text = written(trials)("tex")
    lines = text[text.index(r"\toprule") : text.index(r"\bottomrule")].splitlines()
    assert lines[1:5] == [
        r"&  & \multicolumn{5}{c}{Query and gallery} & \multicolumn{1}{c}{Validation} & "
        r"\multicolumn{2}{c}{Time per image} \\",
        r"\cmidrule(lr){3-7}\cmidrule(lr){8-8}\cmidrule(lr){9-10}",
        r"Model & Type & Top-3 accuracy & vs winner & hit@3 & hit@1 & map@r & Top-3 accuracy & "
        r"one (ms) & batched (s) \\",
        r"\midrule",
    ]
    assert lines[5] == (
        r"lite\_\allowbreak{}0 $+$ lite\_\allowbreak{}2 fine-tuned & ensemble & \interval{0.750}{0.650--0.850} & "
        r"\interval{$+$0.500}{0.000 to $+$1.000} & \interval{0.750}{0.650--0.850} & \interval{0.375}{0.000--1.000} & "
        r"\interval{0.375}{0.000--1.000} & \interval{0.750}{0.650--0.850} & 20.0 & 0.0100 \\"
    )
    assert lines[7].startswith(
        r"\textbf{lite\_\allowbreak{}0 frozen} & single & \interval{\textbf{0.250}}{0.150--0.350} &"
    )
    assert r" & \textbf{--} & " in lines[7] and lines[7].endswith(r" & \textbf{8.0} & \textbf{0.0040} \\")
    assert r"& \interval{untrained: 1.000}{0.900--1.100} &" in lines[8]
    assert len(lines) == 9 and {line.count(" & ") for line in lines[5:]} == {9}
    assert r"\begin{tabular}{@{}>{\raggedright\arraybackslash}p{0.24\linewidth}lrrrrrrrr@{}}" in text
    assert text.count("{") == text.count("}")
    assert text.count(r"\begin{") == text.count(r"\end{")
    assert not re.search(r"(?<!\\)[&_]|(?<![\\}])#(?!\d)", re.sub(r" ?& ", "", text))
    assert r"with 95\% bootstrap intervals" in text and "batches of 32, both on cpu" in text


def test_latex_without_test_labels_has_one_group_of_measures(make_trial, written):
    text = written([make_trial("a", HALF, note="uses half_"), make_trial("b", MOST)])("tex")
    assert r"&  & \multicolumn{5}{c}{Validation} & \multicolumn{2}{c}{Time per image} \\" in text
    assert r"a: uses half\_}" in text  # the note of a row


def test_the_caption_says_which_split_decides_and_what_is_compared(trials, make_trial):
    caption = build_leaderboard(trials, select(trials)).caption
    assert "vs winner: the difference to the winner on the same queries" in caption
    assert "Validation (4 queries against 50 images; 2 queries without" in caption
    assert "do not compare the top-3 accuracy of one with that of the other" in caption
    only = [make_trial("a", HALF)]
    assert "vs winner" not in build_leaderboard(only, select(only)).caption
    assert "decides" not in build_leaderboard(only, select(only)).caption


def test_the_note_of_the_winner_is_in_the_caption(make_trial):
    trials = [make_trial("a", MOST, note="only the head was trained."), make_trial("b", HALF, note="other.")]
    caption = build_leaderboard(trials, select(trials)).caption
    assert caption.endswith(" a: only the head was trained.")


def test_latex_escapes():
    assert latex_escape("a_b + c & 5% #1 $x$ {y}") == r"a\_b $+$ c \& 5\% \#1 \$x\$ \{y\}"
    assert latex_name("vit_b.in1k (frozen)") == r"vit\_\allowbreak{}b.\allowbreak{}in1k (frozen)"
    assert latex_escape("~^\\") == r"\textasciitilde{}\textasciicircum{}\textbackslash{}"


def test_the_mark_of_random_weights_is_in_every_format(make_trial, written):
    text = written([make_trial("a fine-tuned", MOST, from_random=True), make_trial("b fine-tuned", HALF)])
    assert "| **a fine-tuned †** (winner) |" in text("md")
    assert r"\textbf{a fine-tuned $\dagger$} & " in text("tex")
    assert [row["from_random"] for row in csv.DictReader(text("csv").splitlines())] == ["yes", "no"]


def test_of_many_ensembles_only_the_best_are_not_folded(make_trial, written):
    """Six singles and 45 ensembles, each worse and slower than the one before: the first six are shown."""
    trials = [make_trial(name, [1.0] * n + [0.0] * (60 - n), 10 + n) for n, name in enumerate("abcdef")]
    for first, second in combinations("abcdef", 2):
        for combination in COMBINATIONS:
            n = len(trials) - 6
            name, values = f"{first} + {second}, {combination}", [1.0] * (60 - n) + [0.0] * n
            trials.append(make_trial(name, values, 20 + n, kind="ensemble", combination=combination))
    assert len(build_leaderboard(trials, select(trials)).folded) == 39
    text = written(trials)
    shown, _, folded = text("md").partition("<details><summary>39 more ensembles, none on the Pareto front</summary>")
    assert len(table_of(shown)) == 2 + 12 and "(winner)" in shown
    assert len(table_of(folded)) == 2 + 39 and "</details>" in folded
    assert text("tex").count(" & ensemble & ") == 6
    assert "39 more ensembles, none on the Pareto front, are in leaderboard.csv." in text("tex")
    assert len(list(csv.DictReader(text("csv").splitlines()))) == 51


def test_one_folded_ensemble_is_in_the_singular(make_trial, written):
    """Thirteen ensembles, of which all but the worst are on the front."""
    values = [[1.0] * n + [0.0] * (40 - n) for n in range(10, 23)]
    options = {"kind": "ensemble", "combination": "concat"}
    trials = [make_trial(f"e{n}", v, 10 + n, **options) for n, v in enumerate(values)]
    trials[0] = make_trial("slow", values[0], 90, **options)
    text = written(trials)
    assert "<summary>1 more ensemble, none on the Pareto front</summary>" in text("md")
    assert "1 more ensemble, none on the Pareto front, is in" in text("tex")
