"""Embedding images: ids, order, skipped files, batches, images in memory, and ensembles by hand."""

import io
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ortho_group

from lookalike.data.dataset import Item, Split
from lookalike.errors import DataError, ModelError, OptionError
from lookalike.models import pipeline
from lookalike.models.encoder import Encoder, Ensemble, combine
from lookalike.models.heads import fit_alignment, random_head
from lookalike.models.pipeline import decode
from lookalike.models.trainable import build_trainable
from lookalike.progress import LineProgress
from lookalike.types import l2_normalize

COMBINATIONS = ("aligned", "average", "concat")


@pytest.fixture
def encoder(make_trainable):
    return make_trainable().freeze()


@pytest.fixture
def make_encoder(encoder, make_ensemble):
    return lambda kind: encoder if kind == "single" else make_ensemble(kind)


def test_ids_are_the_paths_in_their_order(encoder, image_files):
    paths = [str(path) for path in reversed(image_files)]
    embeddings = encoder.embed(paths)
    assert tuple(embeddings.ids) == tuple(paths)
    assert embeddings.vectors.shape == (len(image_files), 512)
    assert embeddings.vectors.dtype == np.float32
    assert (embeddings.fingerprint, embeddings.precision) == (encoder.fingerprint, "float32")
    assert embeddings.skipped == ()
    np.testing.assert_allclose(embeddings.vectors[::-1], encoder.embed(image_files).vectors, atol=1e-6)


def test_an_embedding_is_the_head_on_the_features_of_the_pixels(encoder, image_files, sample_images):
    features = encoder.backbone.submit(encoder.preprocessing.pixels(sample_images["cat"])[None])()
    expected = l2_normalize(features @ encoder.head.weight.T + encoder.head.bias)
    cat = next(path for path in image_files if path.name == "cat_plain.png")
    np.testing.assert_allclose(encoder.embed([cat]).vectors, expected, atol=1e-5)
    np.testing.assert_allclose(encoder.project(features), expected, atol=1e-5)
    np.testing.assert_allclose(
        encoder.encode(encoder.preprocessing.pixels(sample_images["cat"])[None]), expected, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["single", "average"])
def test_a_forked_process_cannot_use_an_encoder(make_encoder, kind, image_files, sample_images, monkeypatch):
    encoder = make_encoder(kind)
    copy = pickle.dumps(encoder.members[0]._process)
    maker = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: maker + 1)
    pixels = encoder.members[0].preprocessing.pixels(sample_images["cat"])[None]
    for call in (lambda: encoder.embed(image_files), lambda: encoder.members[0].encode(pixels)):
        with pytest.raises(ModelError, match=f"process {maker}, and its fork, process {maker + 1}") as caught:
            call()
        assert "spawn" in str(caught.value)
    pickle.loads(copy).require_current()


def test_items_keep_their_ids(encoder, image_files):
    items = [Item(f"item {n}", path, None, Split.GALLERY) for n, path in enumerate(image_files)]
    assert tuple(encoder.embed(iter(items)).ids) == tuple(f"item {n}" for n in range(len(image_files)))


def test_paths_pil_images_arrays_and_bytes_give_the_same_embedding(encoder, sample_images, tmp_path):
    image = sample_images["coffee"]
    path = tmp_path / "coffee.png"
    image.save(path)
    embeddings = encoder.embed([path, image, np.array(image), path.read_bytes()])
    assert tuple(embeddings.ids) == (str(path), "image 1", "image 2", "image 3")
    np.testing.assert_allclose(embeddings.vectors, np.tile(embeddings.vectors[0], (4, 1)), atol=1e-6)


def test_unreadable_images_in_memory_are_skipped(encoder, sample_images):
    buffer = io.BytesIO()
    sample_images["cat"].save(buffer, "png")
    embeddings = encoder.embed([buffer.getvalue(), b"no image", sample_images["cat"]])
    assert tuple(embeddings.ids) == ("image 0", "image 2")
    assert [skipped.path for skipped in embeddings.skipped] == [Path("image 1")]


@pytest.mark.parametrize("kind", ["single", "aligned"])
def test_the_batch_size_does_not_change_the_embeddings(kind, make_encoder, image_files):
    encoder = make_encoder(kind)
    one, many = (encoder.embed(image_files, batch_size=size).vectors for size in (1, 16))
    np.testing.assert_allclose(one, many, atol=1e-5)


