"""The submission file: its form, and each sentence about what is wrong with one."""

import json
from pathlib import Path

import numpy as np
import pytest

from lookalike.errors import DataError, OptionError, StorageError
from lookalike.evaluation.submission import build_submission, read_submission, validate_submission, write_submission
from lookalike.types import Hits, Skipped

QUERIES = ("q1.jpg", "q2.jpg")
GALLERY = ("a.jpg", "b.jpg", "c.jpg")
IMAGES = {"q1.jpg": ["a.jpg", "b.jpg"], "q2.jpg": ["c.jpg", "a.jpg"]}
GOOD = {"groupname": "Us", "images": IMAGES}


def hits(queries, found):
    return Hits(tuple(queries), np.array(found, dtype=object), np.zeros(np.shape(found), dtype=np.float32))


def message(call, *args, error=DataError, **kwargs):
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def check(images, **kwargs):
    validate_submission({"groupname": "Us", "images": images}, QUERIES, GALLERY, 2, **kwargs)


def test_built_from_hits_with_base_names():
    found = hits(
        ["test/query/q1.jpg", "test/query/q2.jpg"],
        [["test/gallery/a.jpg", "test/gallery/b.jpg"], ["test/gallery/c.jpg", "test/gallery/a.jpg"]],
    )
    assert build_submission(found, "Us") == GOOD


def test_two_queries_of_one_name():
    found = hits(["query/x/1.jpg", "query/y/1.jpg"], [["a.jpg"], ["b.jpg"]])
    assert message(build_submission, found, "Us") == (
        "the query items 'query/x/1.jpg' and 'query/y/1.jpg' have the same file name '1.jpg', which a submission "
        "cannot tell apart; give each image a unique name."
    )


def test_two_gallery_items_of_one_name():
    found = hits(["q1.jpg", "q2.jpg"], [["cat/1.jpg"], ["dog/1.jpg"]])
    assert message(build_submission, found, "Us") == (
        "the gallery items 'cat/1.jpg' and 'dog/1.jpg' have the same file name '1.jpg', which a submission "
        "cannot tell apart; give each image a unique name."
    )


def test_a_query_and_a_gallery_item_may_share_a_name():
    assert build_submission(hits(["query/1.jpg"], [["gallery/1.jpg"]]), "Us")["images"] == {"1.jpg": ["1.jpg"]}


def test_no_group_name_or_no_query():
    assert message(build_submission, hits(["q"], [["a"]]), " ", error=OptionError) == (
        "a submission needs a group name, got an empty one; give the name of your group."
    )
    empty = Hits((), np.empty((0, 2), dtype=object), np.empty((0, 2), dtype=np.float32))
    assert message(build_submission, empty, "Us") == (
        "a submission needs at least one query, got none; check that the query folder holds images."
    )


def test_a_good_submission_passes():
    validate_submission(GOOD, QUERIES, GALLERY, 2)
    validate_submission(GOOD, [f"test/query/{q}" for q in QUERIES], [f"test/gallery/{g}" for g in GALLERY], 2)


def test_a_missing_query():
    assert message(check, {"q1.jpg": ["a.jpg", "b.jpg"]}) == (
        "the submission lacks 1 of 2 queries, the first is 'q2.jpg'; search for all of them."
    )


def test_an_unreadable_query_is_named_with_its_cause():
    skipped = [Skipped(Path("data/test/query/q2.jpg"), "not an image")]
    assert message(check, {"q1.jpg": ["a.jpg", "b.jpg"]}, skipped=skipped) == (
        "the submission lacks 1 of 2 queries, the first is 'q2.jpg', which could not be read (not an image); "
        "repair the file."
    )
    assert message(check, {}, skipped=skipped).startswith(
        "the submission lacks 2 of 2 queries, the first is 'q2.jpg', "
    )


def test_an_unknown_query():
    assert message(check, {**IMAGES, "q9.jpg": ["a.jpg", "b.jpg"]}) == (
        "the submission has 1 unknown query, the first is 'q9.jpg'; keep the task's queries only."
    )


def test_a_list_of_another_length():
    assert message(check, {"q1.jpg": ["a.jpg"], "q2.jpg": ["a.jpg", "b.jpg", "c.jpg"]}) == (
        "the submission has 2 queries with other than 2 gallery images, the first is 'q1.jpg' with 1; "
        "search again with k = 2."
    )


def test_an_unknown_gallery_name():
    assert message(check, {"q1.jpg": ["a.jpg", "z.jpg"], "q2.jpg": ["y.jpg", "z.jpg"]}) == (
        "the submission names an image that is not in the gallery 3 times, the first is 'z.jpg' for the query "
        "'q1.jpg'; search the task's gallery only."
    )


def test_a_repeated_gallery_name():
    assert message(check, {"q1.jpg": ["a.jpg", "b.jpg"], "q2.jpg": ["c.jpg", "c.jpg"]}) == (
        "the submission repeats a gallery image in one list once, the first is 'c.jpg' for the query 'q2.jpg'; "
        "name each image once."
    )


