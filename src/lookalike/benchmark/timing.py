"""Time and memory of one image, measured in a fresh process, so that neither depends on what ran before.

The process reads a `TimingRequest` as JSON from standard input and writes the timings as its last line of output.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike._cores import cores
from lookalike._versions import versions_of
from lookalike.benchmark.trial import Timing
from lookalike.data.images import read_scaled
from lookalike.errors import LookalikeError
from lookalike.models.devices import device_name, threads
from lookalike.models.encoder import Encoder
from lookalike.models.engine import Engine
from lookalike.models.facts import read_facts
from lookalike.models.stream import File
from lookalike.runtimes.bundle import is_exported, load_bundle
from lookalike.runtimes.choice import accelerated, remembered
from lookalike.runtimes.machine import processor
from lookalike.types import Vectors

SINGLE_IMAGES = 40
BATCH_SIZE = 16
_BATCHES = 4
_WARM_UP = 5
_STATUS = Path("/proc/self/status")

Milliseconds = npt.NDArray[np.float64]


def machine() -> dict[str, Any]:
    """Return processor, cores and the versions of Python and packages, for reports."""
    packages = versions_of("lookalike", "torch", "timm", "openvino", "faiss-cpu", "numpy")
    return {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version(), **packages}


def timing_setup() -> dict[str, Any]:
    """Return everything that a timing depends on: processor, device, threads, and the packages that compute."""
    return {
        "processor": processor(),
        "device": device_name(),
        "cores": os.cpu_count(),  # decode
        "threads": threads(),
        **versions_of("torch", "timm", "pillow", "openvino"),
    }


@dataclass(frozen=True)
class TimingRequest:
    """What to time.

    Attributes:
        bundles: one per member, or one that holds them all.
        combinations: of an ensemble; `("",)` for a single encoder.
        images: readable image files, used in turn.
        runtime: the runtime, in float32.
        count: number of images to be embedded; `auto` uses torch for a few.

    """

    bundles: Sequence[Path]
    combinations: Sequence[str]
    images: Sequence[Path]
    runtime: str = "torch"
    count: int = 0


def measure_timing(request: TimingRequest) -> dict[str, Timing]:
    """Time an encoder in a fresh process, and return one `Timing` per combination.

    Raises:
        LookalikeError: the process failed; names the last line that it wrote.

    """
    process = subprocess.run(
        # -P: a file in the working directory must not be imported in place of a module of ours
        [sys.executable, "-P", "-c", "from lookalike.benchmark.timing import main; main()"],
        input=json.dumps(asdict(request), default=str),
        capture_output=True,
        text=True,
        check=False,
        env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},  # as the command line sets it
    )
    if process.returncode != 0:
        lines = process.stderr.strip().splitlines() or ["no output"]
        raise LookalikeError(
            f"timing {', '.join(map(str, request.bundles))} failed with status {process.returncode}: "
            f"{lines[-1].rstrip('.')}; run the benchmark again to resume it."
        )
    return {c: Timing(**timing) for c, timing in json.loads(process.stdout.splitlines()[-1]).items()}


def main() -> None:
    """Answer the request on standard input."""
    request = TimingRequest(**json.load(sys.stdin))
    request = replace(request, bundles=list(map(Path, request.bundles)), images=list(map(Path, request.images)))
    try:
        timings = time_members(
            lambda single: [m for b in request.bundles for m in _load(b, request, single=single).members],
            request.combinations,
            request.images,
        )
    except LookalikeError as error:
        sys.exit(str(error))
    sys.stdout.write("\n" + json.dumps({c: asdict(timing) for c, timing in timings.items()}) + "\n")


def _load(bundle: Path, request: TimingRequest, *, single: bool) -> Encoder:
    """Load a bundle for single images or for many, on the requested runtime."""
    info = read_facts(bundle)
    if is_exported(info):
        return load_bundle(bundle, single=single)
    if request.runtime != "torch":
        encoder = remembered(bundle, info, precision="float32", single=single)  # without importing torch
        if encoder and all(request.runtime in ("auto", m.runtime) for m in encoder.members):
            return encoder
    return accelerated(
        load_bundle(bundle),
        request.images,
        count=request.count,
        runtime=request.runtime,
        precision="float32",
        single=single,
    )


def time_members(
    load_members: Callable[[bool], Sequence[Engine]], combinations: Sequence[str], images: Sequence[Path]
) -> dict[str, Timing]:
    """Time single images, then batches, on warmed-up encoders in this process.

    All combinations share every pass of the members and differ only by their own arithmetic, so that noise cannot
    rank one above another. `load_members` loads the members, for single images if its argument is true.
    """
    members = load_members(True)
    encoders = {c: _combined(members, c) for c in combinations}
    decode, encode, combine = _time_single(encoders, [images[i % len(images)] for i in range(_WARM_UP + SINGLE_IMAGES)])
    del members, encoders  # before the next ones are loaded
    members = load_members(False)
    encoders = {c: _combined(members, c) for c in combinations}
    files = [File(str(n), images[n % len(images)]) for n in range(_BATCHES * BATCH_SIZE)]
    batched_ms, vectors = _time_batches(encoders[combinations[0]], files)
    timings = {}
    for c, encoder in encoders.items():
        start = time.perf_counter()
        encoder.combine(vectors)
        combine_ms = (time.perf_counter() - start) * 1e3 / len(files)
        total, model = decode + encode + combine[c], encode + combine[c]
        timings[c] = Timing(
            single_p50_ms=float(np.percentile(total, 50)),
            single_p95_ms=float(np.percentile(total, 95)),
            single_decode_ms=float(np.percentile(decode, 50)),
            single_model_p50_ms=float(np.percentile(model, 50)),
            batched_ms=batched_ms + combine_ms,
            batch_size=min(m.batch_size for m in members),
            peak_memory_mb=peak_memory_mb(),
            images=SINGLE_IMAGES,
            threads=cores(),
            device=members[0].runs_on,
            runtime=" + ".join(dict.fromkeys(f"{m.runtime} in {m.precision}" for m in members)),
        )
    return timings


def _combined(members: Sequence[Engine], combination: str) -> Encoder:
    # the identity costs as much as any other rotation
    alignments = [None, *(np.eye(m.dim, dtype=np.float32) for m in members[1:])] if combination == "aligned" else None
    return Encoder(members, combination or "concat", alignments)


def _time_single(
    encoders: Mapping[str, Encoder], paths: Sequence[Path]
) -> tuple[Milliseconds, Milliseconds, dict[str, Milliseconds]]:
    """Return milliseconds per image after the warm-up: decoding, the members, and each combination."""
    members = next(iter(encoders.values())).members
    preprocessings = list(dict.fromkeys(m.preprocessing for m in members))
    at_least = [p.at_least for p in preprocessings]
    rows = []
    for path in paths:
        clocks = [time.perf_counter()]
        images = read_scaled(path, at_least)
        pixels = {p: p.pixels(image)[None] for p, image in zip(preprocessings, images, strict=True)}
        clocks.append(time.perf_counter())
        vectors = [m.encode(pixels[m.preprocessing]) for m in members]
        clocks.append(time.perf_counter())
        for encoder in encoders.values():
            encoder.combine(vectors)
            clocks.append(time.perf_counter())
        rows.append(np.diff(clocks) * 1e3)
    decode, encode, *combine = np.array(rows)[_WARM_UP:].T
    return decode, encode, dict(zip(encoders, combine, strict=True))


def _time_batches(encoder: Encoder, files: Sequence[File]) -> tuple[float, list[Vectors]]:
    """Return milliseconds per image in batches before combining, and the embeddings of the members."""
    encoder.embed_members(files[:BATCH_SIZE])
    start = time.perf_counter()
    vectors, _, _ = encoder.embed_members(files)
    return (time.perf_counter() - start) / len(files) * 1e3, vectors


def peak_memory_mb() -> float:
    """Return the largest resident memory of this process so far, in MB (10^6 bytes)."""
    # on Linux ru_maxrss of a child starts at its parent's value; VmHWM is its own
    match = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE) if _STATUS.is_file() else None
    if match is not None:
        return int(match[1]) * 1024 / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
