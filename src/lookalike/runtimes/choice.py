"""Which runtime computes a bundle's members: what this machine was found to be fastest with, measured once a model.

Every runtime that is offered gives the embeddings of the bundle, to within `LEAST_COSINE` of its precision; int8 is not
among them: that is another model, made by `export`.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lookalike.data.images import read_pixels
from lookalike.errors import LookalikeError, MissingExtra, ModelError, OptionError, StorageError, UnreadableImage
from lookalike.models.encoder import Encoder, split_precision
from lookalike.models.engine import LEAST_COSINE, Engine
from lookalike.progress import SILENT, Progress
from lookalike.runtimes import onnx, openvino
from lookalike.runtimes.exported import ExportedMember
from lookalike.runtimes.kept import Way, forget, graph_of, keep_ways, known_ways, make_graph
from lookalike.runtimes.members import open_member
from lookalike.types import Pixels

if TYPE_CHECKING:
    from lookalike.models.member import TrainableEncoder

AUTO = "auto"
TORCH = "torch"
RUNTIMES = (AUTO, TORCH, openvino.RUNTIME, onnx.RUNTIME)
PRECISIONS = (AUTO, "float32", "bfloat16")
WORTH_IT = 400
"""Converting and measuring take ten to twenty seconds: not for fewer images than this, unless it was done before."""

_TRIAL = 24
_SECONDS = 1.0


def require_runtime(runtime: str, precision: str = AUTO) -> None:
    """Raise `OptionError` for an runtime or precision that there is not."""
    if runtime not in RUNTIMES:
        raise OptionError(f"runtime must be one of {', '.join(RUNTIMES)}, got {runtime!r}.")
    if precision not in PRECISIONS:
        raise OptionError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")


def accelerated(
    encoder: Encoder,
    pictures: Sequence[Path],
    *,
    count: int | None = None,
    runtime: str = AUTO,
    precision: str = AUTO,
    single: bool = False,
    progress: Progress = SILENT,
) -> Encoder:
    """Return the same model, each member on the runtime that is fastest here; its fingerprint stays.

    Args:
        encoder: of torch members; an exported one is returned as it is.
        pictures: image files to measure with, those that are to be embedded or some of them.
        count: images that are to be embedded, by default as many as `pictures`: for a few, nothing is
            measured that was not before, unless a precision is asked for that torch does not compute in.
        runtime: of `RUNTIMES`.
        precision: of `PRECISIONS`, or an encoder's; auto takes the fastest.
        single: for single pictures rather than many.
        progress: is told what was chosen.

    Raises:
        OptionError: an runtime cannot compute in the precision that is asked for, or there is no such runtime.
        ModelError: the runtime that is asked for is not installed, or torch does not compute in that precision here.
        MissingExtra: likewise, ONNX Runtime.

    """
    wanted = split_precision(precision, len(encoder.members))
    require_runtime(runtime)
    count = len(pictures) if count is None else count
    members: list[Engine] = []
    for member, own in zip(encoder.members, wanted, strict=True):
        if isinstance(member, ExportedMember):
            if own not in (AUTO, member.precision) or runtime not in (AUTO, member.runtime):
                raise OptionError(
                    f"{member.backbone} was exported for {member.runtime} in {member.precision}, which cannot be "
                    "changed; leave out runtime and precision, or give the bundle that it was exported from."
                )
            members.append(member)
            continue
        require_runtime(runtime, own)
        members.append(_placed(_torch_member(member), pictures, count, (runtime, own), single, progress))
    return Encoder(members, encoder.how, encoder.alignments)


def remembered(path: Path, facts: Mapping[str, Any], *, precision: str, single: bool) -> Encoder | None:
    """Return the encoder of a bundle by what is kept of its members from earlier choices, without torch.

    Args:
        path: the bundle.
        facts: its `bundle.json`.
        precision: that it must compute in; auto takes the fastest.
        single: for single pictures rather than many.

    Returns:
        None where a member was never placed on another runtime than torch, or what was kept of that has gone since.

    """
    try:
        rows = facts["members"]
        members = []
        for row, own in zip(rows, split_precision(precision, len(rows)), strict=True):
            best = _fastest(known_ways(row["fingerprint"]), own)
            if best is None or best.runtime == TORCH:
                return None
            graph = graph_of(row["fingerprint"], best.runtime)
            if graph is None:
                return None
            members.append(open_member(graph, row, runtime=best.runtime, precision=best.precision, single=single))
        return Encoder(members, str(facts["how"] or "aligned"), _alignments(path, rows))
    except (LookalikeError, OSError, KeyError, TypeError, AttributeError, ValueError):
        return None  # torch reads the bundle, and says what is wrong with it


def _alignments(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Read the rotations of an ensemble that lie among its weights, and nothing else of these."""
    from safetensors import safe_open

    from lookalike.models.facts import WEIGHTS, alignment_key

    if not any(row["aligned"] for row in rows):
        return [None] * len(rows)
    with safe_open(str(path / WEIGHTS), framework="np") as stored:
        return [stored.get_tensor(alignment_key(n)) if row["aligned"] else None for n, row in enumerate(rows)]


def _torch_member(member: Engine) -> TrainableEncoder:
    from lookalike.models.member import TrainableEncoder

    if not isinstance(member, TrainableEncoder):
        raise ModelError(f"{member.backbone} is computed by {member.runtime}, which has no other runtime.")
    return member


