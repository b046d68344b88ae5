"""Backbones executed as graphs by OpenVINO or ONNX Runtime: of a bundle's weights, or of an exported bundle."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lookalike._files import digest
from lookalike._system import first_line
from lookalike.errors import LookalikeError, ModelError
from lookalike.models.heads import Head
from lookalike.models.info import BackboneInfo, EncoderInfo
from lookalike.models.pipeline import Backbone, Source
from lookalike.progress import SILENT, Progress
from lookalike.runtimes import onnx, openvino
from lookalike.runtimes.cache import GraphCache
from lookalike.types import Pixels, Vectors

if TYPE_CHECKING:
    from lookalike.models.torch_backbone import TorchBackbone

GraphRunner = openvino.OpenVINORunner | onnx.OnnxRunner
SINGLE_MAX = 32  # up to this many images are computed one batch at a time, on all threads


class WeightsSource(Protocol):
    """Where the weights of a backbone come from."""

    def load(self) -> TorchBackbone:
        """Return the backbone on torch, in float32."""

    def arrays(self) -> Mapping[str, np.ndarray]:
        """Return the weights by name, without torch."""


@dataclass(frozen=True, eq=False)
class GraphBackbone:
    """A backbone whose graph a runtime executes."""

    info: BackboneInfo
    runner: GraphRunner
    runtime: str
    precision: str
    source: WeightsSource | None = None  # None for an exported graph
    folder: Path | None = None  # of an exported graph, the bundle

    @property
    def device_type(self) -> str:
        """The type of device."""
        return "cpu"

    @property
    def width(self) -> int:
        """Numbers per image."""
        return self.runner.width

    @property
    def batch_size(self) -> int:
        """Preferred number of images per batch."""
        return self.runner.batch_size

    @property
    def in_flight(self) -> int:
        """How many batches may be submitted before the first result is awaited."""
        return self.runner.in_flight

    def submit(self, pixels: Pixels) -> Callable[[], Vectors]:
        """Start computing `(n, h, w, 3)` uint8 pixels."""
        return self.runner.submit(pixels)

    def prepare(self, sample: Sequence[Source], count: int, progress: Progress) -> GraphBackbone:  # noqa: ARG002
        """Return the backbone itself."""
        return self

    def weights(self) -> Mapping[str, np.ndarray]:
        """Return all weights by name."""
        if self.source is None:
            raise ModelError(f"{self.info.name} is an exported model; use the bundle that it was exported from.")
        return self.source.arrays()


class UnpreparedBackbone:
    """A backbone that is executed by what `prepare` returns; used as it is, it is prepared for single images."""

    def prepare(self, sample: Sequence[Source], count: int, progress: Progress) -> Backbone:
        """Return the backbone on the runtime that suits `count` images such as these."""
        raise NotImplementedError

    def _for_single_images(self) -> Backbone:
        return self.prepare((), 1, SILENT)

    @property
    def batch_size(self) -> int:
        """Preferred number of images per batch."""
        return self._for_single_images().batch_size

    @property
    def in_flight(self) -> int:
        """How many batches may be submitted before the first result is awaited."""
        return self._for_single_images().in_flight

    @property
    def device_type(self) -> str:
        """The type of device."""
        return self._for_single_images().device_type

    def submit(self, pixels: Pixels) -> Callable[[], Vectors]:
        """Start computing `(n, h, w, 3)` uint8 pixels."""
        return self._for_single_images().submit(pixels)


class ExportedBackbone(UnpreparedBackbone):
    """The graph of an exported encoder, head included, compiled when it is first used."""

    def __init__(self, info: EncoderInfo, file: Path) -> None:
        assert info.graph is not None
        self.info = info.backbone
        self.runtime = info.graph.runtime
        self.precision = info.graph.precision
        self.width = info.dim
        self.folder = file.parent
        self._file = file
        self._cache = GraphCache.open(digest(*info.graph.digests.values()))
        self._opened: dict[bool, GraphBackbone] = {}  # by whether it is compiled for many batches

    def prepare(self, sample: Sequence[Source], count: int, progress: Progress) -> GraphBackbone:  # noqa: ARG002
        """Return the graph compiled for `count` images."""
        throughput = count > SINGLE_MAX
        if throughput not in self._opened:
            runner = open_graph(
                lambda: self._file, self.runtime, self.precision, throughput=throughput, cache=self._cache
            )
            self._opened[throughput] = GraphBackbone(
                self.info, runner, self.runtime, self.precision, folder=self.folder
            )
        return self._opened[throughput]

    def weights(self) -> Mapping[str, np.ndarray]:
        """Raise `ModelError`: a graph has no weights."""
        return self._for_single_images().weights()


def open_graph(
    file: Callable[[], Path], runtime: str, precision: str, *, throughput: bool, cache: GraphCache
) -> GraphRunner:
    """Load a graph on its runtime; `file` is called only where no compiled graph is cached."""
    if runtime == onnx.RUNTIME:
        return onnx.OnnxRunner(file())
    if runtime != openvino.RUNTIME:
        raise ModelError(f"there is no runtime named {runtime!r}; known are {openvino.RUNTIME} and {onnx.RUNTIME}.")
    name = f"{precision}-{'throughput' if throughput else 'latency'}"
    blob = cache.read_blob(name)
    if blob is not None:
        with contextlib.suppress(ModelError):
            return openvino.load_compiled(blob, precision, throughput=throughput)
    runner = openvino.compile_graph(file(), precision, throughput=throughput)
    cache.write_blob(name, runner.export())
    return runner


def write_graph(
    backbone: TorchBackbone,
    runtime: str,
    file: Path,
    head: Head | None = None,
    *,
    half: bool = False,
    change: Callable[[Any], Any] | None = None,
) -> None:
    """Write the graph of a backbone for a runtime, with its head if given; `change` returns the graph to write.

    With `half`, OpenVINO stores the weights in 16 bits. A `ModelError` reports an operation that is not supported.
    """
    from lookalike.models.torch_backbone import trace, write_onnx

    preprocessing = backbone.info.preprocessing
    try:
        program = trace(backbone, head)
        if runtime == onnx.RUNTIME:
            write_onnx(program, file)
            if change is not None:
                onnx.rewrite(file, change)
        else:
            graph = openvino.convert(program, preprocessing.height, preprocessing.width)
            openvino.save_graph(graph if change is None else change(graph), file, half=half)
    except (OSError, LookalikeError):
        raise
    except Exception as error:  # torch and the converters raise various errors for an unsupported operation
        raise ModelError(f"{backbone.info.name} cannot be converted for {runtime} ({first_line(error)}).") from error
