from __future__ import annotations

import csv
import json
import re
from itertools import combinations
from pathlib import Path

import pytest

from lookalike.bench.latex import latex_escape
from lookalike.bench.leaderboard_files import write_leaderboard
from lookalike.bench.selection import select

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
    assert first["validation_top_3_accuracy"] == "0.75"
    assert (first["ms_p50"], first["ms_p95"], first["ms_batched"]) == ("20", "30.0", "10.0")
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
    assert stored["trials"][0]["test"]["measures"]["precision@3"]["mean"] == 0.75
    assert "values" not in stored["trials"][0]["validation"]


def test_markdown_marks_the_winner_and_the_untrained(trials, tmp_path):
    choice = select(trials)
    write_leaderboard(tmp_path, trials, choice, {})
    text = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(trials)
    assert {line.count("|") for line in table} == {14}
    assert sum("(chosen)" in line for line in table) == 1
    assert "| untrained (1.000) |" in table[-1]


def test_markdown_of_a_name_with_a_bar(make_trial, tmp_path):
    trials = [make_trial("a|b_c*d", HALF)]
    write_leaderboard(tmp_path, trials, select(trials), {})
    assert r"| **a\|b\_c\*d** (chosen) |" in (tmp_path / "leaderboard.md").read_text(encoding="utf-8")


def test_what_was_not_measured_is_a_dash_or_empty(make_trial, tmp_path):
    trials = [make_trial("a", HALF), make_trial("b", MOST, None)]
    board = write_leaderboard(tmp_path, trials, select(trials), {})
    assert board.rows[0].cells()[8:11] == ("–", "–", "–")
    assert rows_of(tmp_path)[0]["ms_p50"] == ""


def test_latex_table(trials, tmp_path):
    choice = select(trials)
    assert choice.winner == "lite_0 frozen"  # four queries tell nothing apart, so the cheapest wins
    write_leaderboard(tmp_path, trials, choice, {})
    text = (tmp_path / "leaderboard.tex").read_text(encoding="utf-8")
    assert r"Model & Top-3 accuracy & Avg.\ time per image (s) & Type \\" in text
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")].splitlines()[1:]
    assert body == [
        r"lite\_0 $+$ lite\_2 fine-tuned & 0.750 & 0.0100 & Ensemble \\",
        r"lite\_2 fine-tuned & 0.500 & 0.0060 & Single \\",
        r"\textbf{lite\_0 frozen} & \textbf{0.250} & \textbf{0.0040} & Single \\",
        r"random & untrained (1.000) & 0.0025 & Single \\",
    ]
    assert text.count("{") == text.count("}")
    assert set(re.findall(r"\\(begin|end)\{(\w+)\}", text)) == {
        ("begin", "table"), ("end", "table"), ("begin", "tabular"), ("end", "tabular"),
    }  # fmt: skip
    assert not re.search(r"(?<!\\)[&#_]", re.sub(r" & ", "", text))
    assert r"its 95\% bootstrap" in text


def test_latex_escapes():
    assert latex_escape("a_b + c & 5% #1 $x$ {y}") == r"a\_b $+$ c \& 5\% \#1 \$x\$ \{y\}"
    assert latex_escape("~^\\") == r"\textasciitilde{}\textasciicircum{}\textbackslash{}"


def test_terminal_rows_have_the_header_s_width_and_a_star(trials, tmp_path):
    board = write_leaderboard(tmp_path, trials, select(trials), {})
    assert {len(row) for row in board.terminal_rows} == {len(board.header)}
    assert [row[0].startswith("★ ") for row in board.terminal_rows] == [False, False, True, False]


def test_short_rows_keep_the_winner(trials, tmp_path):
    board = write_leaderboard(tmp_path, trials, select(trials), {})
    assert [row[0] for row in board.short_rows(2)] == ["lite_0 + lite_2 fine-tuned", "★ lite_0 frozen"]
    assert [row[0] for row in board.short_rows(1)] == ["★ lite_0 frozen"]
    assert board.short_rows(50) == board.terminal_rows


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
