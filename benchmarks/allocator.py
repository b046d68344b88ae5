"""Measure what keeping freed memory is worth: embed the same photographs with and without it, in turn.

    python benchmarks/allocator.py [--pairs 5] [--images 128] [--folder PHOTOS]

Every run is a process of its own, since the setting holds for a whole process: first with LOOKALIKE_MALLOC=default,
then as Lookalike sets the allocator (see `lookalike.models.devices`), again and again, so that whatever else the
machine does meets both alike. By default the photographs are those of `clothing` in $LOOKALIKE_SHARED/data (default
../shared/data), or the built-in ones where that is absent.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lookalike.models.pretrained import build_trainable

from lookalike.benchmark.timing import peak_memory_mb
from lookalike.data.layouts import find_images
from lookalike.data.samples import write_demo_images
from lookalike.models.encoder import Encoder

BACKBONE = "efficientnet_lite0"
SETTINGS = {"C library's default": {"LOOKALIKE_MALLOC": "default"}, "freed memory kept": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--folder", type=Path, help="photographs")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.folder, given.images)
        return
    shared = Path(os.environ.get("LOOKALIKE_SHARED", Path(__file__).parent.parent.parent / "shared"))
    folder = given.folder or shared / "data" / "clothing" / "test" / "gallery"
    with tempfile.TemporaryDirectory() as temporary:
        if not folder.is_dir():
            folder = write_demo_images(Path(temporary) / "photographs", n_training=7, n_query=1, n_gallery=1)
        alternate(folder, given.images, given.pairs)


def alternate(folder: Path, images: int, pairs: int) -> None:
    """Run both settings `pairs` times in turn and print medians."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
    for number in range(pairs):
        for name, setting in SETTINGS.items():
            environment = {k: v for k, v in os.environ.items() if k != "LOOKALIKE_MALLOC"}
            environment = {"OMP_WAIT_POLICY": "PASSIVE", **environment, **setting}
            command = [sys.executable, __file__, "--measure", "--folder", str(folder), "--images", str(images)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            run = json.loads(done.stdout.splitlines()[-1])
            found[name].append(run)
            print(f"{number + 1}/{pairs} {name}: {line(run)}", flush=True)
    medians = {name: {key: statistics.median(r[key] for r in runs) for key in runs[0]} for name, runs in found.items()}
    for name, median in medians.items():
        print(f"median, {name}: {line(median)}")
    slow, fast = medians.values()
    for key, what in (
        ("seconds", "as long"),
        ("cpu_seconds", "the processor time"),
        ("page_faults", "the page faults"),
    ):
        ratios = [a[key] / max(1e-9, b[key]) for a, b in zip(*found.values(), strict=True)]
        ratio = slow[key] / max(1e-9, fast[key])
        print(f"the default takes {ratio:.2f} times {what} (by pair {min(ratios):.2f} to {max(ratios):.2f})")


def line(run: dict[str, float]) -> str:
    return (
        f"{run['seconds']:.2f} s for {run['images']:.0f} images ({run['images'] / run['seconds']:.1f}/s), "
        f"{run['cpu_seconds']:.2f} s of processor time, {run['page_faults']:,.0f} page faults, "
        f"at most {run['peak_memory_mb']:.0f} MB"
    )


def measure(folder: Path, images: int) -> None:
    """Embed in this process, warm, and print what it took as JSON."""
    paths = find_images(folder)[:images]
    encoder = Encoder([build_trainable(BACKBONE)])
    encoder.embed(paths[:32])
    before, clock = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    encoder.embed(paths)
    seconds, after = time.perf_counter() - clock, resource.getrusage(resource.RUSAGE_SELF)
    run = {
        "seconds": seconds,
        # whatever else the machine does costs time, but no processor time of ours
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "images": len(paths),
        "page_faults": after.ru_minflt - before.ru_minflt,
        "peak_memory_mb": peak_memory_mb(),
    }
    print(json.dumps(run))


if __name__ == "__main__":
    main()
