"""OpenVINO: graphs compiled for this processor, several batches at once."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np

from lookalike._system import cpu_count
from lookalike.errors import ModelError, describe_error
from lookalike.types import Pixels, Vectors

RUNTIME = "openvino"
BATCH_SIZE = 4  # with more images per request the activations leave the processor's cache
INPUT, OUTPUT = "pixels", "embeddings"
SUFFIXES = (".xml", ".bin")  # the files of a graph
FLOAT_LAYERS = ("GroupConvolution",)  # depthwise convolutions lose much accuracy and gain little speed in int8
# what layers that are not quantised compute in
_PRECISION_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}


def is_installed() -> bool:
    """Whether OpenVINO is installed."""
    return importlib.util.find_spec("openvino") is not None


def import_openvino() -> ModuleType:
    """Import OpenVINO without its converter, which reports its import over the network."""
    try:
        with blocked_import("openvino.tools.ovc"):
            import openvino
    except ImportError as error:
        raise ModelError("OpenVINO is not installed; run: pip install openvino") from error
    module: ModuleType = openvino
    return module


@contextlib.contextmanager
def blocked_import(name: str) -> Iterator[None]:
    """Make the import of a module fail inside the `with` block, unless it was imported before.

    The converter of OpenVINO reports its import and every conversion over the network. Only a file in the home folder
    or the variable CI turns that off.
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # None makes an import fail
    try:
        yield
    finally:
        del sys.modules[name]


@functools.cache
def float_precisions() -> tuple[str, ...]:
    """Return the floating-point precisions that this processor supports, fastest first."""
    capabilities = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("bfloat16", "float32") if "BF16" in capabilities else ("float32",)


class OpenVINORunner:
    """A compiled graph, from `compile_graph` or `load_compiled`."""

    batch_size = BATCH_SIZE

    def __init__(self, compiled: Any, *, throughput: bool) -> None:
        self._compiled = compiled
        self._fixed_size = BATCH_SIZE if throughput else 0  # images per request; 0 for any number
        # one more than it works on at once, so that no stream waits for its next batch
        requests = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")) if throughput else 0
        self.in_flight = requests + 1
        self.width = int(compiled.outputs[0].partial_shape[1].get_length())
        self._free = deque(compiled.create_infer_request() for _ in range(self.in_flight))

    def export(self) -> bytes:
        """Return the compiled graph as bytes, for `load_compiled`."""
        blob: bytes = self._compiled.export_model().getvalue()
        return blob

    def submit(self, pixels: Pixels) -> Callable[[], Vectors]:
        """Start computing `(n, h, w, 3)` uint8 pixels."""
        if not len(pixels):
            return lambda: np.zeros((0, self.width), np.float32)
        size, count = self._fixed_size, len(pixels)
        if not size or count == size:
            return self._start(pixels)
        blank = np.zeros((-count % size, *pixels.shape[1:]), np.uint8)
        pixels = np.concatenate([pixels, blank]) if len(blank) else pixels
        pending: list[Callable[[], Vectors]] = []
        try:
            pending.extend(self._start(pixels[start : start + size]) for start in range(0, count, size))
        except BaseException:
            _wait_for_all(pending)
            raise
        return lambda: np.concatenate(_wait_for_all(pending))[:count]

    def _start(self, pixels: Pixels) -> Callable[[], Vectors]:
        try:
            request = self._free.popleft()
        except IndexError:  # several threads submit more than it works on at once
            request = self._compiled.create_infer_request()
        try:
            request.start_async({0: np.ascontiguousarray(pixels)}, share_inputs=True)
        except BaseException as error:
            self._free.append(request)
            if isinstance(error, RuntimeError):
                raise _cannot_compute(error) from error
            raise

        def wait() -> Vectors:
            try:
                request.wait()
                rows: Vectors = request.get_output_tensor(0).data.astype(np.float32)  # a copy: the tensor is reused
            except RuntimeError as error:
                raise _cannot_compute(error) from error
            finally:
                self._free.append(request)
            return rows

        return wait


def _cannot_compute(error: RuntimeError) -> ModelError:
    return ModelError(f"OpenVINO cannot compute these images ({describe_error(error)}).")


def _wait_for_all(pending: Sequence[Callable[[], Vectors]]) -> list[Vectors]:
    """Wait for each, even after one that failed, whose error is raised then."""
    results: list[Vectors] = []
    errors: list[BaseException] = []
    for wait in pending:
        try:
            results.append(wait())
        except BaseException as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return results


