"""Training of one backbone: its stages, what is kept of them, and what the report says."""

import numpy as np
import pytest
import torch

from lookalike.models.info import StageMeasures
from lookalike.progress import SILENT
from lookalike.runtimes.fit import fit_encoder
from lookalike.training.context import TrainingContext
from lookalike.training.train_backbone import train_backbone
from lookalike.training.trainer import resolve_precision

SMALL = "test_efficientnet"


@pytest.fixture
def train_small(data, recorder):
    """Train the small backbone without a checkpoint folder; return the result and the progress."""

    def run(weights, options):
        progress = recorder()
        return train_backbone(TrainingContext(data, options, progress), SMALL, weights), progress

    return run


def test_a_frozen_run_keeps_the_backbone_and_has_no_epochs(train_small, weights, quick, member):
    trained, progress = train_small(weights, quick(frozen=True))
    assert not any(task.startswith("epoch") for task in progress.tasks)
    before, after = member.state(), trained.encoder.state()
    assert all(np.array_equal(before[k], after[k]) for k in before if k.startswith("backbone."))
    assert not np.array_equal(before["head.linear.weight"], after["head.linear.weight"])
    assert trained.report.epochs == ()
    assert trained.report.fine_tuned_share is None


def test_the_frozen_stage_is_kept_exactly_where_fine_tuning_does_not_help(train_small, weights, quick, monkeypatch):
    same = {"crop_mode": "squash", "head": "pca"}
    expected, _ = train_small(weights, quick(frozen=True, **same))
    monkeypatch.setattr(TrainingContext, "measure", lambda _context, _encoder: 0.0)
    trained, progress = train_small(weights, quick(**same))
    assert trained.report.fine_tuned_share == 0.0
    assert trained.report.share_measures["0"] > 0
    assert trained.encoder.fingerprint == expected.encoder.fingerprint
    assert trained.encoder.head_origin == expected.encoder.head_origin
    assert trained.encoder.trained == expected.encoder.trained
    assert any("fine-tuning did not help" in text for text in progress.messages)


def test_the_pca_head_is_kept_exactly_where_training_the_head_does_not_help(train_small, weights, quick, member, data):
    """With eight images `hit@7` is 1 for every head."""
    trained, _ = train_small(weights, quick(frozen=True, stop_on="hit@7"))
    assert trained.report.measures == StageMeasures(1.0, 1.0)
    fitted = fit_encoder([(member.torch_backbone(), "frozen")], data.training, progress=SILENT)
    assert trained.encoder.fingerprint == fitted.encoder.fingerprint
    assert (trained.encoder.head_origin, trained.encoder.trained) == ("PCA of 24 images", "frozen")


def test_random_initial_weights_are_not_interpolated(train_small, quick):
    trained, _ = train_small("none", quick(epochs=1))
    assert (trained.report.fine_tuned_share, trained.report.share_measures) == (1.0, {})
    assert trained.encoder.trained == "fine-tuned"


def test_the_loss_decreases(train_small, quick):
    trained, _ = train_small("none", quick(epochs=6, lr=3e-3, crop_scale=0.3))
    losses = [epoch.loss for epoch in trained.report.epochs]
    assert losses[-1] < losses[2] < losses[0] < 2 * np.log(4)


def test_the_report_says_what_auto_became(train_small, weights, quick):
    trained, _ = train_small(weights, quick(epochs=1, loss="triplet", precision="auto"))
    report = trained.report
    assert report.recipe["sampler"] == report.recipe["precision"] == "auto"
    assert (report.recipe_name, report.sampler) == ("mobile-cnn", "pk")
    assert report.precision == resolve_precision(torch.device("cpu"), "auto")
