"""`embed`: from a folder of images to embeddings; and what `embed` and `index` accept as a folder."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from lookalike._lock import locked
from lookalike.api.embed import embed
from lookalike.api.index import index
from lookalike.embeddings.folder import is_unfinished, load_embeddings, read_embeddings_info
from lookalike.errors import DataError, FingerprintMismatch, OptionError, StorageError
from lookalike.models.bundle import read_bundle_info, save_bundle
from lookalike.runtimes import fit as fit_module
from lookalike.runtimes.load import load_encoder
from lookalike.types import Skipped

CLOSED = "the folder cannot be listed (permission denied)"
COUNT = 12  # of `images`


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def few_fit_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit heads on 7 images at most, so that others remain to be embedded."""
    monkeypatch.setattr("lookalike.runtimes.fit.FIT_IMAGES", 7)


class TestPretrained:
    """A model by the name of its backbone, whose head is fitted on the images."""

    @pytest.mark.parametrize("name", ["test_efficientnet", "test_efficientnet+test_resnet"])
    def test_each_image_is_decoded_once(self, images, tmp_path, decoded, name):
        embeddings = embed(images, name, weights="none", out=tmp_path / "emb")
        assert sorted(decoded) == sorted(embeddings.ids)
        assert len(decoded) == COUNT

    @pytest.mark.usefixtures("few_fit_images", "small_shards")
    @pytest.mark.parametrize("name", ["test_efficientnet", "test_efficientnet+test_resnet"])
    def test_each_image_is_decoded_once_if_the_head_is_fitted_on_some(self, images, tmp_path, decoded, name):
        embeddings = embed(images, name, weights="none", out=tmp_path / "emb")
        assert sorted(decoded) == sorted(embeddings.ids)
        assert len(decoded) == COUNT
        again = load_encoder(tmp_path / "emb").embed([images / item_id for item_id in embeddings.ids])
        np.testing.assert_allclose(embeddings.vectors, again.vectors, atol=1e-5)

    def test_the_names_of_an_ensemble_are_aligned(self, images, tmp_path):
        embed(images, "test_efficientnet+test_resnet", weights="none", out=tmp_path / "emb")
        ensemble = load_encoder(tmp_path / "emb")
        assert (ensemble.name, ensemble.combination, ensemble.dim) == (
            "test_efficientnet+test_resnet",
            "aligned",
            512,
        )

    def test_an_unreadable_image_is_skipped_once(self, images, tmp_path):
        (images / "broken.jpg").write_text("not an image")
        (skipped,) = embed(images, "test_efficientnet", weights="none", out=tmp_path / "emb").skipped
        assert skipped.path == images / "broken.jpg"

    def test_the_head_is_fitted_once(self, images, tmp_path, recording_progress):
        out, first, second = tmp_path / "emb", recording_progress(), recording_progress()
        before = embed(images, "test_efficientnet", weights="none", out=out, progress=first)
        assert first.messages == [
            f"test_efficientnet: fitting its PCA head on {COUNT} of {COUNT} images (labels are not used)"
        ]
        (images / "zebra.jpg").write_bytes((images / "more" / "cat2.jpg").read_bytes())
        after = embed(images, "test_efficientnet", weights="none", out=out, progress=second)
        assert second.messages == []
        assert (after.fingerprint, len(after)) == (before.fingerprint, COUNT + 1)
        assert read_bundle_info(out / "model").members[0].head == f"PCA of {COUNT} images"

    def test_an_interrupted_fit_leaves_nothing(self, images, tmp_path, monkeypatch):
        def interrupt(*_, **__):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(fit_module, "pca_head", interrupt)
            with pytest.raises(KeyboardInterrupt):
                embed(images, "test_efficientnet", weights="none", out=tmp_path / "emb")
        assert not (tmp_path / "emb").exists()
        assert len(embed(images, "test_efficientnet", weights="none", out=tmp_path / "emb")) == COUNT

    @pytest.mark.usefixtures("few_fit_images", "small_shards")
    def test_an_interrupted_run_resumes_with_the_same_head(self, images, tmp_path, recording_progress, decoded):
        out = tmp_path / "emb"
        with pytest.raises(KeyboardInterrupt):
            embed(images, "test_efficientnet", weights="none", out=out, progress=recording_progress(stop_at=COUNT))
        assert is_unfinished(out)
        decoded.clear()
        resumed = embed(images, "test_efficientnet", weights="none", out=out)
        assert len(decoded) == 2  # the third shard of 5, 5 and 2
        whole = embed(images, "test_efficientnet", weights="none", out=tmp_path / "whole")
        assert resumed.fingerprint == whole.fingerprint
        np.testing.assert_allclose(resumed.vectors, whole.vectors, atol=1e-5)

    def test_a_damaged_model_is_fitted_again(self, images, tmp_path):
        out = tmp_path / "emb"
        before = embed(images, "test_efficientnet", weights="none", out=out)
        (out / "model" / "bundle.json").write_text("{")
        after = embed(images, "test_efficientnet", weights="none", out=out)
        assert after.fingerprint == before.fingerprint
        assert load_encoder(out).fingerprint == before.fingerprint

    @pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet"])
    def test_other_weights_or_another_backbone_are_refused_before_the_work(
        self, images, encoder, tmp_path, decoded, name
    ):
        embed(images, encoder, out=tmp_path / "emb")
        decoded.clear()
        with pytest.raises(FingerprintMismatch, match="test_efficientnet") as caught:
            embed(images, name, weights="none", out=tmp_path / "emb")
        assert caught.value.argument == "out"
        assert decoded == []

    def test_one_image_is_not_enough(self, images, tmp_path):
        shutil.rmtree(images / "more")
        for path in sorted(images.iterdir())[1:]:
            path.unlink()
        with pytest.raises(DataError, match="at least 2"):
            embed(images, "test_efficientnet", weights="none", out=tmp_path / "emb")


