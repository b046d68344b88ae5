"""`lookalike embed`, `index`, `search`, `evaluate`, `submit` and `post`."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lookalike.embeddings.folder import load_embeddings
from lookalike.models.bundle import read_bundle_info, save_bundle
from lookalike.runtimes.load import load_encoder
from lookalike.types import Calibration

CAT = "photos/test/query/cat0.jpg"
CLASSES = ("astronaut", "cat", "coffee", "rocket")


def test_embed_index_search(workspace, lookalike):
    outcome = lookalike("embed photos/test/gallery --model model --out gallery.emb")
    assert (outcome.code, outcome.out) == (0, "gallery.emb\n")
    assert outcome.err.splitlines() == [
        "embedding: 12/12",
        "12 images embedded, 512 dimensions",
        "next: lookalike index gallery.emb --out gallery.index",
    ]
    outcome = lookalike("index gallery.emb --out gallery.index")
    assert (outcome.code, outcome.out) == (0, "gallery.index\n")
    assert outcome.err.splitlines() == ["12 images indexed", "next: lookalike search gallery.index IMAGE"]
    outcome = lookalike(f"search gallery.index {CAT} -k 3")
    assert outcome.code == 0
    title, header, *rows = outcome.table
    assert title == [CAT]
    assert header == ["rank", "score", "path"]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert all(Path(row[2]).is_file() and row[2].startswith("photos/test/gallery/") for row in rows)
    scores = [float(row[1]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert outcome.err == "queries: 1/1\n"


def test_index_of_a_data_set_holds_its_gallery(workspace, lookalike):
    outcome = lookalike("index photos --model model --out new")
    assert (outcome.code, outcome.out) == (0, "new\n")
    assert "12 images indexed" in outcome.err.splitlines()
    assert "12 gallery images" in outcome.err.splitlines()[0]


def test_search_as_json(workspace, lookalike):
    outcome = lookalike(f"search photos.index {CAT} photos/test/gallery/cat0.jpg nowhere.jpg -k 2 --json")
    assert outcome.code == 0
    assert list(outcome.json) == ["queries", "skipped", "missing"]
    assert [q["query"] for q in outcome.json["queries"]] == [CAT, "photos/test/gallery/cat0.jpg"]
    for query in outcome.json["queries"]:
        assert [list(hit) for hit in query["hits"]] == [["id", "path", "score", "probability", "label", "metadata"]] * 2
        assert all(hit["path"] == str(workspace / "photos" / hit["id"]) for hit in query["hits"])
        assert all(Path(hit["id"]).stem.rstrip("012") == hit["label"] for hit in query["hits"])
    assert "test/gallery/cat0.jpg" not in [hit["id"] for hit in outcome.json["queries"][1]["hits"]]
    assert [skipped["path"] for skipped in outcome.json["skipped"]] == ["nowhere.jpg"]
    count, skipped = outcome.err.splitlines()[-2:]
    assert count == "1 file was skipped:"
    assert skipped.startswith("  nowhere.jpg: ")


def test_search_with_a_filter(workspace, lookalike):
    hits = lookalike(f"search photos.index {CAT} -k 12 --json --where \"label == 'cat'\"").json["queries"][0]["hits"]
    assert [hit["id"] for hit in hits] and all("/cat" in hit["id"] for hit in hits)
    outcome = lookalike(f'search photos.index {CAT} --where "year > 2000"')
    assert (outcome.code, len(outcome.table)) == (0, 2)
    assert "no item has a value under 'year', which the filter compares" in outcome.err
    outcome = lookalike(f"search photos.index {CAT} --where \"label = 'cat'\"")
    assert outcome.code == 2
    assert outcome.errors == ["--where cannot be read at character 7: write == to compare: \"= 'cat'\"."]


def test_search_for_more_than_images(workspace, lookalike):
    def names(options):
        outcome = lookalike(f"search photos.index {options} -k 3 --json")
        assert outcome.code == 0, outcome.err
        return [[hit["id"] for hit in query["hits"]] for query in outcome.json["queries"]]

    item = "test/gallery/cat0.jpg"
    (by_id,) = names(f"--id {item}")
    assert item not in by_id
    assert names(f"photos/{item}") == [by_id]
    np.save("vector.npy", load_embeddings("photos.emb").take([item]).vectors)
    (by_vector,) = names("--vector vector.npy")
    assert by_vector == [item, *by_id[:2]]
    assert names(f"{CAT} --crop 0%,0%,100%,100%") == names(CAT)
    assert len(names(f"{CAT} photos/test/query/rocket0.jpg --mean")) == 1
    assert len(names(f"{CAT} --id {item} --positive {item} --negative photos/test/query/rocket0.jpg")) == 2


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ("", "needs an image, an id"),
        (f"{CAT} --crop 1,2", "--crop"),
        ("--mean", "--mean"),
        ("--id nothing.jpg", "--id"),
        ("--vector labels.csv", "labels.csv"),
        (f"--negative {CAT}", "or a positive example"),
    ],
)
def test_search_for_what_is_not_a_query(workspace, lookalike, options, flag):
    outcome = lookalike(f"search photos.index {options}")
    assert outcome.code == 2
    (message,) = outcome.errors
    assert flag in message


def test_search_prints_a_table_per_query(workspace, lookalike):
    outcome = lookalike(f"search photos.index {CAT} photos/test/query/rocket0.jpg -k 1")
    first, second = outcome.out.split("\n\n")
    assert [block.splitlines()[0] for block in (first, second)] == [CAT, "photos/test/query/rocket0.jpg"]
    assert not second.endswith("\n\n")


def test_search_with_probabilities(workspace, lookalike):
    calibration = Calibration(20.0, -10.0, 100, 0.01)
    record = replace(read_bundle_info(Path("model")), calibration=calibration)
    save_bundle(load_encoder("model"), "calibrated", record)
    lookalike("index photos/test/gallery --model calibrated --out calibrated.index")
    outcome = lookalike(f"search calibrated.index {CAT} -k 2")
    _, header, *rows = outcome.table
    assert header == ["rank", "probability", "score", "path"]
    assert [float(row[1]) for row in rows] == pytest.approx(
        calibration.probabilities([float(row[2]) for row in rows]), abs=0.006
    )
    outcome = lookalike(f"search calibrated.index {CAT} photos/test/query/rocket0.jpg --min-probability 1")
    assert (outcome.code, outcome.out) == (0, f"{CAT}\nno match\n\nphotos/test/query/rocket0.jpg\nno match\n")
    assert "calibration error" in lookalike("evaluate photos --model calibrated").out


def test_search_has_ten_hits_or_all(workspace, lookalike):
    assert len(lookalike(f"search photos.index {CAT}").table) == 2 + 10
    shutil.copytree("photos/test/query", "few")
    lookalike("index few --model model --out few.index")
    assert len(lookalike(f"search few.index {CAT}").table) == 2 + 8
    assert len(lookalike("search few.index few/cat0.jpg").table) == 2 + 7  # without itself


def test_search_as_a_page(workspace, lookalike):
    for _ in range(2):  # the second one replaces the first
        outcome = lookalike(f"search photos.index {CAT} -k 2 --html hits.html")
        assert (outcome.code, outcome.err.splitlines()[-1]) == (0, "page: hits.html")
    page = Path("hits.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 3


def test_evaluate(workspace, lookalike):
    outcome = lookalike("evaluate photos --model model")
    assert outcome.code == 0
    kinds = [f"{kind}@{k}" for kind in ("precision", "hit", "recall") for k in (1, 3, 10)]
    rows = [row for row in outcome.table if "to" in row]
    assert [row[0] for row in rows] == [*kinds, "map@r", "mrr"]
    assert all(fact in outcome.out.splitlines()[-1] for fact in ("8 queries", "12 gallery images"))


def test_evaluate_as_json(workspace, lookalike):
    outcome = lookalike("evaluate photos --model model -k 3 --measure ndcg@5 --json")
    assert outcome.code == 0
    assert list(outcome.json["measures"]) == ["precision@3", "hit@3", "recall@3", "map@r", "mrr", "ndcg@5"]
    for value in outcome.json["measures"].values():
        assert list(value) == ["mean", "low", "high"]
        assert 0 <= value["low"] <= value["mean"] <= value["high"] <= 1
    assert (outcome.json["queries"], outcome.json["gallery"]) == (8, 12)


def test_evaluate_against_another_model(workspace, lookalike):
    command = "evaluate photos --model model --against test_resnet --weights none -k 3"
    outcome = lookalike(command)
    assert (outcome.code, outcome.out.splitlines()[0].endswith("vs test_resnet (untrained)")) == (0, True)
    content = lookalike(f"{command} --json").json
    assert content["against_model"] == "test_resnet (untrained)"
    assert list(content["against"]) == list(content["measures"])
    for value in content["against"].values():
        assert list(value) == ["difference", "low", "high", "significant"]
        assert value["low"] <= value["difference"] <= value["high"]


def test_evaluate_against_a_small_gallery_has_smaller_ks(workspace, lookalike):
    for name in CLASSES:
        Path(f"photos/test/gallery/{name}0.jpg").unlink()
    outcome = lookalike("evaluate photos --model model --json")
    assert [m for m in outcome.json["measures"] if m.startswith("hit")] == ["hit@1", "hit@3"]


def test_submit(workspace, lookalike):
    outcome = lookalike("submit photos --model model -k 3 --group us --out s.json")
    assert (outcome.code, outcome.out) == (0, "s.json\n")
    assert outcome.err.splitlines()[-1] == "8 queries, 3 gallery images each"
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


def test_submit_and_post(workspace, lookalike, score_server):
    url = score_server.url.replace("http://", "http://us:secret@")
    outcome = lookalike(f"submit photos --model model -k 3 --out s.json --post {url} --dry-run")
    assert outcome.code == 0
    path, request, *_ = outcome.out.splitlines()
    assert (path, request) == ("s.json", f"POST {score_server.url}")
    assert score_server.requests == []
    outcome = lookalike(f"post s.json {url} --model model --dry-run")
    assert (outcome.code, outcome.out.splitlines()[0]) == (0, request)
    assert score_server.requests == []
    outcome = lookalike(f"post s.json {url} --model model")
    assert (outcome.code, outcome.out) == (0, "0.8125\n")
    assert outcome.err.splitlines() == [
        f"posted s.json to {score_server.url}: accuracy 0.8125",
        "recorded in submissions.csv",
    ]
    outcome = lookalike(f"submit photos --model model -k 3 --out t.json --post {url} --again")
    assert (outcome.code, outcome.out) == (0, "t.json\n0.8125\n")
    assert score_server.bodies == 2 * [Path("s.json").read_bytes()]
    with Path("submissions.csv").open(newline="") as handle:
        first, second = csv.DictReader(handle)
    assert (first["file"], second["file"]) == ("s.json", "t.json")
    assert (
        first["fingerprint"]
        == second["fingerprint"]
        == json.loads(Path("model/bundle.json").read_text())["fingerprint"]
    )


def test_a_submission_is_not_posted_twice(workspace, lookalike, fails, score_server):
    lookalike("submit photos --model model -k 3 --out s.json")
    lookalike(f"post s.json {score_server.url}")
    fails(f"post s.json {score_server.url}", "s.json", "0.8125", "--again")
    assert len(score_server.requests) == 1
    score_server.replies = [lambda handler: handler.send_error(500)]
    fails(f"post s.json {score_server.url} --again", "500", "may have been counted", grows="submissions.csv")
    score_server.replies = [lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\nthanks")]
    fails(f"post s.json {score_server.url}/2", "'thanks'", "--score-field", grows="submissions.csv")


def test_submit_reports_unreadable_gallery_files(workspace, lookalike):
    Path("photos/test/gallery/cat0.jpg").write_text("not an image")
    outcome = lookalike("submit photos --model model -k 3 --out s.json")
    assert (outcome.code, outcome.out) == (0, "s.json\n")
    count, skipped, summary = outcome.err.splitlines()[-3:]
    assert count == "1 file was skipped:"
    assert skipped.startswith("  photos/test/gallery/cat0.jpg: ")
    assert summary == "8 queries, 3 gallery images each"


@pytest.mark.parametrize(
    "line",
    [
        "embed photos/test --model model --out new",
        "index photos/test --model model --out new",
        "evaluate photos --model model",
        "submit photos --model model -k 3 --out s.json",
    ],
)
def test_a_folder_that_cannot_be_listed_is_skipped(line, workspace, lookalike, close_folder):
    Path("photos/test/gallery/more").mkdir()
    close_folder(Path("photos/test/gallery/more"))
    outcome = lookalike(line)
    assert (outcome.code, outcome.errors) == (0, [])
    lines = outcome.err.splitlines()
    skipped = lines[lines.index("1 file was skipped:") + 1]
    assert skipped == "  photos/test/gallery/more: the folder cannot be listed (permission denied)"
