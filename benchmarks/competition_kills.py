"""Kill `lookalike compete` at random times and check its submission after each kill.

    python benchmarks/competition_kills.py pacs --out runs/kills --kills 50 --deadline 20min [--backbone NAME]

The data folders are in $LOOKALIKE_SHARED/data (default ../shared/data). After each kill, submission.json must be absent
(only before the first one was written) or valid, and its recorded validation score must not have fallen. The last run
must end before the deadline, and the submission must be the last one in the log and that of the saved models. Prints a
line per kill, and the counts; ends with an error if anything else happens.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from lookalike._files import read_json
from lookalike.api.evaluate import submit
from lookalike.competition.log import Log
from lookalike.competition.setup import BEST, LOG, RECORD, SUBMISSION
from lookalike.data.dataset import Dataset
from lookalike.data.layouts import load_dataset
from lookalike.evaluation.submission import Submission

TOP_K = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--longest", type=float, default=25.0, help="seconds before a kill are drawn from 2 to this")
    parser.add_argument("--deadline", default="20min")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    args = parser.parse_args()
    folder = Path(os.environ.get("LOOKALIKE_SHARED", "../shared")) / "data" / args.data
    data = load_dataset(folder)
    command = [sys.executable, "-m", "lookalike", "compete", str(folder), "--group", "kills", "--out", str(args.out)]
    command += ["--deadline", args.deadline, "--backbone", args.backbone]
    chance, absent, score = random.Random(0), 0, 0.0
    for number in range(1, args.kills + 1):
        seconds = chance.uniform(2, args.longest)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            code = process.wait(seconds)
            sys.exit(f"run {number} ended by itself with {code}; allow more time with --deadline")
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        state = "no submission yet"
        if (args.out / SUBMISSION).is_file():
            require_valid(data, args.out / SUBMISSION)
            state = "valid"
        else:
            absent += 1
        scores = [e.score for e in Log(args.out / LOG).entries if e.outcome == "kept" and e.score is not None]
        if scores != sorted(scores) or (scores and scores[-1] < score):
            sys.exit(f"the score has fallen: {scores}")
        score = scores[-1] if scores else score
        print(
            f"{number:3} killed after {seconds:4.1f} s: {state}, {len(scores)} scored submissions, best {score:.4g}",
            flush=True,
        )
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    require_valid(data, args.out / SUBMISSION)
    left = read_json(args.out / RECORD, "the record")["ends"] - time.time()
    if left < 0:
        sys.exit(f"the last run ended {-left:.0f} s after the deadline")
    require_logged_and_saved(folder, args.out)
    print(f"{number} kills, {absent} before the first submission; the last run ended {left:.0f} s before the deadline")


def require_logged_and_saved(data: Path, out: Path) -> None:
    """Require that the log is complete, and that the submission is its last one and that of the models in `best/`."""
    log = Log(out / LOG)
    submitted = log.submitted
    if log.entries[-1].outcome != "finished" or submitted is None or submitted.submission is None:
        sys.exit("the log is not finished")
    content = json.loads((out / SUBMISSION).read_text(encoding="utf-8"))
    if content != json.loads((out / submitted.submission).read_text(encoding="utf-8")):
        sys.exit(f"the submission is not {submitted.submission}, the last one in the log")
    again = submit(data, out / BEST, group="kills", top_k=TOP_K, out=out / "again.json").images
    shared = [len({*names} & {*content["images"][query]}) / TOP_K for query, names in again.items()]
    share = sum(shared) / len(shared)
    print(f"{share:.2%} of the images in the submission are also found with the saved models")
    if share < 0.999:  # a runtime may decide between two that are nearly as similar
        sys.exit("the saved models are not those of the submission")


def require_valid(data: Dataset, path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    submission = Submission(content["groupname"], {query: tuple(names) for query, names in content["images"].items()})
    submission.check([item.id for item in data.query], [item.id for item in data.gallery], TOP_K)


if __name__ == "__main__":
    main()
