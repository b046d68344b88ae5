"""docs/results/benchmarks.md, the script that makes it, and the one that stores its numbers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from lookalike.benchmark.leaderboard import Leaderboard, Row
from lookalike.benchmark.trial import Member, SplitMeasures, Trial, format_estimate
from lookalike.evaluation.bootstrap import paired_bootstrap
from lookalike.models.info import joint_state
from lookalike.types import Estimate

ROOT = Path(__file__).resolve().parents[2]
EFFICIENTNET, RESNET = "test_efficientnet", "test_resnet"


@pytest.fixture(scope="module")
def pages(load_script):
    return load_script("docs/make_results.py")


@pytest.fixture(scope="module")
def real_sets(load_script):
    return load_script("benchmarks/real_sets.py")


@pytest.fixture(scope="module")
def results(real_sets, finished, tmp_path_factory):
    """Results stored from the finished benchmark."""
    path = tmp_path_factory.mktemp("results") / "results.json"
    baseline = {f"{EFFICIENTNET} fine-tuned": (0.5, 0.25, 0.125)}
    keep = real_sets.save_results
    interval = {"mean": 0.919, "low": 0.89, "high": 0.944}
    refit = {"model": EFFICIENTNET, "images": 1822, "seconds": 301.6, "measures": {"hit@1": interval}}
    keep("photos", finished.out, baseline, path, command="lookalike benchmark photos", refit=refit)
    keep("again", finished.out, {}, path)
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(pages, results):
    return pages.render(results)


def test_the_page_has_the_command_and_the_refitted_model(page):
    assert page.count("$ lookalike benchmark photos\n") == 1
    again = [line for line in page.splitlines() if "trained again" in line]
    assert again == [
        r"test\_efficientnet, trained again by `lookalike refit` on all 1,822 labelled images, validation "
        "included (302 s): hit@1 0.919 (0.890–0.944). "
        "It has no validation accuracy, so it takes no part in the selection."
    ]


def test_results_are_stored_by_data_set(results, finished):
    assert list(results) == ["photos", "again"]
    assert [r["name"] for r in results["photos"]["rows"]] == [r.trial.name for r in finished.leaderboard.rows]
    assert results["photos"]["selection"]["winner"] == finished.selection.winner
    assert str(finished.out) not in json.dumps(results)


def test_every_aligned_pair_is_compared_with_its_better_member_on_test_queries(results, finished):
    comparisons = {c["ensemble"]: c for c in results["photos"]["comparisons"]}
    trials = {t.name: t for t in finished.trials}
    assert list(comparisons) == [r.trial.name for r in finished.leaderboard.rows if r.trial.combination == "aligned"]
    name = f"{EFFICIENTNET} fine-tuned + {RESNET} frozen, aligned"
    members = [trials[m.name] for m in trials[name].members]
    better = members[0] if members[0].test.mean("precision@3") >= members[1].test.mean("precision@3") else members[1]
    assert comparisons[name]["better_member"] == better.name
    assert comparisons[name]["queries"] == 8
    by_hand = paired_bootstrap(trials[name].test.values["precision@3"], better.test.values["precision@3"])
    assert (comparisons[name]["difference"], comparisons[name]["low"], comparisons[name]["high"]) == (
        by_hand.difference, by_hand.low, by_hand.high,
    )  # fmt: skip


def test_training_reports_are_stored(results):
    reports = results["photos"]["training"]
    assert [r["backbone"] for r in reports] == [EFFICIENTNET, RESNET]
    for report in reports:
        assert 0 <= report["share"] <= 1 and report["epochs"] == 2 and report["seconds"] > 0
        assert set(report["validation"]) == {"frozen", "head", "fine_tuned", "selected"}


def section(page: str, name: str) -> str:
    return page.partition(f"## {name}\n")[2].partition("\n## ")[0]


def test_a_section_has_singles_and_aligned_pairs_first_and_the_rest_folded(page):
    first, _, folded = section(page, "photos").partition("<details>")
    rows = re.search(r"(?:^\|.*\n)+", first, re.MULTILINE)[0].splitlines()[2:]
    ensembles = [row for row in rows if " + " in row]
    assert len(ensembles) == 6 and all(", aligned" in row for row in ensembles)
    assert len(rows) == 4 + 6 + 1  # and the baseline
    assert not re.search(", average|, concat", first)
    assert len(re.findall(", average|, concat", folded)) == 12
    assert "12 ensembles without alignment" in folded


def test_every_table_is_a_rectangle(page):
    tables = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    assert len(tables) == 1 + 2 * 3
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_the_baseline_is_below_its_row(page):
    lines = section(page, "photos").splitlines()
    position = next(n for n, line in enumerate(lines) if line.startswith("| *baseline for"))
    assert re.match(r"\| (\*\*)?test\\_efficientnet fine-tuned", lines[position - 1])
    assert lines[position].endswith("| – | *0.500* | – | – | *0.250* | *0.125* | – | – | – | – | – | – | – |")
    assert "baseline for" not in section(page, "again")


def test_a_table_has_the_columns_of_the_leaderboard_that_fit_a_page(page, finished):
    header, _, first = re.search(r"(?:^\|.*\n)+", section(page, "photos"), re.MULTILINE)[0].splitlines()[:3]
    assert header == (
        "| model | type | top-3 accuracy | vs winner | hit@3 | hit@1 | map@r | validation top-3 accuracy | ms p50 | "
        "ms decode | ms model | ms p95 | ms batched | memory MB |"
    )
    trials = [row.trial for row in finished.leaderboard.rows]
    measured = next(t.test for t in trials if t.kind == "single" or t.combination == "aligned")
    accuracy, hit = (format_estimate(measured.estimate(measure)) for measure in ("precision@3", "hit@3"))
    assert re.search(rf"\| {re.escape(accuracy)} \| [^|]+ \| {re.escape(hit)} \|", first)
    assert re.search(r"\| (single|ensemble), (frozen|fine-tuned|mixed) \|", first)


def test_the_page_has_selection_machine_significance_and_training(page, finished, results):
    text = section(page, "photos")
    assert finished.selection.reason.replace("_", "\\_") in text
    assert re.search(
        r"^Machine: .+, \d+ cores; 2 threads on cpu, 100 images one at a time, batches of 32; python", text, re.M
    )
    assert "precision@3 of an aligned ensemble minus that of its better member" in text
    assert "Fewer than two backbones were fine-tuned" in text  # the ResNet is frozen (squash)
    winner = finished.selection.winner.replace("_", "\\_")
    assert text.count(f"The winner {winner} has a precision@3 of 0.") == 1
    share = results["photos"]["training"][0]["share"]
    assert re.search(rf"^\| test\\_efficientnet \| {share:.0%} \| 2 \| \d+ \| 0\.\d{{3}} \|", text, re.M)


def row_of(name: str, accuracy: float, validation: float = 0.5) -> Row:
    names = name.partition(", ")[0].split(" + ")
    members = [Member(m, *m.split(" ", 1)) for m in names]  # type: ignore[arg-type]
    return Row(
        Trial(
            name=name,
            kind="ensemble" if len(members) > 1 else "single",
            members=tuple(members),
            combination="aligned" if len(members) > 1 else "",
            state=joint_state({m.state for m in members}),
            dim=512,
            validation=SplitMeasures({"precision@3": Estimate(validation, 0.0, 1.0)}, 9, 0, 9),
            test=SplitMeasures({"precision@3": Estimate(accuracy, 0.0, 1.0)}, 9, 0, 9),
        ),
        winner=False,
        on_front=False,
    )


def compared(difference: float, *, significant: bool) -> dict:
    half = 0.01 if significant else 0.04
    low, high = difference - half, difference + half
    return {"queries": 9, "difference": difference, "low": low, "high": high, "significant": significant}


def paired(first: str, second: str, better: str, difference: float, *, significant: bool) -> dict:
    name = f"{first} + {second}, aligned"
    comparison = {"ensemble": name, "members": [first, second], "better_member": better}
    return comparison | compared(difference, significant=significant)


@pytest.fixture
def sentences(pages):
    def write(rows: list[Row], winner: str, comparisons: list[dict], against_frozen: list[dict]) -> list[str]:
        """Return the section on significance, without its blank lines."""
        rows = [replace(row, winner=row.trial.name == winner) for row in rows]
        board = Leaderboard("test", "precision@3", tuple(rows))
        result = {"comparisons": comparisons, "against_frozen": against_frozen}
        return [line for line in pages._significance(result, board) if line]

    return write


TUNED = [
    row_of("a fine-tuned", 0.9),
    row_of("b fine-tuned", 0.85),
    row_of("a fine-tuned + b fine-tuned, aligned", 0.92),
]


@pytest.mark.parametrize(
    ("difference", "significant", "verdict", "said"),
    [
        (0.02, True, "beats its better member, and the difference is significant", "significantly better than"),
        (
            0.02, False, "beats its better member, and the difference is not significant",
            "not significantly different from",
        ),
        (
            -0.02, False, "does not beat its better member, and the difference is not significant",
            "not significantly different from",
        ),
        (
            -0.02, True, "does not beat its better member, and the difference is significant",
            "significantly worse than",
        ),
    ],
)  # fmt: skip
def test_the_verdict_on_an_ensemble(difference, significant, verdict, said, sentences):
    pair = paired("a fine-tuned", "b fine-tuned", "a fine-tuned", difference, significant=significant)
    first, _, overview, last = sentences(TUNED, "a fine-tuned", [pair], [])
    half, sign = (0.01 if significant else 0.04), {True: "+", False: "−"}
    ends = " to ".join(f"{sign[end > 0]}{abs(end):.3f}" for end in (difference - half, difference + half))
    evidence = f"{sign[difference > 0]}0.020 (95% interval of the paired bootstrap {ends}, 9 queries)."
    assert first == (
        f"The aligned ensemble of fine-tuned models, a fine-tuned + b fine-tuned, aligned, {verdict}: "
        f"precision@3 0.920 against 0.900 of a fine-tuned, {evidence}"
    )
    assert last == f"- a fine-tuned + b fine-tuned, aligned: {said} a fine-tuned, {evidence}"
    better, worse = int("better" in said), int("worse" in said)
    assert f"of all 1, {better} significantly better, {worse} significantly worse" in overview


def test_of_several_fine_tuned_ensembles_the_best_on_validation_is_reported(sentences):
    rows = [
        *TUNED[:2], row_of("c fine-tuned", 0.8), row_of("a fine-tuned + b fine-tuned, aligned", 0.99, 0.6),
        row_of("a fine-tuned + c fine-tuned, aligned", 0.91, 0.7),
    ]  # fmt: skip
    pairs = [
        paired("a fine-tuned", other, "a fine-tuned", 0.02, significant=True)
        for other in ("b fine-tuned", "c fine-tuned")
    ]
    first = sentences(rows, "a fine-tuned", pairs, [])[0]
    assert first.startswith(
        "The aligned ensemble of fine-tuned models, the best on validation, a fine-tuned + c fine-tuned, aligned, beats"
    )


def test_without_two_fine_tuned_models_there_is_none_to_compare(sentences):
    rows = [row_of("a frozen", 0.8), row_of("b frozen", 0.7), row_of("a frozen + b frozen, aligned", 0.85)]
    pair = paired("a frozen", "b frozen", "a frozen", 0.05, significant=True)
    first, _, _, last = sentences(rows, "a frozen", [pair], [])
    assert first.startswith("Fewer than two backbones were fine-tuned")
    assert last == "- none."
    alone = sentences(rows[:1], "a frozen", [], [])
    assert alone[1:] == [
        "The winner a frozen has a precision@3 of 0.800 on query and gallery. "
        "It is the best frozen single model itself."
    ]


def frozen(name: str, difference: float, *, significant: bool, same_model: bool = False) -> dict:
    return {"frozen": name, "own_frozen_form": same_model} | compared(difference, significant=significant)


def test_a_fine_tuned_winner_against_the_best_frozen_one_and_its_own_frozen_form(sentences):
    rows = [*TUNED[:1], row_of("a frozen", 0.85), row_of("b frozen", 0.88)]
    against = [frozen("a frozen", 0.05, significant=True, same_model=True), frozen("b frozen", 0.02, significant=False)]
    assert sentences(rows, "a fine-tuned", [], against)[1] == (
        "The winner a fine-tuned has a precision@3 of 0.900 on query and gallery. It is not significantly different "
        "from the best frozen single model on these queries, b frozen with 0.880: +0.020 (95% interval of the paired "
        "bootstrap −0.020 to +0.060, 9 queries). It is significantly better than its own frozen form, a frozen with "
        "0.850: +0.050 (95% interval of the paired bootstrap +0.040 to +0.060, 9 queries)."
    )
    rows[1] = row_of("a frozen", 0.95)
    against[0] |= compared(-0.05, significant=True)
    assert sentences(rows, "a fine-tuned", [], against)[1].endswith(
        " It is significantly worse than the best frozen single model on these queries, its own frozen form, a frozen "
        "with 0.950: −0.050 (95% interval of the paired bootstrap −0.060 to −0.040, 9 queries)."
    )


def test_a_frozen_ensemble_that_won_has_no_fine_tuned_member(sentences):
    rows = [row_of("a frozen", 0.8), row_of("b frozen", 0.7), row_of("a frozen + b frozen, aligned", 0.85)]
    text = sentences(rows, "a frozen + b frozen, aligned", [], [frozen("a frozen", 0.05, significant=True)])[1]
    assert text.endswith("9 queries). None of its members is fine-tuned.")


def test_the_winner_is_compared_with_frozen_single_models_and_its_own_frozen_form(real_sets, make_trial):
    against_frozen = real_sets._against_frozen

    def of(name: str, test: list[float]) -> Trial:
        row = row_of(name, 0.5)
        return replace(make_trial(name, [1.0], test=test), **{
            field: getattr(row.trial, field) for field in ("members", "kind", "state", "combination")
        })  # fmt: skip

    trial_list = [
        of("a frozen", [0.0, 0.0, 1.0, 1.0]),
        of("a fine-tuned", [1.0, 1.0, 1.0, 1.0]),
        of("b frozen", [0.0, 0.0, 0.0, 0.0]),
        of("b fine-tuned", [0.0, 0.0, 0.0, 0.0]),
        of("a frozen + b frozen, aligned", [0.0, 1.0, 1.0, 1.0]),
        of("a fine-tuned + b frozen, aligned", [1.0, 1.0, 1.0, 0.0]),
    ]
    trials = {t.name: t for t in trial_list}
    comparisons = against_frozen(trial_list[5], trials, "precision@3")
    assert [(c["frozen"], c["own_frozen_form"], c["difference"], c["queries"]) for c in comparisons] == [
        ("a frozen", False, 0.25, 4),
        ("b frozen", False, 0.75, 4),
        ("a frozen + b frozen, aligned", True, 0.0, 4),
    ]
    single = against_frozen(trial_list[1], trials, "precision@3")
    assert [(c["frozen"], c["own_frozen_form"], c["difference"]) for c in single] == [
        ("a frozen", True, 0.5),
        ("b frozen", False, 1.0),
    ]
    by_hand = paired_bootstrap([1.0] * 4, [0.0, 0.0, 1.0, 1.0])
    assert (single[0]["low"], single[0]["high"], single[0]["significant"]) == (
        by_hand.low, by_hand.high, by_hand.significant,
    )  # fmt: skip
    assert [c["frozen"] for c in against_frozen(trial_list[0], trials, "precision@3")] == ["b frozen"]


def test_trials_of_an_earlier_run_are_not_read(real_sets, finished_copy, finished, tmp_path):
    (finished_copy / "trials" / "gone-frozen.json").write_text('{"key": "", "trial": {"version": 1}}')
    real_sets.save_results("photos", finished_copy, {}, tmp_path / "results.json")
    stored = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["photos"]
    assert len(stored["rows"]) == len(finished.trials)


def test_the_page_in_the_repository_is_up_to_date(pages):
    figures = ROOT / "docs" / "results" / "benchmarks.json"
    if not figures.is_file():
        pytest.skip("docs/results/benchmarks.json does not exist; benchmarks/real_sets.py writes it")
    results = json.loads(figures.read_text(encoding="utf-8"))
    assert (ROOT / "docs" / "results" / "benchmarks.md").read_text(encoding="utf-8") == pages.render(results), (
        "run: python docs/make_results.py"
    )


def test_the_summary_has_the_winner_of_each_set(pages, results, finished):
    _, _, *rows = pages.summary(results)
    (winner,) = (t for t in finished.trials if t.name == finished.selection.winner)
    best = max(t.test.mean("precision@3") for t in finished.trials if t.kind == "single" and t.state == "frozen")
    means = [f"{winner.test.mean(m):.3f}" for m in ("precision@3", "hit@1", "map@r")]
    (row,) = (r for r in rows if r.startswith("| photos |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:5] == means and cells[6] == f"{best:.3f}"
    assert cells[1].replace("\\", "") == winner.name
