"""Every command on good data: stdout is data, stderr is talk, and what is written is what was asked for."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

CAT = "photos/test/query/cat0.jpg"
CLASSES = ("astronaut", "cat", "coffee", "rocket")


def table(text: str) -> list[list[str]]:
    """Split a table into cells."""
    return [line.split() for line in text.splitlines() if line]


# ---------------------------------------------------------------- check


def test_check_of_sound_data(world, lookalike):
    found = lookalike("check photos")
    assert (found.code, found.out) == (0, "")
    assert found.err.splitlines() == [
        "photos: training and test folders, test part labelled by labels.csv, 44 images",
        "  training       24 images in 4 classes",
        "  query           8 images in 4 classes",
        "  gallery        12 images in 4 classes",
        "checking: 44/44",
        "44 of 44 images readable, 0 errors, 0 warnings",
    ]


@pytest.fixture
def unsound(world):
    """A leak, a contradiction in two files, and two files that are no pictures."""
    shutil.copy("photos/training/cat/cat0.jpg", "photos/test/gallery/leak.jpg")
    shutil.copy("photos/training/cat/cat1.jpg", "photos/training/coffee/cat1.jpg")
    for name in ("a", "b"):
        Path(f"photos/training/cat/{name}.jpg").write_text("no picture")


def test_check_of_unsound_data(unsound, lookalike):
    found = lookalike("check photos --no-near")
    assert found.code == 1
    rows = table(found.out)
    assert rows[0] == ["severity", "finding", "count", "example"]
    assert [row[:3] for row in rows[1:]] == [
        ["error", "unreadable", "2"],
        ["error", "leak", "1"],
        ["error", "contradiction", "1"],
    ]
    assert found.err.splitlines()[-3:] == [
        "one example of each kind is shown; --json lists all 4",
        "46 of 48 images readable, 4 errors, 0 warnings",
        "next: lookalike check photos --clean-manifest CLEAN/manifest.csv leaves 5 images out",
    ]


def test_check_as_json_and_as_files(unsound, lookalike):
    found = lookalike("check photos --no-near --json --out findings.json --clean-manifest clean/manifest.csv")
    assert found.code == 1
    assert (found.json["images"], found.json["readable"]) == (48, 46)
    assert [f["code"] for f in found.json["errors"]] == ["unreadable", "unreadable", "leak", "contradiction"]
    assert json.loads(Path("findings.json").read_text()) == found.json
    assert {"findings: findings.json", "clean manifest: clean/manifest.csv (43 of 48 images)"} <= set(
        found.err.splitlines()
    )
    assert lookalike("check clean --no-near").code == 0


# ---------------------------------------------------------------- train


def test_train_frozen(world, lookalike):
    found = lookalike(
        "train photos --backbone test_efficientnet --weights small.safetensors --frozen --out 'the model'"
    )
    assert (found.code, found.out) == (0, "the model\n")
    *_, measures, following = found.err.splitlines()
    assert measures.startswith("test_efficientnet: validation map@r: frozen 0.")
    assert following == "next: lookalike evaluate photos --model 'the model'"
    assert lookalike("evaluate photos --model 'the model'").code == 0
    Path("photos/labels.csv").unlink()
    unlabelled = lookalike("train photos --backbone test_efficientnet --weights none --frozen --out second")
    assert unlabelled.err.splitlines()[-1] == "next: lookalike index PICTURES --model second --out PICTURES.index"


def test_refit(world, lookalike, refused):
    given = "--weights small.safetensors"
    lookalike(f"train photos --backbone test_efficientnet {given} --frozen --out first")
    before = Path("first/bundle.json").read_bytes()
    found = lookalike(f"refit photos --model first {given} --out final")
    assert (found.code, found.out) == (0, "final\n")
    *_, measures, following = found.err.splitlines()
    assert measures.startswith("test_efficientnet: of the first training, validation map@r: frozen 0.")
    assert following == "next: lookalike index PICTURES --model final --out PICTURES.index"
    assert lookalike("evaluate photos --model final").code == 0
    assert Path("first/bundle.json").read_bytes() == before
    refused(
        f"refit photos --model first {given} --out final",
        "final already exists and is left as it is; choose another place or remove it first.",
    )
    refused(
        "refit photos --model first --weights none --out other2",
        "test_efficientnet was not trained from these weights with the options that its bundle names; give the weights "
        "that it was trained from.",
    )
    refused(
        "refit photos --model model --out other2",
        "model does not say how it was trained; give a bundle that 'lookalike train' or 'benchmark' made.",
    )
    Path("photos/training/cat/cat0.jpg").unlink()
    refused(
        f"refit photos --model first {given} --out other2",
        "first was not trained on the images in photos; give the folder that it was trained on.",
    )


def test_train_combines_as_told(world, lookalike):
    lookalike("train photos --backbone test_efficientnet+test_vit --weights none --frozen --combine concat --out both")
    assert json.loads(Path("both/bundle.json").read_text())["how"] == "concat"


# ---------------------------------------------------------------- embed, index, search


def test_embed_index_search(world, lookalike):
    found = lookalike("embed photos/test/gallery --model model --out gallery.emb")
    assert (found.code, found.out) == (0, "gallery.emb\n")
    assert found.err.splitlines() == [
        "embedding: 12/12",
        "12 images embedded, 512 dimensions",
        "next: lookalike index gallery.emb --out gallery.index",
    ]
    found = lookalike("index gallery.emb --out gallery.index")
    assert (found.code, found.out) == (0, "gallery.index\n")
    assert found.err.splitlines() == ["12 images indexed", "next: lookalike search gallery.index PICTURE"]
    found = lookalike(f"search gallery.index {CAT} -k 3")
    assert found.code == 0
    title, header, *rows = table(found.out)
    assert title == [CAT]
    assert header == ["rank", "score", "path"]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert all(Path(row[2]).is_file() and row[2].startswith("photos/test/gallery/") for row in rows)
    scores = [float(row[1]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert found.err == "queries: 1/1\n"


def test_index_of_a_data_set_takes_its_gallery(world, lookalike):
    found = lookalike("index photos --model model --out new")
    assert (found.code, found.out) == (0, "new\n")
    assert found.err.splitlines()[0] == (
        "photos is a data set: its 12 gallery images are indexed, the 32 images for training and queries are not"
    )


def test_search_as_json(world, lookalike):
    found = lookalike(f"search photos.index {CAT} photos/test/gallery/cat0.jpg nowhere.jpg -k 2 --json")
    assert found.code == 0
    assert list(found.json) == ["queries", "skipped"]
    assert [q["query"] for q in found.json["queries"]] == [CAT, "photos/test/gallery/cat0.jpg"]
    for query in found.json["queries"]:
        assert [list(hit) for hit in query["hits"]] == [["id", "path", "score"]] * 2
        assert all(hit["path"] == str(world / "photos" / hit["id"]) for hit in query["hits"])
    assert "test/gallery/cat0.jpg" not in [hit["id"] for hit in found.json["queries"][1]["hits"]]
    assert found.json["skipped"] == [{"path": "nowhere.jpg", "cause": "the file does not exist"}]
    assert found.err.splitlines()[-2:] == ["1 file was skipped:", "  nowhere.jpg: the file does not exist"]


def test_search_of_several_pictures_prints_a_table_for_each(world, lookalike):
    found = lookalike(f"search photos.index {CAT} photos/test/query/rocket0.jpg -k 1")
    first, second = found.out.split("\n\n")
    assert [block.splitlines()[0] for block in (first, second)] == [CAT, "photos/test/query/rocket0.jpg"]
    assert not second.endswith("\n\n")


def test_search_finds_ten_or_as_many_as_there_are(world, lookalike):
    assert len(table(lookalike(f"search photos.index {CAT}").out)) == 2 + 10
    shutil.copytree("photos/test/query", "few")
    lookalike("index few --model model --out few.index")
    assert len(table(lookalike(f"search few.index {CAT}").out)) == 2 + 8
    assert len(table(lookalike("search few.index few/cat0.jpg").out)) == 2 + 7  # not itself


def test_search_as_a_page(world, lookalike):
    for _ in range(2):  # an older page is replaced
        found = lookalike(f"search photos.index {CAT} -k 2 --html found.html")
        assert (found.code, found.err.splitlines()[-1]) == (0, "page: found.html")
    page = Path("found.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 3


# ---------------------------------------------------------------- evaluate, submit


def test_evaluate(world, lookalike):
    found = lookalike("evaluate photos --model model")
    assert found.code == 0
    *lines, count = found.out.splitlines()
    header, *rows = table("\n".join(lines))
    assert header == ["measure", "mean", "95", "%", "interval"]
    kinds = [f"{kind}@{k}" for kind in ("precision", "hit", "recall") for k in (1, 3, 10)]
    assert [row[0] for row in rows] == [*kinds, "map@r", "mrr"]
    assert count == "8 queries, 0 excluded, 12 gallery images"


def test_evaluate_as_json(world, lookalike):
    found = lookalike("evaluate photos --model model -k 3 --measure ndcg@5 --json")
    assert found.code == 0
    assert list(found.json) == ["measures", "queries", "excluded", "gallery"]
    assert list(found.json["measures"]) == ["precision@3", "hit@3", "recall@3", "map@r", "mrr", "ndcg@5"]
    for value in found.json["measures"].values():
        assert list(value) == ["mean", "low", "high"]
        assert 0 <= value["low"] <= value["mean"] <= value["high"] <= 1
    assert (found.json["queries"], found.json["excluded"], found.json["gallery"]) == (8, 0, 12)


def test_evaluate_against_a_small_gallery_leaves_larger_ks_out(world, lookalike):
    for name in CLASSES:
        Path(f"photos/test/gallery/{name}0.jpg").unlink()
    found = lookalike("evaluate photos --model model --json")
    assert [m for m in found.json["measures"] if m.startswith("hit")] == ["hit@1", "hit@3"]


def test_submit(world, lookalike):
    found = lookalike("submit photos --model model -k 3 --group us --out s.json")
    assert (found.code, found.out) == (0, "s.json\n")
    assert found.err.splitlines()[-1] == "8 queries, 3 gallery images each"
    submission = json.loads(Path("s.json").read_text())
    assert submission["groupname"] == "us"
    assert sorted(submission["images"]) == [f"{name}{n}.jpg" for name in CLASSES for n in range(2)]
    gallery = {p.name for p in Path("photos/test/gallery").iterdir()}
    assert all(len(set(names)) == 3 and set(names) <= gallery for names in submission["images"].values())
    assert lookalike("submit photos --model model -k 3 --out s.csv").code == 0
    with Path("s.csv").open(newline="") as handle:
        header, *rows = csv.reader(handle)
    assert header == ["query", "rank1", "rank2", "rank3"]
    assert {query: names for query, *names in rows} == submission["images"]


def test_submit_lists_the_gallery_files_that_it_could_not_read(world, lookalike):
    Path("photos/test/gallery/cat0.jpg").write_text("no picture")
    found = lookalike("submit photos --model model -k 3 --out s.json")
    assert (found.code, found.out) == (0, "s.json\n")
    assert found.err.splitlines()[-3:] == [
        "1 file was skipped:",
        "  photos/test/gallery/cat0.jpg: not an image that Pillow can read",
        "8 queries, 3 gallery images each",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "embed photos/test --model model --out new",
        "index photos/test --model model --out new",
        "evaluate photos --model model",
        "submit photos --model model -k 3 --out s.json",
    ],
)
def test_a_folder_that_cannot_be_listed_ends_no_command(line, world, lookalike, close_folder):
    Path("photos/test/gallery/more").mkdir()
    close_folder(Path("photos/test/gallery/more"))
    found = lookalike(line)
    assert (found.code, found.errors) == (0, [])
    lines = found.err.splitlines()
    place = lines.index("1 file was skipped:")
    assert lines[place + 1] == "  photos/test/gallery/more: the folder cannot be listed (permission denied)"


def test_a_folder_that_cannot_be_listed_is_found(world, lookalike, close_folder):
    close_folder(Path("photos/training/cat"))
    found = lookalike("check photos --no-near")
    assert found.code == 1
    said = "photos/training/cat: the folder cannot be listed (permission denied)"
    assert table(found.out)[1] == ["error", "unlisted", "1", *f"{said}.".split()]
    note = f"  note: 1 folder was skipped, the first is {said}"
    assert note in found.err.splitlines()


# ---------------------------------------------------------------- benchmark


@pytest.fixture
def timed_here(monkeypatch):
    """Time in this process rather than in one of its own, which takes seconds to start."""
    from lookalike.benchmark.timing import time_members
    from lookalike.models.torch_bundle import load_bundle

    def here(bundles, ways, images, **how):
        return time_members(lambda _: [m for b in bundles for m in load_bundle(b).members], ways, images)

    monkeypatch.setattr("lookalike.benchmark.measuring.measure_timing", here)


@pytest.mark.slow
def test_benchmark(timed_here, world, lookalike):
    line = "benchmark photos --bundle model --bundle other --out 'first run'"
    found = lookalike(line)
    assert found.code == 0
    header, *rows = found.out.split("\n\n")[0].splitlines()
    assert header.split()[:4] == ["model", "type", "top-3", "accuracy"]
    assert len(rows) == 5  # two, and their pair in three ways
    assert sum(row.startswith("★ ") for row in rows) == 1
    assert found.out.splitlines()[-2:] == ["report: first run/report.html", "model:  first run/best"]
    assert found.err.splitlines()[-2:] == [
        "  lookalike index PICTURES --model 'first run/best' --out PICTURES.index",
        "  lookalike search PICTURES.index picture.jpg --html found.html",
    ]
    again = lookalike(f"{line} --json")
    assert again.json == json.loads(Path("first run/leaderboard.json").read_text(encoding="utf-8"))
    assert len(again.json["rows"]) == 5
