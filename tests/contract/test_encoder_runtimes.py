"""One contract for an encoder on every runtime and in every precision: the embeddings of torch in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lookalike.api.export import export
from lookalike.data.images import read_image
from lookalike.errors import ModelError
from lookalike.models.bundle import save_bundle
from lookalike.models.encoder import AnyEncoder, Encoder
from lookalike.models.pipeline import File, as_sources
from lookalike.models.torch_backbone import has_bfloat16
from lookalike.models.trainable import build_trainable
from lookalike.progress import SILENT
from lookalike.runtimes import onnx, openvino
from lookalike.runtimes.fit import fit_encoder
from lookalike.runtimes.select import MIN_COSINE, with_runtime
from lookalike.types import Pixels

MANY = 40  # images: more than are computed one batch at a time


def on_runtime(runtime: str, precision: str) -> Callable[[Encoder, Path], AnyEncoder]:
    def make(encoder: Encoder, _: Path) -> AnyEncoder:
        modules = {"openvino": openvino, "onnxruntime": onnx}
        if runtime in modules and not modules[runtime].is_installed():
            pytest.skip(f"{runtime} is not installed")
        if precision == "bfloat16":
            available = has_bfloat16(torch.device("cpu"))
            if not (available if runtime == "torch" else "bfloat16" in openvino.float_precisions()):
                pytest.skip("this processor has no bfloat16 arithmetic")
        return with_runtime(encoder, runtime, precision)

    return make


def exported(format: str) -> Callable[[Encoder, Path], AnyEncoder]:
    def make(encoder: Encoder, folder: Path) -> AnyEncoder:
        if not {"openvino": openvino, "onnx": onnx}[format].is_installed():
            pytest.skip(f"{format} is not installed")
        bundle = save_bundle(encoder, folder / "bundle")
        return export(bundle, out=folder / "exported", format=format, precision="float32", progress=SILENT).encoder

    return make


RUNTIMES = {
    "torch float32": on_runtime("torch", "float32"),
    "torch bfloat16": on_runtime("torch", "bfloat16"),
    "openvino float32": on_runtime("openvino", "float32"),
    "openvino bfloat16": on_runtime("openvino", "bfloat16"),
    "onnxruntime float32": on_runtime("onnxruntime", "float32"),
    "exported openvino float32": exported("openvino"),
    "exported onnxruntime float32": exported("onnx"),
}


@pytest.fixture(scope="module")
def cache_of_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("contract_cache")


@pytest.fixture(scope="module")
def reference(image_files: list[Path]) -> Encoder:
    """A small encoder on torch in float32, whose head was fitted to the images so that they are far apart."""
    trainable = build_trainable("test_efficientnet", "none")
    fitted = fit_encoder([(trainable.torch_backbone(), "untrained")], as_sources(image_files), progress=SILENT)
    assert isinstance(fitted.encoder, Encoder)
    return fitted.encoder


@pytest.fixture(scope="module", params=RUNTIMES)
def encoder(
    request: pytest.FixtureRequest, reference: Encoder, cache_of_module: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Encoder]:
    """The same encoder on a runtime, ready for single images and for many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOOKALIKE_CACHE", str(cache_of_module))
        encoder = RUNTIMES[request.param](reference, tmp_path_factory.mktemp("contract"))
        for count in (1, MANY):
            encoder.prepare((), count, SILENT)
        assert isinstance(encoder, Encoder)
        yield encoder


