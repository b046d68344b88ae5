r"""From the shell's prompt to an answer: importing, asking for help, searching for one picture.

    python benchmarks/startup.py --rounds 11

An index of 1,000 photographs of `clothing` ($LOOKALIKE_SHARED/data) is made by EfficientNet-Lite0: once exported for
OpenVINO, once as a bundle of weights whose runtime was chosen, once with torch alone. Every contender is a process of
its own, all in turn in each round, timed from its start to its end. Ratios are to the search by torch.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from contest import keep, shared_folder

AGAINST = "search by torch"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=shared_folder() / "data" / "clothing")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--rounds", type=int, default=11)
    given = parser.parse_args()
    from lookalike.benchmark.timing import machine
    from lookalike.data.layouts import load_dataset

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        query = load_dataset(given.data).query[0].path
        commands = prepare(work, given.data, given.backbone, query)
        times: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(given.rounds + 1):
            for name, (command, environment) in commands.items():
                clock = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True, env={**os.environ, **environment})
                if number:  # the first round fills caches
                    times[name].append(time.perf_counter() - clock)
    rows = {
        name: {"seconds": {"median": statistics.median(own), "least": min(own), "most": max(own)}}
        for name, own in times.items()
    }
    for name, row in rows.items():
        row["ratio"] = rows[AGAINST]["seconds"]["median"] / row["seconds"]["median"]
        print(f"{name}: {row['seconds']['median']:.3f} s, {row['ratio']:.1f} times {AGAINST}")
    facts = {"backbone": given.backbone, "rounds": given.rounds, "against": AGAINST, "rate": "seconds"}
    keep("startup", {"machine": machine(), **facts, "contenders": rows, "skipped": {}}, whole=True)


def prepare(work: Path, data: Path, backbone: str, query: Path) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Make the indexes, and return every contender's command and further environment."""
    import lookalike as la

    photos = work / "photos"
    photos.mkdir()
    for number, item in enumerate(la.load_dataset(data).gallery[:1000]):
        shutil.copyfile(item.path, photos / f"{number:04}{item.path.suffix}")
    caches = {name: {"LOOKALIKE_CACHE": str(work / f"cache of {name}")} for name in ("chosen", "none")}
    os.environ.update(caches["none"])
    la.index(photos, backbone, out=work / "torch.index", runtime="torch")
    la.export(work / "torch.index" / "model", out=work / "exported")
    la.index(photos, work / "exported", out=work / "exported.index")
    os.environ.update(caches["chosen"])
    la.index(photos, work / "torch.index" / "model", out=work / "chosen.index", runtime="openvino")

    def search(index: str) -> list[str]:
        return [sys.executable, "-m", "lookalike", "search", str(work / index), str(query), "--json"]

    plain = [sys.executable, "-c"]
    return {
        "Python": ([*plain, "pass"], {}),
        "import numpy": ([*plain, "import numpy"], {}),
        "import lookalike": ([*plain, "import lookalike"], {}),
        "import torch, timm": ([*plain, "import torch, timm"], {}),
        "lookalike --help": ([sys.executable, "-m", "lookalike", "--help"], {}),
        "search by an exported model": (search("exported.index"), caches["none"]),
        "search by the runtime that was chosen": (search("chosen.index"), caches["chosen"]),
        AGAINST: (search("torch.index"), caches["none"]),
    }


if __name__ == "__main__":
    main()
