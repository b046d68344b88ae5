"""Fitting heads to images: features with a cache, principal components, alignments, and the runtime for features."""

import numpy as np
import pytest

from lookalike.errors import DataError
from lookalike.models.encoder import Encoder, Ensemble
from lookalike.models.heads import fit_pca
from lookalike.models.pipeline import File
from lookalike.progress import SILENT
from lookalike.runtimes import fit, openvino
from lookalike.runtimes.fit import (
    align,
    compute_features,
    feature_backbone,
    feature_file,
    fit_encoder,
    read_features,
)

OTHER = "test_resnet"


@pytest.fixture
def backbone(encoder):
    return encoder.backbone


def features_of(backbone, images, **options):
    return compute_features(backbone, images, progress=SILENT, task="features", **options)


# ---------------------------------------------------------------- features


def test_features_are_those_of_the_backbone_without_unreadable_files(
    backbone, encoder, sample, pixels, tmp_path, recording_progress
):
    (tmp_path / "text.png").write_text("no image")
    progress = recording_progress()
    images = [*sample, File("text", tmp_path / "text.png")]
    features = compute_features(backbone, images, progress=progress, task="features")
    assert features.ids == tuple(source.id for source in sample)
    assert [skipped.path.name for skipped in features.skipped] == ["text.png"]
    np.testing.assert_allclose(features.rows, backbone.submit(pixels(encoder.preprocessing))(), rtol=1e-4, atol=1e-3)
    assert progress.steps[-1] == (10, 10)


def test_too_few_readable_images_are_refused(backbone, sample):
    with pytest.raises(DataError, match=r"at least 2 readable images.*test_efficientnet, got 1 of 1"):
        features_of(backbone, sample[:1])
    with pytest.raises(DataError, match="got 0 of 0"):
        features_of(backbone, [])
    assert features_of(backbone, [], min_count=0).rows.shape == (0, 256)


def test_features_are_cached_by_backbone_and_files(backbone, make_trainable, sample, tmp_path, monkeypatch):
    features = features_of(backbone, sample, cache=tmp_path)
    file = feature_file(tmp_path, backbone, sample)
    assert list(tmp_path.iterdir()) == [file]
    other = make_trainable(seed=1).torch_backbone()
    assert feature_file(tmp_path, other, sample) != file
    assert feature_file(tmp_path, backbone, sample[1:]) != file
    monkeypatch.setattr(fit, "run_backbones", lambda *_, **__: pytest.fail("was computed again"))
    cached = features_of(backbone, sample, cache=tmp_path)
    assert (cached.ids, cached.skipped) == (features.ids, features.skipped)
    np.testing.assert_array_equal(cached.rows, features.rows)


def test_skipped_files_are_cached_with_their_cause(backbone, sample, tmp_path):
    corrupt = tmp_path / "corrupt.jpg"
    corrupt.write_bytes(b"no image")
    images = [*sample[:2], File("corrupt", corrupt)]
    features = features_of(backbone, images, cache=tmp_path / "cache")
    assert read_features(feature_file(tmp_path / "cache", backbone, images)).skipped == features.skipped
    assert features.skipped[0].path == corrupt


def test_features_are_not_cached_while_a_file_could_not_be_read_for_now(backbone, sample, tmp_path):
    images = [*sample[:2], File("missing", tmp_path / "missing.jpg")]
    features = features_of(backbone, images, cache=tmp_path / "cache")
    assert features.skipped[0].temporary
    assert read_features(feature_file(tmp_path / "cache", backbone, images)) is None


@pytest.mark.parametrize("content", [b"", b"PK", b"damaged"])
def test_a_damaged_cache_is_computed_again(backbone, sample, tmp_path, content):
    features = features_of(backbone, sample, cache=tmp_path)
    file = feature_file(tmp_path, backbone, sample)
    file.write_bytes(content)
    assert read_features(file) is None
    np.testing.assert_array_equal(features_of(backbone, sample, cache=tmp_path).rows, features.rows)
    assert read_features(file) is not None


