"""Run `lookalike benchmark` on the real data sets and store the results of docs/results/benchmarks.md.

    python benchmarks/real_sets.py --weights resnet50=resnet50_imagenet.safetensors --runs runs [--only clothing]
    python docs/make_results.py

Reads the data folders `clothing`, `caltech` and `trashnet` from $LOOKALIKE_SHARED/data (default ../shared/data). An
interrupted run resumes; results are added to docs/results/benchmarks.json after each set. On `clothing` and `trashnet`
EfficientNet-Lite0 is then trained again on all labelled images (`lookalike refit`).
A fourth set, the images of the demo, shows the time of ViT-B/16 and EfficientNet-B0, with random weights.
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

from lookalike._files import read_json, write_json
from lookalike.benchmark.spec import slug
from lookalike.benchmark.trial import Trial
from lookalike.data.samples import write_demo_images
from lookalike.evaluation.bootstrap import paired_bootstrap
from lookalike.models.bundle import read_bundle_info
from lookalike.models.info import FROZEN

SETS = ("clothing", "trashnet", "caltech", "demo")
# fine-tuning does not help on the unseen classes of caltech, so it gets less time there
MAX_MINUTES = {"clothing": "10", "trashnet": "10", "caltech": "4"}
# metal91 and glass115 are the same image, one in training and one in test; others measure with both
OPTIONS = {"trashnet": ("--allow-leaks",)}
UNTRAINED = ("vit_b_16", "efficientnet_b0")
REFIT = ("clothing", "trashnet")
REFIT_BACKBONE = "efficientnet_lite0"
BACKBONES = ("resnet50", "efficientnet_lite0", "efficientnet_lite2")
# precision@3, hit@1 and map@r of a minimal script, by model; a model without one has no baseline
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
BASELINE = {name: dict(zip(_ROWS, figures, strict=True)) for name, figures in _PLAIN.items()}
RESULTS = Path(__file__).parent.parent / "docs" / "results" / "benchmarks.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", action="append", default=[], help="an option of the command, as resnet50=FILE")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--only", action="append", choices=SETS)
    parser.add_argument("--backbone", action="append", help=f"may be repeated; default {', '.join(BACKBONES)}")
    parser.add_argument("--max-minutes", help="limit for each fine-tuning")
    parser.add_argument("--out", type=Path, help="write the results to this folder instead of docs")
    args = parser.parse_args()
    results = RESULTS if args.out is None else args.out / RESULTS.name
    for name in args.only or SETS:
        run = args.runs / name
        data, options = _task(name, args)
        lookalike("benchmark", str(data), "--out", str(run), *options)
        option_texts = " ".join(_without_folder(option) for option in options)
        refit = _refit(data, run, args.runs / f"{name}-refit", args.weights) if name in REFIT else None
        command = f"lookalike benchmark {data.name} {option_texts}"
        save_results(name, run, BASELINE.get(name, {}), results, command=command, refit=refit)


def _without_folder(option: str) -> str:
    """Return an option without the folder of a weights file on this machine."""
    name, equals, file = option.partition("=")
    return f"{name}={Path(file).name}" if equals else option


def _task(name: str, args: argparse.Namespace) -> tuple[Path, list[str]]:
    """Return the data folder and the options of a set."""
    if name == "demo":
        data = args.runs / "images"
        if not data.exists():
            write_demo_images(data)
        options = ["--no-finetune", "--backbone", REFIT_BACKBONE]
        for backbone in UNTRAINED:
            options += ["--backbone", backbone, "--weights", f"{backbone}=none"]
        return data, options
    shared = Path(os.environ.get("LOOKALIKE_SHARED", Path(__file__).parent.parent.parent / "shared"))
    minutes = args.max_minutes or MAX_MINUTES[name]
    options = ["--max-minutes", minutes, *OPTIONS.get(name, ())]
    for backbone in args.backbone or BACKBONES:
        options += ["--backbone", backbone]
    for weights in args.weights:
        options += ["--weights", weights]
    return shared / "data" / name, options


def lookalike(*arguments: str) -> str:
    """Run a command and return what it prints."""
    command = [sys.executable, "-m", "lookalike", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _refit(data: Path, run: Path, out: Path, weights: list[str]) -> dict[str, Any]:
    """Refit the fine-tuned backbone of a run on all labelled images, and evaluate it on query and gallery."""
    first = run / "members" / f"{slug(REFIT_BACKBONE)}-fine-tuned"
    sources = [w for w in weights if w.startswith(f"{REFIT_BACKBONE}=")]
    options = [argument for source in sources for argument in ("--weights", source)]
    lookalike("refit", str(data), "--model", str(first), "--out", str(out), "--resume", *options)
    evaluation = json.loads(lookalike("evaluate", str(data), "--model", str(out), "-k", "1", "-k", "3", "--json"))
    info = read_bundle_info(out)
    report = info.training[0]
    assert report is not None
    measures = {name: evaluation["measures"][name] for name in ("precision@3", "hit@3", "hit@1", "map@r")}
    return {
        "model": f"{REFIT_BACKBONE} {info.members[0].state}",
        "images": report.images,
        "seconds": report.seconds,
        "measures": measures,
    }


def save_results(
    name: str,
    out: Path,
    baseline: Mapping[str, tuple[float, ...]],
    results: Path = RESULTS,
    *,
    command: str = "",
    refit: Mapping[str, Any] | None = None,
) -> None:
    """Copy table, selection, training reports and comparisons of a run into docs/results/benchmarks.json."""
    board = read_json(out / "leaderboard.json", "the leaderboard")
    trials = {row["name"]: _trial(out / "trials" / f"{slug(row['name'])}.json") for row in board["rows"]}
    stored = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    stored[name] = {
        "command": command,
        "refit": refit,
        **{key: board[key] for key in ("measure", "measured_on", "caption", "selection", "description", "rows")},
        "comparisons": _comparisons(trials, board["measure"]),
        "against_frozen": _against_frozen(trials[board["selection"]["winner"]], trials, board["measure"]),
        "training": _training(out),
        "baseline": baseline,
    }
    write_json(results, stored)


def _trial(path: Path) -> Trial:
    return Trial.from_dict(read_json(path, "the trial")["trial"])


def _comparisons(trials: Mapping[str, Trial], measure: str) -> list[dict[str, Any]]:
    """Compare every aligned pair with the better of its members on the test queries."""
    rows = []
    for pair in trials.values():
        if pair.combination != "aligned" or len(pair.members) != 2 or pair.test is None:
            continue
        members = [trials[m.name] for m in pair.members]
        better = max(members, key=lambda t: t.test.mean(measure) if t.test else 0.0)
        names = {"ensemble": pair.name, "members": [m.name for m in members], "better_member": better.name}
        rows.append(names | _compared(pair, better, measure))
    return rows


def _against_frozen(winner: Trial, trials: Mapping[str, Trial], measure: str) -> list[dict[str, Any]]:
    """Compare the winner with every frozen single model, and with its own frozen form, on the test queries.

    Its own frozen form has the same backbones and combination; a bundle has none.
    """
    if winner.test is None:
        return []
    backbones = [m.backbone for m in winner.members]
    rows = []
    for trial in trials.values():
        same_backbones = all(backbones) and [m.backbone for m in trial.members] == backbones
        is_own = same_backbones and trial.combination == winner.combination
        if trial.test is None or trial.state != FROZEN:
            continue
        if (trial.kind == "single" or is_own) and trial.name != winner.name:
            rows.append({"frozen": trial.name, "own_frozen_form": is_own} | _compared(winner, trial, measure))
    return rows


def _compared(trial: Trial, other: Trial, measure: str) -> dict[str, Any]:
    """Compare two trials on the test queries that both have, by paired bootstrap."""
    ours, theirs = (_by_query(t, measure) for t in (trial, other))
    shared = [q for q in ours if q in theirs]
    comparison = paired_bootstrap([ours[q] for q in shared], [theirs[q] for q in shared])
    return {"queries": len(shared), **asdict(comparison), "significant": comparison.significant}


def _by_query(trial: Trial, measure: str) -> dict[str, float]:
    assert trial.test is not None
    return trial.test.by_query(measure)


def _training(out: Path) -> list[dict[str, Any]]:
    """Return the effect of each fine-tuning: share of its weights, epochs, seconds, measure before and after."""
    rows = []
    for path in sorted(out.glob("members/[!.]*-fine-tuned/bundle.json")):
        info = read_bundle_info(path.parent)
        report = info.training[0]
        assert report is not None and report.measures is not None
        rows.append(
            {
                "backbone": report.backbone,
                "share": report.fine_tuned_share,
                "epochs": len(report.epochs),
                "seconds": report.seconds,
                "measure": info.options["stop_on"],
                "validation": asdict(report.measures),
            }
        )
    return rows


if __name__ == "__main__":
    main()
