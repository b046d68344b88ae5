"""OpenVINO: what its import brings along, batches of any size, damaged files, and the precision of the first layers."""

import subprocess
import sys

import numpy as np
import pytest

from lookalike.errors import ModelError
from lookalike.models.torch_backbone import trace
from lookalike.models.trainable import build_trainable
from lookalike.runtimes import openvino
from lookalike.runtimes.graphs import quantize
from lookalike.runtimes.openvino import OpenVINORunner, compile_graph, load_compiled

pytest.importorskip("openvino")

PRINT_MODULES = (
    "print([m for m in ('openvino', 'openvino.tools.ovc', 'openvino_telemetry', 'torch') if sys.modules.get(m)])"
)


def imported_modules(code):
    lines = f"import sys\n{code}\n{PRINT_MODULES}"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_running_graphs_imports_neither_the_converter_nor_telemetry():
    code = "from lookalike.runtimes.openvino import import_openvino; import_openvino().Core()"
    assert imported_modules(code) == "['openvino']\n"


def test_converting_imports_no_telemetry():
    code = """
import torch
from lookalike.runtimes.openvino import convert
class Module(torch.nn.Module):
    def forward(self, x):
        return x.float().mean((1, 2))
convert(torch.export.export(Module(), (torch.zeros(2, 4, 4, 3, dtype=torch.uint8),)), 4, 4)
"""
    assert imported_modules(code) == "['openvino', 'openvino.tools.ovc', 'torch']\n"


def test_other_code_may_import_telemetry():
    code = "from lookalike.runtimes.openvino import import_openvino; import_openvino(); import openvino_telemetry"
    assert "'openvino_telemetry'" in imported_modules(code)


def test_modules_that_were_imported_before_are_kept():
    code = "import openvino; from lookalike.runtimes.openvino import import_openvino; import_openvino()"
    assert "'openvino_telemetry'" in imported_modules(code)


def test_without_openvino_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert not openvino.is_installed()
    with pytest.raises(ModelError, match="pip install openvino"):
        openvino.import_openvino()


@pytest.fixture(scope="module")
def graph():
    return openvino.convert(trace(build_trainable("test_efficientnet", "none").torch_backbone()), 160, 160)


@pytest.mark.parametrize("throughput", [False, True])
def test_batches_of_any_size_are_computed(graph, encoder, pixels, throughput):
    images = pixels(encoder.preprocessing)
    runner = compile_graph(graph, "float32", throughput=throughput)
    expected = encoder.backbone.submit(images)()
    for size in (0, 1, 4, 5, 9):
        rows = runner.submit(images[:size])()
        assert rows.shape == (size, 256)
        np.testing.assert_allclose(rows, expected[:size], rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_an_error_in_one_part_of_a_batch_is_raised_after_the_others(graph, encoder, pixels):
    images = pixels(encoder.preprocessing)
    runner = compile_graph(graph, "float32", throughput=True)
    expected = runner.submit(images)()
    with pytest.raises(Exception):  # noqa: B017 - OpenVINO raises various types
        runner.submit(np.zeros((9, 7, 5, 2), np.uint8))()
    np.testing.assert_allclose(runner.submit(images)(), expected, atol=1e-6)


def test_a_compiled_graph_is_exported_and_loaded(graph, encoder, pixels):
    images = pixels(encoder.preprocessing)
    runner = compile_graph(graph, "float32", throughput=False)
    loaded = load_compiled(runner.export(), "float32", throughput=False)
    assert isinstance(loaded, OpenVINORunner)
    np.testing.assert_array_equal(loaded.submit(images)(), runner.submit(images)())
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_compiled(b"not a compiled graph", "float32", throughput=False)


def test_a_damaged_file_is_refused(tmp_path):
    file = tmp_path / "graph.xml"
    for content in (None, "<net", "text"):
        if content is not None:
            file.write_text(content)
        with pytest.raises(ModelError, match=r"graph\.xml is missing or damaged"):
            compile_graph(file, "float32", throughput=False)


def image_graph(input_shape=(-1, 4, 4, 3), output_axes=(1, 2), outputs=1):
    """The mean of pixels as a graph, from shapes that need not be right."""
    openvino.import_openvino()
    from openvino import Model, opset8

    images = opset8.parameter(list(input_shape), np.uint8)
    mean = opset8.reduce_mean(opset8.convert(images, "f32"), list(output_axes))
    return Model([mean] * outputs, [images])


def test_a_graph_that_does_not_turn_images_into_vectors_is_refused(tmp_path):
    assert compile_graph(image_graph(), "float32", throughput=True).width == 3
    wrong = (
        image_graph(output_axes=(1,)),
        image_graph(output_axes=(1, 2, 3)),
        image_graph(outputs=2),
        image_graph(input_shape=(-1, 4, 3), output_axes=(1,)),
        image_graph(input_shape=(-1, 4, 4, -1)),
    )
    for graph in wrong:
        with pytest.raises(ModelError, match="does not turn images into vectors"):
            compile_graph(graph, "float32", throughput=True)
    entities = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10 if i else "x"}">' for i in range(12))
    for entity in ("", entities):  # with neither layers nor edges
        file = tmp_path / "graph.xml"
        file.write_text(f'<!DOCTYPE n [{entity}]><net name="n" version="11"><layers/><edges/></net>')
        with pytest.raises(ModelError, match=r"graph\.xml is missing or damaged"):
            compile_graph(file, "float32", throughput=False)


def test_pixels_of_another_size_are_refused():
    runner = compile_graph(image_graph(), "float32", throughput=False)
    with pytest.raises(ModelError, match="cannot compute these images"):
        runner.submit(np.zeros((1, 7, 5, 3), np.uint8))()
    assert runner.submit(np.ones((1, 4, 4, 3), np.uint8))().tolist() == [[1, 1, 1]]


def test_the_first_layers_end_before_the_second_dense_layer(graph):
    kinds = {node.get_friendly_name(): node.get_type_name() for node in graph.get_ordered_ops()}
    first = [kinds[name] for name in openvino.first_layers(graph)]
    assert first.count("Convolution") == 1
    assert not {"MatMul", "Constant", "Parameter"} & set(first)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_the_first_layers_compute_in_float32(graph, encoder, pixels, tmp_path, precision):
    if "bfloat16" not in openvino.float_precisions():
        pytest.skip("this processor has no bfloat16 arithmetic")
    if precision == "int8":
        pytest.importorskip("nncf")
        images = [image[None] for image in pixels(encoder.preprocessing)]
        graph = openvino.convert(trace(encoder.backbone, encoder.head), 160, 160)
        graph = quantize(graph, openvino.RUNTIME, images, transformer=False)
    openvino.save_graph(graph, tmp_path / "graph.xml", half=True)
    runner = compile_graph(tmp_path / "graph.xml", precision, throughput=False)
    layers = [node.get_rt_info() for node in runner._compiled.get_runtime_model().get_ordered_ops()]
    first, *others = [
        layer["primitiveType"].astype(str).split("_")[-1]
        for layer in layers
        if layer["layerType"].astype(str) == "Convolution"
    ]
    assert first == "f32"
    assert set(others) >= ({"bf16", "I8"} if precision == "int8" else {"bf16"})


def test_half_precision_weights_take_half_the_space(graph, tmp_path):
    sizes = []
    for half in (False, True):
        openvino.save_graph(graph, tmp_path / "graph.xml", half=half)
        sizes.append((tmp_path / "graph.bin").stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]
