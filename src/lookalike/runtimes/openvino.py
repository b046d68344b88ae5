"""OpenVINO: graphs compiled for this processor, several batches at once."""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from lookalike._cores import cores
from lookalike.errors import ModelError
from lookalike.types import Pixels, Vectors

if TYPE_CHECKING:
    from lookalike.models.member import TrainableEncoder

RUNTIME = "openvino"
HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}
"""What a graph's layers are computed in where they are not quantised."""
BATCH_SIZE = 4
"""Images of a request: with more the activations leave the cache."""
_LEFT_OUT = ("openvino_telemetry", "openvino.tools.ovc")


def is_installed() -> bool:
    """Whether there is OpenVINO."""
    try:
        package()
    except ModelError:
        return False
    return True


def package() -> ModuleType:
    """Import OpenVINO.

    Without its converter, which takes as long again to import, and without the part by which that tells its makers,
    over the network, of every import and conversion.

    Raises:
        ModelError: it is not installed.

    """
    try:
        with _without(*_LEFT_OUT):
            import openvino
    except ImportError as error:
        raise ModelError("OpenVINO is not installed; install it with: uv pip install openvino") from error
    found: ModuleType = openvino
    return found


@contextlib.contextmanager
def _without(*modules: str) -> Iterator[None]:
    """Let nothing import these meanwhile that did not before."""
    kept_out = [name for name in modules if name not in sys.modules]
    for name in kept_out:
        sys.modules[name] = None  # type: ignore[assignment]  # what is None cannot be imported
    try:
        yield
    finally:
        for name in kept_out:
            sys.modules.pop(name, None)


def core() -> Any:
    """Return OpenVINO's entrance.

    Raises:
        ModelError: it is not installed.

    """
    return package().Core()


def precisions() -> tuple[str, ...]:
    """Return the float precisions that this processor computes in, fastest first."""
    has = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("bfloat16", "float32") if "BF16" in has else ("float32",)


