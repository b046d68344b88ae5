from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lookalike.benchmark.pareto_plot import pareto_svg
from lookalike.benchmark.report import ClassScore, Example, best_and_worst, class_scores, write_report
from lookalike.benchmark.selection import select

HALF = [1.0, 1.0, 0.0, 0.0]
MOST = [1.0, 1.0, 1.0, 0.0]
_VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects tags with their attributes and checks that elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if "style" not in self._open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def trials(make_trial):
    return [
        make_trial("lite_0 frozen", HALF, 8, test=HALF, trained="frozen"),
        make_trial("lite_2 fine-tuned", HALF, 12, test=HALF, note="weights from a package"),
        make_trial("lite_0 + lite_2", MOST, 60, test=MOST, kind="ensemble", combine="aligned"),
        make_trial("random", HALF, 5, test=HALF, trained="untrained"),
    ]


def photo(folder: Path, place: int) -> Path:
    return sorted((folder / "test/gallery").iterdir())[place]


def test_report_is_one_file_with_everything_in_it(trials, photo_folder, tmp_path):
    good, bad = photo(photo_folder, 0), tmp_path / "lost.jpg"
    hits = [("g/same.jpg", good, "cat", 0.91), ("g/other.jpg", good, "dog", 0.5), ("g/lost.jpg", bad, "dog", 0.25)]
    examples = [Example("q/1.jpg", good, "cat", hits, 1.0), Example("q/2.jpg", good, "cat", hits, 0.0)]
    context = {
        "title": "Cats <and> dogs", "data": "two lines\nof data", "machine": {"cpu_count": 2}, "settings": {"seed": 7},
        "skipped": ["a.jpg: the file is empty"], "notes": ["a note"],
    }  # fmt: skip
    choice = select(trials)
    write_report(tmp_path / "report.html", trials, choice, context, examples, [ClassScore("cat", 2, 0.5, 0.1, 0.9)])

    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(source)
    assert not re.search(r"https?:|//[a-z]|url\((?!#)|@import", re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", source))
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    images = page.all("img")
    assert len(images) == 2 + 4  # two queries with two readable hits each
    assert all(str(image["src"]).startswith("data:image/jpeg;base64,") and image["alt"] for image in images)
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    for text in (
        "Cats <and> dogs", "of data", choice.reason, "untrained: 0.500 (0.400–0.600)", "weights from a package",
        "a note", "a.jpg: the file is empty", "Cpu count", "lost.jpg", "✓", "✗", "could not be chosen",
    ):  # fmt: skip
        assert text in page.text
    assert "<and>" not in source


def table_of(source: str) -> list[list[str]]:
    """Return the texts of the cells of the main table, a row a list; headings of groups are left out."""
    body = source[source.index("<table>") : source.index("</table>")]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", body, re.DOTALL)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]
    return [[re.sub(r"<[^>]+>", "", cell) for cell in row] for row in cells if len(row) > 6]


def test_the_table_has_every_interval_and_decoding_apart_from_the_model(trials, tmp_path):
    trials.append(replace(trials[1], name="scratch fine-tuned", from_random=True))
    write_report(tmp_path / "r.html", trials, select(trials), {})
    source = (tmp_path / "r.html").read_text(encoding="utf-8")
    header, *rows = table_of(source)
    assert header == [
        "#", "Model", "Top-3 accuracy", "hit@3", "hit@1", "map@r", "Top-3 accuracy", "p50", "decode", "model", "p95",
        "batched", "Dim.", "MB",
    ]  # fmt: skip
    by_name = {row[1]: row[2:] for row in rows}
    assert by_name["lite_2 fine-tuned"] == [
        "0.500 (0.400–0.600)", "0.500 (0.400–0.600)", "0.250 (0.000–1.000)", "0.250 (0.000–1.000)",
        "0.500 (0.400–0.600)", "12.0", "2.4", "9.6", "18.0", "6.0", "512", "900",
    ]  # fmt: skip
    assert "scratch fine-tuned †" in by_name
    assert "† trained from random weights" in Page(source).text
    spans = [int(n) for n in re.findall(r'colspan="(\d+)"', source[: source.index("</table>")])]
    assert spans == [2, 4, 5, 2, 14, 14]


def test_the_table_scrolls_beside_names_that_stay_on_a_narrow_screen(trials, tmp_path):
    write_report(tmp_path / "r.html", trials, select(trials), {})
    source = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert ".scroll { overflow-x: auto;" in source
    narrow = source[source.index("@media (max-width: 40rem) {\n  .wide") :]
    narrow = narrow[: narrow.index("@media print")]
    assert "position: sticky; left: 0;" in narrow


def test_relevance_is_told_by_a_mark_and_a_name_not_only_by_colour(trials, photo_folder, tmp_path):
    path = photo(photo_folder, 0)
    example = Example("q", path, "cat", [("a", path, "cat", 0.9), ("b", path, "dog", 0.8), ("c", path, None, 0.7)], 0.5)
    write_report(tmp_path / "r.html", trials, select(trials), {}, [example])
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    marks = [attrs["aria-label"] for attrs in page.all("span") if attrs.get("class") == "mark"]
    assert marks == ["same class", "another class"]
    assert [attrs.get("class") for attrs in page.all("li") if "title" in attrs] == ["same", "other", None]


def test_unlabelled_test_part(make_trial, photo_folder, tmp_path):
    trials = [make_trial("a", HALF, 5), make_trial("b", MOST, 9)]
    path = photo(photo_folder, 1)
    example = Example("q/9.jpg", path, None, [("g/1.jpg", path, None, 0.9)], 0.5)
    write_report(tmp_path / "r.html", trials, select(trials), {}, [example])
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "query and gallery carry no labels" in page.text
    assert "By class" not in page.text
    assert "g/1.jpg" in page.text
    assert not [attrs for attrs in page.all("span") if attrs.get("class") == "mark"]


def test_many_ensembles_are_folded_but_not_the_winner(make_trial, tmp_path):
    values = [[1.0] * n + [0.0] * (40 - n) for n in range(5, 21)]
    trials = [make_trial(f"e{n}", v, 30 - n, kind="ensemble", combine="concat") for n, v in enumerate(values[:15])]
    trials.append(make_trial("cheap + fine", [0.0] * 38 + [1.0] * 2, 1, kind="ensemble", combine="average"))
    choice = select(trials, budget_ms=2)
    assert choice.winner == "cheap + fine"
    write_report(tmp_path / "r.html", trials, choice, {})
    source = (tmp_path / "r.html").read_text(encoding="utf-8")
    folded = source[source.index("more ensembles") : source.index("</details>")]
    # Kept are the six most accurate, e14 to e9, and the winner: e14 is both, most accurate and fastest of the others.
    assert "9 more ensembles" in Page(source).text
    assert re.findall(r'<span class="word">(e\d+)</span>', folded) == [f"e{n}" for n in range(8, -1, -1)]


def test_best_and_worst_do_not_overlap_and_spread_over_the_classes():
    values = {"a1": 1.0, "a2": 1.0, "b1": 1.0, "a3": 0.0, "b2": 0.0, "b3": 0.0}
    labels = {query: query[0] for query in values}
    assert best_and_worst(values, labels, 2) == (["a1", "b1"], ["a3", "b2"])
    best, worst = best_and_worst(values, labels, 10)
    assert sorted(best) == ["a1", "a2", "b1"] and sorted(worst) == ["a3", "b2", "b3"]
    assert best_and_worst({"a1": 1.0}, labels, 3) == ([], [])


def test_class_scores_hardest_first():
    values = {"1": 1.0, "2": 0.0, "3": 0.0, "4": 0.0, "5": 1.0}
    labels = {"1": "cat", "2": "cat", "3": "dog", "4": "dog", "5": None}
    assert class_scores(values, labels) == [
        ClassScore("dog", 2, 0.0, 0.0, 0.0),
        ClassScore("cat", 2, 0.5, 0.0, 1.0),
    ]


def test_plot_shows_each_candidate_once_with_its_name(trials):
    numbers = {t.name: n for n, t in enumerate(trials, start=1)}
    svg = pareto_svg(trials, select(trials), numbers, size=(860, 460), names=True)
    titles = re.findall(r"<title>(.*?)</title>", svg)
    assert [title.split(":")[0] for title in titles] == ["lite_0 frozen", "lite_2 fine-tuned", "lite_0 + lite_2"]
    assert "lite_0 frozen: 0.500 (0.400 to 0.600) at 8.0 ms" in titles
    assert "http" not in svg and "#0" not in svg.replace('="#', "") and "var(--accent)" in svg


def test_plot_of_one_candidate_and_of_equal_ones(make_trial):
    only = [make_trial("only", HALF)]
    assert "only" in pareto_svg(only, select(only), {"only": 1}, size=(360, 380), names=True)
    twins = [make_trial("a", HALF), make_trial("b", HALF)]
    svg = pareto_svg(twins, select(twins), {"a": 1, "b": 2}, size=(360, 380), names=False)
    assert len(re.findall("<title>", svg)) == 2


def test_no_tick_is_above_what_a_share_can_be(make_trial):
    trials = [make_trial("sure", [0.9] * 9), make_trial("not so", [0.81] * 9)]  # with intervals of 0.1 to both sides
    svg = pareto_svg(trials, select(trials), {"sure": 1, "not so": 2}, size=(860, 460), names=True)
    accuracies = [float(text) for text in re.findall(r">(\d\.\d+)</text>", svg)]
    assert max(accuracies) == 1.0


def test_no_name_lies_across_the_front(make_trial, monkeypatch):
    """The dearer of two points that are nearly level, at the right edge: room for its name is across the line only."""
    from lookalike.benchmark import pareto_plot

    trials = [
        make_trial("cheap", [0.841, 0.941] * 5, 18.7),  # not significantly below the next
        make_trial("dear fine-tuned + another one fine-tuned, concat", [0.945, 0.845] * 5, 46.0, kind="ensemble"),
        make_trial("poor", [0.81] * 10, 32.0),
    ]
    for trial in trials:  # no room above either
        trial.validation.measures["precision@3"]["high"] = trial.validation.mean("precision@3") + 0.005
    drawn = {}
    real = pareto_plot._labels

    def labels(axes, shown, choice, *further):
        real(axes, shown, choice, *further)
        drawn["names"] = [t for t in axes.texts if re.search("[a-z]", t.get_text())]
        drawn["extents"] = [t.get_window_extent() for t in drawn["names"]]
        drawn["front"] = axes.transData.transform([(t.cost_ms, t.validation.mean("precision@3")) for t in trials[:2]])

    monkeypatch.setattr(pareto_plot, "_labels", labels)
    numbers = {t.name: n for n, t in enumerate(trials, start=1)}
    pareto_svg(trials, select(trials), numbers, size=(860, 460), names=True)
    assert any("cheap" in t.get_text() for t in drawn["names"])
    (left, level), (right, above) = drawn["front"]
    for extent in drawn["extents"]:
        assert not (extent.x0 < right and extent.x1 > left and extent.y0 < level < extent.y1)
        assert not (extent.x1 > right and extent.y0 < above < extent.y1)


def test_plot_leaves_the_settings_of_matplotlib_alone(trials):
    import matplotlib

    before = dict(matplotlib.rcParams)
    numbers = {t.name: n for n, t in enumerate(trials, start=1)}
    choice = select(trials)
    first = pareto_svg(trials, choice, numbers, size=(360, 380), names=False)
    assert dict(matplotlib.rcParams) == before
    assert pareto_svg(trials, choice, numbers, size=(360, 380), names=False) == first


def test_a_hostile_name_stays_text(make_trial, tmp_path):
    trials = [make_trial('<img src=x onerror="1">', HALF)]
    write_report(tmp_path / "r.html", trials, select(trials), {})
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert not page.all("img")