class TestEmbed:
    def test_ids_are_relative_paths(self, images, encoder, tmp_path):
        embeddings = embed(images, encoder, out=tmp_path / "emb")
        assert list(embeddings.ids) == sorted(p.relative_to(images).as_posix() for p in images.rglob("*.jpg"))
        assert read_embeddings_info(tmp_path / "emb").root == images.resolve()

    def test_the_model_of_the_folder_is_the_default(self, images, encoder, tmp_path):
        with pytest.raises(OptionError, match="emb holds no model") as caught:
            embed(images, out=tmp_path / "emb")
        assert caught.value.argument == "model"
        before = embed(images, encoder, out=tmp_path / "emb")
        (images / "more" / "cat2.jpg").unlink()
        after = embed(images, out=tmp_path / "emb")
        assert set(before.ids) - set(after.ids) == {"more/cat2.jpg"}
        assert after.fingerprint == encoder.fingerprint
        rows = [before.ids.index(name) for name in after.ids]
        np.testing.assert_allclose(after.vectors, before.vectors[rows], atol=1e-5)

    def test_a_folder_that_is_gone_needs_a_confirmation(self, images, encoder, tmp_path, recording_progress):
        before = embed(images, encoder, out=tmp_path / "emb")
        (images / "more").rename(tmp_path / "more")
        with pytest.raises(DataError, match="folder more") as caught:
            embed(images, out=tmp_path / "emb")
        assert caught.value.argument == "allow_removals"
        assert list(load_embeddings(tmp_path / "emb").ids) == list(before.ids)
        progress = recording_progress()
        after = embed(images, out=tmp_path / "emb", allow_removals=True, progress=progress)
        assert set(before.ids) - set(after.ids) == {name for name in before.ids if name.startswith("more/")}
        assert any("gone and removed" in message for message in progress.messages)

    def test_a_folder_keeps_its_precision(self, images, encoder, tmp_path):
        embed(images, encoder, out=tmp_path / "emb", precision="float32")
        with pytest.raises(OptionError, match="computed in float32") as caught:
            embed(images, encoder, out=tmp_path / "emb", precision="bfloat16")
        assert caught.value.argument == "precision"
        shutil.copy(images / "more" / "cat2.jpg", images / "zebra.jpg")
        assert embed(images, encoder, out=tmp_path / "emb").precision == "float32"

    def test_an_ensemble_keeps_the_precision_of_each_member(self, images, ensemble_bundle, tmp_path, monkeypatch):
        monkeypatch.setattr("lookalike.models.torch_backbone.has_bfloat16", lambda _: True)
        precision = "float32+bfloat16"
        embed(images, ensemble_bundle, out=tmp_path / "emb", runtime="torch", precision=precision)
        shutil.copy(images / "more" / "cat2.jpg", images / "zebra.jpg")
        assert embed(images, out=tmp_path / "emb", runtime="torch").precision == precision

    def test_torch_as_the_runtime(self, images, bundle, tmp_path):
        embeddings = embed(images, bundle, out=tmp_path / "emb", runtime="torch", precision="float32")
        expected = load_encoder(bundle, runtime="torch").embed([images / item_id for item_id in embeddings.ids])
        np.testing.assert_allclose(embeddings.vectors, expected.vectors, atol=1e-5)

    @pytest.mark.parametrize(
        ("argument", "options"),
        [
            ("images", {"images": ["a.jpg", "b.jpg"]}),
            ("runtime", {"runtime": "tensorrt"}),
            ("precision", {"precision": "int4"}),
        ],
    )
    def test_invalid_arguments(self, images, encoder, tmp_path, argument, options):
        with pytest.raises(OptionError) as caught:
            embed(**{"images": images, "model": encoder, "out": tmp_path / "emb", **options})
        assert caught.value.argument == argument
        assert not (tmp_path / "emb").exists()

    def test_an_existing_folder_is_reported_before_a_runtime_is_selected(self, images, encoder, tmp_path, monkeypatch):
        monkeypatch.setattr(type(encoder), "prepare", lambda *_: pytest.fail("a runtime was selected"))
        (tmp_path / "letters").mkdir()
        (tmp_path / "letters" / "dear.txt").write_text("dear")
        with pytest.raises(StorageError, match="already exists") as caught:
            embed(images, encoder, out=tmp_path / "letters")
        assert caught.value.argument == "out"


