"""Backbones as graphs of OpenVINO or ONNX Runtime: executed, and made from weights, also in int8."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lookalike._files import digest
from lookalike._system import disable_telemetry
from lookalike.errors import LookalikeError, ModelError, describe_error, import_extra
from lookalike.models.heads import Head
from lookalike.models.info import BackboneInfo, EncoderInfo
from lookalike.models.pipeline import Backbone, Source
from lookalike.models.preprocessing import Preprocessing
from lookalike.progress import SILENT, Progress
from lookalike.runtimes import onnx, openvino
from lookalike.runtimes.cache import GraphCache
from lookalike.types import Pixels, Vectors

if TYPE_CHECKING:
    from lookalike.models.torch_backbone import TorchBackbone

GRAPH_RUNTIMES = {openvino.RUNTIME: openvino, onnx.RUNTIME: onnx}
GraphRunner = openvino.OpenVINORunner | onnx.OnnxRunner
SINGLE_MAX = 32  # up to this many images are computed one batch at a time, on all threads


class WeightsSource(Protocol):
    """Where the weights of a backbone come from."""

    def load(self) -> TorchBackbone:
        """Return the backbone on torch, in float32."""

    def arrays(self) -> Mapping[str, np.ndarray]:
        """Return the weights by name, without torch."""


class GraphBackbone:
    """A backbone whose graph a runtime executes."""

    device_type = "cpu"

    def __init__(
        self,
        info: BackboneInfo,
        runner: GraphRunner,
        runtime: str,
        precision: str,
        *,
        source: WeightsSource | None = None,  # None for an exported graph
        folder: Path | None = None,  # of an exported graph, the bundle
    ) -> None:
        self.info = info
        self.runtime = runtime
        self.precision = precision
        self.source = source
        self.folder = folder
        self.width = runner.width
        self.batch_size = runner.batch_size
        self.in_flight = runner.in_flight
        self.submit = runner.submit

    def prepare(self, sample: Sequence[Source], count: int, progress: Progress) -> GraphBackbone:  # noqa: ARG002
        """Return the backbone itself."""
        return self

    def with_preprocessing(self, preprocessing: Preprocessing) -> GraphBackbone:
        """Return the same graph for images that are cropped otherwise."""
        other = copy.copy(self)
        other.info = replace(self.info, preprocessing=preprocessing)
        return other

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
        self._encoder_info = info
        self.info = info.backbone
        self.runtime = info.graph.runtime
        self.precision = info.graph.precision
        self.width = info.dim
        self.folder = file.parent
        self._file = file
        self._cache = GraphCache(digest(*info.graph.digests.values()))
        self._opened: dict[bool, GraphBackbone] = {}  # by whether it is compiled for many batches

    def __reduce__(self) -> tuple[Any, ...]:  # a compiled graph cannot be pickled
        return ExportedBackbone, (self._encoder_info, self._file)

    def prepare(self, sample: Sequence[Source], count: int, progress: Progress) -> GraphBackbone:  # noqa: ARG002
        """Return the graph compiled for `count` images."""
        throughput = count > SINGLE_MAX
        if throughput not in self._opened:
            runner = open_graph(
                lambda: self._file, self.runtime, self.precision, throughput=throughput, cache=self._cache
            )
            if runner.width != self.width:
                raise ModelError(
                    f"{self._file} is damaged (it computes {runner.width} dimensions, its record says {self.width}); "
                    "export the model again."
                )
            self._opened[throughput] = GraphBackbone(
                self.info, runner, self.runtime, self.precision, folder=self.folder
            )
        return self._opened[throughput]

    def with_preprocessing(self, preprocessing: Preprocessing) -> ExportedBackbone:
        """Return the same graph for images that are cropped otherwise."""
        return ExportedBackbone(
            replace(self._encoder_info, backbone=replace(self.info, preprocessing=preprocessing)), self._file
        )

    def weights(self) -> Mapping[str, np.ndarray]:
        """Raise `ModelError`: a graph has no weights."""
        return self._for_single_images().weights()


def open_graph(
    file: Callable[[], Path | Any], runtime: str, precision: str, *, throughput: bool, cache: GraphCache
) -> GraphRunner:
    """Load a graph on its runtime; `file`, or OpenVINO's graph, is needed only where no compiled one is cached."""
    if runtime == onnx.RUNTIME:
        return onnx.OnnxRunner(file())
    if runtime != openvino.RUNTIME:
        raise ModelError(f"unknown runtime {runtime!r}; use {' or '.join(GRAPH_RUNTIMES)}.", argument="runtime")
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
    calibration: Sequence[Pixels] | None = None,
) -> None:
    """Write the graph of a backbone, which is in float32, for a runtime, with its head if given.

    OpenVINO writes a second file next to `file`; with `half` it stores the weights in 16 bits. With `calibration`
    images, `(1, h, w, 3)` uint8, the graph is quantised to int8.
    """
    from lookalike.models.adapt import family_of
    from lookalike.models.torch_backbone import trace, write_onnx

    preprocessing = backbone.info.preprocessing
    change = None
    if calibration is not None:
        transformer = family_of(backbone.module) in ("transformer", "hybrid")
        change = partial(quantize, runtime=runtime, images=calibration, transformer=transformer)
    try:
        program = trace(backbone, head)
        if runtime == openvino.RUNTIME:
            graph = openvino.convert(program, preprocessing.height, preprocessing.width)
            openvino.save_graph(graph if change is None else change(graph), file, half=half)
        else:
            disable_telemetry()  # torch imports ONNX Runtime
            write_onnx(program, file)
            if change is not None:
                onnx.rewrite(file, change)
    except (OSError, LookalikeError):
        raise
    except Exception as error:  # torch and the converters raise various errors for an unsupported operation
        raise ModelError(
            f"{backbone.info.name} cannot be converted for {runtime} ({describe_error(error)})."
        ) from error


def quantize(graph: Any, runtime: str, images: Sequence[Pixels], *, transformer: bool) -> Any:
    """Return a graph with int8 layers where they are faster; calibration images are `(1, h, w, 3)` uint8 each.

    The first and the last layers stay in floating point: rounding errors of the first grow in all that follow, and the
    ranking of near neighbours needs the last bits of the head.
    """
    disable_telemetry()  # NNCF imports ONNX Runtime
    with openvino.blocked_import("openvino_telemetry"):
        nncf = import_extra("nncf", "int8", "int8")
    module = GRAPH_RUNTIMES[runtime]
    calibration = images if module is openvino else [{graph.graph.input[0].name: p} for p in images]
    unquantized = nncf.IgnoredScope(
        types=list(module.FLOAT_LAYERS), names=[*module.first_layers(graph), *module.head_layers(graph)], validate=False
    )
    with _silent_nncf():
        return nncf.quantize(
            graph,
            nncf.Dataset(calibration),
            subset_size=len(images),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            fast_bias_correction=False,
            ignored_scope=unquantized,
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
