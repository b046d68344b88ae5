"""The frozen stage: crop mode by validation, and a head that training never makes worse."""

import math

import numpy as np
import pytest
import torch

from lookalike.progress import SILENT
from lookalike.runtimes.fit import compute_features
from lookalike.training.context import TrainingContext, class_indices
from lookalike.training.frozen_stage import CANDIDATE_CROP_MODES, CosineClassifier, logit_scale, train_head
from lookalike.training.train_backbone import train_backbone


@pytest.fixture
def features(member, data):
    return compute_features(member.torch_backbone(), data.training, progress=SILENT, task="features")


@pytest.fixture
def classifier(member, features, data):
    return CosineClassifier(member.project(features.rows), class_indices(data.training), 0.1)


def run(member, classifier, features, data, measure, epochs=4):
    return train_head(member, classifier, features, class_indices(data.training), measure, seed=0, epochs=epochs)


def scripted(values):
    remaining = iter(values)
    return lambda: next(remaining)


def test_the_head_is_unchanged_when_every_epoch_is_worse(member, classifier, features, data):
    before, weight = member.fingerprint, classifier.weight.detach().clone()
    best = run(member, classifier, features, data, scripted([0.5, 0.4, 0.5, 0.3, 0.49]))
    assert best == (0.5, 0)
    assert member.fingerprint == before
    assert torch.equal(classifier.weight, weight)
    assert not member.head.training


def test_the_best_epoch_is_kept(member, classifier, features, data):
    heads = []

    def measure(values=iter([0.1, 0.2, 0.8, 0.3, 0.8])):  # noqa: B008 - one run, one iterator
        heads.append(member.head.linear.weight.detach().clone())
        return next(values)

    assert run(member, classifier, features, data, measure) == (0.8, 2)
    assert torch.equal(member.head.linear.weight, heads[2])
    assert not torch.equal(heads[2], heads[4])


def test_without_a_measure_the_last_epoch_is_kept(member, classifier, features, data):
    """Three epochs without a measure end where four epochs end of which the third is best."""
    before = {k: v.clone() for k, v in member.head.state_dict().items()}
    assert run(member, classifier, features, data, scripted([0.1, 0.2, 0.3, 0.9, 0.4])) == (0.9, 3)
    measured = member.head.linear.weight.detach().clone()
    member.head.load_state_dict(before)
    fresh = CosineClassifier(member.project(features.rows), class_indices(data.training), 0.1)
    best, epochs = run(member, fresh, features, data, None, epochs=3)
    assert math.isnan(best) and epochs == 3
    assert torch.equal(member.head.linear.weight, measured)


def test_training_lowers_the_loss_and_leaves_the_backbone_unchanged(member, classifier, features, data):
    targets = torch.from_numpy(class_indices(data.training))

    def loss():
        with torch.no_grad():
            logits = classifier(member.head(torch.from_numpy(features.rows)))
        return float(torch.nn.functional.cross_entropy(logits, targets, label_smoothing=0.1))

    backbone = {k: v for k, v in member.state().items() if k.startswith("backbone.")}
    before = loss()
    best, _ = run(member, classifier, features, data, lambda: -loss(), epochs=20)
    assert -best == pytest.approx(loss(), abs=1e-6)
    assert loss() < before - 0.02
    assert all(torch.equal(v, member.state()[k]) for k, v in backbone.items())


def test_the_seed_decides_the_order(member, classifier, features, data):
    start, first = member.state(), {k: v.clone() for k, v in classifier.state_dict().items()}
    rising = range(1, 6)
    run(member, classifier, features, data, scripted(rising))
    once = member.fingerprint
    member.load_state(start)
    classifier.load_state_dict(first)
    run(member, classifier, features, data, scripted(rising))
    assert member.fingerprint == once


def test_the_classifier_starts_at_the_class_means():
    embeddings = np.array([[1, 0], [0.6, 0.8], [0, 1]], np.float32)
    classifier = CosineClassifier(embeddings, np.array([0, 0, 1]), 0.1)
    mean = np.array([0.8, 0.4]) / math.hypot(0.8, 0.4)
    np.testing.assert_allclose(classifier.weight.detach(), [mean, [0, 1]], atol=1e-6)
    with torch.no_grad():
        logits = classifier(torch.tensor([[0.0, 1.0]]))
    np.testing.assert_allclose(logits / logit_scale(2, 0.1), [[mean[1], 1]], atol=1e-6)


@pytest.mark.parametrize(("classes", "smoothing"), [(2, 0.1), (10, 0.1), (100, 0.05)])
def test_the_scale_meets_the_smoothed_target_for_the_ideal_arrangement(classes, smoothing):
    """In the regular simplex the cosine is 1 with the own class and -1 / (C - 1) with every other."""
    scale = logit_scale(classes, smoothing)
    cosines = np.full(classes, -1 / (classes - 1))
    cosines[0] = 1
    likelihood = np.exp(scale * cosines) / np.exp(scale * cosines).sum()
    assert likelihood[0] == pytest.approx(1 - smoothing + smoothing / classes)
    np.testing.assert_allclose(likelihood[1:], smoothing / classes)


# ---------------------------------------------------------------- crop mode


@pytest.fixture
def train_small(data, weights, recorder):
    """Train the small backbone without a checkpoint folder; return the result and the messages."""

    def run(options):
        progress = recorder()
        return train_backbone(TrainingContext(data, options, progress), "test_efficientnet", weights), progress.messages

    return run


def test_the_crop_mode_of_a_frozen_backbone_is_the_best_on_validation(train_small, quick):
    trained, messages = train_small(quick(frozen=True))
    (line,) = [text for text in messages if "by crop mode" in text]
    measures = {}
    for part in line.split("crop mode: ")[1].split(", "):
        crop_mode, _, value = part.rpartition(" ")
        measures[crop_mode] = float(value)
    assert tuple(measures) == CANDIDATE_CROP_MODES
    assert trained.report.crop_mode == max(measures, key=measures.get)
    assert trained.report.measures.frozen == pytest.approx(max(measures.values()), abs=5e-5)


def test_a_fine_tuned_network_sees_the_whole_image(train_small, quick):
    trained, _ = train_small(quick(epochs=1))
    assert trained.report.crop_mode == "squash"
    preprocessing = trained.encoder.preprocessing
    assert (preprocessing.crop_mode, preprocessing.crop_pct) == ("squash", 1.0)


def test_the_crop_mode_of_the_recipe_is_used(train_small, quick):
    trained, messages = train_small(quick(frozen=True, crop_mode="border"))
    assert trained.encoder.preprocessing.crop_mode == trained.report.crop_mode == "border"
    assert not any("by crop mode" in text for text in messages)
