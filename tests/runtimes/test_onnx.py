"""ONNX Runtime: damaged files, missing packages, and no telemetry."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from lookalike.errors import MissingExtra, ModelError
from lookalike.runtimes import onnx
from lookalike.runtimes.cache import GraphCache
from lookalike.runtimes.onnx import OnnxRunner, rewrite

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def graph_file(encoder, graph_cache):
    return GraphCache(encoder.info.backbone.fingerprint).folder / "graph.onnx"


def test_a_batch_of_any_size_is_computed(graph_file, encoder, pixels):
    images = pixels(encoder.preprocessing)
    expected = encoder.backbone.submit(images)()
    runner = OnnxRunner(graph_file)
    for size in (0, 1, 9):
        rows = runner.submit(images[:size])()
        assert rows.shape == (size, runner.width) == (size, 256)
        np.testing.assert_allclose(rows, expected[:size], rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_a_missing_or_damaged_file_is_refused(tmp_path):
    file = tmp_path / "graph.onnx"
    for content in (None, b"", b"not a graph"):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ModelError, match=r"graph\.onnx is missing or damaged"):
            OnnxRunner(file)


@pytest.mark.parametrize("wrong", ["no output", "two outputs", "a dynamic width", "a tensor as output"])
def test_a_graph_that_does_not_turn_images_into_vectors_is_refused(tmp_path, wrong):
    from onnx import TensorProto, helper, save

    def describe(name, *shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    outputs = {
        "no output": [],
        "two outputs": [describe("y", "n", 3), describe("z", "n", 3)],
        "a dynamic width": [describe("y", "n", "width")],
        "a tensor as output": [describe("y", "n", 4, 4, 3)],
    }[wrong]
    nodes = [helper.make_node("Identity", ["x"], [output.name]) for output in outputs]
    graph = helper.make_graph(nodes, "graph", [describe("x", "n", 4, 4, 3)], outputs)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "graph.onnx")
    with pytest.raises(ModelError, match=r"graph\.onnx is missing or damaged"):
        OnnxRunner(tmp_path / "graph.onnx")


def test_pixels_of_another_size_are_refused(graph_file):
    with pytest.raises(ModelError, match="cannot compute these images"):
        OnnxRunner(graph_file).submit(np.zeros((1, 7, 5, 3), np.uint8))


def test_a_missing_package_is_named(graph_file, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    assert not onnx.is_installed()
    with pytest.raises(MissingExtra, match=r"onnxscript.*the extra onnx"):
        onnx.require_packages()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match="onnxruntime"):
        OnnxRunner(graph_file)


def test_telemetry_is_off_before_onnx_runtime_is_imported(graph_file):
    code = """
import os, socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("a host was looked up")
socket.getaddrinfo = refuse
from pathlib import Path
from lookalike.runtimes.onnx import OnnxRunner
assert "onnxruntime" not in sys.modules
OnnxRunner(Path(sys.argv[1]))
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(graph_file)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.stdout == "1\n", done.stderr


def test_a_graph_is_rewritten(graph_file):
    import onnx as onnx_package

    def rename(model):
        model.graph.name = "changed"
        return model

    rewrite(graph_file, rename)
    assert onnx_package.load(str(graph_file)).graph.name == "changed"
