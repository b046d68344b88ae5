r"""Peak memory of embedding: ten times the images must not take more.

    python benchmarks/memory.py --count 10000 --count 100000

A folder holds the gallery of `clothing` ($LOOKALIKE_SHARED/data) many times, as links with other names. It is embedded
as `lookalike embed` does it, by EfficientNet-Lite0 exported for OpenVINO; each count in a process of its own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from contest import FIT_IMAGES, answer, contest, make_parser, save_fitted_bundle, save_result, shared_folder


def main() -> None:
    parser = make_parser(__doc__, rounds=1)
    parser.add_argument("--data", type=Path, default=shared_folder() / "data" / "clothing")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--count", type=int, action="append")
    args = parser.parse_args()
    if args.contender:
        measure(args.contender, args.work)
        return
    counts = args.count or [10_000, 100_000]
    with tempfile.TemporaryDirectory() as work:
        prepare(Path(work), args, counts)
        result = contest(
            __file__,
            [str(count) for count in counts],
            args.rounds,
            arguments=["--work", work],
            rate="peak_memory_mb",
            baseline=str(counts[0]),
            facts={"backbone": args.backbone, "data": args.data.name},
            environment=lambda _: {"LOOKALIKE_CACHE": f"{work}/cache", "OMP_WAIT_POLICY": "PASSIVE"},
        )
    save_result("memory", result, complete=args.count is None, folder=args.out)


def prepare(work: Path, args: argparse.Namespace, counts: list[int]) -> None:
    from lookalike.api.export import export
    from lookalike.data.dataset import sample_evenly
    from lookalike.data.layouts import load_dataset
    from lookalike.progress import SILENT

    data = load_dataset(args.data)
    save_fitted_bundle(args.backbone, "pretrained", sample_evenly(data.training, FIT_IMAGES), work / "bundle")
    export(work / "bundle", out=work / "exported", progress=SILENT)
    files = [item.path.resolve() for item in data.gallery]
    for count in counts:
        for number in range(count):
            group = work / str(count) / f"group {number // 1000:03}"
            group.mkdir(parents=True, exist_ok=True)
            (group / f"image {number:07}.jpg").symlink_to(files[number % len(files)])


def measure(count: str, work: Path) -> None:
    from lookalike.api.embed import embed
    from lookalike.progress import SILENT

    clock = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        embed(work / count, work / "exported", out=Path(out) / "embeddings", progress=SILENT)
    answer(per_second=int(count) / (time.perf_counter() - clock))


if __name__ == "__main__":
    main()