class OpenVINOSession:
    """A graph in OpenVINO's format, compiled for this processor.

    Args:
        model: path of the `.xml` file, or a graph in memory.
        precision: of `HINTS`.
        throughput: many batches, one thread each; else one batch on all threads, for single pictures.
        cache: folder that keeps what compiling gave, so that the next start is faster.

    Raises:
        ModelError: OpenVINO is not installed, or the file is damaged.

    """

    def __init__(
        self, model: Path | Any, precision: str, *, throughput: bool = True, cache: Path | None = None
    ) -> None:
        self._precision = precision
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "PERFORMANCE_HINT": "THROUGHPUT" if throughput else "LATENCY",
            "INFERENCE_NUM_THREADS": cores(),
        }
        if throughput:
            config["NUM_STREAMS"] = cores()
        if cache is not None:
            config["CACHE_DIR"] = str(cache)
        entrance = core()
        try:
            given = str(model) if isinstance(model, Path) else model
            if throughput:  # what is compiled for one number of images is faster than for any
                given = entrance.read_model(given) if isinstance(given, str) else given.clone()
                given.reshape([BATCH_SIZE, *given.inputs[0].partial_shape[1:]])
            self._compiled = entrance.compile_model(given, "CPU", config)
        except RuntimeError as error:
            raise ModelError(f"{model} is missing or damaged; export the model again.") from error
        self._together = BATCH_SIZE if throughput else 0  # images that a request takes; 0 for any number
        # one more than it works on at once, so that none waits for its next batch
        self._in_flight = int(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")) + 1 if throughput else 1
        self._free = deque(self._compiled.create_infer_request() for _ in range(self._in_flight))

    @property
    def runtime(self) -> str:
        """OpenVINO's name here."""
        return RUNTIME

    @property
    def precision(self) -> str:
        """As given."""
        return self._precision

    @property
    def batch_size(self) -> int:
        """A few: more are slower, as the activations leave the cache."""
        return BATCH_SIZE

    @property
    def in_flight(self) -> int:
        """One batch for each stream, and one that waits."""
        return self._in_flight

    def submit(self, pixels: Pixels) -> Callable[[], Vectors]:
        """Begin to compute `(n, h, w, 3)` uint8 pixels."""
        if not len(pixels):
            return lambda: np.zeros((0, self._compiled.outputs[0].partial_shape[1].get_length()), np.float32)
        if not self._together or len(pixels) == self._together:
            return self._start(pixels)
        parts = [pixels[start : start + self._together] for start in range(0, len(pixels), self._together)]
        waiting: list[Callable[[], Vectors]] = []
        try:
            waiting.extend(self._start(_filled(part, self._together)) for part in parts)
        except BaseException:
            _all(waiting)
            raise
        return lambda: np.concatenate([found[: len(part)] for part, found in zip(parts, _all(waiting), strict=True)])

    def _start(self, pixels: Pixels) -> Callable[[], Vectors]:
        try:
            request = self._free.popleft()
        except IndexError:  # more at once than it works on, as several threads may ask
            request = self._compiled.create_infer_request()
        try:
            request.start_async({0: np.ascontiguousarray(pixels)}, share_inputs=True)
        except BaseException:
            self._free.append(request)
            raise

        def wait() -> Vectors:
            try:
                request.wait()
                found: Vectors = request.get_output_tensor(0).data.astype(np.float32)  # a copy: it is used again
            finally:
                self._free.append(request)
            return found

        return wait


def _all(waiting: Sequence[Callable[[], Vectors]]) -> list[Vectors]:
    """Wait for each, also after one that failed, which is raised then."""
    found: list[Vectors] = []
    failed: list[BaseException] = []
    for wait in waiting:
        try:
            found.append(wait())
        except BaseException as error:
            failed.append(error)
    if failed:
        raise failed[0]
    return found


def _filled(pixels: Pixels, size: int) -> Pixels:
    """Add blank pictures up to a number."""
    blank = np.zeros((size - len(pixels), *pixels.shape[1:]), np.uint8)
    return np.concatenate([pixels, blank]) if len(blank) else pixels


def converter() -> Any:
    """Return OpenVINO's function that converts a model.

    Raises:
        ModelError: it is not installed.

    """
    package()
    with _without(_LEFT_OUT[0]):
        from openvino.tools.ovc import convert_model
    return convert_model


def convert(member: TrainableEncoder, *, head: bool = True) -> Any:
    """Turn a member, with its head or without, into a graph of OpenVINO's.

    Raises:
        ModelError: OpenVINO is not installed, or does not know an operation of the backbone.

    """
    from lookalike.models.graph import INPUT, OUTPUT, not_convertible, program_of

    convert_model = converter()
    try:
        graph = convert_model(program_of(member, head=head))
    except Exception as error:  # torch and OpenVINO raise what they like at an operation that they do not know
        raise not_convertible(member, "OpenVINO", error) from error
    p = member.preprocessing
    graph.reshape([-1, p.height, p.width, 3])
    graph.inputs[0].set_names({INPUT})
    graph.outputs[0].set_names({OUTPUT})
    return graph


def first_layers(graph: Any) -> list[str]:
    """Return the names of what comes before the second dense layer: what is rounded there, all layers make more of."""
    fed: set[str] = set()
    names: list[str] = []
    dense = 0
    for node in graph.get_ordered_ops():
        kind, name = node.get_type_name(), node.get_friendly_name()
        sources = (i.get_source_output().get_node().get_friendly_name() for i in node.inputs())
        if kind != "Parameter" and not any(source in fed for source in sources):
            continue  # weights
        fed.add(name)
        dense += kind in ("Convolution", "MatMul")
        if dense > 1:
            break
        if kind not in ("Parameter", "FakeQuantize"):
            names.append(name)
    return names


def save(graph: Any, path: Path, *, half: bool) -> None:
    """Write a graph as `.xml` with a `.bin` beside it; its first layers will compute in float32 whatever others do.

    Args:
        graph: of OpenVINO.
        path: of the `.xml` file.
        half: keep its weights in 16 bits.

    """
    package().save_model(graph, str(path), compress_to_fp16=half)
    names = set(first_layers(graph))
    tree = ElementTree.parse(path)
    for layer in tree.iter("layer"):
        if layer.get("name") not in names or layer.get("type") == "Result":
            continue
        facts = layer.find("rt_info")
        if facts is None:
            facts = ElementTree.Element("rt_info")
            layer.insert(0 if layer.find("data") is None else 1, facts)  # in this order it is read
        ElementTree.SubElement(facts, "attribute", {"name": "precise", "version": "0"})
    tree.write(path, encoding="utf-8", xml_declaration=True)
