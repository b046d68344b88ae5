"""Select the runtime that executes a backbone: the fastest on this machine that computes what torch computes.

Runtimes are timed once per architecture and machine: for many images, or in the third process that searches. The graph
of a set of weights is made and compared with torch once; afterwards neither needs torch. int8 is not among the
candidates: it is another model, made by `export`.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from lookalike.data.images import image_in_turn
from lookalike.errors import MissingExtra, ModelError, OptionError, StorageError, UnreadableImage, describe_error
from lookalike.models.encoder import AnyEncoder, Encoder, Ensemble
from lookalike.models.info import BackboneInfo
from lookalike.models.pipeline import Backbone, FixedBackbone, Source, decode
from lookalike.models.preprocessing import Preprocessing
from lookalike.progress import Progress
from lookalike.runtimes import onnx
from lookalike.runtimes.cache import GraphCache, RuntimeTiming, count_processes, load_timings, save_timings
from lookalike.runtimes.graphs import (
    GRAPH_RUNTIMES,
    SINGLE_MAX,
    GraphBackbone,
    UnpreparedBackbone,
    WeightsSource,
    open_graph,
    write_graph,
)
from lookalike.types import Pixels, Vectors

if TYPE_CHECKING:
    from lookalike.models.torch_backbone import TorchBackbone

AUTO = "auto"
TORCH = "torch"
RUNTIMES = (AUTO, TORCH, *GRAPH_RUNTIMES)
PRECISIONS = (AUTO, "float32", "bfloat16")
# the smallest cosine to torch's float32 embedding of the same image that a precision may have
MIN_COSINE = {"float32": 0.9999, "bfloat16": 0.98, "int8": 0.90}
MIN_IMAGES = 400  # converting and timing take 15 to 40 seconds: not for fewer images
TIMED_PROCESS = 3  # that searches: each one waits seconds for torch
_TIMED_IMAGES = 24
_TIMED_SECONDS = 0.5
_TIMED_ROUNDS = 2  # the highest rate counts: another process may disturb a round
_MAX_SPREAD = 1.25  # if the rates of a backbone differ by a larger factor, all rounds are repeated once
_NORM_TOLERANCE = 1e-3  # how much the length of features may differ from torch's, in float32


def require_runtime(runtime: str, precision: str = AUTO) -> None:
    """Raise `OptionError` for an unknown runtime or precision."""
    if runtime not in RUNTIMES:
        raise OptionError(f"`runtime` must be one of {', '.join(RUNTIMES)}, got {runtime!r}.", argument="runtime")
    for part in precision.split("+"):
        if part not in PRECISIONS:
            raise OptionError(
                f"`precision` must be one of {', '.join(PRECISIONS)}, got {precision!r}.", argument="precision"
            )


@dataclass(eq=False)
class AutoBackbone(UnpreparedBackbone):
    """A backbone whose runtime is selected when it computes images."""

    info: BackboneInfo
    source: WeightsSource
    runtime: str = AUTO
    precision: str = AUTO
    _prepared: dict[bool, Backbone] = field(default_factory=dict, init=False, repr=False)  # by whether for few images
    _torch: TorchBackbone | None = field(default=None, init=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:  # a compiled graph cannot be pickled
        return AutoBackbone, (self.info, self.source, self.runtime, self.precision)

    @property
    def width(self) -> int:
        """Numbers per image."""
        return self.info.features

    def prepare(self, sample: Sequence[Source], count: int, progress: Progress) -> Backbone:
        """Return the backbone on the runtime that suits `count` images such as these."""
        few = count <= SINGLE_MAX
        if few not in self._prepared:
            backbone = _Selection(self, sample, count, progress).select()
            if backbone.runtime == TORCH and self.runtime == AUTO:
                return backbone  # more images may be worth another runtime
            self._prepared[few] = backbone
            if backbone.runtime != TORCH:
                self._torch = None  # not needed any more
        return self._prepared[few]

    def with_preprocessing(self, preprocessing: Preprocessing) -> AutoBackbone:
        """Return the same backbone for images that are cropped otherwise."""
        info = replace(self.info, preprocessing=preprocessing)
        return AutoBackbone(info, self.source, self.runtime, self.precision)

    def on_torch(self, precision: str) -> TorchBackbone:
        """Return the backbone on torch, loaded once while torch is in use."""
        if self._torch is None:
            self._torch = self.source.load().with_preprocessing(self.info.preprocessing)
        return self._torch if precision == "float32" else self._torch.with_precision(precision)

    def weights(self) -> Mapping[str, np.ndarray]:
        """Return all weights by name."""
        return self.source.arrays()


@overload
def with_runtime(encoder: Encoder, runtime: str = AUTO, precision: str = AUTO) -> Encoder: ...
@overload
def with_runtime(encoder: AnyEncoder, runtime: str = AUTO, precision: str = AUTO) -> AnyEncoder: ...
def with_runtime(encoder: AnyEncoder, runtime: str = AUTO, precision: str = AUTO) -> AnyEncoder:
    """Return the same encoder or ensemble, executed by this runtime in this precision, or one per member joined by `+`.

    `auto` selects the fastest when images are embedded. An exported encoder keeps its runtime.
    """
    exported = any(member.info.graph is not None for member in encoder.members)
    require_runtime(runtime, AUTO if exported else precision)
    precisions = split_precision(precision, len(encoder.members))
    members = [_member_with_runtime(m, runtime, p) for m, p in zip(encoder.members, precisions, strict=True)]
    return replace(encoder, members=tuple(members)) if isinstance(encoder, Ensemble) else members[0]


def time_for_searches(encoder: AnyEncoder, progress: Progress) -> None:
    """Time the runtimes of an encoder for later processes, if this is the third that searches with its architecture."""
    for member in encoder.members:
        backbone = member.backbone
        if not isinstance(backbone, AutoBackbone) or backbone.runtime != AUTO or load_timings(backbone.info):
            continue
        if count_processes(backbone.info) % TIMED_PROCESS == 0:  # and again later, where it was not completed
            _Selection(backbone, (), MIN_IMAGES, progress).measure()


def split_precision(precision: str, count: int) -> list[str]:
    """Return the precision of each of `count` encoders; one precision applies to all."""
    precisions = precision.split("+")
    if len(precisions) not in (1, count):
        raise OptionError(
            f"`precision` {precision!r} is for {len(precisions)} encoders, got {count}.", argument="precision"
        )
    return precisions * count if len(precisions) == 1 else precisions


def _member_with_runtime(encoder: Encoder, runtime: str, precision: str) -> Encoder:
    graph = encoder.info.graph
    if graph is not None:
        if runtime not in (AUTO, graph.runtime) or precision not in (AUTO, graph.precision):
            raise OptionError(
                f"{encoder.name} was exported for {graph.runtime} in {graph.precision}, which cannot be changed; omit "
                "`runtime` and `precision`, or use the bundle that it was exported from.",
                argument="runtime",
            )
        return encoder
    backbone = backbone_with_runtime(encoder.backbone, runtime, precision)
    return encoder if backbone is encoder.backbone else replace(encoder, backbone=backbone)


def backbone_with_runtime(backbone: Backbone, runtime: str = AUTO, precision: str = AUTO) -> Backbone:
    """Return the same backbone, executed by this runtime in this precision; auto keeps what was selected before."""
    fixed = fixed_backbone(backbone)
    if fixed is not None:
        if runtime not in (AUTO, fixed.runtime):
            raise OptionError(
                f"{backbone.info.name} runs on {fixed.runtime} only, got `runtime` {runtime}; omit it.",
                argument="runtime",
            )
        selected: Backbone = fixed.with_precision(precision)
        return backbone if precision in (AUTO, backbone.precision) else selected
    if isinstance(backbone, AutoBackbone | GraphBackbone):  # auto keeps what was selected before
        runtime = backbone.runtime if runtime == AUTO else runtime
        precision = backbone.precision if precision == AUTO else precision
        if (backbone.runtime, backbone.precision) == (runtime, precision):
            return backbone
        source = backbone.source
        assert source is not None, "an encoder that was not exported has weights"
    else:
        from lookalike.models.torch_backbone import TorchBackbone

        assert isinstance(backbone, TorchBackbone)
        source = TorchWeights(backbone)
    return AutoBackbone(backbone.info, source, runtime, precision)


def fixed_backbone(backbone: Backbone) -> FixedBackbone | None:
    """Return the backbone that has one runtime and cannot be trained, behind its graph if it is prepared, or None."""
    source = backbone.source if isinstance(backbone, GraphBackbone) else backbone
    return source if isinstance(source, FixedBackbone) else None


@dataclass(frozen=True)
class TorchWeights:
    """Weights that are in memory, in a torch module."""

    backbone: TorchBackbone

    def load(self) -> TorchBackbone:
        """Return the backbone."""
        return self.backbone

    def arrays(self) -> Mapping[str, np.ndarray]:
        """Return its weights by name."""
        return self.backbone.weights()


class _Selection:
    """The selection of a runtime for one backbone and some images."""

    def __init__(self, request: AutoBackbone, sample: Sequence[Source], count: int, progress: Progress) -> None:
        self.request = request
        self.info = request.info
        self.sample = sample
        self.count = count
        self.progress = progress
        self.graphs = GraphCache(self.info.fingerprint)

    def select(self) -> Backbone:
        """Return the backbone on the requested runtime, else on the fastest."""
        runtime, precision = self.request.runtime, self.request.precision
        fixed_precision = "float32" if precision == AUTO else precision
        if runtime == TORCH:
            return self.request.on_torch(fixed_precision)
        if runtime == onnx.RUNTIME:
            onnx.require_packages()
        timings = load_timings(self.info)
        if not timings and AUTO in (runtime, precision):
            if runtime == AUTO and self.count < MIN_IMAGES:
                return self.request.on_torch(fixed_precision)
            timings = self.measure()
        candidates = [t for t in timings if runtime in (AUTO, t.runtime) and precision in (AUTO, t.precision)]
        if not candidates and runtime != AUTO:
            candidates = [RuntimeTiming(runtime, fixed_precision, 0.0)]
        errors: list[str] = []
        for timing in sorted(candidates, key=lambda t: -t.rate):
            try:
                backbone = self.open_checked(timing.runtime, timing.precision)
            except (ModelError, MissingExtra, StorageError) as error:
                self.progress.info(f"{self.info.name}: {timing.runtime} in {timing.precision} is skipped: {error}")
                errors.append(str(error).rstrip("."))
                continue
            if timing.rate and self.count > SINGLE_MAX:
                self.progress.info(f"{self.info.name}: running on {timing}{self.explain(timing, timings)}")
            return backbone
        available = ", ".join(f"{t.runtime} in {t.precision}" for t in timings)
        request = {"runtime": runtime, "precision": precision}
        request = {argument: value for argument, value in request.items() if value != AUTO}
        raise OptionError(
            f"{' with '.join(f'`{argument}` {value}' for argument, value in request.items())} is not available for "
            f"{self.info.name} on this machine ({'; '.join(errors) or f'available: {available}'}).",
            argument=next(iter(request), "runtime"),
        )

    def explain(self, timing: RuntimeTiming, timings: Sequence[RuntimeTiming]) -> str:
        """Say why a faster precision is not used; empty if there is none."""
        fastest = max(timings, key=lambda t: t.rate, default=timing)
        if self.request.precision == AUTO or fastest.rate <= timing.rate or fastest.precision == timing.precision:
            return ""
        reason = f"{timing.precision} was requested"
        if timing.precision == "float32":
            reason = "float32, so that figures are comparable"
        return f" ({reason}; {fastest})"

    def open_checked(self, runtime: str, precision: str) -> Backbone:
        """Return the backbone on a runtime; raise `ModelError` if its features differ from torch's."""
        backbone = self.open(runtime, precision, throughput=self.count > SINGLE_MAX)
        if runtime == TORCH:
            return backbone
        cosine = self.graphs.cosine(runtime, precision)
        if cosine is None:
            pixels, expected = self.reference
            cosine = _smallest_cosine(expected, backbone.submit(pixels)(), exact=precision == "float32")
            self.graphs.save_cosine(runtime, precision, cosine)
        if not cosine >= MIN_COSINE[precision]:
            raise ModelError(f"its features differ from torch's (cosine {cosine:.4f}).")
        return backbone

    def open(self, runtime: str, precision: str, *, throughput: bool) -> Backbone:
        """Return the backbone on a runtime, compiled for many batches or for single ones."""
        if runtime == TORCH:
            return self.request.on_torch(precision)
        module = GRAPH_RUNTIMES[runtime]
        if precision not in module.float_precisions():
            raise ModelError(f"{runtime} has no {precision} arithmetic on this machine.")

        def graph_file() -> Path:
            names = [f"graph{suffix}" for suffix in module.SUFFIXES]
            if not self.graphs.has(*names):
                backbone = self.request.on_torch("float32")
                self.graphs.add(names, lambda folder: write_graph(backbone, runtime, folder / names[0]))
            return self.graphs.folder / names[0]

        runner = open_graph(graph_file, runtime, precision, throughput=throughput, cache=self.graphs)
        return GraphBackbone(self.info, runner, runtime, precision, source=self.request.source)

    def measure(self) -> tuple[RuntimeTiming, ...]:
        """Time every runtime on the sample and remember the rates for the architecture and this machine."""
        self.progress.info(f"{self.info.name}: timing the available runtimes (once per architecture and machine)")
        pixels, _ = self.reference
        backbones: list[Backbone] = []
        complete = True
        options = _available_runtimes(self.request.on_torch("float32"))
        total = len(options) * (1 + _TIMED_ROUNDS)  # each is opened, then timed
        for number, (runtime, precision) in enumerate(options):
            self.progress.step("timing runtimes", number, total)
            try:
                backbones.append(self.open(runtime, precision, throughput=True))
            except (ModelError, MissingExtra, StorageError) as error:
                complete &= not isinstance(error, StorageError)
                self.progress.info(f"{self.info.name}: {runtime} in {precision} is skipped: {describe_error(error)}")
        rounds = self.time_rounds(backbones, pixels, len(options), total)
        if any(max(rates) > _MAX_SPREAD * min(rates) for rates in zip(*rounds, strict=True)):
            self.progress.info(f"{self.info.name}: the rates vary, because other work disturbs them; timing again")
            rounds += self.time_rounds(backbones, pixels, len(options), total)
        self.progress.step("timing runtimes", total, total)
        rates = map(max, zip(*rounds, strict=True))
        timings = tuple(RuntimeTiming(b.runtime, b.precision, rate) for b, rate in zip(backbones, rates, strict=True))
        self.progress.info(f"{self.info.name}: {', '.join(map(str, timings))}")
        if complete:  # a full disk says nothing about the architecture
            save_timings(self.info, timings)
        return timings

    def time_rounds(self, backbones: Sequence[Backbone], pixels: Pixels, opened: int, total: int) -> list[list[float]]:
        """Return the images per second of each backbone, by round; the rounds alternate, so that load hits all."""
        rounds: list[list[float]] = []
        for number in range(_TIMED_ROUNDS):
            rounds.append([])
            for backbone in backbones:
                rounds[-1].append(measure_rate(backbone, pixels, _TIMED_SECONDS))
                done = opened + number * len(backbones) + len(rounds[-1])
                self.progress.step("timing runtimes", min(done, total - 1), total)
        return rounds

    @cached_property
    def reference(self) -> tuple[Pixels, Vectors]:
        """Pixels of the sample and torch's features of them."""
        pixels = sample_pixels(self.info.preprocessing, self.sample)
        return pixels, self.request.on_torch("float32").submit(pixels)()


