"""Embedding files: ids, order, what is skipped, batches, and what an encoder refuses to be made of."""

import re

import numpy as np
import pytest
from lookalike.models.pretrained import build_trainable
from lookalike.models.stream import File

from lookalike.data import images
from lookalike.data.dataset import Item, Split
from lookalike.errors import DataError, ModelError, OptionError
from lookalike.models.encoder import Encoder
from lookalike.models.heads import ProjectionHead
from lookalike.progress import LineProgress
from lookalike.types import l2_normalize


@pytest.fixture
def encoder(make_member):
    return Encoder([make_member()])


def test_ids_are_the_paths_as_given_in_their_order(encoder, pictures):
    backwards = [str(p) for p in reversed(pictures)]
    found = encoder.embed(backwards)
    assert found.ids == tuple(backwards)
    assert found.vectors.shape == (len(pictures), 512)
    assert found.vectors.dtype == np.float32
    assert found.fingerprint == encoder.fingerprint
    assert found.skipped == ()
    np.testing.assert_allclose(found.vectors[::-1], encoder.embed(pictures).vectors, atol=1e-6)


def test_a_vector_is_the_head_on_the_features_of_the_pixels(encoder, pictures, photos):
    member = encoder.members[0]
    features = member.features(member.preprocessing.pixels(photos["cat"])[None])
    linear = member.head.linear
    expected = l2_normalize(features @ linear.weight.detach().numpy().T + linear.bias.detach().numpy())
    cat = next(p for p in pictures if p.name == "cat_plain.png")
    np.testing.assert_allclose(encoder.embed([cat]).vectors, expected, atol=1e-5)
    np.testing.assert_allclose(member.project(features), expected, atol=1e-5)


def test_catalogue_items_keep_their_ids(encoder, pictures):
    items = [Item(f"item {n}", p, None, Split.GALLERY) for n, p in enumerate(pictures)]
    assert encoder.embed(iter(items)).ids == tuple(f"item {n}" for n in range(len(pictures)))


@pytest.mark.parametrize("how", ["single", "aligned"])
def test_the_batch_size_makes_no_difference(how, encoder, make_ensemble, pictures):
    model = encoder if how == "single" else make_ensemble(how)
    one, many = (model.embed(pictures, batch_size=size).vectors for size in (1, 16))
    np.testing.assert_allclose(one, many, atol=1e-5)


def test_an_unreadable_file_is_left_out_and_named_with_its_cause(encoder, pictures, tmp_path):
    half, text = tmp_path / "half.png", tmp_path / "note.jpg"
    half.write_bytes(pictures[0].read_bytes()[:2000])
    text.write_text("not a picture")
    missing = tmp_path / "gone.png"
    found = encoder.embed([half, pictures[0], text, pictures[1], missing], batch_size=2)
    assert found.ids == (str(pictures[0]), str(pictures[1]))
    assert [s.path for s in found.skipped] == [half, text, missing]
    causes = [s.cause for s in found.skipped]
    assert "truncated" in causes[0].lower()
    assert causes[1:] == ["not an image that Pillow can read", "the file does not exist"]
    np.testing.assert_allclose(found.vectors, encoder.embed(pictures[:2]).vectors, atol=1e-6)


@pytest.mark.parametrize("how", ["single", "aligned", "average", "concat"])
def test_nothing_to_embed_gives_nothing_of_the_right_size(how, encoder, make_ensemble, tmp_path):
    model = encoder if how == "single" else make_ensemble(how)
    for given in ([], [tmp_path / "gone.png"]):
        found = model.embed(given)
        assert found.vectors.shape == (0, model.dim)
        assert found.vectors.dtype == np.float32
        assert len(found.skipped) == len(given)


def test_one_path_instead_of_a_list_is_refused(encoder, pictures):
    for single in (str(pictures[0]), pictures[0]):
        with pytest.raises(OptionError) as raised:
            encoder.embed(single)
        assert (
            str(raised.value) == f"embed takes a list of images, got the single path {pictures[0]}; put it in a list."
        )


def test_the_same_image_twice_is_refused(encoder, pictures):
    with pytest.raises(DataError, match="duplicate id"):
        encoder.embed([pictures[0], pictures[0]])


def test_a_batch_size_of_nothing_is_refused(encoder, pictures):
    with pytest.raises(OptionError, match=r"^the batch size must be at least 1, got 0\.$"):
        encoder.embed(pictures, batch_size=0)


