"""The submission file: its form, and the error for each rule that is broken."""

import json
from pathlib import Path

import numpy as np
import pytest

from lookalike.errors import DataError, OptionError
from lookalike.evaluation.submission import Submission
from lookalike.types import Hits, Skipped

QUERIES = ("q1.jpg", "q2.jpg")
GALLERY = ("a.jpg", "b.jpg", "c.jpg")
IMAGES = {"q1.jpg": ("a.jpg", "b.jpg"), "q2.jpg": ("c.jpg", "a.jpg")}
GOOD = Submission("Us", IMAGES)


def hits(queries, ids):
    return Hits(tuple(queries), np.array(ids, dtype=object), np.zeros(np.shape(ids), dtype=np.float32))


def refuse(*facts, error=DataError, argument=None):
    """Expect an error that names all of the facts in this order."""
    return pytest.raises(error, match=r".*".join(facts), check=lambda raised: raised.argument == argument)


def test_names_are_file_names():
    result = hits(
        ["test/query/q1.jpg", "test/query/q2.jpg"],
        [["test/gallery/a.jpg", "test/gallery/b.jpg"], ["test/gallery/c.jpg", "test/gallery/a.jpg"]],
    )
    assert Submission.from_hits(result, "Us") == GOOD


def test_a_query_and_a_gallery_item_may_share_a_name():
    assert Submission.from_hits(hits(["query/1.jpg"], [["gallery/1.jpg"]]), "Us").images == {"1.jpg": ("1.jpg",)}


def test_two_items_of_one_name():
    with refuse("query items", "'query/x/1.jpg'", "'query/y/1.jpg'", argument="data"):
        Submission.from_hits(hits(["query/x/1.jpg", "query/y/1.jpg"], [["a.jpg"], ["b.jpg"]]), "Us")
    with refuse("gallery items", "'cat/1.jpg'", "'dog/1.jpg'", argument="data"):
        Submission.from_hits(hits(["q1.jpg", "q2.jpg"], [["cat/1.jpg"], ["dog/1.jpg"]]), "Us")
    with refuse("gallery items", "'x/a.jpg'", "'y/a.jpg'", argument="data"):
        GOOD.check(QUERIES, ["x/a.jpg", "y/a.jpg"], 2)


def test_impossible_submissions():
    with refuse("`group`", error=OptionError, argument="group"):
        Submission(" ", IMAGES)
    with refuse("at least one query", argument="images"):
        Submission("Us", {})
    with refuse("got 1 and 3", "'q2.jpg'", argument="images"):
        Submission("Us", {"q1.jpg": ("a.jpg",), "q2.jpg": GALLERY})
    with refuse("duplicate", "'q1.jpg'", argument="images"):
        Submission("Us", {"q1.jpg": ("a.jpg", "a.jpg")})


def test_a_good_submission_passes():
    GOOD.check(QUERIES, GALLERY, 2)
    GOOD.check([f"test/query/{q}" for q in QUERIES], [f"test/gallery/{g}" for g in GALLERY], 2)


def test_a_missing_query_is_named_with_its_cause():
    images = {"q1.jpg": ("a.jpg", "b.jpg")}
    with refuse("1 of 2 queries", "'q2.jpg'", argument="data"):
        Submission("Us", images).check(QUERIES, GALLERY, 2)
    skipped = (Skipped(Path("data/test/query/q2.jpg"), "not an image"),)
    with refuse("2 of 3 queries", "'q2.jpg'", "not an image", argument="data"):
        Submission("Us", images, skipped).check(["q0.jpg", *QUERIES], GALLERY, 2)


def test_unknown_names_and_another_k():
    with refuse("1 unknown queries", "'q2.jpg'", argument="data"):
        GOOD.check(["q1.jpg"], GALLERY, 2)
    with refuse("1 unknown gallery images", "'c.jpg'", argument="data"):
        GOOD.check(QUERIES, ["a.jpg", "b.jpg"], 2)
    with refuse("2 gallery images", "3", argument="top_k"):
        GOOD.check(QUERIES, GALLERY, 3)
    for k in (0, 4):
        with refuse("`top_k`", "3 gallery images", f"got {k}", error=OptionError, argument="top_k"):
            GOOD.check(QUERIES, GALLERY, k)


def test_json_file(tmp_path):
    path = tmp_path / "new" / "submission.json"
    GOOD.write(path)
    assert json.loads(path.read_text()) == {
        "groupname": "Us",
        "images": {"q1.jpg": ["a.jpg", "b.jpg"], "q2.jpg": ["c.jpg", "a.jpg"]},
    }


def test_csv_file_replaces_an_old_one(tmp_path):
    path = tmp_path / "submission.csv"
    path.write_text("old")
    GOOD.write(path)
    assert path.read_text() == "query,rank1,rank2\nq1.jpg,a.jpg,b.jpg\nq2.jpg,c.jpg,a.jpg\n"
    assert [p.name for p in tmp_path.iterdir()] == ["submission.csv"]


def test_another_format(tmp_path):
    with refuse(".json or .csv", "submission.txt'", error=OptionError, argument="out"):
        GOOD.write(tmp_path / "submission.txt")
