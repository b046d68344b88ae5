"""Which engine computes a bundle's members: what this machine was found to be fastest with, measured once a model.

Every engine that is offered gives the embeddings of the bundle, to within `LEAST_COSINE` of its precision; int8 is not
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
from lookalike.encoding import Encoder, Engine
from lookalike.encoding.encoder import split_precision
from lookalike.encoding.engine import LEAST_COSINE
from lookalike.engines import onnx, openvino
from lookalike.engines.exported import ExportedMember
from lookalike.engines.kept import Way, forget, graph_of, keep_ways, known_ways, make_graph
from lookalike.engines.members import open_member
from lookalike.errors import LookalikeError, MissingExtra, ModelError, OptionError, StorageError, UnreadableImage
from lookalike.progress import SILENT, Progress
from lookalike.types import Pixels

if TYPE_CHECKING:
    from lookalike.backbones import Member

AUTO = "auto"
TORCH = "torch"
ENGINES = (AUTO, TORCH, openvino.RUNTIME, onnx.RUNTIME)
PRECISIONS = (AUTO, "float32", "bfloat16")
WORTH_IT = 400
"""Converting and measuring take ten to twenty seconds: not for fewer images than this, unless it was done before."""

_TRIAL = 24
_SECONDS = 1.0


def require_engine(engine: str, precision: str = AUTO) -> None:
    """Raise `OptionError` for an engine or precision that there is not."""
    if engine not in ENGINES:
        raise OptionError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}.")
    if precision not in PRECISIONS:
        raise OptionError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")


def accelerated(
    encoder: Encoder,
    pictures: Sequence[Path],
    *,
    count: int | None = None,
    engine: str = AUTO,
    precision: str = AUTO,
    single: bool = False,
    progress: Progress = SILENT,
) -> Encoder:
    """Return the same model, each member on the engine that is fastest here; its fingerprint stays.

    Args:
        encoder: of torch members; an exported one is returned as it is.
        pictures: image files to measure with, those that are to be embedded or some of them.
        count: images that are to be embedded, by default as many as `pictures`: for a few, nothing is
            measured that was not before, unless a precision is asked for that torch does not compute in.
        engine: of `ENGINES`.
        precision: of `PRECISIONS`, or an encoder's; auto takes the fastest.
        single: for single pictures rather than many.
        progress: is told what was chosen.

    Raises:
        OptionError: an engine cannot compute in the precision that is asked for, or there is no such engine.
        ModelError: the engine that is asked for is not installed, or torch does not compute in that precision here.
        MissingExtra: likewise, ONNX Runtime.

    """
    wanted = split_precision(precision, len(encoder.members))
    require_engine(engine)
    count = len(pictures) if count is None else count
    members: list[Engine] = []
    for member, own in zip(encoder.members, wanted, strict=True):
        if isinstance(member, ExportedMember):
            if own not in (AUTO, member.precision) or engine not in (AUTO, member.runtime):
                raise OptionError(
                    f"{member.backbone} was exported for {member.runtime} in {member.precision}, which cannot be "
                    "changed; leave out engine and precision, or give the bundle that it was exported from."
                )
            members.append(member)
            continue
        require_engine(engine, own)
        members.append(_placed(_torch_member(member), pictures, count, (engine, own), single, progress))
    return Encoder(members, encoder.how, encoder.alignments)


def remembered(path: Path, facts: Mapping[str, Any], *, precision: str, single: bool) -> Encoder | None:
    """Return the encoder of a bundle by what is kept of its members from earlier choices, without torch.

    Args:
        path: the bundle.
        facts: its `bundle.json`.
        precision: that it must compute in; auto takes the fastest.
        single: for single pictures rather than many.

    Returns:
        None where a member was never placed on another engine than torch, or what was kept of that has gone since.

    """
    try:
        rows = facts["members"]
        members = []
        for row, own in zip(rows, split_precision(precision, len(rows)), strict=True):
            best = _fastest(known_ways(row["fingerprint"]), own)
            if best is None or best.engine == TORCH:
                return None
            graph = graph_of(row["fingerprint"], best.engine)
            if graph is None:
                return None
            members.append(open_member(graph, row, runtime=best.engine, precision=best.precision, single=single))
        return Encoder(members, str(facts["how"] or "aligned"), _alignments(path, rows))
    except (LookalikeError, OSError, KeyError, TypeError, AttributeError, ValueError):
        return None  # torch reads the bundle, and says what is wrong with it


def _alignments(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Read the rotations of an ensemble that lie among its weights, and nothing else of these."""
    from safetensors import safe_open

    from lookalike.encoding.facts import WEIGHTS, alignment_key

    if not any(row["aligned"] for row in rows):
        return [None] * len(rows)
    with safe_open(str(path / WEIGHTS), framework="np") as stored:
        return [stored.get_tensor(alignment_key(n)) if row["aligned"] else None for n, row in enumerate(rows)]


def _torch_member(member: Engine) -> Member:
    from lookalike.backbones import Member

    if not isinstance(member, Member):
        raise ModelError(f"{member.backbone} is computed by {member.runtime}, which has no other engine.")
    return member


