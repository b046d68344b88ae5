"""int8 graphs: post-training quantisation by NNCF, calibrated on training images."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from lookalike.errors import MissingExtra
from lookalike.runtimes import openvino
from lookalike.types import Pixels

CALIBRATION_IMAGES = 300  # the ranges of activations are measured on these
# depthwise convolutions lose much accuracy and gain little speed in 8 bits
_FLOAT_LAYERS = {"openvino": ["GroupConvolution"], "onnxruntime": []}


def quantize(graph: Any, runtime: str, images: Sequence[Pixels], *, transformer: bool) -> Any:
    """Return a graph with int8 layers where they are faster; calibration images are `(1, h, w, 3)` uint8 each."""
    try:
        import nncf
    except ImportError as error:
        raise MissingExtra("nncf", "int8", "int8") from error
    calibration = images if runtime == "openvino" else [{graph.graph.input[0].name: p} for p in images]
    with _silent_nncf():
        return nncf.quantize(
            graph,
            nncf.Dataset(calibration),
            subset_size=len(images),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            fast_bias_correction=False,
            ignored_scope=nncf.IgnoredScope(
                types=_FLOAT_LAYERS[runtime], names=[*_FIRST[runtime](graph), *_HEADS[runtime](graph)], validate=False
            ),
        )


@contextlib.contextmanager
def _silent_nncf() -> Iterator[None]:
    """Hide NNCF's bars and what it logs, which it writes to stdout."""
    logger = logging.getLogger("nncf")
    disabled, logger.disabled = logger.disabled, True
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.disabled = disabled


def _openvino_head(graph: Any) -> list[str]:
    """Return the names of the head's layers: the ranking of near neighbours needs their last bits."""
    names: list[str] = []
    waiting = [graph.outputs[0].get_node()]
    while waiting:
        node = waiting.pop()
        names.append(node.get_friendly_name())
        if node.get_type_name() != "MatMul":
            waiting += [i.get_source_output().get_node() for i in node.inputs()]
    return names


def _onnx_head(graph: Any) -> list[str]:
    """Return the names of the head's layers in an ONNX graph."""
    makers = {name: node for node in graph.graph.node for name in node.output}
    names: list[str] = []
    waiting = [graph.graph.output[0].name]
    while waiting:
        node = makers.get(waiting.pop())
        if node is None:
            continue
        names.append(node.name)
        if node.op_type not in ("Gemm", "MatMul"):
            waiting += node.input
    return names


def _onnx_first(graph: Any) -> list[str]:
    """Return the name of the first dense layer."""
    return [next(node.name for node in graph.graph.node if node.op_type in ("Conv", "Gemm", "MatMul"))]


_FIRST = {"openvino": openvino.first_layers, "onnxruntime": _onnx_first}
_HEADS = {"openvino": _openvino_head, "onnxruntime": _onnx_head}
