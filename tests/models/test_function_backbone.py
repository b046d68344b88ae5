"""A Python function as an encoder: its vectors, what is refused, and its bundle."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lookalike.data.images import read_image
from lookalike.errors import ModelError, OptionError
from lookalike.models.bundle import save_bundle
from lookalike.models.encoder import Ensemble
from lookalike.models.function_backbone import as_encoder
from lookalike.runtimes.load import load_encoder
from lookalike.runtimes.select import with_runtime


def mean_colour(pixels):
    return pixels.mean(axis=(1, 2)) / 255


def colours(function=mean_colour, **changes):
    arguments = {"dim": 3, "name": "colours", "fingerprint": "1", "size": 8, **changes}
    return as_encoder(function, **arguments)


def test_embeddings_are_the_vectors_of_unit_length():
    red, grey = Image.new("RGB", (20, 30), (255, 0, 0)), Image.new("RGB", (9, 9), (51, 51, 51))
    encoder = colours()
    assert (encoder.dim, encoder.runtime, encoder.precision, encoder.state) == (3, "python", "float32", "frozen")
    embeddings = encoder.embed([red, grey])
    np.testing.assert_allclose(embeddings.vectors, [[1, 0, 0], [3**-0.5] * 3], atol=1e-6)
    assert embeddings.fingerprint == encoder.fingerprint


def test_the_function_gets_pixels_of_one_size(image_files):
    shapes = []

    def record(pixels):
        shapes.append((pixels.shape, str(pixels.dtype), pixels.flags.c_contiguous))
        return mean_colour(pixels)

    colours(record, size=(8, 6), batch_size=4).embed(image_files[:6])
    assert shapes == [((4, 8, 6, 3), "uint8", True), ((2, 8, 6, 3), "uint8", True)]


def test_an_image_is_resized_and_cropped_as_pillow_does(image_files):
    image = read_image(image_files[0])
    squashed = np.asarray(image.resize((8, 8), Image.Resampling.BICUBIC)).mean(axis=(0, 1)) / 255
    vector = colours(crop_mode="squash").embed(image_files[:1]).vectors[0]
    np.testing.assert_allclose(vector, squashed / np.linalg.norm(squashed), atol=2e-3)


def test_the_fingerprint_decides_which_encoders_are_the_same():
    assert colours().fingerprint == colours(lambda pixels: pixels, batch_size=3).fingerprint
    others = [{"fingerprint": "2"}, {"name": "others"}, {"size": 9}, {"crop_mode": "squash"}, {"dim": 4}]
    assert len({colours(**change).fingerprint for change in [{}, *others]}) == 6


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("dim", value) for value in (0, -1, 10**9, 2.5, None)),
        *(("name", value) for value in ("", " ", None, "a+b", "onnx:a")),
        *(("fingerprint", value) for value in ("", None, 1)),
        *(("size", value) for value in (0, 10**6, (1, 2, 3), "224")),
        *(("batch_size", value) for value in (0, "many")),
        ("crop_mode", "zoom"),
        ("function", 1),
    ],
)
def test_arguments_are_checked(argument, value):
    with pytest.raises(OptionError) as error:
        colours(**{argument: value})
    assert error.value.argument == argument


def failing(_):
    raise KeyError("layer")


@pytest.mark.parametrize(
    "function",
    [
        failing,
        lambda _: None,
        lambda pixels: mean_colour(pixels)[:, :2],
        lambda pixels: mean_colour(pixels)[:-1],
        lambda pixels: mean_colour(pixels)[None],
        lambda pixels: (mean_colour(pixels) * 255).astype(np.int64),
        lambda pixels: mean_colour(pixels).astype(complex),
        lambda pixels: [["a", "b", "c"]] * len(pixels),
        lambda _: [[1.0, 2.0, 3.0], [1.0]],
        lambda pixels: np.full((len(pixels), 3), np.nan),
        lambda pixels: np.full((len(pixels), 3), np.inf),
        lambda pixels: np.full((len(pixels), 3), 1e300),
    ],
)
def test_wrong_vectors_are_refused(function, image_files):
    with pytest.raises(ModelError, match="colours") as error:
        colours(function).embed(image_files[:2])
    assert "\n" not in str(error.value)


def test_no_image_needs_no_call():
    assert colours(failing).embed([]).vectors.shape == (0, 3)
    assert colours(failing).encode(np.zeros((0, 8, 8, 3), np.uint8)).shape == (0, 3)


def test_a_tensor_is_an_array_too(image_files):
    import torch

    encoder = colours(lambda pixels: torch.from_numpy(pixels).float().mean(dim=(1, 2)))
    expected = colours().embed(image_files).vectors
    np.testing.assert_allclose(encoder.embed(image_files).vectors, expected, atol=1e-6)


def test_runtime_and_precision_cannot_be_changed():
    encoder = colours()
    assert with_runtime(encoder, "auto", "float32") is encoder
    for argument, change in (("runtime", ("torch", "auto")), ("precision", ("auto", "bfloat16"))):
        with pytest.raises(OptionError) as error:
            with_runtime(encoder, *change)
        assert error.value.argument == argument


def test_a_bundle_asks_for_the_function(tmp_path, image_files, encoder):
    ensemble = Ensemble((encoder, colours()), "concat")
    save_bundle(ensemble, tmp_path / "model")
    with pytest.raises(ModelError, match="colours") as error:
        load_encoder(tmp_path / "model")
    assert error.value.argument == "functions"
    for other in (colours(fingerprint="2"), colours(size=9)):
        with pytest.raises(ModelError, match="differs"):
            load_encoder(tmp_path / "model", functions=[other])
    loaded = load_encoder(tmp_path / "model", functions=[colours(fingerprint="2"), colours()])
    assert loaded.fingerprint == ensemble.fingerprint
    expected = ensemble.embed(image_files).vectors
    np.testing.assert_allclose(loaded.embed(image_files).vectors, expected, atol=1e-4)
