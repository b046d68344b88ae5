"""What one image costs, measured in a process of its own so that neither memory nor warmth is borrowed.

Run as `python -m lookalike.bench.timing`, with the request as JSON on standard input and the answer on standard output.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lookalike.backbones import Encoder, load_bundle
from lookalike.bench.trial import Timing
from lookalike.data import read_image
from lookalike.errors import LookalikeError

SINGLE_IMAGES = 40
BATCH_SIZE = 16
_BATCHES = 4
_WARM_UP = 5


def measure_timing(bundles: Sequence[Path], ways: Sequence[str], images: Sequence[Path]) -> dict[str, Timing]:
    """Time the encoder of these bundles in a fresh process.

    Args:
        bundles: one bundle a member.
        ways: for an ensemble, the combinations to time; `[""]` for a single member.
        images: readable image files, used in turn.

    Returns:
        One `Timing` for each way.

    Raises:
        LookalikeError: when the process fails, with the last line that it wrote.

    """
    request = {"bundles": [str(b) for b in bundles], "ways": list(ways), "images": [str(i) for i in images]}
    done = subprocess.run(
        [sys.executable, "-m", "lookalike.bench.timing"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        last = lines[-1] if lines else "no output"
        raise LookalikeError(
            f"timing {', '.join(str(b) for b in bundles)} failed with status {done.returncode}: {last}."
        )
    return {way: Timing(**found) for way, found in json.loads(done.stdout).items()}


def _answer(request: dict[str, Any]) -> dict[str, dict[str, Any]]:
    members = [m for bundle in request["bundles"] for m in load_bundle(bundle).members]
    images = [Path(i) for i in request["images"]]
    answer = {}
    for way in request["ways"]:
        # the identity costs what any other rotation costs
        alignments = [None, *(np.eye(m.dim, dtype=np.float32) for m in members[1:])] if way == "aligned" else None
        encoder = Encoder(members, way or "aligned", alignments)
        answer[way] = asdict(time_encoder(encoder, images))
    return answer


def time_encoder(encoder: Encoder, images: Sequence[Path]) -> Timing:
    """Time one image after another, then batches, on a warm model in this process; peak memory is the process's."""
    singles = [images[i % len(images)] for i in range(_WARM_UP + SINGLE_IMAGES)]
    decode, model = np.array([_one(encoder, path) for path in singles])[_WARM_UP:].T * 1e3
    whole = decode + model
    many = [images[i % len(images)] for i in range(_BATCHES * BATCH_SIZE)]
    named = [_Numbered(str(n), path) for n, path in enumerate(many)]
    encoder.embed(named[:BATCH_SIZE], batch_size=BATCH_SIZE)
    clock = time.perf_counter()
    encoder.embed(named, batch_size=BATCH_SIZE)
    batched = (time.perf_counter() - clock) / len(many) * 1e3
    return Timing(
        single_p50_ms=float(np.percentile(whole, 50)),
        single_p95_ms=float(np.percentile(whole, 95)),
        single_decode_ms=float(np.percentile(decode, 50)),
        single_model_p50_ms=float(np.percentile(model, 50)),
        batched_ms=batched,
        batched_model_ms=_batched_model_ms(encoder, many[:BATCH_SIZE]),
        batch_size=BATCH_SIZE,
        peak_memory_mb=peak_memory_mb(),
        images=SINGLE_IMAGES,
        threads=int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1),
        device=str(encoder.members[0].device.type),
    )


class _Numbered:
    """An image under a number, since the same file may be timed twice."""

    def __init__(self, name: str, path: Path) -> None:
        self.id = name
        self.path = path


def _one(encoder: Encoder, path: Path) -> tuple[float, float]:
    """Seconds of decoding and of embedding one file."""
    start = time.perf_counter()
    image = read_image(path)
    pixels = [m.preprocessing.pixels(image)[None] for m in encoder.members]
    decoded = time.perf_counter()
    encoder.combine([m.encode(p) for m, p in zip(encoder.members, pixels, strict=True)])
    return decoded - start, time.perf_counter() - decoded


def _batched_model_ms(encoder: Encoder, images: Sequence[Path]) -> float:
    """Median milliseconds an image of the model's part alone, in one batch."""
    decoded = [read_image(path) for path in images]
    batches = [np.stack([m.preprocessing.pixels(image) for image in decoded]) for m in encoder.members]
    seconds = []
    for _ in range(_BATCHES):
        clock = time.perf_counter()
        encoder.combine([m.encode(b) for m, b in zip(encoder.members, batches, strict=True)])
        seconds.append(time.perf_counter() - clock)
    return float(np.median(seconds)) / len(images) * 1e3


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MB of 10^6 bytes."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def main() -> None:
    """Answer the request on standard input."""
    try:
        answer = _answer(json.load(sys.stdin))
    except LookalikeError as error:
        sys.exit(str(error))
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
