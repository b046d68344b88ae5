"""Training again on all images, with the choices that validation made."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lookalike._files import write_json
from lookalike.errors import DataError, ModelError, OptionError, StorageError
from lookalike.models.bundle import read_bundle_info, save_bundle
from lookalike.models.heads import pca_head
from lookalike.models.info import EpochReport
from lookalike.progress import SILENT
from lookalike.runtimes.fit import compute_features
from lookalike.runtimes.load import load_encoder
from lookalike.training.config import TrainingOptions
from lookalike.training.context import TrainingContext
from lookalike.training.frozen_stage import FrozenStageConfig, replay_frozen_stage
from lookalike.training.refit import refit
from lookalike.training.train import train, training_info
from lookalike.types import Calibration

SMALL = "test_efficientnet"
WITH_VALIDATION = 32  # 24 training and 8 validation crops
CALIBRATION = Calibration(12.5, -4.0, 200, 0.02)


@pytest.fixture(scope="module")
def first(crops_original, weights, quick, tmp_path_factory) -> Path:
    """A bundle of a run of three epochs; its report is then rewritten to what the tests expect."""
    out = tmp_path_factory.mktemp("first") / "first"
    train(crops_original, SMALL, weights=weights, out=out, options=quick(epochs=3, lr=1e-3))
    rewrite(out, share=0.5, measures=[0.2, 0.4, 0.3], head_epochs=2)
    return out


def rewrite(bundle: Path, *, share: float, measures: list[float], head_epochs: int) -> None:
    info = read_bundle_info(bundle)
    (report,) = info.training
    report = replace(
        report,
        fine_tuned_share=share,
        epochs=tuple(EpochReport(1.0, 1.0, measure) for measure in measures),
        head_epochs=head_epochs,
    )
    info = replace(info, training=(report,), calibration=CALIBRATION)
    write_json(bundle / "bundle.json", info.to_dict())


def test_it_trains_for_the_best_number_of_epochs_on_all_images(first, crops_original, weights, recorder, tmp_path):
    progress = recorder()
    model = refit(crops_original, first, out=tmp_path / "again", weights=weights, progress=progress)
    epochs = [task for task in progress.tasks if task.startswith("epoch")]
    assert epochs == ["epoch 1/2", "epoch 2/2"]  # the learning rate falls as for three
    assert {total for task, _, total in progress.steps if task in epochs} == {WITH_VALIDATION}
    info = read_bundle_info(tmp_path / "again")
    assert info.refit_of == load_encoder(first).fingerprint
    assert info.training_data.images == WITH_VALIDATION
    assert info.training_data.validation_images == 0
    assert (tmp_path / "again" / "curves.png").exists() and (tmp_path / "again" / "curves.html").exists()
    (report,), (before,) = info.training, read_bundle_info(first).training
    assert report.images == WITH_VALIDATION
    assert (report.measures, report.rates, report.options) == (before.measures, before.rates, before.options)
    assert info.calibration == CALIBRATION
    assert not info.measures and "precision@3" in read_bundle_info(first).measures["validation"]
    assert [epoch.measure for epoch in report.epochs] == [None, None]
    assert report.fine_tuned_share == 0.5
    assert model.fingerprint == load_encoder(tmp_path / "again").fingerprint != load_encoder(first).fingerprint
    assert not (tmp_path / "again.training").exists()


@pytest.mark.parametrize("moment", [("epoch 1/2", 16), ("epoch 2/2", 16)])
def test_an_interrupted_and_resumed_refit_is_identical(moment, first, crops_original, weights, recorder, tmp_path):
    whole = refit(crops_original, first, out=tmp_path / "whole", weights=weights)
    options = {"out": tmp_path / "parts", "weights": weights}
    with pytest.raises(KeyboardInterrupt):
        refit(crops_original, first, progress=recorder(lambda task, done: (task, done) == moment), **options)
    with pytest.raises(StorageError, match="unfinished run"):
        refit(crops_original, first, **options)
    resumed = refit(crops_original, first, resume=True, **options)
    assert resumed.fingerprint == whole.fingerprint
    progress = recorder()
    assert refit(crops_original, first, resume=True, progress=progress, **options).fingerprint == whole.fingerprint
    (message,) = progress.messages
    assert str(tmp_path / "parts") in message and "complete" in message


def test_the_head_of_an_untrained_encoder_is_fitted_on_all_images(data, crops_original, weights, member, tmp_path):
    backbone = member.torch_backbone()
    training, validation = (
        compute_features(backbone, items, progress=SILENT, task="").rows for items in (data.training, data.validation)
    )
    member.set_head(pca_head(training, member.dim))
    info = training_info(member.freeze(), data, TrainingOptions(), [])
    first = save_bundle(member.freeze(), tmp_path / "frozen", info)
    model = refit(crops_original, first, out=tmp_path / "again", weights=weights)
    head = pca_head(np.concatenate([training, validation]), member.dim)
    np.testing.assert_allclose(model.head.weight, head.weight, atol=1e-6)
    np.testing.assert_allclose(model.head.bias, head.bias, atol=1e-6)
    assert model.info.head == f"PCA of {WITH_VALIDATION} images"
    assert model.state == "frozen"


def test_an_ensemble_is_aligned_again(crops_original, weights, quick, tmp_path):
    both = f"{SMALL}+test_vit"
    weights_by_name = {SMALL: weights, "test_vit": "none"}
    train(crops_original, both, weights=weights_by_name, out=tmp_path / "first", options=quick(epochs=1))
    model = refit(crops_original, tmp_path / "first", out=tmp_path / "again", weights=weights_by_name)
    assert [m.name for m in model.members] == [SMALL, "test_vit"]
    alignment = model.alignments[1]
    assert alignment is not None
    np.testing.assert_allclose(alignment @ alignment.T, np.eye(len(alignment)), atol=1e-4)


def test_unlabelled_validation_images_are_skipped(data, member, quick):
    lost = data.validation[0]
    items = [replace(i, label=None) if i.id == lost.id else i for i in data.items]
    context = TrainingContext(data.replace_items(items), quick(), recipe=quick().recipe_for("mobile-cnn"))
    stage = replay_frozen_stage(context, member, FrozenStageConfig())
    assert len(stage.class_means) == 4
    assert lost.id not in {i.id for i in stage.items}
    assert len(stage.items) == WITH_VALIDATION - 1


@pytest.mark.parametrize("steps", [(2, 2), (3, 4)], ids=["shortened", "whole"])
def test_epochs_that_a_budget_shortened_stay_short(steps, first, crops_original, weights, recorder, tmp_path):
    """24 training images in batches of 8 are 3 steps; with validation they are 32, 4 steps."""
    (before, after), bundle = steps, shutil.copytree(first, tmp_path / "first")
    info = read_bundle_info(bundle)
    (report,) = info.training
    write_json(bundle / "bundle.json", replace(info, training=(replace(report, steps_per_epoch=before),)).to_dict())
    progress = recorder()
    refit(crops_original, bundle, out=tmp_path / "again", weights=weights, progress=progress)
    assert max(done for task, done, _ in progress.steps if task == "epoch 1/2") == after * 8


def test_a_refitted_bundle_is_refused(first, crops_original, weights, tmp_path):
    again = Path(shutil.copytree(first, tmp_path / "again"))
    write_json(again / "bundle.json", replace(read_bundle_info(again), refit_of="another").to_dict())
    with pytest.raises(ModelError, match="already refitted"):
        refit(crops_original, again, out=tmp_path / "more", weights=weights)


def test_other_data_is_refused(first, crops, weights, tmp_path):
    next((crops / "training").rglob("*.png")).unlink()
    with pytest.raises(DataError, match=f"{first} was not trained on the images in {crops}"):
        refit(crops, first, out=tmp_path / "again", weights=weights)


def test_other_weights_are_refused(first, crops_original, tmp_path):
    with pytest.raises(ModelError, match=SMALL):
        refit(crops_original, first, out=tmp_path / "again", weights="none")
    with pytest.raises(OptionError, match="'resnet50'"):
        refit(crops_original, first, out=tmp_path / "again", weights={"resnet50": "none"})


def test_a_bundle_without_a_record_of_its_training_is_refused(encoder_bundle, crops_original, tmp_path):
    with pytest.raises(ModelError, match="no complete record of its training"):
        refit(crops_original, encoder_bundle, out=tmp_path / "again", weights="none")
    assert not (tmp_path / "again").exists()


@pytest.fixture
def encoder_bundle(member, tmp_path) -> Path:
    return save_bundle(member.freeze(), tmp_path / "plain")


def test_an_existing_folder_is_not_overwritten(first, crops_original, weights, tmp_path):
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "mine.json").write_text(json.dumps(1))
    with pytest.raises(StorageError, match="already exists"):
        refit(crops_original, first, out=tmp_path / "again", weights=weights)
    assert (tmp_path / "again" / "mine.json").read_text() == "1"