def _placed(
    member: TrainableEncoder,
    pictures: Sequence[Path],
    count: int,
    way: tuple[str, str],
    single: bool,
    progress: Progress,
) -> Engine:
    """Return a member on the runtime that is asked for, or the fastest."""
    runtime, precision = way
    if runtime == TORCH and precision != AUTO:
        return _opened(member, Way(TORCH, precision, 0.0), single=single)
    if runtime == openvino.RUNTIME:
        openvino.package()
    if runtime == onnx.RUNTIME:
        onnx.require_packages()
    ways = known_ways(member.fingerprint, member.runs_on)
    if ways is None:
        if runtime in (AUTO, TORCH) and precision in (AUTO, member.precision) and count < WORTH_IT:
            return member
        ways = _measure(member, pictures, runtime, progress)
    best = _fastest([w for w in ways if runtime in (AUTO, w.runtime)], precision)
    if best is None:
        found = ", ".join(f"{w.runtime} in {w.precision}" for w in ways)
        raise OptionError(
            f"{member.backbone} cannot be computed by {runtime} in {precision} here, or with other embeddings only; "
            f"there is: {found}."
        )
    others = ", ".join(str(w) for w in ways if w != best)
    progress.info(f"{member.backbone}: by {best}{'; ' if others else ''}{others}")
    return _opened(member, best, single=single)


def _opened(member: TrainableEncoder, way: Way, *, single: bool) -> Engine:
    """Return a member on an runtime; a graph that is damaged is made again."""
    if way.runtime == TORCH:
        from lookalike.models.lowered import LoweredMember

        return member if way.precision == member.precision else LoweredMember(member)
    from lookalike.models.torch_bundle import member_row

    row = member_row(member)
    was_there = graph_of(member.fingerprint, way.runtime) is not None
    try:
        return _by_graph(member, way, row, single=single)
    except (ModelError, OSError):
        if not was_there:
            raise
        forget(member.fingerprint, way.runtime)
        return _by_graph(member, way, row, single=single)


def _by_graph(member: TrainableEncoder, way: Way, row: Mapping[str, Any], *, single: bool) -> Engine:
    graph = make_graph(member, way.runtime)
    return open_member(graph, row, runtime=way.runtime, precision=way.precision, single=single)


def _fastest(ways: Sequence[Way] | None, precision: str) -> Way | None:
    fitting = [w for w in ways or () if precision in (AUTO, w.precision)]
    return max(fitting, key=lambda w: w.rate, default=None)


def _measure(member: TrainableEncoder, pictures: Sequence[Path], runtime: str, progress: Progress) -> tuple[Way, ...]:
    """Time every runtime on some pictures, or torch alone; one that gives other embeddings is left out, and said."""
    progress.info(f"{member.backbone}: looking for the fastest runtime of this machine, once for this model")
    pixels = _pixels(member, pictures)
    expected = member.encode(pixels)
    ways = [Way(TORCH, member.precision, rate_of(member, pixels))]
    for other, precision in _others(member):
        if runtime == TORCH != other:
            continue
        what = f"{member.backbone}: {other} in {precision} is left out"
        try:
            placed = _opened(member, Way(other, precision, 0.0), single=False)
            cosine = float((placed.encode(pixels) * expected).sum(1).min())
            near = cosine >= LEAST_COSINE[precision]
            rate = rate_of(placed, pixels) if near else 0.0
        except (ModelError, MissingExtra, StorageError) as error:
            progress.info(f"{what}: {error}")
            continue
        if not near:
            progress.info(f"{what}, a cosine to float32 is {cosine:.4f}")
            continue
        ways.append(Way(other, precision, rate))
    if runtime != TORCH:
        keep_ways(member.fingerprint, ways, member.runs_on)
    return tuple(ways)


def _others(member: TrainableEncoder) -> list[tuple[str, str]]:
    """Return the engines and precisions there are for a member besides torch in float32."""
    from lookalike.models.devices import computes_bfloat16

    found = [(TORCH, "bfloat16")] if computes_bfloat16(member.device) else []
    if member.runs_on == "cpu" and openvino.is_installed():
        found += [(openvino.RUNTIME, precision) for precision in openvino.precisions()]
    if member.runs_on == "cpu" and onnx.is_installed():
        found.append((onnx.RUNTIME, "float32"))
    return found


def _pixels(member: TrainableEncoder, pictures: Sequence[Path]) -> Pixels:
    """Return what the member is shown of the first pictures that can be read."""
    p = member.preprocessing
    found: list[Pixels] = []
    for path in pictures:
        with contextlib.suppress(UnreadableImage):
            found.append(p.pixels(read_pixels(path, p.at_least)))
        if len(found) == _TRIAL:
            break
    return np.stack(found) if found else np.zeros((_TRIAL, p.height, p.width, 3), np.uint8)


def rate_of(runtime: Engine, pixels: Pixels, seconds: float = _SECONDS) -> float:
    """Return images a second `(n, h, w, 3)`, with as many batches in flight as the runtime likes."""
    size = runtime.batch_size
    whole = max(1, len(pixels) // size) * size  # a batch that is not full takes as long
    parts = itertools.cycle(np.split(np.take(pixels, np.arange(whole), axis=0, mode="wrap"), whole // size))
    runtime.encode(next(parts))  # the first pass is slower
    waiting: deque[tuple[int, Callable[[], object]]] = deque()
    done, clock = 0, time.perf_counter()
    while time.perf_counter() - clock < seconds:
        if len(waiting) == runtime.in_flight:
            count, wait = waiting.popleft()
            wait()
            done += count
        part = next(parts)
        waiting.append((len(part), runtime.submit(part)))
    for count, wait in waiting:
        wait()
        done += count
    return done / (time.perf_counter() - clock)
