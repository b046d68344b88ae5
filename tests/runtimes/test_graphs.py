"""Graphs as backbones: opened from the cache or the file, compiled when first used, without weights."""

from dataclasses import replace

import numpy as np
import pytest

from lookalike.errors import MissingExtra, ModelError
from lookalike.models.info import GraphInfo
from lookalike.progress import SILENT
from lookalike.runtimes import openvino
from lookalike.runtimes.cache import GraphCache
from lookalike.runtimes.graphs import SINGLE_MAX, ExportedBackbone, GraphBackbone, open_graph

pytest.importorskip("openvino")
BLANK = np.zeros((2, 160, 160, 3), np.uint8)


@pytest.fixture
def graphs(encoder, graph_cache):
    """The cached graphs of the backbone of `encoder`."""
    return GraphCache.open(encoder.info.backbone.fingerprint)


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
    cache = GraphCache.open("other")
    for throughput in (False, True):
        open_graph(lambda: graphs.folder / "graph.xml", "openvino", "float32", throughput=throughput, cache=cache)
    assert all(cache.read_blob(f"float32-{name}") is not None for name in ("latency", "throughput"))


def test_a_compiled_graph_of_another_version_is_compiled_again(graphs):
    cache = GraphCache.open("other")
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


def test_an_exported_graph_has_no_weights(exported):
    with pytest.raises(ModelError, match="is an exported model"):
        exported.weights()


def test_a_missing_runtime_is_reported(encoder, graphs, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match="onnx"):
        open_graph(lambda: graphs.folder / "graph.onnx", "onnxruntime", "float32", throughput=False, cache=graphs)
