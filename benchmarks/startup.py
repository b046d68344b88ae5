r"""Start-up: the time from the start of a process to its end, for importing, help, and searching for one image.

    python benchmarks/startup.py --rounds 11

Three indexes of 1,000 images of `clothing` ($LOOKALIKE_SHARED/data) are built with EfficientNet-Lite0: with a bundle
exported for OpenVINO, with a bundle of weights whose runtime is selected, and with torch alone. Every contender is a
process of its own, all in turn in each round. Ratios are to the search with torch.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from contest import add_out_option, save_result, shared_folder, summarize

BASELINE = "search with torch"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=shared_folder() / "data" / "clothing")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--images", type=int, default=1000, help="number of images in the indexes")
    parser.add_argument("--rounds", type=int, default=11)
    add_out_option(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        commands = prepare(Path(work), args)
        times: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
        for number in range(args.rounds + 1):
            for name, (command, environment) in commands.items():
                clock = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True, env={**os.environ, **environment})
                seconds = time.perf_counter() - clock
                print(f"  {number}/{args.rounds} {name}: {seconds:.3f} s", flush=True)
                if number:  # the first round fills caches
                    times[name].append({"seconds": seconds})
    rows = {name: summarize(runs) for name, runs in times.items()}
    for name, row in rows.items():
        row["ratio"] = rows[BASELINE]["seconds"]["median"] / row["seconds"]["median"]
        print(f"{name}: {row['seconds']['median']:.3f} s, {row['ratio']:.1f} times {BASELINE}")
    from lookalike.benchmark.timing import machine

    facts = {"backbone": args.backbone, "rounds": args.rounds, "baseline": BASELINE, "rate": "seconds"}
    result = {"machine": machine(), **facts, "contenders": rows, "skipped": {}}
    save_result("startup", result, complete=args.images == parser.get_default("images"), folder=args.out)


def prepare(work: Path, args: argparse.Namespace) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Build the indexes, and return every contender's command and further environment variables."""
    import lookalike as la
    from lookalike.progress import SILENT

    data = la.load_dataset(args.data)
    folder = work / "images"
    folder.mkdir()
    for number, item in enumerate(data.gallery[: args.images]):
        shutil.copyfile(item.path, folder / f"{number:04}{item.path.suffix}")
    caches = {name: {"LOOKALIKE_CACHE": str(work / f"{name}-cache")} for name in ("selected", "empty")}
    bundle = work / "torch.index" / "model"
    os.environ.update(caches["empty"])
    la.index(folder, args.backbone, out=work / "torch.index", runtime="torch", progress=SILENT)
    la.export(bundle, out=work / "exported", progress=SILENT)
    la.index(folder, work / "exported", out=work / "exported.index", progress=SILENT)
    os.environ.update(caches["selected"])
    la.index(folder, bundle, out=work / "selected.index", runtime="openvino", progress=SILENT)

    def search(index: str) -> list[str]:
        return [sys.executable, "-m", "lookalike", "search", str(work / index), str(data.query[0].path), "--json"]

    plain = [sys.executable, "-c"]
    return {
        "Python": ([*plain, "pass"], {}),
        "import numpy": ([*plain, "import numpy"], {}),
        "import lookalike": ([*plain, "import lookalike"], {}),
        "import torch, timm": ([*plain, "import torch, timm"], {}),
        "lookalike --help": ([sys.executable, "-m", "lookalike", "--help"], {}),
        "search with an exported model": (search("exported.index"), caches["empty"]),
        "search with the selected runtime": (search("selected.index"), caches["selected"]),
        BASELINE: (search("torch.index"), caches["empty"]),
    }


if __name__ == "__main__":
    main()