def compile_graph(model: Path | Any, precision: str, *, throughput: bool) -> OpenVINORunner:
    """Compile a graph for this processor: for many batches, one thread each, or for one batch on all threads."""
    core = import_openvino().Core()
    try:
        graph = core.read_model(str(model)) if isinstance(model, Path) else model.clone()
        ranks = [[len(port.partial_shape) for port in ports] for ports in (graph.inputs, graph.outputs)]
        if ranks != [[4], [2]] or graph.outputs[0].partial_shape[1].is_dynamic:
            raise RuntimeError("it does not turn images into vectors of one length")
        if throughput:  # a graph for one batch size is faster than one for any
            graph.reshape([BATCH_SIZE, *graph.inputs[0].partial_shape[1:]])
        compiled = core.compile_model(graph, "CPU", _config(precision, throughput=throughput))
    except RuntimeError as error:
        raise ModelError(f"{model} is missing or damaged ({describe_error(error)}); export the model again.") from error
    return OpenVINORunner(compiled, throughput=throughput)


def load_compiled(blob: bytes, precision: str, *, throughput: bool) -> OpenVINORunner:
    """Undo `OpenVINORunner.export`; OpenVINO does not notice damage, so check the bytes before."""
    try:
        compiled = import_openvino().Core().import_model(blob, "CPU", _config(precision, throughput=throughput))
    except RuntimeError as error:
        raise ModelError(f"the compiled graph cannot be loaded ({describe_error(error)}).") from error
    return OpenVINORunner(compiled, throughput=throughput)


def _config(precision: str, *, throughput: bool) -> dict[str, Any]:
    config: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": _PRECISION_HINTS[precision],
        "PERFORMANCE_HINT": "THROUGHPUT" if throughput else "LATENCY",
        "INFERENCE_NUM_THREADS": cpu_count(),
    }
    return {**config, "NUM_STREAMS": cpu_count()} if throughput else config


def convert(program: Any, height: int, width: int) -> Any:
    """Convert a `torch.export.ExportedProgram`; an unsupported operation raises errors of many classes."""
    import_openvino()
    with blocked_import("openvino_telemetry"):
        from openvino.tools.ovc import convert_model
    graph = convert_model(program)
    graph.reshape([-1, height, width, 3])
    graph.inputs[0].set_names({INPUT})
    graph.outputs[0].set_names({OUTPUT})
    return graph


def first_layers(graph: Any) -> list[str]:
    """Return the names of the layers before the second dense one: all later layers amplify their rounding errors."""
    fed_by_input: set[str] = set()
    names: list[str] = []
    dense = 0
    for node in graph.get_ordered_ops():
        node_type, name = node.get_type_name(), node.get_friendly_name()
        sources = (i.get_source_output().get_node().get_friendly_name() for i in node.inputs())
        if node_type != "Parameter" and not any(source in fed_by_input for source in sources):
            continue  # weights
        fed_by_input.add(name)
        dense += node_type in ("Convolution", "MatMul")
        if dense > 1:
            break
        if node_type not in ("Parameter", "FakeQuantize"):
            names.append(name)
    return names


def head_layers(graph: Any) -> list[str]:
    """Return the names of the layers from the last dense one to the output."""
    names: list[str] = []
    waiting = [graph.outputs[0].get_node()]
    while waiting:
        node = waiting.pop()
        names.append(node.get_friendly_name())
        if node.get_type_name() != "MatMul":
            waiting += [i.get_source_output().get_node() for i in node.inputs()]
    return names


def save_graph(graph: Any, path: Path, *, half: bool) -> None:
    """Write a graph as `.xml` with a `.bin` next to it; its first layers always compute in float32."""
    import_openvino().save_model(graph, str(path), compress_to_fp16=half)
    names = set(first_layers(graph))
    tree = ElementTree.parse(path)
    for layer in tree.iter("layer"):
        if layer.get("name") not in names or layer.get("type") == "Result":
            continue
        runtime_info = layer.find("rt_info")
        if runtime_info is None:
            runtime_info = ElementTree.Element("rt_info")
            layer.insert(0 if layer.find("data") is None else 1, runtime_info)  # the order that the reader expects
        ElementTree.SubElement(runtime_info, "attribute", {"name": "precise", "version": "0"})
    tree.write(path, encoding="utf-8", xml_declaration=True)
