"""A small network of each family of the catalogue on every runtime: the same features as torch."""

import numpy as np
import pytest
import timm

from lookalike.models.catalogue import ROWS
from lookalike.models.torch_backbone import trace, write_onnx
from lookalike.models.trainable import build_trainable
from lookalike.runtimes import openvino
from lookalike.runtimes.onnx import OnnxRunner

TIMM_NAMES = {row.name: row.timm_name for row in ROWS}
NAMES = (  # other tests have a ResNet, an EfficientNet and a plain transformer
    *("dinov2_s_reg", "dinov3_s", "clip_b_32", "siglip_b_16", "pe_core_b", "eva02_b"),
    *("dinov3_convnext_tiny", "convnextv2_tiny"),
)


@pytest.fixture
def backbone(name, monkeypatch):
    """A network of two blocks."""
    create = timm.create_model
    options = {"depths": (1, 1, 1, 1)} if "convnext" in name else {"depth": 2}
    monkeypatch.setattr(timm, "create_model", lambda timm_name, **others: create(timm_name, **options, **others))
    return build_trainable(name, "none").torch_backbone()


@pytest.fixture
def pixels(backbone):
    preprocessing = backbone.info.preprocessing
    size = (3, preprocessing.height, preprocessing.width, 3)
    return np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)


def cosines(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("name", NAMES)
def test_openvino_computes_torchs_features(backbone, pixels):
    pytest.importorskip("openvino")
    preprocessing = backbone.info.preprocessing
    graph = openvino.convert(trace(backbone), preprocessing.height, preprocessing.width)
    runner = openvino.compile_graph(graph, "float32", throughput=False)
    assert cosines(runner.submit(pixels)(), backbone.submit(pixels)()).min() > 0.9999


@pytest.mark.parametrize("name", NAMES)
def test_onnx_runtime_computes_torchs_features(backbone, pixels, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    write_onnx(trace(backbone), tmp_path / "graph.onnx")
    runner = OnnxRunner(tmp_path / "graph.onnx")
    assert cosines(runner.submit(pixels)(), backbone.submit(pixels)()).min() > 0.9999
