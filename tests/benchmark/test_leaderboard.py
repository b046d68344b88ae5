from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from lookalike.benchmark.latex import latex_escape
from lookalike.benchmark.leaderboard_files import write_leaderboard
from lookalike.benchmark.selection import select

HALF = [1.0, 1.0, 0.0, 0.0]
MOST = [1.0, 1.0, 1.0, 0.0]


@pytest.fixture
def trials(make_trial):
    return [
        make_trial("lite_0 frozen", HALF, 8, test=[0.0, 0.0, 1.0, 0.0], trained="frozen"),
        make_trial("lite_0 + lite_2 fine-tuned", MOST, 20, test=MOST, kind="ensemble", combine="aligned"),
        make_trial("lite_2 fine-tuned", HALF, 12, test=HALF),
        make_trial("random", HALF, 5, test=[1.0] * 4, trained="untrained"),
    ]


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "leaderboard.csv").open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_rows_by_test_accuracy_untrained_last(trials, tmp_path):
    choice = select(trials)
    board = write_leaderboard(tmp_path, trials, choice, {})
    assert board.part == "test"
    assert [(row.model, row.accuracy) for row in board.rows] == [
        ("lite_0 + lite_2 fine-tuned", 0.75),
        ("lite_2 fine-tuned", 0.5),
        ("lite_0 frozen", 0.25),
        ("random", 1.0),
    ]
    assert [row.model for row in board.rows if row.winner] == [choice.winner]
    assert "labelled queries and gallery (4 queries against 50 images, 2 queries without" in board.caption


def test_validation_stands_in_where_the_test_part_is_unlabelled(make_trial, tmp_path):
    trials = [make_trial("a", HALF), make_trial("b", MOST)]
    board = write_leaderboard(tmp_path, trials, select(trials), {})
    assert board.part == "validation"
    assert [row.accuracy for row in board.rows] == [0.75, 0.5]
    assert "measured on validation, since query and gallery carry no labels" in board.caption


def test_one_trial_without_test_scores_keeps_all_to_validation(make_trial, tmp_path):
    trials = [make_trial("a", HALF, test=MOST), make_trial("b", MOST)]
    board = write_leaderboard(tmp_path, trials, select(trials), {})
    assert board.part == "validation"
    assert [row.accuracy for row in board.rows] == [0.75, 0.5]


def test_csv_is_read_back(trials, tmp_path):
    write_leaderboard(tmp_path, trials, select(trials), {})
    rows = rows_of(tmp_path)
    assert len(rows) == 4
    first = rows[0]
    assert first["model"] == "lite_0 + lite_2 fine-tuned"
    assert first["type"] == "ensemble"
    assert (first["top_3_accuracy"], first["low"], first["high"]) == ("0.75", "0.65", "0.85")
    assert (first["hit@3"], first["hit@1"], first["map@r"]) == ("0.75", "0.375", "0.375")
    assert (first["hit@3_low"], first["hit@3_high"]) == ("0.65", "0.85")
    assert (first["hit@1_low"], first["hit@1_high"], first["map@r_low"], first["map@r_high"]) == (
        "0.0", "1.0", "0.0", "1.0",
    )  # fmt: skip
    assert first["validation_top_3_accuracy"] == "0.75"
    assert (first["validation_top_3_accuracy_low"], first["validation_top_3_accuracy_high"]) == ("0.65", "0.85")
    assert (first["ms_p50"], first["ms_p95"], first["ms_batched"]) == ("20", "30.0", "10.0")
    assert (first["ms_decode"], first["ms_model"]) == ("4.0", "16.0")
    assert {row["from_random"] for row in rows} == {"no"}
    assert (first["dim"], first["memory_mb"]) == ("512", "900.0")
    assert [row["winner"] for row in rows].count("yes") == 1
    assert rows[-1]["trained"] == "untrained"