@pytest.mark.parametrize("command", [embed, index])
class TestFolders:
    """What both verbs accept as a folder of images."""

    def test_a_second_run_to_the_same_folder_is_refused_before_it_works(
        self, command, images, encoder, tmp_path, decoded
    ):
        with locked(tmp_path / "out"), pytest.raises(StorageError, match="another run") as caught:
            command(images, encoder, out=tmp_path / "out")
        assert caught.value.argument == "out"
        assert decoded == []

    def test_a_link_is_followed(self, command, images, encoder, tmp_path):
        (tmp_path / "link").symlink_to(tmp_path / "disk" / "out")
        command(images, encoder, out=tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        assert names(tmp_path / "disk") == ["out"]

    def test_a_missing_folder(self, command, encoder, tmp_path):
        with pytest.raises(DataError, match="missing does not exist"):
            command(tmp_path / "missing", encoder, out=tmp_path / "out")

    def test_a_folder_without_images(self, command, encoder, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match="empty holds no image") as caught:
            command(tmp_path / "empty", encoder, out=tmp_path / "out")
        assert caught.value.argument == "images"

    def test_a_folder_that_cannot_be_read(self, command, images, encoder, tmp_path, monkeypatch):
        access = os.access
        monkeypatch.setattr(
            "lookalike.data.layouts.os.access", lambda path, mode: path != images and access(path, mode)
        )
        with pytest.raises(DataError, match="images cannot be read"):
            command(images, encoder, out=tmp_path / "out")

    def test_a_subfolder_that_cannot_be_listed(self, command, images, encoder, tmp_path, close_folder):
        close_folder(images / "more")
        assert command(images, encoder, out=tmp_path / "out").skipped == (Skipped(images / "more", CLOSED),)

    def test_only_a_subfolder_that_cannot_be_listed(self, command, images, encoder, tmp_path, close_folder):
        for path in images.glob("*.jpg"):
            path.unlink()
        close_folder(images / "more")
        with pytest.raises(DataError, match=re.escape(f"{images / 'more'}: {CLOSED}")):
            command(images, encoder, out=tmp_path / "out")

    def test_output_of_lookalike_is_not_a_folder_of_images(self, command, images, encoder, tmp_path):
        embed(images, encoder, out=tmp_path / "emb")
        index(tmp_path / "emb", out=tmp_path / "idx")
        save_bundle(encoder, tmp_path / "trained")
        shutil.copy(images / "more" / "cat2.jpg", tmp_path / "trained" / "curves.png")
        contents = {"idx": "an index", "emb/model": "a model", "trained": "a model"}
        if command is embed:
            contents["emb"] = "a folder of embeddings"
        for name, content in contents.items():
            with pytest.raises(DataError, match=f"{name} is {content}"):
                command(tmp_path / name, encoder, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
    def test_a_read_only_folder(self, command, images, encoder, tmp_path):
        (tmp_path / "closed").mkdir(mode=0o555)
        with pytest.raises(StorageError, match="read-only"):
            command(images, encoder, out=tmp_path / "closed" / "out")


def test_images_of_other_formats_and_results_are_reported(images, encoder, tmp_path, recording_progress):
    (images / "a.jxl").write_bytes(b"x")
    save_bundle(encoder, images / "model")
    (images / "model" / "curves.png").write_bytes(b"x")
    recorder = recording_progress()
    assert len(embed(images, encoder, out=tmp_path / "emb", progress=recorder)) == COUNT
    assert any("1 .jxl" in message for message in recorder.messages)
    assert any("results of Lookalike are not used: model" in message for message in recorder.messages)
