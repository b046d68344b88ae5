"""The record of submissions: what is written before and after a request, and what counts as posted."""

from __future__ import annotations

import csv
from datetime import UTC
from pathlib import Path

import pytest

from lookalike.errors import StorageError
from lookalike.evaluation.posting import COLUMNS, Posted, PostRecord, describe_request, score_text

POSTED = Posted(Path("s.json"), "http://host/", "ab12", "", "=cmd", "f00")


def lines(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == COLUMNS
    return rows


def test_a_line_is_written_before_the_request_and_completed_after_it(tmp_path):
    record = PostRecord(tmp_path / "submissions.csv")
    started = record.start(POSTED)
    assert started.time is not None and started.time.tzinfo is UTC
    (line,) = lines(record.path)
    assert line == [f"{started.time:%Y-%m-%dT%H:%M:%SZ}", "ab12", "s.json", "'=cmd", "f00", "http://host/", "", ""]
    record.complete(Posted(**{**vars(started), "status": 200, "score": 880.0}))
    assert lines(record.path) == [[*line[:-2], "200", "880"]]
    PostRecord(record.path).start(POSTED)
    assert [row[-2:] for row in lines(record.path)] == [["200", "880"], ["", ""]]


@pytest.mark.parametrize(
    ("status", "score", "fact"),
    [
        (None, None, "without an answer"),
        (200, 0.5, "with the score 0.5"),
        (200, None, "with the answer 200"),
        (302, None, "with the answer 302"),
        (500, None, "with the answer 500"),
        (400, None, ""),
        (429, None, ""),
        (503, None, ""),
    ],
)
def test_what_counts_as_posted(tmp_path, status, score, fact):
    record = PostRecord(tmp_path / "submissions.csv")
    record.complete(Posted(**{**vars(record.start(POSTED)), "status": status, "score": score}))
    earlier = PostRecord(record.path).counted(POSTED)
    assert bool(earlier) == bool(fact)
    assert fact in earlier
    for other in ({"sha256": "cd"}, {"url": "http://other/"}):
        assert record.counted(Posted(**{**vars(POSTED), **other})) == ""


def test_an_uncertain_line_counts_even_if_a_later_one_was_refused(tmp_path):
    record = PostRecord(tmp_path / "submissions.csv")
    record.start(POSTED)
    record.complete(Posted(**{**vars(record.start(POSTED)), "status": 429}))
    assert "without an answer" in record.counted(POSTED)


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", ",".join(COLUMNS) + "\n1,2\n", ",".join(COLUMNS) + ",x\n", '"\n', "\x00", "ab\xff"]
)
def test_a_file_of_another_form_is_refused(tmp_path, text):
    path = tmp_path / "submissions.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(StorageError, match=r"submissions\.csv"):
        PostRecord(path)
    assert path.read_bytes() == text.encode("latin-1")


def test_a_request_as_text():
    body = b"\n".join(b"line %d" % n for n in range(1, 11)) + b"\n" + b"x" * 300
    headers = {"Content-Type": "application/json", "Authorization": "Basic c2VjcmV0"}
    head, _, start = describe_request("http://host/", headers, body, "ab12").partition("\n\n")
    assert head.splitlines() == [
        "POST http://host/", "Content-Type: application/json", "Authorization: Basic …", f"Content-Length: {len(body)}",
    ]  # fmt: skip
    assert start.splitlines() == [*(f"line {n}" for n in range(1, 9)), "… (11 lines, SHA-256 ab12)"]
    assert describe_request("", {}, b"x" * 300, "ab12").splitlines()[-2:] == ["x" * 200 + "…", "(SHA-256 ab12)"]


@pytest.mark.parametrize(("score", "text"), [(880.0, "880"), (0.1 + 0.2, "0.3"), (1e-20, "1e-20"), (-1.5, "-1.5")])
def test_a_score_as_text(score, text):
    assert score_text(score) == text
