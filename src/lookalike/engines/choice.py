"""Which engine computes a bundle's members: what this machine was found to be fastest with, measured once a model.

Every engine that is offered gives the embeddings of the bundle, to within `LEAST_COSINE` of its precision; int8 is not
among them: that is another model, made by `export`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lookalike.data.images import read_pixels
from lookalike.encoding import Encoder, Engine
from lookalike.encoding.engine import LEAST_COSINE
from lookalike.engines import openvino
from lookalike.engines.cache import cache_folder
from lookalike.engines.machine import processor
from lookalike.engines.members import open_member
from lookalike.errors import LookalikeError, MissingExtra, OptionError, StorageError, UnreadableImage
from lookalike.files import digest, storage_errors, write_json
from lookalike.progress import SILENT, Progress
from lookalike.types import Pixels
from lookalike.versions import versions_of

if TYPE_CHECKING:
    from lookalike.backbones import Member

AUTO = "auto"
TORCH = "torch"
ENGINES = (AUTO, TORCH, "openvino")
PRECISIONS = (AUTO, "float32", "bfloat16")
WORTH_IT = 400
"""Converting and measuring take some ten seconds: not for fewer images than this, unless it was done before."""

_TRIAL = 24
_SECONDS = 1.0


@dataclass(frozen=True)
class Way:
    """An engine, a precision, and how fast it was: images a second."""

    engine: str
    precision: str
    rate: float

    def __str__(self) -> str:
        return f"{self.engine} in {self.precision} ({self.rate:.0f} images/s)"


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
    count: int,
    engine: str = AUTO,
    precision: str = AUTO,
    progress: Progress = SILENT,
) -> Encoder:
    """Return the same model, each member on the engine that is fastest here.

    Args:
        encoder: of torch members; an exported one is returned as it is.
        pictures: some image files to measure with.
        count: images that are to be embedded: for a few, nothing is measured that was not before.
        engine: of `ENGINES`.
        precision: of `PRECISIONS`; auto takes the fastest.
        progress: is told what was chosen.

    Raises:
        OptionError: an unknown engine or precision.
        MissingExtra: the engine that was asked for is not installed.

    """
    require_engine(engine, precision)
    from lookalike.backbones import Member

    members: list[Engine] = [
        _placed(m, pictures, count, engine, precision, progress) if isinstance(m, Member) else m
        for m in encoder.members
    ]
    return Encoder(members, encoder.how, encoder.alignments)


def remembered(facts: Mapping[str, Any], *, single: bool) -> Encoder | None:
    """Return the encoder of a bundle by what is kept of its members from earlier choices, without torch.

    Args:
        facts: the bundle's `bundle.json`.
        single: for single pictures rather than many.

    Returns:
        None where a member was never placed on another engine than torch, or that engine has gone since.

    """
    rows = facts["members"]
    if any(row["aligned"] for row in rows):
        return None  # the alignments lie among the weights
    members = []
    for row in rows:
        best = _fastest(_known(row["fingerprint"]), AUTO)
        graph = graph_of(row["fingerprint"])
        if best is None or best.engine == TORCH or not graph.is_file():
            return None
        members.append(open_member(graph, row, runtime=best.engine, precision=best.precision, single=single))
    return Encoder(members, str(facts["how"] or "aligned"))


def graph_of(fingerprint: str) -> Path:
    """Return where the graph of a member is kept."""
    return _folder(fingerprint) / f"graph-{versions_of('openvino').get('openvino')}.xml"


def _folder(fingerprint: str) -> Path:
    return cache_folder() / "engines" / fingerprint


def _placed(
    member: Member, pictures: Sequence[Path], count: int, engine: str, precision: str, progress: Progress
) -> Engine:
    """Return a member on the engine that is asked for, or the fastest."""
    if engine == TORCH or member.runs_on != "cpu":
        return member
    if importlib.util.find_spec("openvino") is None:
        if engine == AUTO:
            return member
        raise MissingExtra("openvino", "openvino", "the engine openvino")
    ways = _known(member.fingerprint)
    if ways is None:
        if engine == AUTO and count < WORTH_IT:
            return member
        try:
            ways = _measure(member, pictures, progress)
        except StorageError as error:
            if engine != AUTO:
                raise
            progress.say(f"{member.backbone}: by torch, as no other engine can be prepared: {error}")
            return member
    offered = [w for w in ways if engine in (AUTO, w.engine)]
    best = _fastest(offered, precision)
    if best is None:
        raise OptionError(f"{engine} does not compute in {precision} on this processor; leave out precision.")
    others = ", ".join(str(w) for w in ways if w != best)
    progress.say(f"{member.backbone}: by {best}; {others}")
    if best.engine == TORCH:
        return member
    from lookalike.backbones.bundle import member_row

    return open_member(_graph(member), member_row(member), runtime=best.engine, precision=best.precision)


def _fastest(ways: Sequence[Way] | None, precision: str) -> Way | None:
    fitting = [w for w in ways or () if precision in (AUTO, w.precision)]
    return max(fitting, key=lambda w: w.rate, default=None)


def _machine() -> str:
    """Name what a rate holds for."""
    versions = versions_of("openvino", "torch")
    return digest(processor(), str(os.cpu_count()), str(len(os.sched_getaffinity(0))), str(versions))


def _known(fingerprint: str) -> tuple[Way, ...] | None:
    """Return what was measured of a member on this machine."""
    try:
        found = json.loads((_folder(fingerprint) / "rates.json").read_text(encoding="utf-8"))[_machine()]
        return tuple(Way(**way) for way in found)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(fingerprint: str, ways: Sequence[Way]) -> None:
    place = _folder(fingerprint) / "rates.json"
    with contextlib.suppress(LookalikeError):  # a cache that cannot be written is measured for again
        write_json(place, {_machine(): [asdict(w) for w in ways]})


def _graph(member: Member) -> Path:
    """Return the member's graph, made anew where it is not kept yet.

    Raises:
        StorageError: the cache cannot be written.

    """
    place = graph_of(member.fingerprint)
    if place.is_file() and place.with_suffix(".bin").is_file():
        return place
    with storage_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as made:
            openvino.save(openvino.convert(member), Path(made) / place.name, half=False)
            for name in (place.with_suffix(".bin").name, place.name):  # the one that is looked for last
                (Path(made) / name).replace(place.parent / name)
    return place


def _measure(member: Member, pictures: Sequence[Path], progress: Progress) -> tuple[Way, ...]:
    """Time every engine on some pictures; one that gives other embeddings is left out, and said."""
    progress.say(f"{member.backbone}: looking for the fastest engine of this machine, once for this model")
    from lookalike.backbones.bundle import member_row

    pixels = _pixels(member, pictures)
    expected = member.encode(pixels)
    ways = [Way(TORCH, member.precision, _rate(member, pixels))]
    graph = _graph(member)
    for precision in openvino.precisions():
        placed = open_member(graph, member_row(member), runtime=openvino.RUNTIME, precision=precision)
        cosine = float((placed.encode(pixels) * expected).sum(1).min())
        if cosine < LEAST_COSINE[precision]:
            progress.say(f"{member.backbone}: openvino in {precision} is left out, a cosine to torch is {cosine:.4f}")
            continue
        ways.append(Way(openvino.RUNTIME, precision, _rate(placed, pixels)))
    _remember(member.fingerprint, ways)
    return tuple(ways)


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


def _rate(engine: Engine, pixels: Pixels) -> float:
    """Return images a second, with as many batches in flight as the engine likes."""
    parts = itertools.cycle(np.array_split(pixels, max(1, len(pixels) // engine.batch_size)))
    engine.encode(next(parts))  # the first pass is slower
    waiting: deque[tuple[int, Callable[[], object]]] = deque()
    done, clock = 0, time.perf_counter()
    while time.perf_counter() - clock < _SECONDS:
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
