"""Queries made of crops, several images, items, vectors and examples, against the same by hand."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from lookalike.api.queries import (
    NEGATIVE_WEIGHT,
    POSITIVE_WEIGHT,
    CropBox,
    Query,
    make_queries,
    read_vector,
    resolve_queries,
)
from lookalike.api.search import LoadedIndex, load_index, search
from lookalike.errors import DataError, LookalikeError, OptionError
from lookalike.index.index import Index
from lookalike.types import Embeddings, l2_normalize


@pytest.fixture
def loaded(index_folder):
    return load_index(index_folder)


def ranked(loaded, vector, without=()):
    """Ids by falling cosine to a vector, by hand."""
    ids = list(loaded.index.ids)
    cosines = loaded.index.vectors_of(ids).astype(np.float64) @ l2_normalize(vector).astype(np.float64)
    order = np.lexsort((np.arange(len(ids)), -np.round(cosines, 6)))
    return [ids[row] for row in order if ids[row] not in without]


def embed(loaded, *images):
    return loaded.encoder.embed(list(images)).vectors


def test_a_crop_box_is_the_image_that_is_cut_out(loaded, images):
    path = images / "more" / "rocket1.jpg"
    with Image.open(path) as image:
        width, height = image.size
        part = image.convert("RGB").crop((10, 5, 10 + width // 2, 5 + height // 2))
    expected = ranked(loaded, embed(loaded, part)[0], {"more/rocket1.jpg"})
    (hits,) = search(loaded, [Query([path], crop=CropBox(10, 5, width // 2, height // 2))], top_k=11)
    assert [hit.id for hit in hits] == expected
    (same,) = search(loaded, [Query([path], crop=f"10,5,{width // 2},{height // 2}")], top_k=11)
    assert [hit.id for hit in same] == expected


def test_the_pixels_are_those_of_the_upright_image(loaded, images, tmp_path):
    """The file is turned; its left half, upright, is the top half as it is stored."""
    stored = Image.effect_noise((60, 100), 80).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees clockwise
    stored.save(tmp_path / "turned.png", exif=exif)
    upright = stored.transpose(Image.Transpose.ROTATE_270)
    assert upright.size == (100, 60)
    expected = ranked(loaded, embed(loaded, upright.crop((0, 0, 50, 60)))[0])
    (hits,) = search(loaded, [Query([tmp_path / "turned.png"], crop="0%,0%,50%,100%")], top_k=12)
    assert [hit.id for hit in hits] == expected


def test_a_crop_box_reaches_at_most_to_the_edge():
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    assert CropBox(4, 1, 100, 2).cut(pixels).tolist() == pixels[1:3, 4:].tolist()
    assert CropBox(0.5, 0, 0.5, 1, is_share=True).cut(pixels).tolist() == pixels[:, 3:].tolist()
    assert CropBox(0, 0, 0.01, 0.01).cut(pixels).shape == (1, 1, 3)
    with pytest.raises(OptionError, match="outside of an image of 6 × 4 pixels"):
        CropBox(6, 0, 2, 2).cut(pixels)


@pytest.mark.parametrize(
    "text",
    ["", "1,2,3", "1,2,3,4,5", "a,0,1,1", "0,0,0,1", "-1,0,2,2", "0,0,nan,1", "0,0,inf,1", "0%,0,1,1", "1e999,0,1,1"],
)
def test_what_is_not_a_crop_box(text):
    with pytest.raises(OptionError) as caught:
        CropBox.parse(text)
    assert caught.value.argument == "crop"


def test_a_crop_box_as_text():
    assert CropBox.parse(" 10, 20,30.5,40") == CropBox(10, 20, 30.5, 40)
    assert CropBox.parse("10%,0%,50%,25%") == CropBox(0.1, 0, 0.5, 0.25, is_share=True)
    assert CropBox.parse(str(CropBox(0.1, 0, 0.5, 0.25, is_share=True))) == CropBox(0.1, 0, 0.5, 0.25, is_share=True)


def test_several_images_are_searched_for_by_their_mean(loaded, images):
    first, second = images / "more" / "rocket1.jpg", images / "more" / "cat2.jpg"
    mean = embed(loaded, first, second).mean(axis=0)
    result = search(loaded, [Query([first, second])], top_k=10)
    assert result.hits.ids[0].tolist() == ranked(loaded, mean, {"more/rocket1.jpg", "more/cat2.jpg"})
    assert result.hits.query_ids == (f"{first} + {second}",)
    assert result.to_dict()["queries"][0]["query"] == f"{first} + {second}"


def test_an_item_of_the_index_is_not_its_own_hit(loaded, images, tmp_path):
    (images / "link.jpg").symlink_to(images / "more" / "cat2.jpg")
    vector = loaded.index.vectors_of(["more/cat2.jpg"])[0]
    result = search(loaded, [Query(id="more/cat2.jpg")], top_k=11, html=tmp_path / "page.html")
    assert result.hits.ids[0].tolist() == ranked(loaded, vector, {"more/cat2.jpg"})
    assert result.query_paths["more/cat2.jpg"] == images.resolve() / "more" / "cat2.jpg"
    assert (tmp_path / "page.html").read_text().count("data:image/jpeg;base64,") == 12
    by_file = search(loaded, [images / "more" / "cat2.jpg"], top_k=11)
    assert result.hits.ids.tolist() == by_file.hits.ids.tolist()


@pytest.mark.parametrize("scale", [1, 1e-200, 1e200])
def test_a_vector(loaded, scale, tmp_path):
    vector = np.random.default_rng(0).normal(size=loaded.index.dim)
    result = search(loaded, [Query(vector=vector * scale)], top_k=12, html=tmp_path / "page.html")
    assert result.hits.ids[0].tolist() == ranked(loaded, vector)
    assert search(loaded, [Query(vector=[vector.tolist()])], top_k=12).hits.ids.tolist() == result.hits.ids.tolist()


def test_positive_and_negative_examples_by_rocchio(loaded, images, tmp_path):
    start, positive, negative = (images / "more" / name for name in ("rocket1.jpg", "cat2.jpg", "coffee2.jpg"))
    noise = Image.effect_noise((80, 80), 90).convert("RGB")
    vectors = embed(loaded, start, positive, negative, noise)
    expected = vectors[0] + POSITIVE_WEIGHT * l2_normalize((vectors[1] + vectors[3]) / 2) - NEGATIVE_WEIGHT * vectors[2]
    used = {"more/rocket1.jpg", "more/cat2.jpg", "more/coffee2.jpg"}
    for example in ("more/cat2.jpg", positive):  # an id, or a file
        query = Query([start], positive=[example, noise], negative=["more/coffee2.jpg"])
        result = search(loaded, [query], top_k=9)
        assert result.hits.ids[0].tolist() == ranked(loaded, expected, used)
    (hits,) = search(loaded, [Query(positive=["more/cat2.jpg"], negative=[negative])], top_k=10)
    expected = POSITIVE_WEIGHT * vectors[1] - NEGATIVE_WEIGHT * vectors[2]
    assert [hit.id for hit in hits] == ranked(loaded, expected, {"more/cat2.jpg", "more/coffee2.jpg"})


def test_a_query_made_of_all_items_has_no_hit(loaded, images):
    paths = [str(images / "more" / name) for name in ("cat2.jpg", "rocket1.jpg")]
    small = LoadedIndex(Index.build(loaded.encoder.embed(paths)), loaded.encoder)
    all_items = Query(id=paths[0], positive=paths[1:])
    result = search(small, [all_items, images / "more" / "cat1.jpg"])
    assert [[hit.id for hit in hits] for hits in result] == [[], [paths[0]]]
    with pytest.raises(OptionError, match="only 0 items besides the query") as caught:
        search(small, [all_items], top_k=1)
    assert caught.value.argument == "top_k"


def test_queries_of_all_kinds_in_one_search(loaded, images, tmp_path):
    shutil.copy(images / "more" / "rocket1.jpg", tmp_path / "copy.jpg")
    image = tmp_path / "copy.jpg"
    queries = [
        image,
        Query(id="more/cat2.jpg"),
        Query([image.read_bytes()]),
        Query([image], crop="0%,0%,50%,50%"),
        image,
    ]
    result = search(loaded, queries, top_k=3)
    assert len(result) == 4  # the file that occurs twice is searched for once
    for query, hits in zip(queries, result.hits.ids.tolist(), strict=False):
        assert hits == search(loaded, [query], top_k=3).hits.ids[0].tolist()


def test_an_unreadable_example_skips_its_query_only(loaded, images, tmp_path):
    (tmp_path / "broken.jpg").write_text("not an image")
    good = images / "more" / "cat2.jpg"
    for bad in (
        Query([good, tmp_path / "broken.jpg"]),
        Query([good], positive=[tmp_path / "broken.jpg"]),
        Query([tmp_path / "broken.jpg"], crop="0,0,1,1"),
    ):
        result = search(loaded, [bad, Query(id="more/cat2.jpg")], top_k=2)
        assert result.hits.query_ids == ("more/cat2.jpg",)
        assert [skipped.path for skipped in result.skipped] == [tmp_path / "broken.jpg"]
        with pytest.raises(DataError, match=r"broken\.jpg cannot be read"):
            search(loaded, [bad], top_k=2)


def test_what_is_not_a_query(loaded, images):
    image = images / "more" / "cat2.jpg"
    dim = loaded.index.dim
    calls = [
        ("images", Query),
        ("images", lambda: Query(str(image))),
        ("positive", lambda: Query([image], positive="more/cat2.jpg")),
        ("images", lambda: Query(negative=["more/cat2.jpg"])),
        ("id", lambda: Query([image], id="more/cat2.jpg")),
        ("vector", lambda: Query(id="more/cat2.jpg", vector=[1.0] * dim)),
        ("crop", lambda: Query(id="more/cat2.jpg", crop="0,0,1,1")),
        ("crop", lambda: Query([image], crop="0,0")),
        ("vector", lambda: Query(vector=[1.0, np.nan])),
        ("vector", lambda: Query(vector=[0.0] * dim)),
        ("vector", lambda: Query(vector=["a"])),
        ("vector", lambda: Query(vector=[[1.0], [2.0]])),
        ("vector", lambda: Query(vector=[])),
        ("id", lambda: Query(id=3)),
        ("images", lambda: search(loaded, Query([image]))),
        ("vector", lambda: search(loaded, [Query(vector=[1.0] * (dim + 1))])),
        ("id", lambda: search(loaded, [Query(id="nothing.jpg")])),
        ("crop", lambda: search(loaded, [Query([image], crop="5000,0,10,10")])),
        ("negative", lambda: search(loaded, [Query([image], negative=[3])])),
        ("crop", lambda: make_queries([], ids=["a"], crop="0,0,1,1")),
        ("mean", lambda: make_queries([], mean=True)),
        ("images", lambda: make_queries([])),
    ]
    for argument, call in calls:
        with pytest.raises(LookalikeError) as caught:
            call()
        assert (caught.value.argument, type(caught.value)) == (argument, OptionError), str(caught.value)
        assert str(caught.value).count(". ") == 0


def test_examples_that_cancel_out():
    index = Index.build(Embeddings(("a", "b"), np.array([[1, 0], [-1, 0]], np.float32), "model"))
    queries, _ = resolve_queries([Query(positive=["a", "b"])], index)
    with pytest.raises(OptionError, match="cancel out"):
        queries["a + b"].vector({})


def test_vectors_from_files(tmp_path):
    np.save(tmp_path / "a.npy", np.array([1.0, 2.0], np.float32))
    (tmp_path / "a.json").write_text("[1, 2]")
    assert read_vector(tmp_path / "a.npy").tolist() == read_vector(tmp_path / "a.json").tolist() == [1, 2]
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "pickle.npy").write_bytes(pickled.getvalue())
    (tmp_path / "text.json").write_text(json.dumps({"a": 1}))
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "short.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:20])
    for name in ("pickle.npy", "text.json", "deep.json", "short.npy", "missing.npy"):
        with pytest.raises(DataError, match=name) as caught:
            read_vector(tmp_path / name)
        assert caught.value.argument == "vector"


def test_a_filter_and_a_query_that_excludes_items(loaded, recording_progress):
    progress = recording_progress()
    result = search(
        loaded,
        [Query(id="more/cat2.jpg", positive=["more/cat1.jpg"])],
        top_k=4,
        where="id in ['more/cat1.jpg', 'more/cat2.jpg', 'more/rocket1.jpg'] and not size == 3",
        progress=progress,
    )
    assert result.hits.ids.tolist() == [["more/rocket1.jpg", None, None, None]]
    assert [hit["id"] for hit in result.to_dict()["queries"][0]["hits"]] == ["more/rocket1.jpg"]
    assert any("no item has a value under 'size'" in message for message in progress.messages)


def test_a_wrong_filter_is_reported_before_the_index_is_read(images, tmp_path):
    with pytest.raises(OptionError, match="at character 3") as caught:
        search(tmp_path / "missing", [images / "more" / "cat2.jpg"], where="a ? 3")
    assert caught.value.argument == "where"
