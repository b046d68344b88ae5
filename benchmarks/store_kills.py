"""Kill processes that change an index at random times, and check that no acknowledged change is lost.

    python benchmarks/store_kills.py --kills 500 [--writers 2] [--seed 0]

Each writer adds, replaces, updates and removes pairs of items of its own, compacts now and then, and counts in a file
the changes that have returned. A kill hits all writers at once. Then the index is opened and compared with a dictionary
of the acknowledged changes: ids and labels of every item, and the hits of searches. A change that was not acknowledged
may be there in full, or not at all. Prints the counts of lost changes, half changes and wrong results.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lookalike.index.index import Index
from lookalike.types import Embeddings, Vectors, l2_normalize

DIM, START, TOP_K = 32, 500, 10
State = dict[str, tuple[str, int]]  # label and version by id


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--writers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=1.5, help="seconds before a kill, from the first change on")
    parser.add_argument("--write", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        index, log, name = options.write
        write(Path(index), Path(log), name)
    else:
        with tempfile.TemporaryDirectory() as work:
            kill(options, Path(work))


def vectors(ids: list[str], version: int) -> Embeddings:
    rows = [np.random.default_rng([version, *item.encode()]).standard_normal(DIM) for item in ids]
    return Embeddings(tuple(ids), l2_normalize(np.array(rows)), "model")


def change(number: int, name: str) -> tuple[str, list[str], str, int]:
    """Return a change by its number: what, which items, their label and their version."""
    chance = random.Random(f"{name} {number}")
    pair = chance.randrange(200)
    ids = [f"{name}-{pair}-a", f"{name}-{pair}-b"]
    return chance.choice(["put", "put", "put", "remove", "label", "compact"]), ids, f"label {number}", number


def write(folder: Path, log: Path, name: str) -> None:
    """Change an index until killed; `log` has the number of the last change that returned."""
    index = Index.load(folder)
    number = int(log.read_text() or 0)
    with log.open("r+") as file:
        while True:
            what, ids, label, version = change(number, name)
            present = [item for item in ids if item in index]
            if what == "put":
                index.add(vectors(ids, version), labels=dict.fromkeys(ids, label), replace=True)
            elif what == "remove" and present:
                index.remove(present)
            elif what == "label" and present:
                index.update(present[0], label=label)
            elif what == "compact" and number % 5 == 0:
                index.compact()
            number += 1
            file.seek(0)
            file.write(f"{number}\n")
            file.flush()


def after(state: State, number: int, name: str) -> State:
    """Return the state after a change."""
    what, ids, label, version = change(number, name)
    state = dict(state)
    present = [item for item in ids if item in state]
    if what == "put":
        state.update(dict.fromkeys(ids, (label, version)))
    elif what == "remove":
        for item in present:
            del state[item]
    elif what == "label" and present:
        state[present[0]] = (label, state[present[0]][1])
    return state


def kill(options: argparse.Namespace, work: Path) -> None:
    folder, chance = work / "index", random.Random(options.seed)
    names = [f"w{number}" for number in range(options.writers)]
    start = [f"item-{number}" for number in range(START)]
    Index.build(vectors(start, 0)).save(folder)
    states: dict[str, State] = {name: {} for name in names}
    numbers = dict.fromkeys(names, 0)
    for name in names:
        (work / name).write_text("0\n")
    counts = {"lost": 0, "half": 0, "wrong results": 0}
    for round_number in range(1, options.kills + 1):
        run_until_killed(work, numbers, chance.uniform(0, options.longest))
        index = Index.load(folder)
        labels = {item.id: item.label for item in index.iter_items()}
        for name in names:
            outcome, states[name], numbers[name] = compare(labels, states[name], numbers[name], name, work / name)
            if outcome:
                counts[outcome] += 1
                print(f"{round_number:4} {name}: a change is {outcome}", flush=True)
        versions = {item: version for state in states.values() for item, (_, version) in state.items()}
        counts["wrong results"] += wrong_results(index, versions, start, chance)
        index.close()
        if round_number % 10 == 0 or round_number == options.kills:
            total = f"{sum(numbers.values())} acknowledged changes, {len(labels)} items"
            print(f"{round_number:4} kills, {total}: {counts}", flush=True)
    if any(counts.values()):
        sys.exit(1)


def run_until_killed(work: Path, numbers: dict[str, int], seconds: float) -> None:
    """Start a writer per name, and kill all some seconds after one of them has changed something."""
    command = [sys.executable, __file__, "--write", str(work / "index")]
    processes = [subprocess.Popen([*command, str(work / name), name]) for name in numbers]
    while all(int((work / name).read_text() or 0) == number for name, number in numbers.items()):
        time.sleep(0.01)
        if any(process.poll() is not None for process in processes):
            sys.exit("a writer ended by itself")
    time.sleep(seconds)
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    for process in processes:
        process.wait()


def compare(labels: dict[str, str | None], state: State, number: int, name: str, log: Path) -> tuple[str, State, int]:
    """Compare the items of a writer with its acknowledged changes; return what is wrong, and the new state."""
    acknowledged = int(log.read_text())
    for done in range(number, acknowledged):
        state = after(state, done, name)
    stored = {item: label for item, label in labels.items() if item.startswith(f"{name}-")}
    next_state = after(state, acknowledged, name)
    if stored == {item: label for item, (label, _) in state.items()}:
        return "", state, acknowledged
    if stored == {item: label for item, (label, _) in next_state.items()}:
        log.write_text(f"{acknowledged + 1}\n")
        return "", next_state, acknowledged + 1
    lost = any(stored.get(item) != value[0] for item, value in state.items() if next_state.get(item) == value)
    return "lost" if lost else "half", state, acknowledged


def wrong_results(index: Index, versions: dict[str, int], start: list[str], chance: random.Random) -> int:
    """Return how many of 20 searches differ from those of a dictionary."""
    by_version: dict[int, list[str]] = {0: list(start)}
    for item, version in versions.items():
        by_version.setdefault(version, []).append(item)
    parts = [vectors(ids, version) for version, ids in by_version.items()]
    ids = [item for part in parts for item in part.ids]
    matrix: Vectors = np.concatenate([part.vectors for part in parts])
    if sorted(ids) != list(index.ids):
        return 20
    wrong = 0
    for number in range(20):
        query = vectors([f"query {chance.random()}" if number % 2 else chance.choice(ids)], 0 if number % 2 else number)
        steps = np.rint(matrix.astype(np.float64) @ query.vectors[0].astype(np.float64) * 1e6)
        pairs = [(-step, item) for step, item in zip(steps.tolist(), ids, strict=True) if item != query.ids[0]]
        expected = [(item, np.float32(-step / 1e6)) for step, item in sorted(pairs)[:TOP_K]]
        wrong += expected != [(hit.id, np.float32(hit.score)) for hit in index.search(query, TOP_K)[0]]
    return wrong


if __name__ == "__main__":
    main()