def test_a_compressed_cache_is_computed_again(backbone, sample, tmp_path):
    features_of(backbone, sample, cache=tmp_path)
    file = feature_file(tmp_path, backbone, sample)
    with np.load(file) as stored:
        content = {**stored, "rows": np.zeros((len(stored["ids"]), 4096), np.float32)}
    np.savez_compressed(file, **content)
    assert read_features(file) is None


# ---------------------------------------------------------------- heads


def test_a_head_is_fitted_to_the_principal_components(backbone, sample):
    fitted = fit_encoder([(backbone, "frozen")], sample, progress=SILENT)
    assert isinstance(fitted.encoder, Encoder)
    assert (fitted.encoder.state, fitted.encoder.info.head) == ("frozen", "PCA of 9 images")
    weight, bias = fit_pca(fitted.features[0])
    np.testing.assert_array_equal(fitted.encoder.head.weight, weight)
    np.testing.assert_array_equal(fitted.encoder.head.bias, bias)
    projected = fitted.features[0] @ weight.T + bias
    np.testing.assert_allclose(projected.mean(axis=0), 0, atol=1e-3 * np.abs(projected).max())
    assert fitted.rows[sample[4].id] == 4
    again = fit_encoder([(backbone, "frozen")], sample, progress=SILENT, seed=0)
    assert again.encoder.fingerprint == fitted.encoder.fingerprint


def test_the_members_of_an_ensemble_are_aligned_with_the_first(backbone, make_trainable, sample):
    other = make_trainable(OTHER, seed=1).torch_backbone()
    fitted = fit_encoder([(backbone, "untrained"), (other, "untrained")], sample, progress=SILENT)
    assert isinstance(fitted.encoder, Ensemble)
    rotation = fitted.encoder.alignments[1]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(512), atol=1e-4)
    first, second = (m.project(rows) for m, rows in zip(fitted.encoder.members, fitted.features, strict=True))
    assert float((first * (second @ rotation)).sum()) > float((first * second).sum()) + 0.1


def test_one_encoder_is_not_an_ensemble(encoder, make_trainable, sample):
    vectors = encoder.embed(sample).vectors
    assert align([encoder], [vectors]) is encoder
    pair = align([encoder, make_trainable(seed=1).freeze()], [vectors, vectors], "concat")
    assert (pair.combination, pair.dim) == ("concat", 1024)


def test_a_head_needs_two_readable_images(backbone, sample, tmp_path):
    with pytest.raises(DataError, match="got 1 of 2"):
        fit_encoder([(backbone, "frozen")], [sample[0], File("missing", tmp_path / "missing.jpg")], progress=SILENT)


# ---------------------------------------------------------------- the runtime for features


@pytest.fixture
def many(sample):
    """More images than torch computes."""
    return [sample[n % len(sample)] for n in range(fit.MIN_IMAGES)]


@pytest.mark.usefixtures("graph_cache")
def test_openvino_computes_the_features_of_many_images(backbone, sample, many):
    pytest.importorskip("openvino")
    fast = feature_backbone(backbone, many, SILENT)
    assert (fast.runtime, fast.precision) == ("openvino", "float32")
    expected = features_of(backbone, sample).rows
    np.testing.assert_allclose(features_of(fast, sample).rows, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_torch_computes_the_features_of_few_images_or_without_openvino(backbone, many, monkeypatch):
    assert feature_backbone(backbone, many[1:], SILENT) is backbone
    monkeypatch.setattr(openvino, "is_installed", lambda: False)
    assert feature_backbone(backbone, many, SILENT) is backbone


def test_torch_computes_the_features_where_openvino_cannot(backbone, many, monkeypatch):
    monkeypatch.setattr(
        "lookalike.models.torch_backbone.trace", lambda *_: (_ for _ in ()).throw(RuntimeError("no such operation"))
    )
    assert feature_backbone(backbone, many, SILENT) is backbone
