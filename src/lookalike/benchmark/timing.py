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
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike._system import cpu_count, cpu_name, installed_versions
from lookalike.benchmark.trial import Timing
from lookalike.data.images import image_in_turn, read_scaled
from lookalike.errors import LookalikeError
from lookalike.models.bundle import read_bundle_info
from lookalike.models.encoder import AnyEncoder, Encoder, Ensemble
from lookalike.models.pipeline import File, run_backbones
from lookalike.progress import SILENT
from lookalike.runtimes.load import load_bundle
from lookalike.runtimes.select import AUTO, fixed_backbone, with_runtime
from lookalike.types import Vectors

_SINGLE_IMAGES = 40
_BATCH_SIZE = 16
_BATCHES = 4
_WARM_UP = 5
_STATUS = Path("/proc/self/status")

Milliseconds = npt.NDArray[np.float64]


def machine() -> dict[str, Any]:
    """Return processor, cores and the versions of Python and packages, for reports."""
    packages = installed_versions("lookalike", "torch", "timm", "openvino", "faiss-cpu", "numpy")
    return {"processor": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version(), **packages}


def timing_setup() -> dict[str, Any]:
    """Return everything that a timing depends on: processor, device, threads, and the packages that compute."""
    from lookalike.models.torch_backbone import device_name

    return {
        "processor": cpu_name(),
        "device": device_name(),
        "threads": cpu_count(),
        **installed_versions("torch", "timm", "pillow", "openvino"),
    }


@dataclass(frozen=True)
class TimingRequest:
    """What to time."""

    bundles: Sequence[Path]  # one per member, or one that holds them all
    combinations: Sequence[str]  # of an ensemble; `("",)` for a single encoder
    images: Sequence[Path]  # readable image files, used in turn
    runtime: str = "torch"  # the runtime, in float32
    count: int = 0  # number of images to be embedded; `auto` uses torch for a few


def measure_timing(request: TimingRequest) -> dict[str, Timing]:
    """Time an encoder in a fresh process, and return one `Timing` per combination."""
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
        timings = time_here(request)
    except LookalikeError as error:
        sys.exit(str(error))
    sys.stdout.write("\n" + json.dumps({c: asdict(timing) for c, timing in timings.items()}) + "\n")


def time_here(request: TimingRequest, functions: Sequence[AnyEncoder] = ()) -> dict[str, Timing]:
    """Time an encoder in this process, which has the functions that its bundles need."""
    files = [File(str(path), path) for path in request.images]
    return time_members(
        lambda count: [
            member
            for bundle in request.bundles
            for member in load_candidate(bundle, request.runtime, functions).prepare(files, count, SILENT).members
        ],
        request.combinations,
        request.images,
        count=request.count,
    )


def load_candidate(bundle: Path, runtime: str, functions: Sequence[AnyEncoder] = ()) -> AnyEncoder:
    """Load a bundle on a runtime in float32; an exported one keeps its precision, and one with one runtime that."""
    encoder = load_bundle(bundle, functions)
    if read_bundle_info(bundle).is_exported:
        return encoder
    members = tuple(
        with_runtime(member, AUTO if fixed_backbone(member.backbone) else runtime, "float32")
        for member in encoder.members
    )
    return replace(encoder, members=members) if isinstance(encoder, Ensemble) else members[0]


def time_members(
    load_members: Callable[[int], Sequence[Encoder]], combinations: Sequence[str], images: Sequence[Path], *, count: int
) -> dict[str, Timing]:
    """Time single images, then batches, on warmed-up encoders in this process.

    All combinations share every pass of the backbones and differ only by their own arithmetic, so that noise cannot
    rank one above another. `load_members` gets the number of images to get ready for: 1, then `count` for the batches.
    """
    encoders = _combined(load_members(1), combinations)
    paths = [images[i % len(images)] for i in range(_WARM_UP + _SINGLE_IMAGES)]
    decode, backbones, combine = _time_single(encoders, paths)
    del encoders  # before the next ones are loaded
    encoders = _combined(load_members(count), combinations)
    members = next(iter(encoders.values())).members
    files = [File(str(n), images[n % len(images)]) for n in range(_BATCHES * _BATCH_SIZE)]
    batched_ms, features = _time_batches(members, files)
    timings = {}
    for combination, encoder in encoders.items():
        start = time.perf_counter()
        encoder.combine(features)
        combine_ms = (time.perf_counter() - start) * 1e3 / len(files)
        model = backbones + combine[combination]
        total = decode + model
        timings[combination] = Timing(
            single_p50_ms=float(np.percentile(total, 50)),
            single_p95_ms=float(np.percentile(total, 95)),
            single_decode_ms=float(np.percentile(decode, 50)),
            single_model_p50_ms=float(np.percentile(model, 50)),
            batched_ms=batched_ms + combine_ms,
            batch_size=min(m.backbone.batch_size for m in members),
            peak_memory_mb=peak_memory_mb(),
            images=_SINGLE_IMAGES,
            threads=cpu_count(),
            device=members[0].backbone.device_type,
            runtime=" + ".join(dict.fromkeys(f"{m.runtime} in {m.precision}" for m in members)),
        )
    return timings


def _combined(members: Sequence[Encoder], combinations: Sequence[str]) -> dict[str, AnyEncoder]:
    if len(members) == 1:
        return dict.fromkeys(combinations, members[0])
    # the identity costs as much as any other rotation
    rotations = (None, *(np.eye(m.dim, dtype=np.float32) for m in members[1:]))
    return {c: Ensemble(tuple(members), c, rotations if c == "aligned" else ()) for c in combinations}


def _time_single(
    encoders: Mapping[str, AnyEncoder], paths: Sequence[Path]
) -> tuple[Milliseconds, Milliseconds, dict[str, Milliseconds]]:
    """Return milliseconds per image after the warm-up: decoding, the backbones, and heads with each combination."""
    members = next(iter(encoders.values())).members
    preprocessings = list(dict.fromkeys(m.preprocessing for m in members))
    min_sides = [p.min_side for p in preprocessings]
    rows = []
    for path in paths:
        clocks = [time.perf_counter()]
        with image_in_turn(path):
            images = read_scaled(path, min_sides)
            pixels = {p: p.pixels(image)[None] for p, image in zip(preprocessings, images, strict=True)}
        clocks.append(time.perf_counter())
        features = [m.backbone.submit(pixels[m.preprocessing])() for m in members]
        clocks.append(time.perf_counter())
        for encoder in encoders.values():
            encoder.combine(features)
            clocks.append(time.perf_counter())
        rows.append(np.diff(clocks) * 1e3)
    decode, backbones, *combine = np.array(rows)[_WARM_UP:].T
    return decode, backbones, dict(zip(encoders, combine, strict=True))


def _time_batches(members: Sequence[Encoder], files: Sequence[File]) -> tuple[float, Sequence[Vectors]]:
    """Return milliseconds per image in batches, without heads and combination, and the features."""
    backbones = [m.backbone for m in members]

    def run(files: Sequence[File]) -> Sequence[Vectors]:
        with closing(run_backbones(backbones, [files], batch_size=None, progress=SILENT, task="timing")) as batches:
            return next(batches).features

    run(files[:_BATCH_SIZE])
    start = time.perf_counter()
    features = run(files)
    return (time.perf_counter() - start) / len(files) * 1e3, features


def peak_memory_mb() -> float:
    """Return the largest resident memory of this process so far, in MB (10^6 bytes)."""
    # on Linux ru_maxrss of a child starts at its parent's value; VmHWM is its own
    match = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE) if _STATUS.is_file() else None
    if match is not None:
        return int(match[1]) * 1024 / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
