"""What a user may call a model."""

from __future__ import annotations

from pathlib import Path

import pytest
from lookalike.api.load_model import load_as_trained, resolve_model, weights_of
from lookalike.models.facts import bundle_at
from lookalike.models.torch_bundle import save_bundle

from lookalike.api.embed import index
from lookalike.data.layouts import load_dataset
from lookalike.errors import ModelError
from lookalike.models.trainable import build_trainable


@pytest.fixture
def bundle(encoder, tmp_path):
    return save_bundle(encoder, tmp_path / "bundle")


def test_an_encoder_is_itself(encoder):
    assert resolve_model(encoder) is encoder


def test_a_bundle_or_a_folder_that_holds_one(encoder, bundle, tmp_path):
    save_bundle(encoder, tmp_path / "index" / "model")
    for place in (bundle, str(bundle), tmp_path / "index"):
        assert resolve_model(place).fingerprint == encoder.fingerprint
    assert bundle_at(tmp_path / "index") == tmp_path / "index" / "model"
    assert bundle_at(tmp_path) is None


def test_class_folders_are_split_as_a_bundle_was_trained(encoder, bundle, photo_folder, tmp_path):
    """Else `evaluate` on class folders would meet images that `train --seed 3` trained on."""
    class_folders = photo_folder / "training"
    options = {"seed": 3, "class_disjoint": True}
    trained = save_bundle(encoder, tmp_path / "third", facts={"options": options})
    assert load_as_trained(class_folders, trained).items == load_dataset(class_folders, **options).items
    usual = load_dataset(class_folders).items
    assert load_as_trained(class_folders, trained).items != usual
    index(photo_folder / "test" / "gallery", trained, out=tmp_path / "index")  # says it of its model as well
    assert load_as_trained(class_folders, tmp_path / "index").items == load_dataset(class_folders, **options).items
    for model in (bundle, encoder, "efficientnet_lite0"):
        assert load_as_trained(class_folders, model).items == usual


def test_a_name_learns_its_head_from_the_images(photo_folder, recording_progress):
    training = load_dataset(photo_folder).training
    progress = recording_progress()
    model = resolve_model("test_efficientnet", fit_on=training, weights="none", progress=progress)
    assert model.members[0].origin["head"] == "PCA of 24 images"
    assert progress.said == ["test_efficientnet: its head is learnt from 24 of 24 images, without labels"]
    assert model.fingerprint == resolve_model("test_efficientnet", fit_on=training, weights="none").fingerprint


@pytest.mark.parametrize("images", [0, 1])
def test_a_name_without_images_gets_a_random_head(photo_folder, recording_progress, images):
    progress = recording_progress()
    fit_on = load_dataset(photo_folder).training[:images]
    model = resolve_model("test_efficientnet", fit_on=fit_on, weights="none", progress=progress)
    assert model.fingerprint == build_trainable("test_efficientnet", "none").fingerprint
    assert progress.said == ["test_efficientnet: without images to learn a head from, a random projection is taken"]


def test_several_names_are_aligned_on_the_images_or_joined_without(photo_folder, recording_progress):
    weights = {"test_efficientnet": "none", "test_vit": "none"}
    both = "test_efficientnet+test_vit"
    aligned = resolve_model(both, fit_on=load_dataset(photo_folder).gallery, weights=weights)
    assert (aligned.name, aligned.how, aligned.dim) == (both, "aligned", 512)
    progress = recording_progress()
    joined = resolve_model(both, weights="none", progress=progress)
    assert (joined.how, joined.dim) == ("concat", 1024)
    assert "joined end to end" in progress.said[0]


def test_weights_by_name():
    assert weights_of({"a": "none"}, "a") == "none"
    assert weights_of({"a": "none"}, "b") == "pretrained"
    assert weights_of(Path("w"), "b") == Path("w")


@pytest.mark.parametrize("text", ["./resnet50", "runs/best", "~/model", "../x"])
def test_a_path_that_does_not_exist(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=f"^{text} does not exist, and no backbone has such a name; give a bundle"):
        resolve_model(text)


def test_a_folder_that_is_no_bundle(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    with pytest.raises(ModelError, match=r"photos is not a bundle: it has no bundle\.json, and no backbone"):
        resolve_model(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="photos is neither a bundle nor a backbone's name: there is no backbone"):
        resolve_model("photos")


def test_a_folder_named_like_a_backbone_does_not_hide_it(tmp_path, monkeypatch):
    (tmp_path / "test_efficientnet").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_model("test_efficientnet", weights="none").name == "test_efficientnet"


@pytest.mark.parametrize("text", ["resnet5O", "test_efficientnet+", "test_efficientnet+nothing_like_it"])
def test_unknown_names_fail_before_any_weights_are_loaded(text, monkeypatch):
    monkeypatch.setattr(
        "lookalike.models.pretrained.build_trainable", lambda *_, **__: pytest.fail("weights were loaded")
    )
    with pytest.raises(ModelError, match="there is no backbone named"):
        resolve_model(text, weights="none")


def test_a_damaged_bundle_says_so(bundle):
    (bundle / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match="corrupt"):
        resolve_model(bundle)
