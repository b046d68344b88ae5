"""Run `lookalike benchmark` on the three real data sets and keep what docs/results.md is made of.

    python benchmarks/real_sets.py --weights resnet50=resnet50_imagenet.safetensors --runs runs [--only clothing]
    python docs/make_results.py

Reads the data folders `clothing`, `caltech` and `trashnet` from $LOOKALIKE_SHARED/data (default ../shared/data). A run
that was killed goes on where it was; figures are added to docs/results.json after each set.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lookalike.bench import Trial
from lookalike.evaluation import compare
from lookalike.files import read_json, write_json

SETS = ("clothing", "trashnet", "caltech")
BACKBONES = ("resnet50", "efficientnet_lite0", "efficientnet_lite2")
# precision@3, hit@1 and map@r of the plainest code that does the job, by the model that stands in the same row
_ROWS = (
    "efficientnet_lite0 frozen",
    "efficientnet_lite2 frozen",
    "resnet50 frozen",
    "efficientnet_lite0 frozen + efficientnet_lite2 frozen, aligned",
    "resnet50 frozen + efficientnet_lite2 frozen, aligned",
    "efficientnet_lite0 fine-tuned",
)
_PLAIN = {
    "clothing": (
        (0.796, 0.809, 0.454), (0.796, 0.815, 0.477), (0.664, 0.688, 0.311),
        (0.813, 0.831, 0.495), (0.771, 0.793, 0.443), (0.919, 0.917, 0.795),
    ),
    "trashnet": (
        (0.770, 0.853, 0.263), (0.799, 0.838, 0.281), (0.774, 0.842, 0.255),
        (0.792, 0.853, 0.284), (0.804, 0.868, 0.291), (0.862, 0.902, 0.612),
    ),
    "caltech": (
        (0.904, 0.913, 0.676), (0.916, 0.933, 0.720), (0.793, 0.827, 0.470),
        (0.925, 0.939, 0.721), (0.902, 0.922, 0.666), (0.876, 0.899, 0.579),
    ),
}  # fmt: skip
YARDSTICK = {name: dict(zip(_ROWS, figures, strict=True)) for name, figures in _PLAIN.items()}
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
        keep(name, out, YARDSTICK[name])


def keep(name: str, out: Path, yardstick: Mapping[str, tuple[float, ...]], results: Path = RESULTS) -> None:
    """Copy a run's table, choice, training reports and comparisons of ensembles into docs/results.json."""
    board = read_json(out / "leaderboard.json", "the leaderboard")
    trials = {t.name: t for t in (_trial(place) for place in sorted((out / "trials").glob("[!.]*.json")))}
    timings = {row["name"]: row["timing"] for row in board["trials"]}
    found = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    found[name] = {
        **{key: board[key] for key in ("measure", "part", "caption", "choice", "context")},
        "timing": {
            key: timings[board["choice"]["winner"]][key] for key in ("threads", "device", "images", "batch_size")
        },
        "rows": [{**row, "combine": trials[row["model"]].combine} for row in board["rows"]],
        "comparisons": _comparisons([trials[row["model"]] for row in board["rows"]], trials, board["measure"]),
        "training": _training(out),
        "yardstick": yardstick,
    }
    write_json(results, found)


def _trial(place: Path) -> Trial:
    return Trial.from_dict(read_json(place, "the trial")["trial"])


def _comparisons(shown: list[Trial], trials: Mapping[str, Trial], measure: str) -> list[dict[str, Any]]:
    """Compare every aligned pair with the better of its members, by the values of the test queries."""
    rows = []
    for pair in shown:
        if pair.combine != "aligned" or len(pair.members) != 2 or pair.test is None:
            continue
        members = [trials[m] for m in pair.members]
        better = max(members, key=lambda t: t.test.mean(measure) if t.test else 0.0)
        ours, theirs = (_by_query(t, measure) for t in (pair, better))
        shared = [q for q in ours if q in theirs]
        found = compare([ours[q] for q in shared], [theirs[q] for q in shared])
        rows.append(
            {
                "ensemble": pair.name,
                "members": list(pair.members),
                "better_member": better.name,
                "queries": len(shared),
                **asdict(found),
                "significant": found.significant,
            }
        )
    return rows


def _by_query(trial: Trial, measure: str) -> dict[str, float]:
    assert trial.test is not None
    return dict(zip(trial.test.query_ids, trial.test.values[measure], strict=True))


def _training(out: Path) -> list[dict[str, Any]]:
    """Return what each fine-tuning did: the share that was kept, epochs, seconds, and the measure before and after."""
    rows = []
    for place in sorted(out.glob("members/[!.]*-fine-tuned/bundle.json")):
        facts = read_json(place, "the bundle's description")
        report = facts["training"][0]
        epochs = report.get("history", [])
        rows.append(
            {
                "backbone": report["backbone"],
                "share": (report.get("interpolation") or {}).get("share"),
                "epochs": len(epochs),
                # a run that was interrupted reports its last sitting; the epochs remember their own
                "seconds": max(report["seconds"], sum(e["seconds"] for e in epochs)),
                "measure": facts["options"]["stop_on"],
                "validation": report["validation"],
            }
        )
    return rows


if __name__ == "__main__":
    main()
