"""What one image costs, measured in a process of its own so that neither memory nor warmth is borrowed.

The process takes the request as JSON on its standard input and writes the answer as its last line of standard output.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike._cores import cores
from lookalike.benchmark.trial import Timing
from lookalike.data.images import read_pixels, read_scaled
from lookalike.errors import LookalikeError
from lookalike.models.encoder import Encoder
from lookalike.models.engine import Engine
from lookalike.models.facts import read_facts
from lookalike.models.stream import File
from lookalike.runtimes.bundle import is_exported, load_bundle
from lookalike.runtimes.choice import accelerated, rate_of, remembered
from lookalike.types import Vectors

SINGLE_IMAGES = 40
BATCH_SIZE = 16
_BATCHES = 4
_WARM_UP = 5
_STATUS = Path("/proc/self/status")

Milliseconds = npt.NDArray[np.float64]


def measure_timing(
    bundles: Sequence[Path], ways: Sequence[str], images: Sequence[Path], *, runtime: str = "torch", count: int = 0
) -> dict[str, Timing]:
    """Time the encoder of these bundles in a fresh process.

    Args:
        bundles: one bundle a member, or one that holds several.
        ways: for an ensemble, the combinations to time; `[""]` for a single member.
        images: readable image files, used in turn.
        runtime: what computes, in float32.
        count: images that were to be embedded; auto stays with torch for a few.

    Returns:
        One `Timing` for each way.

    Raises:
        LookalikeError: when the process fails, with the last line that it wrote.

    """
    request = {
        "bundles": [str(b) for b in bundles],
        "ways": list(ways),
        "images": [str(i) for i in images],
        "runtime": runtime,
        "count": count,
    }
    done = subprocess.run(
        # -P: a file in the working directory that is called like a module of ours must not be taken for it
        [sys.executable, "-P", "-c", "from lookalike.benchmark.timing import main; main()"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},  # what the command line sets, so that both measure the same
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no output"]
        raise LookalikeError(
            f"timing {', '.join(str(b) for b in bundles)} failed with status {done.returncode}: "
            f"{lines[-1].rstrip('.')}; start the benchmark again to go on with it."
        )
    return {way: Timing(**found) for way, found in json.loads(done.stdout.splitlines()[-1]).items()}


def main() -> None:
    """Answer the request on standard input."""
    request = json.load(sys.stdin)
    try:
        images = [Path(i) for i in request["images"]]

        def members(single: bool) -> Sequence[Engine]:
            return [m for bundle in request["bundles"] for m in _opened(Path(bundle), images, request, single=single)]

        found = time_members(members, request["ways"], images)
    except LookalikeError as error:
        sys.exit(str(error))
    sys.stdout.write("\n" + json.dumps({way: asdict(timing) for way, timing in found.items()}) + "\n")


def _opened(bundle: Path, images: Sequence[Path], request: Mapping[str, Any], *, single: bool) -> Sequence[Engine]:
    """Load the members of a bundle for single images or for many, on the runtime that is asked for."""
    facts = read_facts(bundle)
    if is_exported(facts):
        return load_bundle(bundle, single=single).members
    if request["runtime"] != "torch":
        quick = remembered(bundle, facts, precision="float32", single=single)
        if quick is not None:
            return quick.members
    encoder = load_bundle(bundle)
    return accelerated(
        encoder, images, count=request["count"], runtime=request["runtime"], precision="float32", single=single
    ).members


def time_members(
    members: Callable[[bool], Sequence[Engine]], ways: Sequence[str], images: Sequence[Path]
) -> dict[str, Timing]:
    """Time one image after another, then batches, on warm models in this process.

    The ways of combining share every pass of the members and differ by their own arithmetic alone, so that noise
    cannot put one before another. Peak memory is the process's.

    Args:
        members: loads one, or those of an ensemble; is told whether for single images.
        ways: combinations; `[""]` for one member.
        images: readable files, used in turn.

    """
    alone = members(True)
    singly = {way: _encoder(alone, way) for way in ways}
    decode, encode, join = _one_by_one(singly, [images[i % len(images)] for i in range(_WARM_UP + SINGLE_IMAGES)])
    del alone, singly
    together = members(False)
    encoders = {way: _encoder(together, way) for way in ways}
    many = [File(str(n), images[n % len(images)]) for n in range(_BATCHES * BATCH_SIZE)]
    whole_ms, model_ms, parts = _batched(encoders[ways[0]], many)
    found = {}
    for way, encoder in encoders.items():
        whole, model = decode + encode + join[way], encode + join[way]
        join_ms = _combining_ms(encoder, parts) / len(many)
        found[way] = Timing(
            single_p50_ms=float(np.percentile(whole, 50)),
            single_p95_ms=float(np.percentile(whole, 95)),
            single_decode_ms=float(np.percentile(decode, 50)),
            single_model_p50_ms=float(np.percentile(model, 50)),
            batched_ms=whole_ms + join_ms,
            batched_model_ms=model_ms + join_ms,
            batch_size=min(m.batch_size for m in together),
            peak_memory_mb=peak_memory_mb(),
            images=SINGLE_IMAGES,
            threads=cores(),
            device=together[0].runs_on,
            runtime=" + ".join(dict.fromkeys(f"{m.runtime} in {m.precision}" for m in together)),
        )
    return found


def _encoder(members: Sequence[Engine], way: str) -> Encoder:
    # the identity costs what any other rotation costs
    alignments = [None, *(np.eye(m.dim, dtype=np.float32) for m in members[1:])] if way == "aligned" else None
    return Encoder(members, way or "concat", alignments)


def _one_by_one(
    encoders: Mapping[str, Encoder], paths: Sequence[Path]
) -> tuple[Milliseconds, Milliseconds, dict[str, Milliseconds]]:
    """Milliseconds of each image after the warm-up: decoding, the members' passes, and every way of combining."""
    members = next(iter(encoders.values())).members
    wanted = list(dict.fromkeys(m.preprocessing for m in members))
    at_least = [p.at_least for p in wanted]
    rows = []
    for path in paths:
        clocks = [time.perf_counter()]
        pictures = read_scaled(path, at_least)
        prepared = {p: p.pixels(picture)[None] for p, picture in zip(wanted, pictures, strict=True)}
        clocks.append(time.perf_counter())
        parts = [m.encode(prepared[m.preprocessing]) for m in members]
        clocks.append(time.perf_counter())
        for encoder in encoders.values():
            encoder.combine(parts)
            clocks.append(time.perf_counter())
        rows.append(np.diff(clocks) * 1e3)
    decode, encode, *join = np.array(rows)[_WARM_UP:].T
    return decode, encode, dict(zip(encoders, join, strict=True))


def _batched(encoder: Encoder, many: Sequence[File]) -> tuple[float, float, list[Vectors]]:
    """Milliseconds an image in batches, decoding included, before combining; of the passes alone; the embeddings."""
    encoder.embed_members(many[:BATCH_SIZE])
    clock = time.perf_counter()
    parts, _, _ = encoder.embed_members(many)
    whole = time.perf_counter() - clock
    model_ms = 0.0
    for member in encoder.members:
        p = member.preprocessing
        pixels = np.stack([p.pixels(read_pixels(file.path, p.at_least)) for file in many[:BATCH_SIZE]])
        model_ms += 1e3 / rate_of(member, pixels)
    return whole / len(many) * 1e3, model_ms, parts


def _combining_ms(encoder: Encoder, parts: Sequence[Vectors]) -> float:
    clock = time.perf_counter()
    encoder.combine(parts)
    return (time.perf_counter() - clock) * 1e3


def peak_memory_mb() -> float:
    """Return the largest resident memory that this process had so far, in MB of 10^6 bytes."""
    # on Linux ru_maxrss starts at what the parent had when it forked; VmHWM is the program's own
    found = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE) if _STATUS.is_file() else None
    if found is not None:
        return int(found[1]) * 1024 / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
