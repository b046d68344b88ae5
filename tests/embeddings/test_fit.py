"""Heads learnt without labels."""

from __future__ import annotations

import numpy as np
import pytest
from lookalike.embeddings.fit import compute_features, fit_projection, fitted_encoder

from lookalike.errors import DataError
from lookalike.models.trainable import build_trainable


def test_features_are_the_backbones_own_and_name_what_was_skipped(sources, folder, watch):
    member, seen = build_trainable("test_efficientnet", "none"), watch()
    (folder / "3.png").write_text("no picture")
    found = compute_features(member, sources, batch_size=4, progress=seen, task="features")
    assert found.rows.shape == (9, 256)
    assert "3.png" not in found.ids
    assert [s.path.name for s in found.skipped] == ["3.png"]
    assert seen.steps == [(4, 10), (8, 10), (10, 10)]


def test_one_readable_image_is_too_few(sources):
    member = build_trainable("test_efficientnet", "none")
    with pytest.raises(DataError, match="at least 2 readable images are needed to fit test_efficientnet, got 1 of 1"):
        compute_features(member, sources[:1], task="features")


def test_a_fitted_head_centres_the_images(sources):
    member = build_trainable("test_efficientnet", "none")
    before = member.fingerprint
    features = compute_features(member, sources, task="features")
    fit_projection(member, features)
    weight = member.head.linear.weight.detach().numpy()
    bias = member.head.linear.bias.detach().numpy()
    projected = features.rows @ weight.T + bias
    np.testing.assert_allclose(projected.mean(axis=0), 0, atol=1e-3 * np.abs(projected).max())
    assert member.fingerprint != before
    assert member.origin["head"] == "PCA of 10 images"


def test_the_members_of_an_ensemble_are_rotated_onto_the_first(sources):
    members = [build_trainable(name, "none") for name in ("test_efficientnet", "test_resnet")]
    encoder = fitted_encoder(members, sources)
    first, second = (member.project(compute_features(member, sources, task="f").rows) for member in members)
    rotation = encoder.alignments[1]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(512), atol=1e-4)
    turned = float((first * (second @ rotation)).sum())
    assert turned > float((first * second).sum()) + 0.1