def test_json_is_read_back_with_choice_and_context(trials, tmp_path):
    choice = select(trials)
    write_leaderboard(tmp_path, trials, choice, {"data": Path("some/folder"), "sizes": (1, 2), "tags": {"b", "a"}})
    stored = json.loads((tmp_path / "leaderboard.json").read_text(encoding="utf-8"))
    assert stored["choice"]["winner"] == choice.winner
    assert stored["choice"]["reason"] == choice.reason
    assert stored["context"] == {"data": "some/folder", "sizes": [1, 2], "tags": ["a", "b"]}
    assert [t["name"] for t in stored["trials"]] == [r["model"] for r in stored["rows"]]
    assert stored["hit_k"] == "hit@3"
    row = stored["rows"][0]
    assert (row["hit_k"], row["hit_k_low"], row["hit_k_high"]) == (0.75, 0.65, 0.85)
    assert stored["trials"][0]["test"]["measures"]["precision@3"]["mean"] == 0.75
    assert "values" not in stored["trials"][0]["validation"]


def test_markdown_marks_the_winner_and_the_untrained(trials, tmp_path):
    choice = select(trials)
    write_leaderboard(tmp_path, trials, choice, {})
    text = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(trials)
    assert {line.count("|") for line in table} == {15}
    assert sum("(chosen)" in line for line in table) == 1
    assert "| untrained: 1.000 (0.900–1.100) |" in table[-1]


def test_markdown_has_every_interval_and_what_decoding_takes(trials, tmp_path):
    write_leaderboard(tmp_path, trials, select(trials), {})
    lines = (tmp_path / "leaderboard.md").read_text(encoding="utf-8").splitlines()
    header, _, first = [line for line in lines if line.startswith("|")][:3]
    assert header == (
        "| model | type | top-3 accuracy | hit@3 | hit@1 | map@r | validation top-3 accuracy | ms p50 | ms decode | "
        "ms model | ms p95 | ms batched | dimensions | memory MB |"
    )
    assert first == (
        r"| lite\_0 + lite\_2 fine-tuned | ensemble | 0.750 (0.650–0.850) | 0.750 (0.650–0.850) | "
        "0.375 (0.000–1.000) | 0.375 (0.000–1.000) | 0.750 (0.650–0.850) | 20.0 | 4.0 | 16.0 | 30.0 | 10.0 | "
        "512 | 900 |"
    )


def test_markdown_of_a_name_with_a_bar(make_trial, tmp_path):
    trials = [make_trial("a|b_c*d", HALF)]
    write_leaderboard(tmp_path, trials, select(trials), {})
    assert r"| **a\|b\_c\*d** (chosen) |" in (tmp_path / "leaderboard.md").read_text(encoding="utf-8")


def test_what_was_not_measured_is_a_dash_or_empty(make_trial, tmp_path):
    trials = [make_trial("a", HALF), make_trial("b", MOST, None)]
    board = write_leaderboard(tmp_path, trials, select(trials), {})
    assert board.file_cells(board.rows[0])[7:] == ("–", "–", "–", "–", "–", "512", "–")
    assert rows_of(tmp_path)[0]["ms_p50"] == rows_of(tmp_path)[0]["ms_decode"] == ""


def test_latex_table(trials, tmp_path):
    choice = select(trials)
    assert choice.winner == "lite_0 frozen"  # four queries tell nothing apart, so the cheapest wins
    write_leaderboard(tmp_path, trials, choice, {})
    text = (tmp_path / "leaderboard.tex").read_text(encoding="utf-8")
    assert r"Model & Top-3 accuracy & Avg.\ time per image (s) & Type \\" in text
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")].splitlines()[1:]
    assert body == [
        r"lite\_0 $+$ lite\_2 fine-tuned & 0.750 (0.650--0.850) & 0.0100 & Ensemble \\",
        r"lite\_2 fine-tuned & 0.500 (0.400--0.600) & 0.0060 & Single \\",
        r"\textbf{lite\_0 frozen} & \textbf{0.250 (0.150--0.350)} & \textbf{0.0040} & Single \\",
        r"random & untrained: 1.000 (0.900--1.100) & 0.0025 & Single \\",
    ]
    assert text.count("{") == text.count("}")
    assert set(re.findall(r"\\(begin|end)\{(\w+)\}", text)) == {
        ("begin", "table"), ("end", "table"), ("begin", "tabular"), ("end", "tabular"),
    }  # fmt: skip
    assert not re.search(r"(?<!\\)[&#_]", re.sub(r" & ", "", text))
    assert r"with 95\% bootstrap intervals" in text


def test_latex_escapes():
    assert latex_escape("a_b + c & 5% #1 $x$ {y}") == r"a\_b $+$ c \& 5\% \#1 \$x\$ \{y\}"
    assert latex_escape("~^\\") == r"\textasciitilde{}\textasciicircum{}\textbackslash{}"


