"""Eight-bit graphs: NNCF's post-training quantisation, calibrated on real pictures."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from typing import Any

from lookalike.errors import MissingExtra
from lookalike.runtimes import openvino
from lookalike.types import Pixels

CALIBRATION_IMAGES = 300
"""Pictures that the ranges of activations are read from."""

_IN_FLOAT = {"openvino": ["GroupConvolution"], "onnxruntime": []}
"""Layers that lose much and win little in eight bits: depthwise convolutions."""


def quantise(graph: Any, runtime: str, pictures: Sequence[Pixels], *, transformer: bool) -> Any:
    """Return a graph whose layers compute in eight bits where that pays.

    Args:
        graph: of OpenVINO or ONNX.
        runtime: which of them.
        pictures: `(1, h, w, 3)` uint8 each.
        transformer: whether it has attention.

    Raises:
        MissingExtra: NNCF is not installed.

    """
    try:
        import nncf
    except ImportError as error:
        raise MissingExtra("nncf", "int8", "quantising a model") from error
    logging.getLogger("nncf").setLevel(logging.ERROR)
    feed = pictures if runtime == "openvino" else [{graph.graph.input[0].name: p} for p in pictures]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # bars of its own
        return nncf.quantize(
            graph,
            nncf.Dataset(feed),
            subset_size=len(pictures),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            fast_bias_correction=False,
            ignored_scope=nncf.IgnoredScope(
                types=_IN_FLOAT[runtime], names=[*_FIRST[runtime](graph), *_HEADS[runtime](graph)], validate=False
            ),
        )


def _openvino_head(graph: Any) -> list[str]:
    """Return the names of the projection and all after it: lengths and near neighbours need their last bits."""
    found: list[str] = []
    waiting = [graph.outputs[0].get_node()]
    while waiting:
        node = waiting.pop()
        found.append(node.get_friendly_name())
        if node.get_type_name() != "MatMul":
            waiting += [i.get_source_output().get_node() for i in node.inputs()]
    return found


def _onnx_head(graph: Any) -> list[str]:
    """Do the same for an ONNX graph."""
    makers = {name: node for node in graph.graph.node for name in node.output}
    found: list[str] = []
    waiting = [graph.graph.output[0].name]
    while waiting:
        node = makers.get(waiting.pop())
        if node is None:
            continue
        found.append(node.name)
        if node.op_type not in ("Gemm", "MatMul"):
            waiting += node.input
    return found


def _onnx_first(graph: Any) -> list[str]:
    """Return the name of the layer that sees the picture."""
    return [next(node.name for node in graph.graph.node if node.op_type in ("Conv", "Gemm", "MatMul"))]


_FIRST = {"openvino": openvino.first_layers, "onnxruntime": _onnx_first}
_HEADS = {"openvino": _openvino_head, "onnxruntime": _onnx_head}
