r"""Peak memory of embedding: ten times the images must not take more.

    python benchmarks/memory.py --count 10000 --count 100000

The photographs of `clothing` ($LOOKALIKE_SHARED/data) lie in a folder again and again under other names, as links,
and are embedded as `lookalike embed` does it, by EfficientNet-Lite0 exported for OpenVINO; each count in a process of
its own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from contest import answer, contest, keep, shared_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=shared_folder() / "data" / "clothing")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--count", type=int, action="append")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contender:
        measure(given.contender, given.work)
        return
    counts = given.count or [10_000, 100_000]
    with tempfile.TemporaryDirectory() as work:
        prepare(Path(work), given, counts)
        result = contest(
            __file__,
            [str(count) for count in counts],
            1,
            arguments=["--work", work],
            rate="peak_memory_mb",
            against=str(counts[0]),
            facts={"backbone": given.backbone, "data": given.data.name},
            environment=lambda _: {"LOOKALIKE_CACHE": f"{work}/cache", "OMP_WAIT_POLICY": "PASSIVE"},
        )
    keep("memory", result, whole=given.count is None)


def prepare(work: Path, given: argparse.Namespace, counts: list[int]) -> None:
    from lookalike.embeddings.fit import fitted_encoder
    from lookalike.models.pretrained import build_trainable
    from lookalike.models.torch_bundle import save_bundle

    from lookalike.api.export import export
    from lookalike.data.layouts import load_dataset

    data = load_dataset(given.data)
    encoder = fitted_encoder([build_trainable(given.backbone)], data.training[:500])
    save_bundle(encoder, work / "bundle")
    export(work / "bundle", out=work / "exported")
    files = [item.path.resolve() for item in data.gallery]
    for count in counts:
        for number in range(count):
            group = work / str(count) / f"group {number // 1000:03}"
            group.mkdir(parents=True, exist_ok=True)
            (group / f"photograph {number:07}.jpg").symlink_to(files[number % len(files)])


def measure(count: str, work: Path) -> None:
    from lookalike.api.embed import embed

    clock = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        embed(work / count, work / "exported", out=Path(out) / "embeddings")
    answer(per_second=int(count) / (time.perf_counter() - clock))


if __name__ == "__main__":
    main()