def test_unreadable_files_are_skipped_with_their_cause(encoder, image_files, tmp_path):
    truncated, text, missing = tmp_path / "half.png", tmp_path / "note.jpg", tmp_path / "missing.png"
    truncated.write_bytes(image_files[0].read_bytes()[:2000])
    text.write_text("not an image")
    embeddings = encoder.embed([truncated, image_files[0], text, image_files[1], missing], batch_size=2)
    assert tuple(embeddings.ids) == (str(image_files[0]), str(image_files[1]))
    assert [skipped.path for skipped in embeddings.skipped] == [truncated, text, missing]
    causes = [skipped.cause.lower() for skipped in embeddings.skipped]
    for cause, words in zip(causes, ("truncated", "not an image", "does not exist"), strict=True):
        assert words in cause
    np.testing.assert_allclose(embeddings.vectors, encoder.embed(image_files[:2]).vectors, atol=1e-6)


@pytest.mark.parametrize("kind", ["single", *COMBINATIONS])
def test_no_readable_image_gives_no_rows(kind, make_encoder, tmp_path):
    encoder = make_encoder(kind)
    for paths in ([], [tmp_path / "missing.png"]):
        embeddings = encoder.embed(paths)
        assert embeddings.vectors.shape == (0, encoder.dim)
        assert embeddings.vectors.dtype == np.float32
        assert len(embeddings.skipped) == len(paths)


def test_a_single_path_is_refused(encoder, image_files):
    with pytest.raises(OptionError) as raised:
        encoder.embed(image_files[0])
    assert raised.value.argument == "images"


def test_duplicate_images_are_refused(encoder, image_files):
    with pytest.raises(DataError, match="duplicate id"):
        encoder.embed([image_files[0], image_files[0]])


def test_a_batch_size_of_zero_is_refused(encoder, image_files):
    with pytest.raises(OptionError, match="got 0") as raised:
        encoder.embed(image_files, batch_size=0)
    assert raised.value.argument == "batch_size"


def test_progress_receives_the_number_of_images(encoder, image_files):
    steps = []

    class Recorder:
        def step(self, task, done, total, _detail=""):
            steps.append((task, done, total))

        def info(self, text):
            raise AssertionError(text)

    encoder.embed(image_files, batch_size=4, progress=Recorder(), task="gallery")
    assert steps == [("gallery", 4, 9), ("gallery", 8, 9), ("gallery", 9, 9)]


def test_the_last_line_names_the_bottleneck(encoder, image_files):
    lines = []
    encoder.embed(image_files, batch_size=1, progress=LineProgress(lines.append))
    assert re.fullmatch(r"embedding: 9/9, limited by (decoding|the model)", lines[-1])


@pytest.mark.parametrize("scale", [1, 6])
def test_fast_decoding_hardly_changes_an_embedding(sample_images, tmp_path, scale, monkeypatch):
    """Compared with Pillow's decoding of all pixels, even where a large JPEG is decoded at a reduced scale."""
    paths = []
    for name, image in sample_images.items():
        paths.append(tmp_path / f"{name}.jpg")
        image.resize((image.width * scale, image.height * scale)).save(paths[-1], quality=90)
    encoder = build_trainable("efficientnet_lite0").freeze()
    embeddings = encoder.embed(paths).vectors
    monkeypatch.setattr(
        pipeline, "read_scaled", lambda path, min_sides: [np.array(pipeline.Image.open(path))] * len(min_sides)
    )
    assert (encoder.embed(paths).vectors * embeddings).sum(1).min() > 0.999


def test_an_encoder_cannot_be_changed(encoder):
    with pytest.raises(AttributeError):
        encoder.head = None


# ---------------------------------------------------------------- ensembles

FIRST = np.array([[1, 0], [0, 1]], np.float32)
SECOND = np.array([[0, 1], [0.6, 0.8]], np.float32)
QUARTER_TURN = np.array([[0, -1], [1, 0]], np.float32)  # (x, y) @ QUARTER_TURN = (y, -x)
HALF_ROOT = np.sqrt(0.5)


def test_average_by_hand():
    """(1, 1) / 2 and (0.6, 1.8) / 2, scaled to unit length."""
    expected = [[HALF_ROOT, HALF_ROOT], [0.6 / np.sqrt(3.6), 1.8 / np.sqrt(3.6)]]
    np.testing.assert_allclose(combine([FIRST, SECOND], "average", [None, QUARTER_TURN]), expected, atol=1e-6)


def test_aligned_by_hand():
    """The second array becomes (1, 0) and (0.8, -0.6); the sums are (2, 0) and (0.8, 0.4)."""
    expected = [[1, 0], [0.8 / np.sqrt(0.8), 0.4 / np.sqrt(0.8)]]
    np.testing.assert_allclose(combine([FIRST, SECOND], "aligned", [None, QUARTER_TURN]), expected, atol=1e-6)


