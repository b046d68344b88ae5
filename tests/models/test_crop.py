"""A crop before any encoder: what it cuts out, its name in the fingerprint, and where it is needed again."""

from __future__ import annotations

import json
import pickle
import threading
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image

import lookalike as la
from lookalike._records import read_record
from lookalike.data.images import read_image
from lookalike.errors import FingerprintMismatch, ModelError, OptionError
from lookalike.models.bundle import read_bundle_info, save_bundle
from lookalike.models.preprocessing import Crop, Preprocessing
from lookalike.progress import SILENT


def left_half(image):
    return (0, 0, image.width / 2, image.height)


def mean_colour(pixels):
    return pixels.mean(axis=(1, 2)) / 255


@pytest.fixture
def colours():
    return la.as_encoder(mean_colour, dim=3, name="colours", fingerprint="1", size=8)


def test_only_the_part_counts(colours):
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    image.paste((0, 0, 255), (20, 0, 40, 20))
    cropped = colours.with_crop(left_half, name="left")
    np.testing.assert_allclose(cropped.embed([image]).vectors, [[1, 0, 0]], atol=1e-6)
    as_image = colours.with_crop(lambda image: image.crop((20, 0, 40, 20)).convert("L").convert("RGBA"), name="right")
    np.testing.assert_allclose(as_image.embed([image]).vectors, [[3**-0.5] * 3], atol=1e-6)
    whole = colours.with_crop(lambda _: None, name="all")
    np.testing.assert_allclose(whole.embed([image]).vectors, colours.embed([image]).vectors)
    beyond = colours.with_crop(lambda _: np.array([20.0, -5, 99, 99]), name="beyond")
    np.testing.assert_allclose(beyond.embed([image]).vectors, [[0, 0, 1]], atol=1e-6)


def test_the_crop_gets_the_full_image(colours, tmp_path, sample_images):
    sample_images["cat"].resize((1200, 900)).save(tmp_path / "large.jpg")
    sizes = []
    colours.with_crop(lambda image: sizes.append((image.mode, image.size)), name="none").embed([tmp_path / "large.jpg"])
    assert sizes == [("RGB", (1200, 900))]


def test_one_image_at_a_time_and_once_for_all_members(encoder, other_encoder, image_files):
    inside, calls = threading.Lock(), []

    def alone(image):
        assert inside.acquire(blocking=False)
        calls.append(image.size)
        inside.release()
        return left_half(image)

    ensemble = la.Ensemble((encoder, other_encoder), "concat").with_crop(alone, name="left")
    embeddings = ensemble.embed(image_files)
    assert len(calls) == len(image_files)
    halves = [read_image(path).crop((0, 0, round(read_image(path).width / 2), 9999)) for path in image_files[:1]]
    halves = [half.crop((0, 0, half.width, read_image(image_files[0]).height)) for half in halves]
    expected = la.Ensemble((encoder, other_encoder), "concat").embed(halves).vectors[0]
    assert float(embeddings.vectors[0] @ expected) > 0.9999


def test_the_name_is_part_of_the_fingerprint(encoder, colours):
    for original in (encoder, colours):
        left, right = (original.with_crop(left_half, name=name) for name in ("left", "right"))
        assert len({original.fingerprint, left.fingerprint, right.fingerprint}) == 3
        assert left.with_crop(lambda _: None, name="left").fingerprint == left.fingerprint


def test_a_record_holds_the_name():
    preprocessing = replace(Preprocessing(8, 8), crop=Crop("left", left_half))
    stored = json.loads(json.dumps(asdict(preprocessing)))
    assert stored["crop"] == "left"
    assert read_record(Preprocessing, stored) == preprocessing
    copied = pickle.loads(pickle.dumps(preprocessing))
    assert copied.pixels(np.zeros((4, 4, 3), np.uint8)).shape == (8, 8, 3)


@pytest.mark.parametrize(
    "crop",
    [
        lambda _: 1 / 0,
        lambda _: (1, 2, 3),
        lambda _: (5, 5, 5, 9),
        lambda _: (500, 500, 600, 600),
        lambda _: (0, 0, float("nan"), 4),
        lambda _: "left",
        lambda _: Image.new("RGB", (0, 4)),
    ],
)
def test_wrong_crops_are_refused(crop, colours, image_files):
    with pytest.raises(ModelError, match="left"):
        colours.with_crop(crop, name="left").embed(image_files[:1])


def test_arguments_are_checked(colours):
    for arguments, argument in (((1, "left"), "crop"), ((left_half, ""), "name"), ((left_half, None), "name")):
        with pytest.raises(OptionError) as error:
            colours.with_crop(arguments[0], name=arguments[1])
        assert error.value.argument == argument


def test_a_bundle_needs_the_crop_again(encoder, image_files, tmp_path):
    cropped = encoder.with_crop(left_half, name="left")
    save_bundle(cropped, tmp_path / "model")
    assert read_bundle_info(tmp_path / "model").members[0].backbone.preprocessing.crop == "left"
    loaded = la.load_encoder(tmp_path / "model")
    assert loaded.fingerprint == cropped.fingerprint
    with pytest.raises(ModelError, match="left"):
        loaded.embed(image_files)
    again = loaded.with_crop(left_half, name="left")
    assert again.fingerprint == cropped.fingerprint
    np.testing.assert_allclose(again.embed(image_files).vectors, cropped.embed(image_files).vectors, atol=1e-5)


def test_an_index_needs_the_crop_again(colours, image_files, tmp_path):
    cropped = colours.with_crop(left_half, name="left")
    la.index(image_files[0].parent, cropped, out=tmp_path / "index", progress=SILENT)
    loaded = la.load_index(tmp_path / "index", functions=[colours])
    with pytest.raises(ModelError, match="left"):
        loaded.search(image_files[:1], progress=SILENT)
    with pytest.raises(FingerprintMismatch):
        loaded.with_crop(left_half, name="right")
    result = loaded.with_crop(left_half, name="left").search(image_files[:1], top_k=1, progress=SILENT)
    same = la.load_index(tmp_path / "index", functions=[cropped]).search(image_files[:1], top_k=1, progress=SILENT)
    assert result[0].hits[0].id == same[0].hits[0].id
