"""Traced graphs compute what the backbone computes, with a head and without, for any number of images."""

import numpy as np
import pytest
import torch

from lookalike.models.class_token import ClassTokenBlock
from lookalike.models.info import Adaptation
from lookalike.models.tracing import Graph, trace, write_onnx
from lookalike.models.trainable import build_trainable


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
