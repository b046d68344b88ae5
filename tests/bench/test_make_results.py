"""docs/results.md, the script that makes it, and the one that keeps its figures."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from lookalike.evaluation import compare

ROOT = Path(__file__).resolve().parents[2]
EFFICIENTNET, RESNET = "test_efficientnet", "test_resnet"


def script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results(finished, tmp_path_factory):
    """What is kept of the finished run."""
    place = tmp_path_factory.mktemp("results") / "results.json"
    yardstick = {f"{EFFICIENTNET} fine-tuned": (0.5, 0.25, 0.125)}
    keep = script("benchmarks/real_sets.py").keep
    keep("photos", finished.out, yardstick, place)
    keep("again", finished.out, {}, place)
    return json.loads(place.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(results):
    return script("docs/make_results.py").render(results)


def test_figures_are_kept_by_data_set(results, finished):
    assert list(results) == ["photos", "again"]
    assert [r["model"] for r in results["photos"]["rows"]] == [r.model for r in finished.leaderboard.rows]
    assert results["photos"]["choice"]["winner"] == finished.choice.winner
    assert str(finished.out) not in json.dumps(results)


def test_every_aligned_pair_is_compared_with_the_better_of_its_members_on_the_test_queries(results, finished):
    found = {c["ensemble"]: c for c in results["photos"]["comparisons"]}
    trials = {t.name: t for t in finished.trials}
    assert list(found) == [r.model for r in finished.leaderboard.rows if r.model.endswith(", aligned")]
    name = f"{EFFICIENTNET} fine-tuned + {RESNET} frozen, aligned"
    members = [trials[m] for m in trials[name].members]
    better = members[0] if members[0].test.mean("precision@3") >= members[1].test.mean("precision@3") else members[1]
    assert found[name]["better_member"] == better.name
    assert found[name]["queries"] == 8
    by_hand = compare(trials[name].test.values["precision@3"], better.test.values["precision@3"])
    assert (found[name]["difference"], found[name]["low"], found[name]["high"]) == (
        by_hand.difference, by_hand.low, by_hand.high,
    )  # fmt: skip


def test_training_is_kept(results):
    reports = results["photos"]["training"]
    assert [r["backbone"] for r in reports] == [EFFICIENTNET, RESNET]
    for report in reports:
        assert 0 <= report["share"] <= 1 and report["epochs"] == 2 and report["seconds"] > 0
        assert set(report["validation"]) == {"frozen", "head", "fine-tuned"}


def section(page: str, name: str) -> str:
    return page.partition(f"## {name}\n")[2].partition("\n## ")[0]


def test_a_section_has_singles_and_aligned_pairs_first_and_the_rest_folded(page):
    first, _, folded = section(page, "photos").partition("<details>")
    rows = re.search(r"(?:^\|.*\n)+", first, re.MULTILINE)[0].splitlines()[2:]
    ensembles = [row for row in rows if " + " in row]
    assert len(ensembles) == 6 and all(", aligned" in row for row in ensembles)
    assert len(rows) == 4 + 6 + 1  # and the yardstick
    assert not re.search(", average|, concat", first)
    assert len(re.findall(", average|, concat", folded)) == 12
    assert "12 ensembles without alignment" in folded


def test_every_table_is_a_rectangle(page):
    tables = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    assert len(tables) == 2 * 3
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_the_yardstick_stands_below_its_row(page):
    lines = section(page, "photos").splitlines()
    place = next(n for n, line in enumerate(lines) if line.startswith("| *yardstick for"))
    assert re.match(r"\| (\*\*)?test\\_efficientnet fine-tuned", lines[place - 1])
    assert lines[place].endswith("| *0.500* | – | – | *0.250* | *0.125* | – | – | – | – |")
    assert "yardstick for" not in section(page, "again")


def test_choice_machine_significance_and_training_are_told(page, finished, results):
    text = section(page, "photos")
    assert finished.choice.reason.replace("_", "\\_") in text
    assert re.search(
        r"^Machine: .+, \d+ cores; 2 threads on cpu, 100 images one at a time, batches of 32; python", text, re.M
    )
    assert "Paired bootstrap on the queries, precision@3 of an aligned ensemble less" in text
    tuned = r"- test\_efficientnet fine-tuned + test\_resnet fine-tuned, aligned: "
    assert text.count(tuned) == 1
    share = results["photos"]["training"][0]["share"]
    assert re.search(rf"^\| test\\_efficientnet \| {share:.0%} \| 2 \| \d+ \| 0\.\d{{3}} \|", text, re.M)


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (0.02, "significantly better than b fine-tuned, +0.020"),
        (-0.02, "significantly worse than b fine-tuned, −0.020"),
        (0.0, "not significantly different from b fine-tuned, 0.000"),
    ],
)
def test_the_verdict_on_an_ensemble(difference, said):
    low, high = difference - 0.01, difference + 0.01
    found = {"difference": difference, "low": low, "high": high, "significant": difference != 0}
    pair = {
        "members": ["a fine-tuned", "b fine-tuned"],
        "better_member": "b fine-tuned",
        "queries": 9,
        "ensemble": "a + b",
    }
    lines = list(script("docs/make_results.py")._significance([pair | found], "precision@3"))
    assert lines[-1].startswith(f"- a + b: {said} (95% interval ") and lines[-1].endswith(", 9 queries).")
    better, worse = int("better" in said), int("worse" in said)
    assert f"of all 1, {better} are significantly better, {worse} significantly worse" in lines[0]


def test_the_page_in_the_repository_is_the_one_that_the_figures_make():
    figures = ROOT / "docs" / "results.json"
    if not figures.is_file():
        pytest.skip("docs/results.json is not there; benchmarks/real_sets.py writes it")
    made = script("docs/make_results.py").render(json.loads(figures.read_text(encoding="utf-8")))
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == made, "run: python docs/make_results.py"
