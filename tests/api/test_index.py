"""`index`: from a folder of images, or of embeddings, to an index that can be searched."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from lookalike.api.embed import embed
from lookalike.api.index import index
from lookalike.api.search import load_index, search
from lookalike.embeddings.folder import is_unfinished, load_embeddings
from lookalike.errors import DataError, FingerprintMismatch, OptionError, StorageError
from lookalike.models.bundle import describe_encoder, read_bundle_info, save_bundle
from lookalike.models.info import TrainingData
from lookalike.runtimes.load import load_encoder

CLOSED = "the folder cannot be listed (permission denied)"
COUNT = 12  # of `images`


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


class TestIndex:
    def test_the_folder_of_an_index(self, images, encoder, tmp_path):
        out = tmp_path / "index"
        built = index(images, encoder, out=out)
        assert built.skipped == ()
        assert names(tmp_path) == ["images", "index", "photos"]
        loaded = load_index(out)
        assert loaded.index.ids == built.index.ids
        assert len(loaded.index) == COUNT
        assert "more/rocket1.jpg" in loaded.index
        assert all(loaded.index.path_of(i).is_file() for i in loaded.index.ids)
        assert load_encoder(out).fingerprint == encoder.fingerprint

    def test_only_the_gallery_of_a_data_set_is_indexed(self, data_folder, encoder, tmp_path, recording_progress):
        progress = recording_progress()
        built = index(data_folder, encoder, out=tmp_path / "index", progress=progress)
        assert len(built.index) == 12
        assert all(i.startswith("test/gallery/") for i in built.index.ids)
        (message,) = progress.messages
        assert "its 12 gallery images are indexed, its 32 training and query images are not" in message
        query = data_folder / "test" / "query" / "cat0.jpg"
        assert search(tmp_path / "index", [query], top_k=12).hits.query_ids == ("test/query/cat0.jpg",)

    def test_the_head_of_a_name_is_fitted_on_the_training_split(self, data_folder, tmp_path):
        index(data_folder, "test_efficientnet", weights="none", out=tmp_path / "index")
        assert read_bundle_info(tmp_path / "index" / "model").members[0].head == "PCA of 24 images"

    def test_unreadable_training_images_are_listed(self, data_folder, tmp_path):
        paths = [data_folder / "training" / "cat" / "cat0.jpg", data_folder / "test" / "gallery" / "cat0.jpg"]
        for path in paths:
            path.write_text("not an image")
        built = index(data_folder, "test_efficientnet", weights="none", out=tmp_path / "index")
        assert sorted(s.path for s in built.skipped) == sorted(paths)

    def test_labels_and_numbers_of_a_manifest(self, data_folder, encoder, tmp_path, recording_progress):
        cells = [("2020", "007", "1.5", "x"), ("", "8", "", "7"), ("1999", "9", "2e3", "")]
        rows = [f"test/gallery/cat{n}.jpg,cat,gallery,{n},{','.join(row)}" for n, row in enumerate(cells)]
        (data_folder / "manifest.csv").write_text("\n".join(["path,label,split,id,year,code,size,mixed", *rows]))
        progress = recording_progress()
        built = index(data_folder, encoder, out=tmp_path / "index", progress=progress)
        loaded = load_index(tmp_path / "index").index
        assert dict(loaded.labels) == {f"test/gallery/cat{n}.jpg": "cat" for n in range(3)}
        assert loaded.metadata == built.index.metadata
        assert [loaded.metadata[f"test/gallery/cat{n}.jpg"] for n in range(3)] == [
            {"year": 2020, "code": "007", "size": 1.5, "mixed": "x"},
            {"code": "8", "mixed": "7"},
            {"year": 1999, "code": "9", "size": 2000.0},
        ]
        assert any("the column 'id' is not stored" in message for message in progress.messages)
        embed(data_folder, encoder, out=tmp_path / "emb", progress=progress)
        embedded = index(tmp_path / "emb", out=tmp_path / "again").index
        assert (embedded.labels, embedded.metadata) == (loaded.labels, loaded.metadata)
        (data_folder / "manifest.csv").write_text("path,label,split\ntest/gallery/cat0.jpg,,gallery\n")
        embed(data_folder, encoder, out=tmp_path / "emb", allow_removals=True, progress=progress)
        embedded = index(tmp_path / "emb", out=tmp_path / "again", replace=True).index
        assert (embedded.labels, embedded.metadata) == ({}, {})

    def test_embeddings_of_a_data_set_have_the_labels_of_its_folders(self, data_folder, encoder, tmp_path):
        embed(data_folder, encoder, out=tmp_path / "emb")
        labels = index(tmp_path / "emb", out=tmp_path / "index").index.labels
        assert labels["training/cat/cat0.jpg"] == labels["test/gallery/cat0.jpg"] == "cat"
        (tmp_path / "emb" / "labels.json").write_text('{"labels": {"a": 1}, "metadata": {}}')
        with pytest.raises(StorageError, match="labels are text"):
            index(tmp_path / "emb", out=tmp_path / "index", replace=True)

    def test_metadata_of_a_manifest(self, data_folder, encoder, tmp_path):
        rows = ["path,label,split,author"]
        rows += [f"test/gallery/cat{n}.jpg,cat,gallery,Ann{n}" for n in range(3)]
        rows.append("test/query/cat0.jpg,cat,query,Bob")
        (data_folder / "manifest.csv").write_text("\n".join(rows))
        built = index(data_folder, encoder, out=tmp_path / "index").index
        assert tuple(built.ids) == tuple(f"test/gallery/cat{n}.jpg" for n in range(3))
        assert built.metadata["test/gallery/cat2.jpg"] == {"author": "Ann2"}

    def test_a_gallery_that_cannot_be_listed_is_not_replaced_by_other_images(
        self, data_folder, encoder, tmp_path, close_folder
    ):
        close_folder(data_folder / "test" / "gallery")
        with pytest.raises(DataError, match="has no gallery image"):
            index(data_folder, encoder, out=tmp_path / "index")

    @pytest.mark.usefixtures("small_shards")
    def test_an_interrupted_index_resumes(self, images, encoder, tmp_path, recording_progress, decoded):
        out = tmp_path / "index"
        with pytest.raises(KeyboardInterrupt):
            index(images, encoder, out=out, progress=recording_progress(stop_at=COUNT))
        assert not out.exists()
        assert is_unfinished(tmp_path / "index.embedding")
        decoded.clear()
        progress = recording_progress()
        resumed = index(images, encoder, out=out, progress=progress)
        assert progress.messages == [f"resuming from {tmp_path / 'index.embedding'}, which a stopped run has left"]
        assert len(decoded) == 2  # the third shard of 5, 5 and 2
        assert names(tmp_path) == ["images", "index", "photos"]
        whole = index(images, encoder, out=tmp_path / "whole")
        assert resumed.index.ids == whole.index.ids
        assert (out / "index.faiss").read_bytes() == (tmp_path / "whole" / "index.faiss").read_bytes()

    def test_an_unfinished_index_of_another_model_is_refused(self, images, encoder, tmp_path, recording_progress):
        with pytest.raises(KeyboardInterrupt):
            index(images, encoder, out=tmp_path / "index", progress=recording_progress(stop_at=COUNT))
        with pytest.raises(FingerprintMismatch, match=r"index\.embedding"):
            index(images, "test_resnet", out=tmp_path / "index", weights="none")

    def test_unreadable_files_are_listed(self, images, encoder, tmp_path):
        (images / "broken.jpg").write_text("not an image")
        built = index(images, encoder, out=tmp_path / "index")
        assert [s.path.name for s in built.skipped] == ["broken.jpg"]
        assert len(built.index) == COUNT

    def test_embeddings_without_their_images(self, images, encoder, tmp_path):
        embeddings = embed(images, encoder, out=tmp_path / "emb")
        (images / "more" / "cat2.jpg").unlink()
        built = index(tmp_path / "emb", out=tmp_path / "index")
        assert set(built.index.ids) == set(embeddings.ids)
        assert built.index.root == images.resolve()
        assert load_index(tmp_path / "index").encoder.fingerprint == encoder.fingerprint
        assert len(load_embeddings(tmp_path / "emb")) == COUNT

    def test_embeddings_list_what_was_skipped(self, images, encoder, tmp_path, close_folder):
        close_folder(images / "more")
        skipped = embed(images, encoder, out=tmp_path / "emb").skipped
        assert index(tmp_path / "emb", out=tmp_path / "index").skipped == skipped

    def test_embeddings_of_another_model_are_refused(self, images, encoder, other_encoder, tmp_path):
        embed(images, encoder, out=tmp_path / "emb")
        save_bundle(other_encoder, tmp_path / "other")
        for model in (other_encoder, tmp_path / "other", "test_resnet"):
            with pytest.raises(FingerprintMismatch, match=encoder.fingerprint) as caught:
                index(tmp_path / "emb", model, out=tmp_path / "index")
            assert caught.value.argument == "model"
        for n, model in enumerate((encoder, tmp_path / "emb" / "model", "test_efficientnet")):
            assert len(index(tmp_path / "emb", model, out=tmp_path / f"index{n}").index) == COUNT

    def test_a_name_does_not_mean_a_trained_model(self, images, encoder, tmp_path):
        data = TrainingData(fingerprint="some", images=1, validation_images=0, validation="")
        save_bundle(encoder, tmp_path / "trained", describe_encoder(encoder, training_data=data))
        embed(images, tmp_path / "trained", out=tmp_path / "emb")
        with pytest.raises(FingerprintMismatch, match="test_efficientnet"):
            index(tmp_path / "emb", "test_efficientnet", out=tmp_path / "index")
        for n, model in enumerate((None, tmp_path / "trained")):
            assert len(index(tmp_path / "emb", model, out=tmp_path / f"index{n}").index) == COUNT

    def test_unfinished_embeddings_or_a_missing_model(self, images, encoder, tmp_path, recording_progress):
        with pytest.raises(KeyboardInterrupt):
            embed(images, encoder, out=tmp_path / "emb", progress=recording_progress(stop_at=COUNT))
        with pytest.raises(StorageError, match="unfinished"):
            index(tmp_path / "emb", out=tmp_path / "index")
        embed(images, encoder, out=tmp_path / "emb")
        shutil.rmtree(tmp_path / "emb" / "model")
        with pytest.raises(StorageError, match="has no model folder"):
            index(tmp_path / "emb", out=tmp_path / "index")

    def test_invalid_arguments_are_reported_before_the_work(self, images, encoder, tmp_path, decoded):
        out = tmp_path / "out"
        calls = [
            ("images", lambda: index(["a.jpg"], encoder, out=out)),
            ("model", lambda: index(images, out=out)),
            ("min_recall", lambda: index(images, encoder, out=out, min_recall=0)),
            ("runtime", lambda: index(images, encoder, out=out, runtime="tensorrt")),
        ]
        for argument, call in calls:
            with pytest.raises(OptionError) as caught:
                call()
            assert caught.value.argument == argument
        with pytest.raises(StorageError, match="already exists") as caught:
            index(images, encoder, out=images)
        assert caught.value.argument == "out"
        assert decoded == []

    def test_a_runtime_is_only_for_images(self, images, encoder, tmp_path):
        embed(images, encoder, out=tmp_path / "emb")
        with pytest.raises(OptionError, match="embeddings already") as caught:
            index(tmp_path / "emb", out=tmp_path / "index", precision="float32")
        assert caught.value.argument == "runtime"

    def test_an_index_is_replaced_only_if_requested(self, index_folder, images, encoder):
        (images / "astronaut0.jpg").unlink()
        with pytest.raises(StorageError, match="pass `replace`"):
            index(images, encoder, out=index_folder)
        assert len(index(images, encoder, out=index_folder, replace=True).index) == COUNT - 1
        with pytest.raises(StorageError, match="already exists"):
            index(images, encoder, out=images, replace=True)  # nothing but an index is replaced

    def test_a_full_disk_keeps_the_embeddings(self, images, encoder, tmp_path, monkeypatch, decoded):
        def full(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(shutil, "copytree", full)
            with pytest.raises(StorageError, match=r"index cannot be written \(no space left on device\)"):
                index(images, encoder, out=tmp_path / "index")
        assert names(tmp_path) == ["images", "index.embedding", "photos"]
        decoded.clear()
        assert len(index(images, encoder, out=tmp_path / "index").index) == COUNT
        assert decoded == []


def test_the_folder_of_a_leave_one_out_data_set(data_folder, encoder, tmp_path):
    shutil.rmtree(data_folder / "test")
    (data_folder / "labels.csv").unlink()
    shutil.copytree(data_folder / "training", data_folder / "test")
    built = index(data_folder, encoder, out=tmp_path / "index")
    assert {name.split("/")[0] for name in built.index.ids} == {"test"}


def test_a_data_set_without_a_gallery(data_folder, encoder, tmp_path, decoded):
    shutil.rmtree(data_folder / "test" / "gallery")
    with pytest.raises(DataError, match="has no gallery image to index, only 32 for training and query") as caught:
        index(data_folder, encoder, out=tmp_path / "index")
    assert caught.value.argument == "images"
    (data_folder / "manifest.csv").write_text("path,label,split\ntraining/cat/cat0.jpg,cat,training\n")
    with pytest.raises(DataError, match=r"list them in manifest\.csv as gallery"):
        index(data_folder, encoder, out=tmp_path / "index")
    assert decoded == []


@pytest.mark.parametrize("command", [embed, index])
def test_a_table_of_something_else_called_manifest(images, encoder, tmp_path, decoded, command):
    (images / "manifest.csv").write_text("file,hash\nx.jpg,0\n")
    with pytest.raises(DataError, match="rename the file") as caught:
        command(images, encoder, out=tmp_path / "out")
    assert caught.value.argument == "images"
    assert decoded == []


def test_images_inside_and_outside_of_the_folder_of_a_manifest(images, encoder, tmp_path, recording_progress):
    """Both are found again, and neither is its own hit; `embed` and `index` read the manifest alike."""
    inside, outside = sorted(images.rglob("*.jpg"))[:2]
    other = tmp_path / "elsewhere" / outside.name
    other.parent.mkdir()
    shutil.copy(outside, other)
    rows = f"./{inside.relative_to(images)},,gallery\n../elsewhere/{other.name},,gallery\n"
    (images / "manifest.csv").write_text(f"path,label,split\n{rows}")
    built = index(images, encoder, out=tmp_path / "index").index
    progress = recording_progress()
    assert tuple(embed(images, encoder, out=tmp_path / "emb", progress=progress).ids) == tuple(built.ids)
    assert any("manifest.csv, 2 images; others in the folder are not used" in line for line in progress.messages)
    embedded = index(tmp_path / "emb", out=tmp_path / "again").index
    assert [embedded.path_of(item) for item in embedded.ids] == [built.path_of(item) for item in built.ids]
    assert all(built.path_of(item).is_file() for item in built.ids)
    for query in (inside, other):
        (hits,) = search(tmp_path / "index", [query], top_k=1)
        assert [hit.path.resolve() for hit in hits] == [({inside, other} - {query}).pop().resolve()]