def test_progress_is_told_how_many_are_done(encoder, pictures):
    told = []

    class Listener:
        def step(self, task, done, total, _detail=""):
            told.append((task, done, total))

        def info(self, text):
            raise AssertionError(text)

    encoder.embed(pictures, batch_size=4, progress=Listener(), task="gallery")
    assert told == [("gallery", 4, 9), ("gallery", 8, 9), ("gallery", 9, 9)]


def test_what_sets_the_pace_is_said_to_the_end(encoder, pictures):
    lines = []
    encoder.embed(pictures, batch_size=1, progress=LineProgress(lines.append))
    (line,) = lines
    assert re.fullmatch(r"embedding: 9/9, (decoding|the model) sets the pace", line)


@pytest.mark.parametrize("larger", [1, 6])
def test_decoding_fast_moves_no_embedding(make_member, photos, tmp_path, larger, monkeypatch):
    """Against Pillow's decoding of all pixels, also where a JPEG of twelve megapixels is decoded at a part of them."""
    paths = []
    for name, photo in photos.items():
        paths.append(tmp_path / f"{name}.jpg")
        photo.resize((photo.width * larger, photo.height * larger)).save(paths[-1], quality=90)
    encoder = Encoder([build_trainable("efficientnet_lite0")])
    found = encoder.embed(paths).vectors
    monkeypatch.setattr(images, "decode_jpeg", lambda *_, **__: None)
    cosines = (encoder.embed(paths).vectors * found).sum(1)
    assert cosines.min() > 0.999


@pytest.mark.parametrize("how", ["aligned", "average", "concat"])
def test_an_ensemble_combines_what_its_members_give(how, make_ensemble, pictures):
    ensemble = make_ensemble(how)
    parts = [Encoder([m]).embed(pictures).vectors for m in ensemble.members]
    if how == "aligned":
        parts[1] = parts[1] @ ensemble.alignments[1]
    joined = np.concatenate(parts, axis=1) if how == "concat" else parts[0] + parts[1]
    expected = joined / np.linalg.norm(joined, axis=1, keepdims=True)
    found = ensemble.embed(pictures)
    np.testing.assert_allclose(found.vectors, expected, atol=1e-5)
    assert found.vectors.shape[1] == ensemble.dim == (1024 if how == "concat" else 512)
    assert ensemble.name == "test_efficientnet+test_resnet"


def test_an_encoder_needs_fitting_members(make_member, encoder):
    member, other = encoder.members[0], make_member(seed=1)
    narrow = make_member(seed=2)
    narrow.head = ProjectionHead(narrow.features_width, 64)
    cases = [
        (lambda: Encoder([]), ModelError, "an encoder needs at least one member, got none."),
        (
            lambda: Encoder([member, other], "sum"),
            OptionError,
            "a combination must be one of aligned, average, concat, got 'sum'.",
        ),
        (
            lambda: Encoder([member, narrow], "average"),
            ModelError,
            "members must have one size to be averaged, got 512, 64.",
        ),
        (
            lambda: Encoder([member, other], "average", [None]),
            ModelError,
            "an encoder of 2 members needs as many alignments, got 1.",
        ),
        (
            lambda: Encoder([member, other]),
            ModelError,
            "an aligned ensemble needs an alignment for every member but the first; fit them on training embeddings.",
        ),
    ]
    for make, kind, sentence in cases:
        with pytest.raises(kind) as raised:
            make()
        assert str(raised.value) == sentence
    assert Encoder([member, narrow], "concat").dim == 576


@pytest.mark.parametrize("batch_size", [1, 2, 4, 16])
def test_groups_are_embedded_as_if_alone(encoder, pictures, tmp_path, batch_size):
    (tmp_path / "none.jpg").write_text("no picture")
    files = [File(str(n), path) for n, path in enumerate([*pictures, tmp_path / "none.jpg"])]
    groups = [files[:3], files[3:4], files[9:], files[4:9]]
    found = list(encoder.embed_each(groups, batch_size=batch_size))
    assert [e.ids for e in found] == [tuple(f.id for f in g if f.id != "9") for g in groups]
    assert [len(e.skipped) for e in found] == [0, 0, 1, 0]
    for embeddings, group in zip(found, groups, strict=True):
        np.testing.assert_allclose(embeddings.vectors, encoder.embed(group).vectors, atol=1e-6)


def test_no_group_is_none(encoder):
    assert list(encoder.embed_each([])) == []
