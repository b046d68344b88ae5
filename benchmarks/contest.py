"""Contenders side by side: each in a process of its own, all in turn, again and again; medians, spreads and ratios.

A benchmark calls `contest`, which starts the benchmark's own file once for every contender and round with
`--contender NAME`; there the benchmark measures and ends with `answer`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "docs" / "performance"


def answer(**figures: float | str) -> None:
    """End a contender's process with its figures; peak memory is added: nothing here imports what it does not need."""
    print("\n" + json.dumps({**figures, "peak_memory_mb": peak_memory_mb()}), flush=True)


def peak_memory_mb() -> float:
    """Return the largest resident memory that this process had so far, in MB of 10^6 bytes (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024 / 1e6


def contest(
    script: str,
    contenders: Sequence[str],
    rounds: int,
    *,
    arguments: Sequence[str] = (),
    rate: str = "per_second",
    against: str,
    facts: Mapping[str, Any] | None = None,
    environment: Callable[[str], Mapping[str, str]] = lambda _: {},
) -> dict[str, Any]:
    """Run every contender `rounds` times in turn and print a table.

    Args:
        script: the benchmark's file.
        contenders: their names; one that fails is reported and skipped.
        rounds: how many times.
        arguments: handed on to each.
        rate: the figure that is compared; more is better.
        against: the contender whose rate is 1.
        facts: further content of the result.
        environment: further variables, by contender.

    Returns:
        What was found, by contender: medians, least and most, and the ratio of medians.

    """
    found: dict[str, list[dict[str, Any]]] = {}
    skipped: dict[str, str] = {}
    for number in range(rounds):
        for name in contenders:
            if name in skipped:
                continue
            done = subprocess.run(
                [sys.executable, script, "--contender", name, *arguments],
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, **environment(name)},
            )
            if done.returncode != 0:
                found.pop(name, None)
                skipped[name] = (done.stderr.strip().splitlines() or ["no output"])[-1]
                print(f"{name}: skipped, {skipped[name]}", flush=True)
                continue
            run = json.loads(done.stdout.splitlines()[-1])
            found.setdefault(name, []).append(run)
            print(f"  {number + 1}/{rounds} {name}: {run[rate]:.1f}", flush=True)
    rows = {name: summary(runs) for name, runs in found.items()}
    base = rows.get(against, {}).get(rate, {}).get("median")
    for name, row in rows.items():
        row["ratio"] = row[rate]["median"] / base if base else None
        spread = f"{row[rate]['least']:.1f} to {row[rate]['most']:.1f}"
        ratio = "" if row["ratio"] is None else f", {row['ratio']:.2f} times {against}"
        print(f"{name}: {row[rate]['median']:.1f} ({spread}){ratio}, {row['peak_memory_mb']['median']:.0f} MB")
    from lookalike.benchmark.timing import machine

    return {
        "machine": machine(),
        "rounds": rounds,
        "rate": rate,
        "against": against,
        "contenders": rows,
        "skipped": skipped,
        **(facts or {}),
    }


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return median, least and most of every figure; words as the last run has them."""
    found: dict[str, Any] = {}
    for key, value in runs[-1].items():
        if isinstance(value, str):
            found[key] = value
            continue
        values = [float(run[key]) for run in runs]
        found[key] = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return found


def keep(name: str, result: Mapping[str, Any], *, whole: bool, place: Path | None = None) -> None:
    """Write a result where the page of performance is made from, or to another folder, if it is of all contenders."""
    if not whole:
        print("not kept: it is of some contenders only")
        return
    from lookalike._files import write_json

    file = (place or RESULTS) / f"{name}.json"
    write_json(file, result)
    print(f"written: {file}")


def shared_folder() -> Path:
    """Return the folder of real photographs and weights."""
    return Path(os.environ.get("LOOKALIKE_SHARED", Path(__file__).parent.parent.parent / "shared"))