def _placed(
    member: Member, pictures: Sequence[Path], count: int, way: tuple[str, str], single: bool, progress: Progress
) -> Engine:
    """Return a member on the engine that is asked for, or the fastest."""
    engine, precision = way
    if engine == TORCH and precision != AUTO:
        return _opened(member, Way(TORCH, precision, 0.0), single=single)
    if engine == openvino.RUNTIME:
        openvino.package()
    if engine == onnx.RUNTIME:
        onnx.require_packages()
    ways = known_ways(member.fingerprint, member.runs_on)
    if ways is None:
        if engine in (AUTO, TORCH) and precision in (AUTO, member.precision) and count < WORTH_IT:
            return member
        ways = _measure(member, pictures, engine, progress)
    best = _fastest([w for w in ways if engine in (AUTO, w.engine)], precision)
    if best is None:
        found = ", ".join(f"{w.engine} in {w.precision}" for w in ways)
        raise OptionError(
            f"{member.backbone} cannot be computed by {engine} in {precision} here, or with other embeddings only; "
            f"there is: {found}."
        )
    others = ", ".join(str(w) for w in ways if w != best)
    progress.say(f"{member.backbone}: by {best}{'; ' if others else ''}{others}")
    return _opened(member, best, single=single)


def _opened(member: Member, way: Way, *, single: bool) -> Engine:
    """Return a member on an engine; a graph that is damaged is made again."""
    if way.engine == TORCH:
        from lookalike.backbones.lowered import LoweredMember

        return member if way.precision == member.precision else LoweredMember(member)
    from lookalike.backbones.bundle import member_row

    row = member_row(member)
    was_there = graph_of(member.fingerprint, way.engine) is not None
    try:
        return _by_graph(member, way, row, single=single)
    except (ModelError, OSError):
        if not was_there:
            raise
        forget(member.fingerprint, way.engine)
        return _by_graph(member, way, row, single=single)


def _by_graph(member: Member, way: Way, row: Mapping[str, Any], *, single: bool) -> Engine:
    graph = make_graph(member, way.engine)
    return open_member(graph, row, runtime=way.engine, precision=way.precision, single=single)


def _fastest(ways: Sequence[Way] | None, precision: str) -> Way | None:
    fitting = [w for w in ways or () if precision in (AUTO, w.precision)]
    return max(fitting, key=lambda w: w.rate, default=None)


def _measure(member: Member, pictures: Sequence[Path], engine: str, progress: Progress) -> tuple[Way, ...]:
    """Time every engine on some pictures, or torch alone; one that gives other embeddings is left out, and said."""
    progress.say(f"{member.backbone}: looking for the fastest engine of this machine, once for this model")
    pixels = _pixels(member, pictures)
    expected = member.encode(pixels)
    ways = [Way(TORCH, member.precision, rate_of(member, pixels))]
    for other, precision in _others(member):
        if engine == TORCH != other:
            continue
        what = f"{member.backbone}: {other} in {precision} is left out"
        try:
            placed = _opened(member, Way(other, precision, 0.0), single=False)
            cosine = float((placed.encode(pixels) * expected).sum(1).min())
            near = cosine >= LEAST_COSINE[precision]
            rate = rate_of(placed, pixels) if near else 0.0
        except (ModelError, MissingExtra, StorageError) as error:
            progress.say(f"{what}: {error}")
            continue
        if not near:
            progress.say(f"{what}, a cosine to float32 is {cosine:.4f}")
            continue
        ways.append(Way(other, precision, rate))
    if engine != TORCH:
        keep_ways(member.fingerprint, ways, member.runs_on)
    return tuple(ways)


def _others(member: Member) -> list[tuple[str, str]]:
    """Return the engines and precisions there are for a member besides torch in float32."""
    from lookalike.backbones.devices import computes_bfloat16

    found = [(TORCH, "bfloat16")] if computes_bfloat16(member.device) else []
    if member.runs_on == "cpu" and openvino.is_installed():
        found += [(openvino.RUNTIME, precision) for precision in openvino.precisions()]
    if member.runs_on == "cpu" and onnx.is_installed():
        found.append((onnx.RUNTIME, "float32"))
    return found


def _pixels(member: Member, pictures: Sequence[Path]) -> Pixels:
    """Return what the member is shown of the first pictures that can be read."""
    p = member.preprocessing
    found: list[Pixels] = []
    for path in pictures:
        with contextlib.suppress(UnreadableImage):
            found.append(p.pixels(read_pixels(path, p.at_least)))
        if len(found) == _TRIAL:
            break
    return np.stack(found) if found else np.zeros((_TRIAL, p.height, p.width, 3), np.uint8)


def rate_of(engine: Engine, pixels: Pixels, seconds: float = _SECONDS) -> float:
    """Return images a second `(n, h, w, 3)`, with as many batches in flight as the engine likes."""
    size = engine.batch_size
    whole = max(1, len(pixels) // size) * size  # a batch that is not full takes as long
    parts = itertools.cycle(np.split(np.take(pixels, np.arange(whole), axis=0, mode="wrap"), whole // size))
    engine.encode(next(parts))  # the first pass is slower
    waiting: deque[tuple[int, Callable[[], object]]] = deque()
    done, clock = 0, time.perf_counter()
    while time.perf_counter() - clock < seconds:
        if len(waiting) == engine.in_flight:
            count, wait = waiting.popleft()
            wait()
            done += count
        part = next(parts)
        waiting.append((len(part), engine.submit(part)))
    for count, wait in waiting:
        wait()
        done += count
    return done / (time.perf_counter() - clock)
