"""Backbones on torch: the features are timm's, in float32 and bfloat16, and traced for any number of images."""

import numpy as np
import pytest
import timm
import torch

from lookalike.errors import OptionError
from lookalike.models import torch_backbone
from lookalike.models.adapt import ClassTokenBlock
from lookalike.models.info import Adaptation
from lookalike.models.preprocessing import Preprocessing
from lookalike.models.torch_backbone import (
    Graph,
    TorchBackbone,
    default_device,
    has_bfloat16,
    normalize_pixels,
    trace,
    write_onnx,
)
from lookalike.models.trainable import build_trainable
from lookalike.progress import SILENT

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_vit", "mobilenetv3_small_050"])
def test_the_features_are_those_of_timm(name, pixels):
    trainable = build_trainable(name, "none")
    backbone = trainable.torch_backbone()
    images = pixels(trainable.preprocessing)
    model = timm.create_model(name, num_classes=0).eval()
    model.load_state_dict(trainable.module.state_dict())
    with torch.inference_mode():
        expected = model(normalize_pixels(images, trainable.preprocessing, CPU)).numpy()
    features = backbone.submit(images)()
    assert features.dtype == np.float32
    assert features.shape == (9, backbone.width) == (9, backbone.info.features)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_the_features_of_mobilenetv3_are_those_after_its_last_layer():
    """It has 288 channels before pooling, which timm calls `num_features`, and 1024 after its last layer."""
    assert build_trainable("mobilenetv3_small_050", "none").torch_backbone().width == 1024


def test_pixels_are_normalized_by_hand():
    """(255 / 255 - 0.5) / 0.25 = 2 and (51 / 255 - 0.2) / 0.1 = 0."""
    preprocessing = Preprocessing(1, 2, mean=(0.5, 0.2, 0), std=(0.25, 0.1, 1))
    x = normalize_pixels(np.array([[[[255, 51, 0], [0, 51, 255]]]], np.uint8), preprocessing, CPU)
    assert x.shape == (1, 3, 1, 2)
    np.testing.assert_allclose(x[0, :, 0], [[2, -2], [0, 0], [0, 1]], atol=1e-6)


def test_bfloat16_is_close_to_float32(pixels):
    if not has_bfloat16(CPU):
        pytest.skip("this processor has no bfloat16 arithmetic")
    trainable = build_trainable("test_efficientnet", "none")
    exact, lowered = trainable.torch_backbone(), trainable.torch_backbone("bfloat16")
    assert (exact.precision, lowered.precision) == ("float32", "bfloat16")
    assert lowered.module is exact.module
    images = pixels(trainable.preprocessing)
    expected, features = exact.submit(images)(), lowered.submit(images)()
    assert features.dtype == np.float32
    assert not np.array_equal(features, expected)
    np.testing.assert_allclose(features, expected, atol=0.05 * np.abs(expected).max())
    np.testing.assert_array_equal(lowered.with_precision("float32").submit(images)(), expected)


def test_bfloat16_needs_a_processor_that_has_it(make_trainable, monkeypatch):
    monkeypatch.setattr(torch_backbone, "cpu_flags", lambda: frozenset({"avx2"}))
    assert not has_bfloat16(CPU)
    backbone = make_trainable().torch_backbone()
    if backbone.device.type != "cpu":
        pytest.skip("the default device is not a CPU")
    with pytest.raises(OptionError, match="bfloat16") as raised:
        backbone.with_precision("bfloat16")
    assert raised.value.argument == "precision"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()], ids=["gpu", "cpu"])
def test_images_that_do_not_fit_into_memory_are_computed_in_parts(error, make_trainable, pixels, caplog):
    """Nine images, of which three fit: nine and four fail once, then two at once for good."""
    trainable = make_trainable("test_efficientnet")
    backbone, images = trainable.torch_backbone(), pixels(trainable.preprocessing)
    expected, forward, sizes = backbone.submit(images)(), trainable.module.forward, []

    def limited(x):
        sizes.append(len(x))
        if len(x) > 3:
            raise error
        return forward(x)

    trainable.module.forward = limited
    for _ in range(2):
        np.testing.assert_allclose(backbone.submit(images)(), expected, rtol=1e-3, atol=1e-5)
    assert sizes == [9, 4, 2, 2, 2, 2, 1, 2, 2, 2, 2, 1]
    assert ["9 images" in caplog.messages[0], "4 images" in caplog.messages[1], len(caplog.messages)] == [True, True, 2]


def test_an_image_that_does_not_fit_into_memory_is_an_error(make_trainable, pixels):
    trainable = make_trainable("test_efficientnet")
    backbone = trainable.torch_backbone()

    def fails(_x):
        raise MemoryError

    trainable.module.forward = fails
    with pytest.raises(MemoryError):
        backbone.submit(pixels(trainable.preprocessing))


def test_a_torch_backbone_is_ready_for_any_images(make_trainable):
    backbone = make_trainable().torch_backbone()
    assert backbone.prepare((), 10_000, SILENT) is backbone
    assert (backbone.runtime, backbone.device) == ("torch", default_device())


def test_the_weights_are_those_of_the_module(make_trainable):
    backbone = make_trainable().torch_backbone()
    weights = backbone.weights()
    state = backbone.module.state_dict()
    assert list(weights) == list(state)
    np.testing.assert_array_equal(weights["conv_stem.weight"], state["conv_stem.weight"].cpu())
    assert isinstance(backbone, TorchBackbone)


# ---------------------------------------------------------------- graphs


@pytest.mark.parametrize(
    ("name", "adaptation"),
    [
        ("test_efficientnet", Adaptation()),
        ("test_resnet", Adaptation(pooling="gem")),
        ("test_vit", Adaptation(side=1.2)),
    ],
)
def test_a_graph_computes_features_or_embeddings(name, adaptation, pixels):
    trainable = build_trainable(name, "none", adapt=lambda _: adaptation)
    encoder = trainable.freeze()
    images = pixels(trainable.preprocessing)
    features = encoder.backbone.submit(images)()
    scale = np.abs(features).max()
    with torch.inference_mode():
        x = torch.from_numpy(images)
        for count in (1, 3):
            traced = trace(encoder.backbone).module()(x[:count]).numpy()
            np.testing.assert_allclose(traced, features[:count], rtol=1e-4, atol=1e-4 * scale)
        embeddings = Graph(encoder.backbone, encoder.head).eval()(x).numpy()
    np.testing.assert_allclose(embeddings, encoder.encode(images), atol=1e-5)


def test_tracing_leaves_the_backbone_as_it_is():
    backbone = build_trainable("vit_tiny_patch16_224", "none").torch_backbone()
    names = set(backbone.weights())
    graph = Graph(backbone, None)
    assert set(backbone.weights()) == names
    assert graph.module is not backbone.module
    assert any(isinstance(module, ClassTokenBlock) for module in graph.module.modules())


def test_an_onnx_file_has_named_inputs_and_outputs(make_trainable, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    write_onnx(trace(make_trainable().torch_backbone()), tmp_path / "graph.onnx")
    graph = onnx.load(str(tmp_path / "graph.onnx")).graph
    assert ([i.name for i in graph.input], [o.name for o in graph.output]) == (["pixels"], ["embeddings"])
