"""What this machine keeps of a model: its graph for other engines, and how fast each of them was found to be."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lookalike._cores import cores
from lookalike._files import digest, read_json, storage_errors, write_json
from lookalike._versions import versions_of
from lookalike.errors import LookalikeError, StorageError
from lookalike.runtimes import onnx, openvino
from lookalike.runtimes.cache import cache_folder
from lookalike.runtimes.machine import abilities, processor
from lookalike.runtimes.members import SUFFIXES, parts_of

if TYPE_CHECKING:
    from lookalike.models.member import TrainableEncoder

_FORMAT = "3"
"""Of what is kept: graphs and rates of another are made again."""
_MADE_WITH = ("lookalike", "timm", "torch", "openvino", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Way:
    """An runtime, a precision, and how fast it was: images a second."""

    runtime: str
    precision: str
    rate: float

    def __str__(self) -> str:
        return f"{self.runtime} in {self.precision} ({self.rate:.0f} images/s)"


def known_ways(fingerprint: str, device: str = "cpu") -> tuple[Way, ...] | None:
    """Return what was measured on this machine of a member whose weights are on that device; None where nothing was."""
    try:
        found = read_json(_rates(fingerprint, device), "rates")
        return tuple(Way(str(way["runtime"]), str(way["precision"]), float(way["rate"])) for way in found["ways"])
    except (StorageError, ValueError, KeyError, TypeError):
        return None


def keep_ways(fingerprint: str, ways: Sequence[Way], device: str = "cpu") -> None:
    """Keep what was measured; a cache that cannot be written is measured for again."""
    with contextlib.suppress(LookalikeError):
        write_json(_rates(fingerprint, device), {"processor": processor(), "ways": [asdict(w) for w in ways]})


def graph_of(fingerprint: str, runtime: str = openvino.RUNTIME) -> Path | None:
    """Return a member's graph for a runtime, or None where it is not kept."""
    place = _graph(fingerprint, runtime)
    return place if all(part.is_file() for part in parts_of(place)) else None


def make_graph(member: TrainableEncoder, runtime: str = openvino.RUNTIME, *, head: bool = True) -> Path:
    """Return a member's graph, with its head or without, made anew where it is not kept.

    Raises:
        StorageError: the cache cannot be written.
        ModelError: the runtime does not know an operation of the backbone.

    """
    fingerprint = member.fingerprint if head else member.backbone_fingerprint
    place = graph_of(fingerprint, runtime)
    if place is not None:
        return place
    place = _graph(fingerprint, runtime)
    with storage_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as made:
            if runtime == openvino.RUNTIME:
                openvino.save(openvino.convert(member, head=head), Path(made) / place.name, half=False)
            else:
                onnx.write(member, Path(made) / place.name, head=head)
            for part in reversed(parts_of(place)):  # the one that names the other comes last
                (Path(made) / part.name).replace(part)
    return place


def forget(fingerprint: str, runtime: str) -> None:
    """Remove a member's graph for a runtime, which turned out to be damaged."""
    for part in parts_of(_graph(fingerprint, runtime)):
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _made_with() -> str:
    return f"{_FORMAT} {versions_of(*_MADE_WITH)}"


def _folder(fingerprint: str) -> Path:
    return cache_folder() / "engines" / fingerprint


def _graph(fingerprint: str, runtime: str) -> Path:
    return _folder(fingerprint) / f"graph-{digest(_made_with())[:12]}{SUFFIXES[runtime]}"


def _rates(fingerprint: str, device: str) -> Path:
    machine = digest(processor(), abilities(), device, str(os.cpu_count()), str(cores()), _made_with())
    return _folder(fingerprint) / f"rates-{machine[:12]}.json"
