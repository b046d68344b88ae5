"""Run `lookalike benchmark` on the three real data sets and keep what docs/results.md is made of.

    python benchmarks/real_sets.py --weights resnet50=resnet50_imagenet.safetensors --runs runs [--only clothing]

Reads the data folders `clothing`, `caltech` and `trashnet` from $LOOKALIKE_SHARED/data (default ../shared/data). A run
that was killed goes on where it was; figures are added to docs/results.json after each set.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from lookalike.files import read_json, write_json

SETS = ("clothing", "trashnet", "caltech")
BACKBONES = ("resnet50", "efficientnet_lite0", "efficientnet_lite2")
# the plainest code, frozen, 512-d PCA head: precision@3, hit@1, map@r
YARDSTICK = {
    "clothing": {"efficientnet_lite0 fine-tuned": (0.919, 0.917, 0.795)},
    "trashnet": {"efficientnet_lite0 fine-tuned": (0.862, 0.902, 0.612)},
    "caltech": {"efficientnet_lite0 fine-tuned": (0.876, 0.899, 0.579)},
}
RESULTS = Path(__file__).parent.parent / "docs" / "results.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", action="append", default=[], help="passed on, as resnet50=FILE")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--only", action="append", choices=SETS)
    parser.add_argument("--epochs", default="6")
    given = parser.parse_args()
    shared = Path(os.environ.get("LOOKALIKE_SHARED", Path(__file__).parent.parent.parent / "shared"))
    for name in given.only or SETS:
        out = given.runs / name
        command = [sys.executable, "-m", "lookalike", "benchmark", str(shared / "data" / name), "--out", str(out)]
        command += ["--epochs", given.epochs]
        for backbone in BACKBONES:
            command += ["--backbone", backbone]
        for weights in given.weights:
            command += ["--weights", weights]
        subprocess.run(command, check=True)
        keep(name, out, given.epochs)


def keep(name: str, out: Path, epochs: str) -> None:
    """Copy a run's table, choice and training reports into docs/results.json."""
    board = read_json(out / "leaderboard.json", "the leaderboard")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    training = {
        place.parent.name: read_json(place, "bundle")["training"] for place in sorted(out.glob("members/*/bundle.json"))
    }
    results[name] = {"epochs": int(epochs), "leaderboard": board, "training": training, "yardstick": YARDSTICK[name]}
    write_json(RESULTS, results)


if __name__ == "__main__":
    main()