@pytest.fixture(autouse=True)
def own_cache(cache_of_module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the graphs for all tests of this module."""
    monkeypatch.setenv("LOOKALIKE_CACHE", str(cache_of_module))


@pytest.fixture
def pixels(reference: Encoder, image_files: list[Path]) -> Pixels:
    return np.stack([reference.preprocessing.pixels(read_image(path)) for path in image_files])


@pytest.fixture
def many_files(image_files: list[Path]) -> list[File]:
    return [File(str(n), image_files[n % len(image_files)]) for n in range(MANY)]


def cosines(embeddings: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return (embeddings * expected).sum(axis=1)


def test_it_is_the_same_encoder(encoder: Encoder, reference: Encoder) -> None:
    assert encoder.fingerprint == reference.fingerprint
    assert (encoder.name, encoder.dim, encoder.state) == (reference.name, reference.dim, reference.state)
    assert encoder.preprocessing == reference.preprocessing


def test_it_reports_its_runtime_and_precision(encoder: Encoder, image_files: list[Path], request: object) -> None:
    prepared = encoder.prepare((), 1, SILENT)
    parameters = request.node.callspec.params  # type: ignore[attr-defined]
    assert parameters["encoder"].removeprefix("exported ") == f"{prepared.runtime} {prepared.precision}"
    assert encoder.embed(image_files[:1]).precision == prepared.precision


def test_rows_are_float32_of_unit_length(encoder: Encoder, image_files: list[Path]) -> None:
    vectors = encoder.embed(image_files).vectors
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(image_files), 512)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_embeddings_are_those_of_torch_in_float32(
    encoder: Encoder, reference: Encoder, image_files: list[Path], many_files: list[File]
) -> None:
    for images in (image_files, many_files):
        expected = reference.embed(images).vectors
        vectors = encoder.embed(images).vectors
        assert cosines(vectors, expected).min() >= MIN_COSINE[encoder.precision]
        if encoder.precision == "float32":
            np.testing.assert_allclose(vectors, expected, atol=2e-5)


def test_a_batch_of_one_equals_a_batch_of_many(encoder: Encoder, pixels: Pixels) -> None:
    whole = encoder.encode(pixels)
    for size in (1, 2, 5):
        parts = [encoder.encode(pixels[start : start + size]) for start in range(0, len(pixels), size)]
        assert cosines(np.concatenate(parts), whole).min() > (0.99999 if encoder.precision == "float32" else 0.999)


@pytest.mark.parametrize("count", [1, MANY])
def test_an_empty_batch_gives_no_rows(encoder: Encoder, count: int) -> None:
    preprocessing = encoder.preprocessing
    backbone = encoder.prepare((), count, SILENT).backbone
    rows = backbone.submit(np.zeros((0, preprocessing.height, preprocessing.width, 3), np.uint8))()
    assert rows.shape == (0, backbone.width)
    assert rows.dtype == np.float32
    assert encoder.embed([]).vectors.shape == (0, 512)


@pytest.mark.parametrize("batch_size", [None, 1, 7])
def test_the_order_is_kept(encoder: Encoder, many_files: list[File], batch_size: int | None) -> None:
    embeddings = encoder.embed(many_files[::-1], batch_size=batch_size)
    assert tuple(embeddings.ids) == tuple(file.id for file in many_files[::-1])
    forward = encoder.embed(many_files, batch_size=batch_size).vectors
    assert cosines(embeddings.vectors[::-1], forward).min() > 0.999


def test_unreadable_images_are_skipped(encoder: Encoder, image_files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    embeddings = encoder.embed([tmp_path / "text.jpg", image_files[0], tmp_path / "missing.png", image_files[1]])
    assert tuple(embeddings.ids) == (str(image_files[0]), str(image_files[1]))
    assert [skipped.path.name for skipped in embeddings.skipped] == ["text.jpg", "missing.png"]
    assert cosines(embeddings.vectors, encoder.embed(image_files[:2]).vectors).min() > 0.999


def test_images_in_memory_equal_their_files(encoder: Encoder, image_files: list[Path]) -> None:
    path = image_files[3]
    with Image.open(path) as image:
        embeddings = encoder.embed([path, image, np.array(image), path.read_bytes()])
    assert len(embeddings) == 4
    assert cosines(embeddings.vectors, np.tile(embeddings.vectors[0], (4, 1))).min() > 0.999


@pytest.mark.parametrize("count", [1, MANY])
def test_as_many_batches_as_allowed_may_be_in_flight(encoder: Encoder, pixels: Pixels, count: int) -> None:
    backbone = encoder.prepare((), count, SILENT).backbone
    whole = backbone.submit(pixels)()
    for size in (1, 2, 9):
        pending, rows = [], []
        for start in range(0, len(pixels), size):
            if len(pending) == backbone.in_flight:
                rows.append(pending.pop(0)())
            pending.append(backbone.submit(pixels[start : start + size]))
        rows += [wait() for wait in pending]
        assert cosines(encoder.project(np.concatenate(rows)), encoder.project(whole)).min() > 0.999


@pytest.mark.parametrize("count", [1, MANY])
def test_several_threads_may_submit(encoder: Encoder, pixels: Pixels, count: int) -> None:
    prepared = encoder.prepare((), count, SILENT)
    whole = prepared.encode(pixels)
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda n: prepared.encode(pixels[n % 9 : n % 9 + 1]), range(40)))
    for n, vectors in enumerate(rows):
        assert float(vectors[0] @ whole[n % 9]) > 0.999


def test_the_memory_layout_of_pixels_does_not_matter(encoder: Encoder, pixels: Pixels) -> None:
    strided = encoder.encode(pixels[::2])
    assert cosines(strided, encoder.encode(np.ascontiguousarray(pixels[::2]))).min() > 0.99999


@pytest.mark.parametrize("count", [1, MANY])
def test_an_error_or_an_interruption_leaves_it_usable(
    encoder: Encoder, pixels: Pixels, image_files: list[Path], count: int
) -> None:
    prepared = encoder.prepare((), count, SILENT)
    expected = prepared.encode(pixels)

    class Interruption:
        def step(self, *_: object) -> None:
            raise InterruptedError

        def info(self, text: str) -> None:
            pass

    for _ in range(prepared.backbone.in_flight + 2):
        with pytest.raises(Exception):  # noqa: B017 - each runtime has its own
            prepared.encode(np.zeros((1, 7, 5, 2), np.uint8))
        with pytest.raises(InterruptedError):
            prepared.embed(image_files, batch_size=1, progress=Interruption())
    np.testing.assert_allclose(prepared.encode(pixels), expected, atol=1e-5)


def test_weights_are_returned_unless_it_was_exported(encoder: Encoder, reference: Encoder) -> None:
    if encoder.info.graph is None:
        weights = encoder.backbone.weights()
        np.testing.assert_array_equal(weights["conv_stem.weight"], reference.backbone.weights()["conv_stem.weight"])
    else:
        with pytest.raises(ModelError, match="exported"):
            encoder.backbone.weights()
