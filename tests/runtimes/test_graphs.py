"""Graphs as backbones: opened from the cache or the file, compiled when first used; and int8 graphs."""

import logging
from dataclasses import replace

import numpy as np
import pytest

from lookalike.errors import MissingExtra, ModelError
from lookalike.models.encoder import Encoder
from lookalike.models.info import GraphInfo
from lookalike.models.pipeline import as_sources
from lookalike.models.trainable import build_trainable
from lookalike.progress import SILENT
from lookalike.runtimes import onnx, openvino
from lookalike.runtimes.cache import GraphCache
from lookalike.runtimes.fit import fit_encoder
from lookalike.runtimes.graphs import SINGLE_MAX, ExportedBackbone, GraphBackbone, open_graph, write_graph

pytest.importorskip("openvino")
BLANK = np.zeros((2, 160, 160, 3), np.uint8)


@pytest.fixture
def graphs(encoder, graph_cache):
    """The cached graphs of the backbone of `encoder`."""
    return GraphCache(encoder.info.backbone.fingerprint)


@pytest.fixture
def exported(encoder, graphs):
    """The cached graph as that of an exported encoder; it has no head, so its width is that of the features."""
    graph = GraphInfo("openvino", "float32", {"graph.xml": "1", "graph.bin": "2"}, "")
    info = replace(encoder.info, graph=graph, dim=encoder.info.backbone.features)
    return ExportedBackbone(info, graphs.folder / "graph.xml")


def test_a_cached_compiled_graph_needs_no_file(graphs):
    runner = open_graph(
        lambda: pytest.fail("the file was requested"), "openvino", "float32", throughput=False, cache=graphs
    )
    assert runner.submit(BLANK)().shape == (2, 256)


def test_a_compiled_graph_is_cached(graphs):
    cache = GraphCache("other")
    for throughput in (False, True):
        open_graph(lambda: graphs.folder / "graph.xml", "openvino", "float32", throughput=throughput, cache=cache)
    assert all(cache.read_blob(f"float32-{name}") is not None for name in ("latency", "throughput"))


def test_a_compiled_graph_of_another_version_is_compiled_again(graphs):
    cache = GraphCache("other")
    cache.write_blob("float32-latency", b"not a compiled graph")
    runner = open_graph(lambda: graphs.folder / "graph.xml", "openvino", "float32", throughput=False, cache=cache)
    assert runner.submit(BLANK)().shape == (2, 256)
    assert cache.read_blob("float32-latency") != b"not a compiled graph"


def test_an_unknown_runtime_is_refused(graphs):
    with pytest.raises(ModelError, match="'tensorrt'"):
        open_graph(lambda: graphs.folder / "graph.xml", "tensorrt", "float32", throughput=False, cache=graphs)


def test_an_exported_graph_is_compiled_when_it_is_first_used(exported, monkeypatch):
    compiled = []
    compile_graph = openvino.compile_graph
    monkeypatch.setattr(
        openvino, "compile_graph", lambda *a, **options: compiled.append(options) or compile_graph(*a, **options)
    )
    assert compiled == []
    single = exported.prepare((), SINGLE_MAX, SILENT)
    assert exported.prepare((), 1, SILENT) is single
    assert exported.submit(BLANK)().shape == (2, 256)
    assert compiled == [{"throughput": False}]
    many = exported.prepare((), SINGLE_MAX + 1, SILENT)
    assert compiled == [{"throughput": False}, {"throughput": True}]
    assert isinstance(many, GraphBackbone)
    assert (many.runtime, many.precision, many.folder) == ("openvino", "float32", exported.folder)
    assert (exported.batch_size, exported.in_flight) == (single.batch_size, single.in_flight)


def test_an_exported_graph_of_another_width_than_its_record_says_is_refused(encoder, exported):
    info = replace(encoder.info, graph=exported._encoder_info.graph, dim=128)
    with pytest.raises(ModelError, match=r"is damaged .* 256 dimensions, its record says 128"):
        ExportedBackbone(info, exported.folder / "graph.xml").prepare((), 1, SILENT)


def test_an_exported_graph_has_no_weights(exported):
    with pytest.raises(ModelError, match="is an exported model"):
        exported.weights()


def test_a_missing_runtime_is_reported(encoder, graphs, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match="onnx"):
        open_graph(lambda: graphs.folder / "graph.onnx", "onnxruntime", "float32", throughput=False, cache=graphs)


# ---------------------------------------------------------------- int8


@pytest.fixture(scope="module")
def fitted(image_files) -> Encoder:
    backbone = build_trainable("test_efficientnet", "none").torch_backbone()
    return fit_encoder([(backbone, "untrained")], as_sources(image_files), progress=SILENT).encoder


@pytest.fixture
def images(fitted, pixels):
    pytest.importorskip("nncf")
    return pixels(fitted.preprocessing)


def write_int8(fitted, runtime, file, images):
    write_graph(fitted.backbone, runtime, file, fitted.head, half=True, calibration=[image[None] for image in images])


def check_rows(rows, expected):
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3)
    cosines = (rows * expected).sum(axis=1)
    assert cosines.min() > 0.5  # random weights suffer more than trained ones
    assert (rows @ expected.T).argmax(axis=1).tolist() == list(range(len(rows)))


def test_openvino_in_int8_keeps_the_head_in_floating_point(fitted, images, tmp_path, caplog):
    file = tmp_path / "graph.xml"
    write_int8(fitted, openvino.RUNTIME, file, images)
    assert not [record for record in caplog.records if record.name == "nncf"]  # it logs to stdout
    assert not logging.getLogger("nncf").disabled
    check_rows(openvino.compile_graph(file, "int8", throughput=False).submit(images)(), fitted.encode(images))
    nodes = openvino.import_openvino().Core().read_model(str(file)).get_ordered_ops()
    assert any(node.get_type_name() == "FakeQuantize" for node in nodes)
    head = next(node for node in reversed(nodes) if node.get_type_name() == "MatMul")
    inputs = [i.get_source_output().get_node().get_type_name() for i in head.inputs()]
    assert "FakeQuantize" not in inputs


def test_onnx_runtime_in_int8_keeps_the_head_and_the_first_layer_in_floating_point(fitted, images, tmp_path):
    onnx.require_packages()
    file = tmp_path / "graph.onnx"
    write_int8(fitted, onnx.RUNTIME, file, images)
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
