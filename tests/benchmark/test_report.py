from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from lookalike.benchmark.leaderboard import RunDescription, build_leaderboard
from lookalike.benchmark.report import Example, best_and_worst, find_examples, write_report
from lookalike.benchmark.selection import select
from lookalike.data.dataset import Dataset, Item, Split
from lookalike.evaluation.evaluation import ClassMean, evaluate_embeddings
from lookalike.types import Embeddings

HALF = [1.0, 1.0, 0.0, 0.0]
MOST = [1.0, 1.0, 1.0, 0.0]
_VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collect tags with their attributes and check that elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open, f"not closed: {self._open}"

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
        make_trial("lite_0 frozen", HALF, 8, test=HALF, state="frozen"),
        make_trial("lite_2 fine-tuned", HALF, 12, test=HALF, note="weights from a package"),
        make_trial("lite_0 + lite_2", MOST, 60, test=MOST, kind="ensemble", combination="aligned"),
        make_trial("random", HALF, 5, test=HALF, state="untrained"),
    ]


def write(path: Path, trials, description=None, examples=(), per_class=None, **options) -> tuple[str, Page]:
    """Write the report of some trials and return its source and its parsed page."""
    selection = select(trials, **options)
    board = build_leaderboard(trials, selection)
    write_report(path, board, selection, description or RunDescription(), examples, per_class or {})
    source = path.read_text(encoding="utf-8")
    return source, Page(source)


def item(name: str, path: Path, label: str | None) -> Item:
    return Item(name, path, label, Split.GALLERY)


@pytest.fixture
def image(data_folder):
    return sorted((data_folder / "test/gallery").iterdir())[0]


def test_report_is_one_file_with_everything_in_it(trials, image, tmp_path):
    missing = tmp_path / "lost.jpg"
    hits = [
        (item("g/same.jpg", image, "cat"), 0.91), (item("g/other.jpg", image, "dog"), 0.5),
        (item("g/lost.jpg", missing, "dog"), 0.25),
    ]  # fmt: skip
    examples = [Example(item(f"q/{value}.jpg", image, "cat"), hits, value) for value in (1.0, 0.0)]
    description = RunDescription(
        title="Cats <and> dogs", data="two lines\nof data", machine={"cpu_count": 2}, settings={"seed": 7},
        skipped=("a.jpg: the file is empty",), notes=("a note",),
    )  # fmt: skip
    per_class = {"cat": ClassMean(0.5, 2, 0.1, 0.9), "dog": ClassMean(0.25, 1, 0.0, 1.0)}
    source, page = write(tmp_path / "report.html", trials, description, examples, per_class)

    without_images = re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", source)
    assert not re.search(r"https?:|//[a-z]|url\((?!#)|@import", without_images)
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    images = page.all("img")
    assert len(images) == 2 + 4  # two queries with two readable hits each
    assert all(str(image["src"]).startswith("data:image/jpeg;base64,") and image["alt"] for image in images)
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    for text in (
        "Cats <and> dogs", "of data", select(trials).reason, "untrained: 0.500 (0.400–0.600)", "weights from a package",
        "a note", "a.jpg: the file is empty", "Cpu count", "lost.jpg", "✓", "✗", "1 model cannot win", "0.100–0.900",
    ):  # fmt: skip
        assert text in page.text
    assert "<and>" not in source
    assert re.findall(r'<th scope="row">(\w+)</th>', source) == ["dog", "cat"]  # the hardest class first


def table_of(source: str) -> list[list[str]]:
    """Return the cells of the main table by row, without the headings of groups."""
    body = source[source.index("<table>") : source.index("</table>")]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", body, re.DOTALL)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]
    return [[re.sub(r"<[^>]+>", "", cell) for cell in row] for row in cells if len(row) > 6]


def test_the_table_has_every_interval_and_time(trials, tmp_path):
    trials.append(replace(trials[1], name="scratch fine-tuned", from_random=True))
    source, page = write(tmp_path / "r.html", trials)
    header, *rows = table_of(source)
    assert header == [
        "#", "Model", "Top-3 accuracy", "vs winner", "hit@3", "hit@1", "map@r", "Top-3 accuracy", "p50", "decode",
        "model", "p95", "batched", "Dim.", "MB",
    ]  # fmt: skip
    by_name = {row[1]: row[2:] for row in rows}
    assert by_name["lite_2 fine-tuned"] == [
        "0.500 (0.400–0.600)", "0.000 on every query", "0.500 (0.400–0.600)", "0.250 (0.000–1.000)",
        "0.250 (0.000–1.000)",
        "0.500 (0.400–0.600)", "12.0", "2.4", "9.6", "18.0", "6.0", "512", "900",
    ]  # fmt: skip
    assert "scratch fine-tuned †" in by_name
    assert "† trained from random weights" in page.text
    spans = [int(n) for n in re.findall(r'colspan="(\d+)"', source[: source.index("</table>")])]
    assert spans == [2, 5, 5, 2, 15, 15]