def test_terminal_rows_have_the_header_s_width_and_a_star(trials, tmp_path):
    board = write_leaderboard(tmp_path, trials, select(trials), {})
    assert {len(row) for row in board.short_rows(50)} == {len(board.header)}
    assert [row[0].startswith("★ ") for row in board.short_rows(50)] == [False, False, True, False]
    shown = dict(zip(board.header, board.short_rows(50)[0], strict=True))
    assert (shown["top-3 accuracy"], shown["95% interval"], shown["hit@3"]) == ("0.750", "0.650–0.850", "0.750")
    assert (shown["ms p50"], shown["ms decode"], shown["ms model"]) == ("20.0", "4.0", "16.0")


def test_short_rows_keep_the_winner(trials, tmp_path):
    board = write_leaderboard(tmp_path, trials, select(trials), {})
    assert [row[0] for row in board.short_rows(2)] == ["lite_0 + lite_2 fine-tuned", "★ lite_0 frozen"]
    assert [row[0] for row in board.short_rows(1)] == ["★ lite_0 frozen"]
    assert len(board.short_rows(50)) == len(board.rows)


def test_the_front_is_marked_over_the_budget_too(trials, tmp_path):
    board = write_leaderboard(tmp_path, trials, select(trials, budget_ms=10), {})
    assert {row.model for row in board.rows if row.on_front} == {"lite_0 frozen", "lite_0 + lite_2 fine-tuned"}


def test_a_table_of_many_rows_shows_the_best_and_folds_the_rest(make_trial, tmp_path):
    """Six singles and their 45 ensembles, each worse and dearer than the one before: the first six are kept."""
    trials = [make_trial(name, [1.0] * n + [0.0] * (60 - n), 10 + n) for n, name in enumerate("abcdef")]
    for first, second in combinations("abcdef", 2):
        for how in ("aligned", "average", "concat"):
            n = len(trials) - 6
            values = [1.0] * (60 - n) + [0.0] * n
            trials.append(make_trial(f"{first} + {second}, {how}", values, 20 + n, kind="ensemble", combine=how))
    board = write_leaderboard(tmp_path, trials, select(trials), {})
    assert [len(group) for group in board.groups()] == [6, 6, 39]
    text = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    first, _, rest = text.partition("<details><summary>39 more ensembles, none on the Pareto front</summary>")
    assert sum(line.startswith("| ") for line in first.splitlines()) == 1 + 12
    assert sum(line.startswith("| ") for line in rest.splitlines()) == 1 + 39
    assert "**a + b, aligned** (chosen)" in first and "</details>" in rest
    tex = (tmp_path / "leaderboard.tex").read_text(encoding="utf-8")
    assert tex.count(r" & Ensemble \\") == 6
    assert "39 more ensembles, none on the Pareto front, are in leaderboard.csv." in tex
    assert len(rows_of(tmp_path)) == 51


def test_markdown_has_the_notes_below(make_trial, tmp_path):
    trials = [make_trial("a_b", HALF, note="validation kept *half*."), make_trial("c", MOST)]
    write_leaderboard(tmp_path, trials, select(trials), {})
    text = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    assert text.endswith("\n\n- a\\_b: validation kept \\*half\\*.\n")


def with_measures(trial, **shares):
    """Give a trial further measures on validation, each with an interval of 0.1 on both sides."""
    more = {
        name.replace("_", "@"): {"mean": share, "low": share - 0.1, "high": share + 0.1}
        for name, share in shares.items()
    }
    scores = trial.validation
    values = {**scores.values, **dict.fromkeys(more, scores.values["hit@3"])}
    return replace(trial, validation=replace(scores, measures={**scores.measures, **more}, values=values))


def test_hit_at_k_is_of_the_k_of_the_measure(make_trial, tmp_path):
    trials = [with_measures(make_trial("a", HALF), precision_5=0.25, hit_5=0.875)]
    board = write_leaderboard(tmp_path, trials, select(trials, measure="precision@5"), {})
    assert board.header[2:7] == ("top-5 accuracy", "95% interval", "hit@5", "hit@1", "map@r")
    assert (board.rows[0].hit_k, board.rows[0].hit_k_low, board.rows[0].hit_k_high) == (0.875, 0.775, 0.975)
    row = rows_of(tmp_path)[0]
    assert (row["hit@5"], row["hit@5_low"], row["top_5_accuracy"]) == ("0.875", "0.775", "0.25")
    assert "hit@3" not in row


