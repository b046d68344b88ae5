r"""Peak memory of embedding: ten times the images must not take more.

    python benchmarks/memory.py --count 10000 --count 100000

The photographs of `clothing` ($LOOKALIKE_SHARED/data) are given again and again under new ids, to a folder of
embeddings, by EfficientNet-Lite0 exported for OpenVINO; each count in a process of its own.
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
        measure(int(given.contender), given.work, given.data)
        return
    counts = given.count or [10_000, 100_000]
    with tempfile.TemporaryDirectory() as work:
        prepare(Path(work), given)
        result = contest(
            __file__,
            [str(count) for count in counts],
            1,
            arguments=["--work", work, "--data", str(given.data)],
            rate="peak_memory_mb",
            against=str(counts[0]),
            facts={"backbone": given.backbone, "data": given.data.name},
            environment=lambda _: {"LOOKALIKE_CACHE": f"{work}/cache", "OMP_WAIT_POLICY": "PASSIVE"},
        )
    keep("memory", result, whole=given.count is None)


def prepare(work: Path, given: argparse.Namespace) -> None:
    from lookalike.backbones import build_member, save_bundle
    from lookalike.data import load_dataset
    from lookalike.embedding import fitted_encoder
    from lookalike.exporting import export

    encoder = fitted_encoder([build_member(given.backbone)], load_dataset(given.data).training[:500])
    save_bundle(encoder, work / "bundle")
    export(work / "bundle", out=work / "exported")


def measure(count: int, work: Path, data: Path) -> None:
    from lookalike.data import load_dataset
    from lookalike.embedding import embed_to
    from lookalike.encoding.stream import File
    from lookalike.engines import load_bundle

    files = [item.path for item in load_dataset(data).gallery]
    sources = [File(f"{number:07}", files[number % len(files)]) for number in range(count)]
    encoder = load_bundle(work / "exported")
    clock = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        embed_to(sources, encoder, Path(out) / "embeddings")
    answer(per_second=count / (time.perf_counter() - clock))


if __name__ == "__main__":
    main()