def _available_runtimes(backbone: TorchBackbone) -> list[tuple[str, str]]:
    from lookalike.models.torch_backbone import has_bfloat16

    options = [(TORCH, "float32")]
    if has_bfloat16(backbone.device):
        options.append((TORCH, "bfloat16"))
    if backbone.device.type != "cpu":
        return options
    for runtime, module in GRAPH_RUNTIMES.items():
        if module.is_installed():
            options += [(runtime, precision) for precision in module.float_precisions()]
    return options


def _smallest_cosine(expected: Vectors, features: Vectors, *, exact: bool) -> float:
    """Return the smallest cosine between rows; 0 where lengths differ although they should not."""
    norms, expected_norms = np.linalg.norm(features, axis=1), np.linalg.norm(expected, axis=1)
    if exact and (np.abs(norms - expected_norms) > _NORM_TOLERANCE * expected_norms).any():
        return 0.0
    return float(((features * expected).sum(1) / np.maximum(norms * expected_norms, 1e-12)).min())


def sample_pixels(preprocessing: Preprocessing, sample: Sequence[Source]) -> Pixels:
    """Return the pixels of the first readable images, or noise where there is none."""
    pixels: list[Pixels] = []
    for source in sample:
        with contextlib.suppress(UnreadableImage), image_in_turn(source.path):
            pixels.append(preprocessing.pixels(decode(source, [preprocessing.min_side])[0]))
        if len(pixels) == _TIMED_IMAGES:
            break
    if not pixels:
        shape = (4, preprocessing.height, preprocessing.width, 3)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return np.stack(pixels)


def measure_rate(backbone: Backbone, pixels: Pixels, seconds: float = _TIMED_SECONDS) -> float:
    """Return images per second, with as many batches in flight as the runtime allows."""
    size = backbone.batch_size
    whole = max(1, len(pixels) // size) * size  # a partial batch takes as long as a full one
    batches = itertools.cycle(np.split(np.take(pixels, np.arange(whole), axis=0, mode="wrap"), whole // size))
    backbone.submit(next(batches))()  # the first pass is slower
    pending: deque[Callable[[], object]] = deque()
    done, clock = 0, time.perf_counter()
    while time.perf_counter() - clock < seconds:
        if len(pending) == backbone.in_flight:
            pending.popleft()()
            done += size
        pending.append(backbone.submit(next(batches)))
    for wait in pending:
        wait()
        done += size
    return done / (time.perf_counter() - clock)