def test_the_ten_hardest_classes_are_shown_and_the_others_folded(trials, tmp_path):
    per_class = {f"class{n:02}": ClassMean(n / 20, 4, 0.0, 1.0) for n in range(13)}
    source, _ = write(tmp_path / "r.html", trials, per_class=per_class)
    shown, _, folded = source.partition("<summary>3 more classes</summary>")
    assert re.findall(r"class\d\d", shown) == [f"class{n:02}" for n in range(10)]
    assert re.findall(r"class\d\d", folded) == ["class10", "class11", "class12"]
    assert "more class" not in write(tmp_path / "s.html", trials, per_class=dict(list(per_class.items())[:10]))[0]


def test_images_can_be_enlarged_with_the_keyboard(trials, image, tmp_path):
    examples = [Example(item("q", image, "cat"), [(item("g", image, "cat"), 0.9)], 0.5)]
    _, page = write(tmp_path / "r.html", trials, examples=examples)
    assert len([d for d in page.all("details") if d.get("class") == "zoom"]) == 2
    assert all("enlarge" in str(s["title"]) for s in page.all("summary") if s.get("class") == "frame")


def test_card_and_caption_have_the_note_and_the_splits(make_trial, tmp_path):
    trials = [make_trial("a frozen + trained head", MOST, test=MOST, state="frozen + trained head", note="a note.")]
    _, page = write(tmp_path / "r.html", trials)
    assert page.text.count("a frozen + trained head: a note.") >= 3  # card, caption and notes
    assert page.text.count("decides which model wins") >= 2


def test_relevance_is_shown_by_a_mark_and_a_name_not_only_by_colour(trials, image, tmp_path):
    hits = [(item(name, image, label), 0.9) for name, label in (("a", "cat"), ("b", "dog"), ("c", None))]
    _, page = write(tmp_path / "r.html", trials, examples=[Example(item("q", image, "cat"), hits, 0.5)])
    marks = [attrs["aria-label"] for attrs in page.all("span") if attrs.get("class") == "mark"]
    assert marks == ["same class", "another class"]
    assert [attrs.get("class") for attrs in page.all("li") if "title" in attrs] == ["same", "other", None]


def test_without_test_labels_hits_have_no_marks(make_trial, image, tmp_path):
    trials = [make_trial("a", HALF, 5), make_trial("b", MOST, 9)]
    example = Example(item("q/9.jpg", image, None), [(item("g/1.jpg", image, None), 0.9)], 0.5)
    _, page = write(tmp_path / "r.html", trials, examples=[example])
    assert "query and gallery have no labels" in page.text
    assert "By class" not in page.text
    assert "g/1.jpg" in page.text
    assert not [attrs for attrs in page.all("span") if attrs.get("class") == "mark"]


def test_many_ensembles_are_folded_but_not_the_winner(make_trial, tmp_path):
    values = [[1.0] * n + [0.0] * (40 - n) for n in range(5, 21)]
    options = {"kind": "ensemble", "combination": "concat"}
    trials = [make_trial(f"e{n}", v, 30 - n, **options) for n, v in enumerate(values[:15])]
    trials.append(make_trial("cheap + fine", [0.0] * 38 + [1.0] * 2, 1, **options))
    assert select(trials, budget_ms=2).winner == "cheap + fine"
    source, page = write(tmp_path / "r.html", trials, budget_ms=2)
    folded = source[source.index("more ensembles") : source.index("</details>")]
    # shown are the six most accurate, e14 to e9, and the winner
    assert "9 more ensembles" in page.text
    assert re.findall(r'<span class="word">(e\d+)</span>', folded) == [f"e{n}" for n in range(8, -1, -1)]


def test_best_and_worst_do_not_overlap_and_spread_over_the_classes():
    values = {"a1": 1.0, "a2": 1.0, "b1": 1.0, "a3": 0.0, "b2": 0.0, "b3": 0.0}
    labels = {query: query[0] for query in values}
    assert best_and_worst(values, labels, 2) == (["a1", "b1"], ["a3", "b2"])
    best, worst = best_and_worst(values, labels, 10)
    assert sorted(best) == ["a1", "a2", "b1"] and sorted(worst) == ["a3", "b2", "b3"]
    assert best_and_worst({"a1": 1.0}, labels, 3) == ([], [])


@pytest.fixture
def evaluation():
    """Angles of 0, 10, 25 and −30 degrees: the cats find each other first, both dogs find a cat."""
    angles = np.radians([0, 10, 25, -30])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    embeddings = Embeddings(("cat1", "cat2", "dog1", "dog2"), vectors, "fingerprint")
    labels = {i: i[:3] for i in embeddings.ids}
    return evaluate_embeddings(embeddings, embeddings, labels, labels, ["hit@1"])


def test_examples_are_the_best_and_worst_queries_with_their_hits(evaluation, image):
    items = tuple(item(i, image, i[:3]) for i in evaluation.query_ids)
    data = Dataset(image.parent, "by hand", items)
    examples = find_examples(evaluation, "hit@1", data)
    values = dict(zip(evaluation.query_ids, evaluation.per_query("hit@1"), strict=True))
    assert [e.value for e in examples] == [1.0, 1.0, 0.0, 0.0]
    for example in examples:
        assert values[example.query.id] == example.value
        assert example.query.id not in [hit.id for hit, _ in example.hits] and len(example.hits) == 3


def test_a_hostile_name_stays_text(make_trial, tmp_path):
    _, page = write(tmp_path / "r.html", [make_trial('<img src=x onerror="1">', HALF)])
    assert not page.all("img")
