"""A model on a data folder's query and gallery: what is measured, and what is written."""

from __future__ import annotations

import json

import pytest

from lookalike.api.embed import index
from lookalike.api.evaluate import evaluate, submit
from lookalike.data.layouts import load_dataset
from lookalike.errors import DataError, OptionError
from lookalike.evaluation.measures import Measure
from lookalike.types import Skipped

NO_PICTURE = "not an image that Pillow can read"
CLOSED = "the folder cannot be listed (permission denied)"


def at(*ks: int) -> list[str]:
    return [f"{kind}@{k}" for kind in ("precision", "hit", "recall") for k in ks]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, [*at(1, 3, 10), "map@r", "mrr"]),
        ({"k": (2,)}, [*at(2), "map@r", "mrr"]),
        ({"k": [4, 1], "measures": ["ndcg@5", "mrr"]}, [*at(4, 1), "map@r", "mrr", "ndcg@5"]),
        ({"measures": [Measure.parse("hit@2")]}, [*at(1, 3, 10), "map@r", "mrr", "hit@2"]),
    ],
    ids=["by default", "k", "both", "measures"],
)
def test_what_is_measured(photo_folder, encoder, options, names):
    found, skipped = evaluate(photo_folder, encoder, **options)
    assert list(found.to_dict()["measures"]) == names
    assert skipped == ()


def test_a_default_k_larger_than_the_gallery_is_left_out(photo_folder, encoder):
    for path in list((photo_folder / "test" / "gallery").glob("*.jpg"))[:3]:
        path.unlink()
    found, _ = evaluate(photo_folder, encoder)
    assert "hit@3" in found.to_dict()["measures"] and "hit@10" not in found.to_dict()["measures"]
    with pytest.raises(OptionError, match="precision@10 needs 10 hits, but the gallery has only 9"):
        evaluate(photo_folder, encoder, k=[10])


def test_a_default_k_is_held_to_what_can_be_read(photo_folder, encoder):
    paths = sorted((photo_folder / "test" / "gallery").glob("*.jpg"))
    for path in paths[:2]:
        path.unlink()
    paths[2].write_text("no picture")
    found, skipped = evaluate(photo_folder, encoder)  # 10 files, 9 pictures
    assert "hit@3" in found.to_dict()["measures"] and "hit@10" not in found.to_dict()["measures"]
    assert skipped == (Skipped(paths[2], NO_PICTURE),)


def test_what_a_head_could_not_be_learnt_from_is_listed_once(photo_folder, tmp_path):
    training = photo_folder / "training" / "cat" / "cat0.jpg"
    gallery = photo_folder / "test" / "gallery" / "cat0.jpg"
    for path in (training, gallery):
        path.write_text("no picture")
    expected = [Skipped(training, NO_PICTURE), Skipped(gallery, NO_PICTURE)]
    _, skipped = evaluate(photo_folder, "test_efficientnet", k=[1], weights="none")
    assert list(skipped) == expected
    _, skipped = submit(photo_folder, "test_efficientnet", top_k=1, weights="none", out=tmp_path / "s.json")
    assert list(skipped) == expected
    made = index(photo_folder, "test_efficientnet", weights="none", out=tmp_path / "photos.index")
    assert sorted(made.skipped, key=str) == sorted(expected, key=str)


def test_no_hits(photo_folder, encoder):
    with pytest.raises(OptionError, match=r"^k must be at least 1, got 0\.$"):
        evaluate(photo_folder, encoder, k=[3, 0])


def test_evaluate_lists_what_it_could_not_read(photo_folder, encoder, close_folder):
    query = photo_folder / "test" / "query" / "cat0.jpg"
    query.write_text("no picture")
    close_folder(photo_folder / "training" / "cat")
    found, skipped = evaluate(photo_folder, encoder, k=[1])
    assert skipped == (Skipped(photo_folder / "training" / "cat", CLOSED), Skipped(query, NO_PICTURE))
    assert len(found.query_ids) == 7


def test_a_closed_query_folder_is_named(photo_folder, encoder, close_folder):
    place = photo_folder / "test" / "query"
    close_folder(place)
    with pytest.raises(DataError) as caught:
        evaluate(photo_folder, encoder)
    assert f"has no query images (skipped folders: 1, first: {place}: {CLOSED})" in str(caught.value)


def test_submit_gives_what_it_wrote_and_the_gallery_files_that_it_could_not_read(photo_folder, encoder, tmp_path):
    broken = photo_folder / "test" / "gallery" / "cat0.jpg"
    broken.write_text("no picture")
    out = tmp_path / "s.json"
    submission, skipped = submit(photo_folder, encoder, top_k=2, group="us", out=out)
    assert skipped == (Skipped(broken, NO_PICTURE),)
    assert json.loads(out.read_text()) == submission.to_dict()
    assert (submission.group, len(submission.images)) == ("us", 8)
    assert all(len(names) == 2 and "cat0.jpg" not in names for names in submission.images.values())


def test_submit_lists_closed_folders_but_insists_on_every_query(photo_folder, encoder, tmp_path, close_folder):
    for part in ("gallery", "query"):
        (photo_folder / "test" / part / "more").mkdir()
    close_folder(photo_folder / "test" / "gallery" / "more")
    _, skipped = submit(load_dataset(photo_folder), encoder, top_k=1, out=tmp_path / "s.csv")
    assert skipped == (Skipped(photo_folder / "test" / "gallery" / "more", CLOSED),)
    place = photo_folder / "test" / "query" / "more"
    close_folder(place)
    with pytest.raises(DataError) as caught:
        submit(photo_folder, encoder, top_k=1, out=tmp_path / "t.csv")
    assert str(caught.value) == f"a submission needs every query, but {place}: {CLOSED}; change that first."
    assert not (tmp_path / "t.csv").exists()