def test_concat_by_hand():
    expected = np.array([[1, 0, 0, 1], [0, 1, 0.6, 0.8]]) * HALF_ROOT
    np.testing.assert_allclose(combine([FIRST, SECOND], "concat", [None, None]), expected, atol=1e-6)


def test_three_encoders_by_hand():
    """(1, 0) + (0, 1) + (1, 0) = (2, 1)."""
    third = np.array([[1, 0]], np.float32)
    average = combine([FIRST[:1], SECOND[:1], third], "average", [None, None, None])
    np.testing.assert_allclose(average, [[2 / np.sqrt(5), 1 / np.sqrt(5)]], atol=1e-6)


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_combined_embeddings_are_float32_of_unit_length(combination):
    rng = np.random.default_rng(1)
    parts = [l2_normalize(rng.standard_normal((6, 8))) for _ in range(2)]
    rotation = ortho_group.rvs(8, random_state=1).astype(np.float32)
    combined = combine(parts, combination, [None, rotation])
    assert combined.dtype == np.float32
    assert combined.shape == (6, 16 if combination == "concat" else 8)
    np.testing.assert_allclose(np.linalg.norm(combined, axis=1), 1, atol=1e-6)


def test_two_rotated_spaces_are_averaged_in_the_first():
    """This is why the second space is rotated: the plain average is in neither space."""
    rotation = ortho_group.rvs(16, random_state=3).astype(np.float32)
    first = l2_normalize(np.random.default_rng(0).standard_normal((40, 16)))
    second = first @ rotation
    alignment = fit_alignment(second, first)
    np.testing.assert_allclose(combine([first, second], "aligned", [None, alignment]), first, atol=1e-5)
    assert np.abs(combine([first, second], "average", [None, None]) - first).max() > 0.1


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_an_ensemble_combines_the_embeddings_of_its_members(combination, make_ensemble, image_files, monkeypatch):
    ensemble = make_ensemble(combination)
    parts = [member.embed(image_files).vectors for member in ensemble.members]
    decoded = []
    monkeypatch.setattr(pipeline, "decode", lambda source, sides: decoded.append(source) or decode(source, sides))
    embeddings = ensemble.embed(image_files)
    assert len(decoded) == len(image_files)  # each image is decoded once
    np.testing.assert_allclose(
        embeddings.vectors, combine(parts, combination, ensemble.alignments), atol=1e-5, rtol=1e-4
    )
    assert embeddings.vectors.shape[1] == ensemble.dim == (1024 if combination == "concat" else 512)
    assert (ensemble.name, ensemble.state) == ("test_efficientnet+test_resnet", "untrained")
    assert (ensemble.runtime, ensemble.precision) == ("torch", "float32")
    assert embeddings.fingerprint == ensemble.fingerprint


def test_the_fingerprint_depends_on_everything_that_decides_an_embedding(make_ensemble):
    ensemble = make_ensemble("aligned")
    first, second = ensemble.members
    flipped = ensemble.alignments[1].copy()
    flipped[0] *= -1
    fingerprints = [
        first.fingerprint,
        second.fingerprint,
        ensemble.fingerprint,
        Ensemble((first, second), "average").fingerprint,
        Ensemble((second, first), "average").fingerprint,
        Ensemble((first, second), "concat").fingerprint,
        Ensemble((first, second), "aligned", (None, flipped)).fingerprint,
        Encoder.of(first.backbone, random_head(first.info.backbone.features, seed=5), "untrained").fingerprint,
    ]
    assert len(set(fingerprints)) == len(fingerprints)
    assert make_ensemble("aligned").fingerprint == ensemble.fingerprint


def test_an_ensemble_needs_matching_members(make_trainable, encoder):
    other = make_trainable(seed=1).freeze()
    narrow = Encoder.of(other.backbone, random_head(other.info.backbone.features, 64), "untrained")
    for members, combination, alignments, error, words in [
        ((), "average", (), ModelError, "at least 2 encoders, got 0"),
        ((encoder,), "average", (), ModelError, "at least 2 encoders, got 1"),
        ((encoder, other), "sum", (), OptionError, "got 'sum'"),
        ((encoder, narrow), "average", (), ModelError, "got 512, 64"),
        ((encoder, other), "average", (None,), ModelError, "got 1"),
        ((encoder, other), "aligned", (), ModelError, "needs an alignment"),
    ]:
        with pytest.raises(error, match=words):
            Ensemble(members, combination, alignments)
    assert Ensemble((encoder, narrow), "concat").dim == 576