def test_a_measure_without_k_has_hit_at_three_beside_it(make_trial, tmp_path):
    trials = [with_measures(make_trial("a", HALF), mrr=0.75)]
    board = write_leaderboard(tmp_path, trials, select(trials, measure="mrr"), {})
    assert board.header[2:7] == ("mrr", "95% interval", "hit@3", "hit@1", "map@r")
    assert rows_of(tmp_path)[0]["hit@3"] == "0.5"


@pytest.mark.parametrize(
    ("measure", "columns"),
    [
        ("hit@1", ("hit@1", "map@r")),
        ("hit@3", ("hit@3", "hit@1", "map@r")),
        ("map@r", ("map@r", "hit@3", "hit@1")),
        ("precision@1", ("top-1 accuracy", "hit@1", "map@r")),
    ],
)
def test_no_measure_has_two_columns(make_trial, tmp_path, measure, columns):
    trials = [with_measures(make_trial("a", HALF), hit_1=0.25, precision_1=0.25, map_r=0.5)]
    board = write_leaderboard(tmp_path, trials, select(trials, measure=measure), {})
    assert board.file_header[2 : board.file_header.index(f"validation {columns[0]}")] == columns
    assert len(board.file_cells(board.rows[0])) == len(board.file_header)
    assert len(board.short_rows(50)[0]) == len(board.header)
    written = (tmp_path / "leaderboard.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert len(set(written)) == len(written)


def test_what_was_trained_from_random_weights_is_marked(make_trial, tmp_path):
    trials = [
        make_trial("a fine-tuned", MOST, from_random=True),
        make_trial("b fine-tuned", HALF),
        make_trial("a untrained", HALF, trained="untrained", from_random=True),
    ]
    board = write_leaderboard(tmp_path, trials, select(trials), {})
    assert [row.name for row in board.rows] == ["a fine-tuned †", "b fine-tuned", "a untrained"]
    assert board.short_rows(50)[0][0] == "★ a fine-tuned †"
    assert board.caption.endswith(" † trained from random weights (of an ensemble: at least one member).")
    assert "| **a fine-tuned †** (chosen) |" in (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    tex = (tmp_path / "leaderboard.tex").read_text(encoding="utf-8")
    assert r"\textbf{a fine-tuned $\dagger$} & " in tex and r"$\dagger$ trained from random weights" in tex
    assert [row["from_random"] for row in rows_of(tmp_path)] == ["yes", "no", "yes"]
    pretrained = write_leaderboard(tmp_path, trials[1:2], select(trials[1:2]), {})
    assert "†" not in pretrained.caption


def test_one_of_everything_is_told_in_the_singular(make_trial, tmp_path):
    trial = make_trial("a", [1.0])
    trial = replace(trial, validation=replace(trial.validation, left_out=1, gallery=1))
    board = write_leaderboard(tmp_path, [trial], select([trial]), {})
    assert "(1 query against 1 image, 1 query without a relevant image left out)" in board.caption
    trials = [with_measures(trial, precision_1=1.0)]
    caption = write_leaderboard(tmp_path, trials, select(trials, measure="precision@1"), {}).caption
    assert caption.startswith(
        "Top-1 accuracy is precision@1, whether the nearest gallery image has the query's class; "
    )


def test_one_folded_ensemble_is_told_in_the_singular(make_trial, tmp_path):
    """Thirteen ensembles, of which all but the worst are on the front."""
    values = [[1.0] * n + [0.0] * (40 - n) for n in range(10, 23)]
    trials = [make_trial(f"e{n}", v, 10 + n, kind="ensemble", combine="concat") for n, v in enumerate(values)]
    trials[0] = make_trial("slow", values[0], 90, kind="ensemble", combine="concat")
    write_leaderboard(tmp_path, trials, select(trials), {})
    text = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    assert "<summary>1 more ensemble, none on the Pareto front</summary>" in text
    assert "1 more ensemble, none on the Pareto front, is in" in (tmp_path / "leaderboard.tex").read_text(
        encoding="utf-8"
    )
