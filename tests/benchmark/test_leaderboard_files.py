from __future__ import annotations

import csv
import json
import re
from itertools import combinations

import pytest

from lookalike.benchmark.leaderboard import build_leaderboard
from lookalike.benchmark.leaderboard_files import latex_escape, write_leaderboard
from lookalike.benchmark.report import RunDescription
from lookalike.benchmark.selection import select
from lookalike.benchmark.trial import Trial
from lookalike.models.encoder import COMBINATIONS

HALF = [1.0, 1.0, 0.0, 0.0]
MOST = [1.0, 1.0, 1.0, 0.0]


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
    assert Trial.from_dict(row) == trials[1].summary()


def test_markdown_marks_the_winner_and_the_untrained(trials, written):
    table = table_of(written(trials)("md"))
    assert len(table) == 2 + len(trials)
    assert {line.count("|") for line in table} == {15}
    assert [line.startswith("| **lite") and "(winner)" in line for line in table] == [False] * 4 + [True, False]
    assert "| untrained: 1.000 (0.900–1.100) |" in table[-1]


def test_markdown_escapes_names_and_lists_notes(make_trial, written):
    text = written([make_trial("a|b_c*d", MOST, note="uses *half*."), make_trial("c", HALF)])("md")
    assert r"| **a\|b\_c\*d** (winner) |" in text
    assert text.endswith("\n\n- a\\|b\\_c\\*d: uses \\*half\\*.\n")


def test_latex(trials, written):
    text = written(trials)("tex")
    assert r"Model & Top-3 accuracy & Avg.\ time per image (s) & Type \\" in text
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")].splitlines()[1:]
    assert body == [
        r"lite\_0 $+$ lite\_2 fine-tuned & 0.750 (0.650--0.850) & 0.0100 & Ensemble \\",
        r"lite\_2 fine-tuned & 0.500 (0.400--0.600) & 0.0060 & Single \\",
        r"\textbf{lite\_0 frozen} & \textbf{0.250 (0.150--0.350)} & \textbf{0.0040} & Single \\",
        r"random & untrained: 1.000 (0.900--1.100) & 0.0025 & Single \\",
    ]
    assert text.count("{") == text.count("}")
    assert not re.search(r"(?<!\\)[&#_]", re.sub(r" & ", "", text))
    assert r"with 95\% bootstrap intervals" in text and "batches of 32 on cpu" in text


def test_latex_escapes():
    assert latex_escape("a_b + c & 5% #1 $x$ {y}") == r"a\_b $+$ c \& 5\% \#1 \$x\$ \{y\}"
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
    assert [len(group) for group in build_leaderboard(trials, select(trials)).groups()] == [6, 6, 39]
    text = written(trials)
    shown, _, folded = text("md").partition("<details><summary>39 more ensembles, none on the Pareto front</summary>")
    assert len(table_of(shown)) == 2 + 12 and "(winner)" in shown
    assert len(table_of(folded)) == 2 + 39 and "</details>" in folded
    assert text("tex").count(r" & Ensemble \\") == 6
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
