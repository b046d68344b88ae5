r"""Run `lookalike compete` on a labelled data set and score every submission that it wrote with the labels.

    python benchmarks/competition.py omniglot --deadline 15min --out runs/omniglot --backbone efficientnet_lite0 \
        [--backbone resnet50 --weights resnet50=FILE]

The data folders are in $LOOKALIKE_SHARED/data (default ../shared/data). `compete` does not use the labels of query and
gallery; this script does, afterwards. Prints a row per submission: seconds, points@1,5,10, hit@1, hit@10, precision@3
and the step, and writes scores.json into the folder of the competition.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path, PurePosixPath

import numpy as np

from lookalike._files import write_json
from lookalike.competition.compete import compete
from lookalike.competition.log import Log
from lookalike.competition.setup import LOG
from lookalike.data.dataset import Dataset
from lookalike.data.layouts import load_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--deadline", default="15min")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbone", action="append", required=True)
    parser.add_argument("--weights", action="append", default=[], metavar="NAME=FILE")
    args = parser.parse_args()
    data = load_dataset(Path(os.environ.get("LOOKALIKE_SHARED", "../shared")) / "data" / args.data)
    weights = dict(value.split("=", 1) for value in args.weights)
    compete(data, group="benchmark", out=args.out, deadline=args.deadline, backbones=args.backbone, weights=weights)
    scores = []
    print(f"{'seconds':>8} {'points':>7} {'hit@1':>6} {'hit@10':>6} {'prec@3':>6} {'validation':>10}  step")
    for entry in Log(args.out / LOG).entries:
        if entry.submission is not None:
            values = score(data, args.out / entry.submission)
            scores.append({"seconds": entry.seconds, "step": entry.step, "validation": entry.score, **values})
            validation = "" if entry.score is None else f"{entry.score:.4g}"
            print(
                f"{entry.seconds:8.0f} {values['points']:7.1f} {values['hit@1']:6.3f} {values['hit@10']:6.3f} "
                f"{values['precision@3']:6.3f} {validation:>10}  {entry.step}"
            )
    write_json(args.out / "scores.json", scores)


def score(data: Dataset, submission: Path) -> dict[str, float]:
    """Return the measures of a submission with ten names per query; queries without a relevant image do not count."""
    images = json.loads(submission.read_text(encoding="utf-8"))["images"]
    labels = {PurePosixPath(item_id).name: label for item_id, label in data.labels("gallery").items()}
    rows = [
        [labels.get(name) == label for name in images[PurePosixPath(item_id).name]]
        for item_id, label in data.labels("query").items()
        if label in labels.values()
    ]
    relevant = np.array(rows)
    hit = {k: relevant[:, :k].any(axis=1).mean() for k in (1, 5, 10)}
    return {
        "points": float(600 * hit[1] + 300 * hit[5] + 100 * hit[10]),
        "hit@1": float(hit[1]),
        "hit@10": float(hit[10]),
        "precision@3": float(relevant[:, :3].mean()),
    }


if __name__ == "__main__":
    main()
