"""int8 graphs: embeddings near those of float32, with head and first layer in floating point."""

import logging

import numpy as np
import pytest

from lookalike.models.encoder import Encoder
from lookalike.models.pipeline import as_sources
from lookalike.models.torch_backbone import trace, write_onnx
from lookalike.models.trainable import build_trainable
from lookalike.progress import SILENT
from lookalike.runtimes import onnx, openvino
from lookalike.runtimes.fit import fit_encoder
from lookalike.runtimes.int8 import quantize

pytest.importorskip("nncf")
pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def fitted(image_files) -> Encoder:
    backbone = build_trainable("test_efficientnet", "none").torch_backbone()
    return fit_encoder([(backbone, "untrained")], as_sources(image_files), progress=SILENT).encoder


@pytest.fixture(scope="module")
def program(fitted):
    return trace(fitted.backbone, fitted.head)


@pytest.fixture
def images(fitted, pixels):
    return pixels(fitted.preprocessing)


def check_rows(rows, expected):
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3)
    cosines = (rows * expected).sum(axis=1)
    assert cosines.min() > 0.5  # random weights suffer more than trained ones
    assert (rows @ expected.T).argmax(axis=1).tolist() == list(range(len(rows)))


def test_openvino_in_int8(fitted, program, images, tmp_path, caplog):
    graph = openvino.convert(program, 160, 160)
    graph = quantize(graph, openvino.RUNTIME, [image[None] for image in images], transformer=False)
    assert not [record for record in caplog.records if record.name == "nncf"]  # it logs to stdout
    assert not logging.getLogger("nncf").disabled
    openvino.save_graph(graph, tmp_path / "graph.xml", half=True)
    rows = openvino.compile_graph(tmp_path / "graph.xml", "int8", throughput=False).submit(images)()
    check_rows(rows, fitted.encode(images))
    nodes = graph.get_ordered_ops()
    assert any(node.get_type_name() == "FakeQuantize" for node in nodes)
    head = next(node for node in reversed(nodes) if node.get_type_name() == "MatMul")
    inputs = [i.get_source_output().get_node().get_type_name() for i in head.inputs()]
    assert "FakeQuantize" not in inputs


def test_onnx_runtime_in_int8(fitted, program, images, tmp_path):
    onnx.require_packages()
    file = tmp_path / "graph.onnx"
    write_onnx(program, file)
    onnx.rewrite(
        file, lambda graph: quantize(graph, onnx.RUNTIME, [image[None] for image in images], transformer=False)
    )
    check_rows(onnx.OnnxRunner(file).submit(images)(), fitted.encode(images))
    import onnx as onnx_package

    graph = onnx_package.load(str(file)).graph
    producers = {output: node for node in graph.node for output in node.output}
    assert any(node.op_type == "QuantizeLinear" for node in graph.node)
    head = next(node for node in reversed(graph.node) if node.op_type in ("Gemm", "MatMul"))
    first = next(node for node in graph.node if node.op_type == "Conv")
    for node in (head, first):
        sources = {producers[name].op_type for name in node.input if name in producers}
        assert "DequantizeLinear" not in sources
