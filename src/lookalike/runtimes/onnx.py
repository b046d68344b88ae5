"""ONNX Runtime: graphs in the format that most runtimes read."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lookalike._system import cpu_count, disable_telemetry
from lookalike.errors import MissingExtra, ModelError, describe_error, import_extra
from lookalike.types import Pixels, Vectors

RUNTIME = "onnxruntime"
BATCH_SIZE = 8
SUFFIXES = (".onnx",)  # the file of a graph
FLOAT_LAYERS = ()  # types of layers that are not quantised
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_packages(purpose: str = "this runtime") -> None:
    """Raise `MissingExtra` unless all packages that write and run such graphs are installed."""
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "onnx", purpose)


def is_installed() -> bool:
    """Whether all packages that write and run such graphs are installed."""
    return all(importlib.util.find_spec(package) is not None for package in _PACKAGES)


def float_precisions() -> tuple[str, ...]:
    """Return the floating-point precisions that it computes on processors."""
    return ("float32",)


def import_onnxruntime() -> Any:
    """Import ONNX Runtime with its telemetry switched off."""
    disable_telemetry()
    return import_extra("onnxruntime", "onnx", "this runtime")


class OnnxRunner:
    """A graph in the ONNX format on all threads, one batch at a time."""

    batch_size = BATCH_SIZE
    in_flight = 1

    def __init__(self, file: Path) -> None:
        onnxruntime = import_onnxruntime()
        try:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = cpu_count()
            self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
            inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
            ranks = [[len(port.shape) for port in ports] for ports in (inputs, outputs)]
            if ranks != [[4], [2]] or not isinstance(outputs[0].shape[1], int):
                raise ValueError("it does not turn images into vectors of one length")
        except Exception as error:  # its errors have no other common base
            raise ModelError(
                f"{file} is missing or damaged ({describe_error(error)}); export the model again."
            ) from error
        self._input = inputs[0].name
        self.width = int(outputs[0].shape[1])

    def submit(self, pixels: Pixels) -> Callable[[], Vectors]:
        """Compute `(n, h, w, 3)` uint8 pixels at once."""
        try:
            rows: Vectors = self._session.run(None, {self._input: pixels})[0]
        except Exception as error:  # as above
            raise ModelError(f"ONNX Runtime cannot compute these images ({describe_error(error)}).") from error
        return lambda: rows


def rewrite(file: Path, change: Callable[[Any], Any]) -> None:
    """Replace the graph in a file by a changed one."""
    import onnx

    onnx.save(change(onnx.load(str(file))), str(file))


def first_layers(graph: Any) -> list[str]:
    """Return the name of the first dense layer."""
    return [next(node.name for node in graph.graph.node if node.op_type in ("Conv", "Gemm", "MatMul"))]


def head_layers(graph: Any) -> list[str]:
    """Return the names of the layers from the last dense one to the output."""
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
