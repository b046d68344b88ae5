"""`lookalike add`, `remove`, `update` and `sync`."""

from __future__ import annotations

import shutil
from pathlib import Path

QUERY = "photos/test/query/cat0.jpg"


def test_change_and_search(workspace, lookalike):
    outcome = lookalike(f"add photos.index {QUERY} --label cat --set year=2024 --set code=007 --set sold=true --json")
    assert outcome.code == 0
    (item,) = outcome.json["added"]
    shutil.copy(QUERY, "copy.jpg")
    (query,) = lookalike("search photos.index copy.jpg -k 1 --json").json["queries"]
    assert [hit["id"] for hit in query["hits"]] == [item]
    outcome = lookalike(f"add photos.index {QUERY}")
    assert outcome.code == 2
    assert "--replace" in outcome.err
    assert lookalike(f"update photos.index {item} --no-label --unset code --set year=2025").out == "1 item replaced\n"
    from lookalike.index.index import Index

    changed = Index.load("photos.index").get(item)
    assert (changed.label, changed.metadata) == (None, {"year": 2025, "sold": True})
    assert lookalike(f"remove photos.index {item}").out == "1 item removed\n"
    for command in (
        f"remove photos.index {item}",
        f"update photos.index {item} --label x --no-label",
        "update photos.index nothing --set year",
        "update photos.index nothing",
        "add nowhere nothing.jpg",
    ):
        outcome = lookalike(command)
        assert outcome.code == 2
        assert len(outcome.err.splitlines()) == 1


def test_sync(workspace, lookalike):
    new = Path(QUERY).parents[1] / "gallery" / "new.jpg"
    shutil.copy(QUERY, new)
    outcome = lookalike("sync photos.index --json")
    assert outcome.code == 0
    assert outcome.json["added"] == ["test/gallery/new.jpg"]
    assert (outcome.json["unchanged"], outcome.json["removed"]) == (12, [])
    new.unlink()
    assert lookalike("sync photos.index").out == "1 item removed, 12 unchanged\n"