def test_k_outside_the_gallery():
    for k in (0, 4):
        assert message(validate_submission, GOOD, QUERIES, GALLERY, k, error=OptionError) == (
            f"a submission's k must lie between 1 and the 3 gallery images, got {k}."
        )


def test_a_gallery_whose_names_repeat_cannot_be_submitted_to():
    text = message(validate_submission, GOOD, QUERIES, ["x/a.jpg", "y/a.jpg"], 2)
    assert text.startswith("the gallery items 'x/a.jpg' and 'y/a.jpg' have the same file name 'a.jpg'")


@pytest.mark.parametrize("value", [[], {}, {"images": {}}, {"groupname": "Us"}, {"groupname": 1, "images": {}}])
def test_not_a_submission(value):
    assert message(validate_submission, value, QUERIES, GALLERY, 2) == (
        'a submission must be of the form {"groupname": text, "images": {query: [gallery, ...]}}.'
    )


@pytest.mark.parametrize("names", ["a.jpg", None, [1, 2]])
def test_not_a_list_of_names(names):
    assert message(check, {"q1.jpg": ["a.jpg", "b.jpg"], "q2.jpg": names}) == (
        "the submission has 1 query without a list of names, the first is 'q2.jpg'; give one."
    )


def test_json_file(tmp_path):
    path = tmp_path / "new" / "submission.json"
    write_submission(GOOD, path)
    assert json.loads(path.read_text()) == GOOD
    assert read_submission(path) == GOOD


def test_csv_file(tmp_path):
    path = tmp_path / "submission.csv"
    write_submission(GOOD, path)
    assert path.read_text() == "query,rank1,rank2\nq1.jpg,a.jpg,b.jpg\nq2.jpg,c.jpg,a.jpg\n"
    assert read_submission(path) == {"groupname": "", "images": IMAGES}
    validate_submission(read_submission(path), QUERIES, GALLERY, 2)


def test_an_old_file_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "submission.json"
    path.write_text("old")
    write_submission(GOOD, path)
    assert [p.name for p in tmp_path.iterdir()] == ["submission.json"]
    assert read_submission(path) == GOOD


def test_another_ending(tmp_path):
    expected = "a submission is a .json or .csv file, got 'submission.txt'; choose one of the two endings."
    assert message(write_submission, GOOD, tmp_path / "submission.txt", error=OptionError) == expected
    assert message(read_submission, tmp_path / "submission.txt", error=OptionError) == expected


def test_csv_needs_lists_of_one_length(tmp_path):
    uneven = {"groupname": "Us", "images": {"q1.jpg": ["a.jpg", "b.jpg"], "q2.jpg": ["c.jpg"]}}
    assert message(write_submission, uneven, tmp_path / "s.csv") == (
        "a CSV submission needs lists of one length, here 2, but has 1 query with another, the first is 'q2.jpg' "
        "with 1; search again with one k for all."
    )
    assert not (tmp_path / "s.csv").exists()


def test_a_file_that_is_not_there(tmp_path):
    path = tmp_path / "s.json"
    assert message(read_submission, path, error=StorageError) == (
        f"the submission {path} does not exist; check the path."
    )


def test_a_file_that_is_not_json(tmp_path):
    path = tmp_path / "s.json"
    path.write_text("{")
    text = message(read_submission, path, error=StorageError)
    assert text.startswith(f"the submission {path} cannot be read (")
    assert text.endswith("); write it again.")


def test_a_query_twice_in_a_json_file(tmp_path):
    path = tmp_path / "s.json"
    path.write_text('{"groupname": "Us", "images": {"q1.jpg": ["a.jpg"], "q1.jpg": ["b.jpg"]}}')
    assert message(read_submission, path) == (
        f"{path} has 1 query more than once, the first is 'q1.jpg'; keep one list for each."
    )


def test_a_query_twice_in_a_csv_file(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("query,rank1\nq1.jpg,a.jpg\nq2.jpg,a.jpg\nq1.jpg,b.jpg\n")
    assert message(read_submission, path) == (
        f"{path} has 1 query more than once, the first is 'q1.jpg'; keep one list for each."
    )


@pytest.mark.parametrize(("text", "columns"), [("", "(none)"), ("query,first\nq,a\n", "query, first")])
def test_other_csv_columns(tmp_path, text, columns):
    path = tmp_path / "s.csv"
    path.write_text(text)
    assert message(read_submission, path) == (
        f"{path} has the columns {columns}, but needs query, rank1, rank2 and so on."
    )


def test_a_short_csv_row(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("query,rank1,rank2\nq1.jpg,a.jpg,b.jpg\nq2.jpg,c.jpg\n")
    assert message(read_submission, path) == (
        f"{path} has 1 query with other than the header's 3 fields, the first is 'q2.jpg' with 2; "
        "write one image for each rank."
    )
