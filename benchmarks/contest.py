"""Compare contenders: each runs in a process of its own, all take turns in each round; medians, spreads and ratios.

A benchmark calls `contest`, which starts the benchmark's own file once per contender and round with
`--contender NAME`. There the benchmark measures and ends with `answer`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "performance"
FIT_IMAGES = 500  # enough for a head, if only the speed is measured


def make_parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """Return a parser with the options that all contests have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    add_out_option(parser)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return parser


def add_out_option(parser: argparse.ArgumentParser, default: str = "docs/results/performance") -> None:
    """Add the option for the folder of the result."""
    parser.add_argument("--out", type=Path, help=f"write the result to this folder instead of {default}")


def answer(**figures: float | str) -> None:
    """End a contender's process with its figures and its peak memory; imports nothing that the contender does not."""
    print("\n" + json.dumps({**figures, "peak_memory_mb": peak_memory_mb()}), flush=True)


def peak_memory_mb() -> float:
    """Return the largest resident memory of this process so far, in MB of 10^6 bytes (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024 / 1e6


def contest(
    script: str,
    contenders: Sequence[str],
    rounds: int,
    *,
    arguments: Sequence[str] = (),
    rate: str = "per_second",
    baseline: str,
    facts: Mapping[str, Any] | None = None,
    environment: Callable[[str], Mapping[str, str]] = lambda _: {},
) -> dict[str, Any]:
    """Run every contender `rounds` times in turn and print a table.

    Args:
        script: the benchmark's file.
        contenders: their names; one that fails is reported and skipped.
        rounds: how many times each runs.
        arguments: further arguments of the script.
        rate: the figure that is compared; more is better.
        baseline: the contender whose rate is 1.
        facts: further content of the result.
        environment: further environment variables, by contender.

    Returns:
        The result: by contender the median, minimum and maximum of each figure, and the ratio of medians.

    """
    runs: dict[str, list[dict[str, Any]]] = {}
    skipped: dict[str, str] = {}
    for number in range(rounds):
        for name in contenders:
            if name in skipped:
                continue
            process = subprocess.run(
                [sys.executable, script, "--contender", name, *arguments],
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, **environment(name)},
            )
            if process.returncode != 0:
                runs.pop(name, None)
                skipped[name] = (process.stderr.strip().splitlines() or ["no output"])[-1]
                print(f"{name}: skipped, {skipped[name]}", flush=True)
                continue
            figures = json.loads(process.stdout.splitlines()[-1])
            runs.setdefault(name, []).append(figures)
            print(f"  {number + 1}/{rounds} {name}: {figures[rate]:.1f}", flush=True)
    rows = {name: summarize(figures) for name, figures in runs.items()}
    base = rows.get(baseline, {}).get(rate, {}).get("median")
    for name, row in rows.items():
        row["ratio"] = row[rate]["median"] / base if base else None
        spread = f"{row[rate]['min']:.1f} to {row[rate]['max']:.1f}"
        ratio = "" if row["ratio"] is None else f", {row['ratio']:.2f} times {baseline}"
        print(f"{name}: {row[rate]['median']:.1f} ({spread}){ratio}, {row['peak_memory_mb']['median']:.0f} MB")
    from lookalike.benchmark.timing import machine

    return {
        "machine": machine(),
        "rounds": rounds,
        "rate": rate,
        "baseline": baseline,
        "contenders": rows,
        "skipped": skipped,
        **(facts or {}),
    }


def summarize(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return median, minimum and maximum of every figure; texts as in the last run."""
    summary: dict[str, Any] = {}
    for key, value in runs[-1].items():
        if isinstance(value, str):
            summary[key] = value
            continue
        values = [float(run[key]) for run in runs]
        summary[key] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return summary


def save_result(name: str, result: Mapping[str, Any], *, complete: bool, folder: Path | None) -> None:
    """Write a result to a folder; without one to docs/results/performance, if it is complete."""
    if folder is None and not complete:
        print("the result is not complete and was not written; --out FOLDER writes it")
        return
    from lookalike._files import write_json

    folder = folder or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", result)
    print(f"written: {folder / name}.json")


def save_fitted_bundle(backbone: str, weights: str, images: Sequence[Any], out: Path) -> None:
    """Save a bundle of a frozen backbone with a head that is fitted to images, computed by torch in float32."""
    from dataclasses import replace

    from lookalike.models.bundle import save_bundle
    from lookalike.progress import SILENT
    from lookalike.runtimes.fit import fit_encoder
    from lookalike.runtimes.load import load_pretrained

    backbones = [
        (replace(one, runtime="torch", precision="float32").prepare((), len(images), SILENT), state)
        for one, state in load_pretrained(backbone, weights)
    ]
    save_bundle(fit_encoder(backbones, images, progress=SILENT).encoder, out)


def shared_folder() -> Path:
    """Return the folder of real data sets and weights."""
    return Path(os.environ.get("LOOKALIKE_SHARED", Path(__file__).parent.parent.parent / "shared"))
