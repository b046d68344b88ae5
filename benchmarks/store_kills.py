"""Kill what changes an index at random times, and check that no acknowledged change is lost.

    python benchmarks/store_kills.py --through commands --kills 500 --work runs/kills
    python benchmarks/store_kills.py --through server --kills 30 --seconds 60 60 --work runs/kills

Writers add, replace, label and remove items of their own, and count in a file the changes that were acknowledged:
through `python` the calls that returned; through `commands` those of `lookalike add`, `update` and `remove` that ended
with 0; through a `server` the requests that it answered, while it also searches: a hit must be right before or after a
change that is under way. A kill hits all processes at once, every other time while SQLite writes. Then the index is
opened and compared with a dictionary of the acknowledged changes: ids, labels and vectors of all items, and the hits of
searches. A change that was not acknowledged may be there in full, or not at all. With the same `--work`, a run resumes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from contest import shared_folder
from lookalike._files import write_json
from lookalike.errors import ServiceError
from lookalike.index.index import Index
from lookalike.progress import SILENT
from lookalike.types import Embeddings, Vectors, l2_normalize

DIM, TOP_K, IMAGES, BACKBONE = 32, 10, 40, "efficientnet_lite0"
RECORD = "state.json"
LONGEST_WAIT_S = 30
SAME = 1e-3  # by which two cosines of one image may differ: a runtime may compute it in another batch
COUNTS = ("lost changes", "half changes", "wrong results", "failures")
START = [f"item-{number}.jpg" for number in range(100)]
State = Mapping[str, tuple[str, int]]  # label and version by id; never changed in place


class KilledError(Exception):
    """What should have made a change was killed before it acknowledged it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--through", choices=RUNS, default="python")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--writers", type=int, default=2)
    parser.add_argument("--seconds", type=float, nargs=2, default=[0, 1.5], help="shortest and longest time to a kill")
    parser.add_argument("--work", type=Path, default=Path("runs/kills"))
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        Python(options.work).write(*options.write)
        return
    work = options.work.resolve() / options.through
    os.environ["LOOKALIKE_CACHE"] = str(work / "cache")
    content = RandomContent() if options.through == "python" else ImageContent(work / "index")
    kind = "client" if options.through == "server" else "writer"
    names = [f"{kind}{number}" for number in range(options.writers)]
    if not (work / RECORD).exists():
        start(work, content, names)
    kill(RUNS[options.through](work, content), names, options)


class RandomContent:
    """Random vectors of items, by id and version."""

    def vectors(self, versions: Mapping[str, int]) -> Vectors:
        seeds = [[version, *item.encode()] for item, version in versions.items()]
        return l2_normalize(np.stack([np.random.default_rng(seed).standard_normal(DIM) for seed in seeds]))

    def make_index(self, folder: Path, ids: Sequence[str]) -> None:
        Index.build(Embeddings(tuple(ids), self.vectors(dict.fromkeys(ids, 0)), "model")).save(folder)


class ImageContent:
    """Images of items and their embeddings by the model of an index, by id and version."""

    def __init__(self, index: Path) -> None:
        files = sorted((shared_folder() / "data" / "clothing").rglob("*.jpg"))
        self.index, self.files = index, files[:: len(files) // IMAGES][:IMAGES]

    @cached_property
    def embeddings(self) -> Vectors:
        import lookalike as la

        return la.load_index(self.index).encoder.embed(self.files, progress=SILENT).vectors

    def number(self, item: str, version: int) -> int:
        return zlib.crc32(f"{item} {version}".encode()) % IMAGES

    def vectors(self, versions: Mapping[str, int]) -> Vectors:
        return self.embeddings[[self.number(item, version) for item, version in versions.items()]]

    def make_index(self, folder: Path, ids: Sequence[str]) -> None:
        import lookalike as la

        images = folder.parent / "images"
        images.mkdir(exist_ok=True)
        for item in ids:
            self.write(images / item, 0)
        exported = folder.parent / "exported"  # which commands load without torch
        if not exported.exists():
            with tempfile.TemporaryDirectory() as first:
                la.index(images, BACKBONE, out=Path(first) / "index", progress=SILENT)
                la.export(Path(first) / "index" / "model", out=exported, progress=SILENT)
        la.index(images, exported, out=folder, progress=SILENT)

    def write(self, path: Path, version: int) -> None:
        shutil.copy(self.files[self.number(path.name, version)], path)


def change(number: int, name: str) -> tuple[str, list[str], str, int]:
    """Return a change by its number: what, which items, their label and their version; a client changes one item."""
    chance = random.Random(f"{name} {number}")
    pair = chance.randrange(100)
    ids = [f"{name}-{pair}-a.jpg", f"{name}-{pair}-b.jpg"]
    what = chance.choice(["put", "put", "put", "remove", "label", "compact"])
    return what, ids[:1] if name.startswith("client") else ids, f"label {number}", number


def after(state: State, number: int, name: str) -> State:
    """Return the state after a change."""
    what, ids, label, version = change(number, name)
    present = [item for item in ids if item in state]
    if what == "put":
        return {**state, **dict.fromkeys(ids, (label, version))}
    if what == "remove":
        return {item: value for item, value in state.items() if item not in present}
    if what == "label" and present:
        return {**state, present[0]: (label, state[present[0]][1])}
    return state


class Writer(threading.Thread):
    """Makes changes until one is not acknowledged, and counts them in a file."""

    def __init__(self, target: Python | Commands | Server, log: Path, state: State) -> None:
        super().__init__(name=log.name)
        self.changes, self.log, self.is_stopped = target, log, False
        self.now = int(log.read_text()), state

    def run(self) -> None:
        with self.log.open("r+") as file:
            while not self.is_stopped:
                number, state = self.now
                try:
                    self.make(*change(number, self.name), state)
                except KilledError:
                    return
                self.now = number + 1, after(state, number, self.name)
                file.seek(0)
                file.write(f"{number + 1}\n")
                file.flush()

    def make(self, what: str, ids: Sequence[str], label: str, version: int, state: State) -> None:
        present = [item for item in ids if item in state]
        if what == "put":
            self.changes.put(self.name, ids, label, version, present)
        elif what == "remove" and present:
            self.changes.remove(self.name, present)
        elif what == "label" and present:
            self.changes.label(self.name, present[0], label)
        elif what == "compact":
            self.changes.compact(version)


class Python:
    """A process per writer that calls `Index.add`, `update`, `remove` and `compact`."""

    def __init__(self, work: Path, content: RandomContent | None = None) -> None:
        self.work, self.content, self.failures = work, content or RandomContent(), 0

    def write(self, name: str) -> None:
        self.index = Index.load(self.work / "index")
        items = [item for item in self.index.iter_items() if item.id.startswith(f"{name}-")]
        Writer(self, self.work / name, {item.id: (item.label or "", 0) for item in items}).run()

    def put(self, _: str, ids: Sequence[str], label: str, version: int, present: Sequence[str]) -> None:
        embeddings = Embeddings(tuple(ids), self.content.vectors(dict.fromkeys(ids, version)), "model")
        self.index.add(embeddings, labels=dict.fromkeys(ids, label), replace=bool(present))

    def remove(self, _: str, ids: Sequence[str]) -> None:
        self.index.remove(ids)

    def label(self, _: str, item: str, label: str) -> None:
        self.index.update(item, label=label)

    def compact(self, number: int) -> None:
        if number % 5 == 0:
            self.index.compact()

    def run(self, states: Mapping[str, State], seconds: float) -> None:
        """Start the processes, and kill all some seconds after one of them has changed something."""
        before = {name: int((self.work / name).read_text()) for name in states}
        command = [sys.executable, __file__, "--work", str(self.work), "--write"]
        processes = [subprocess.Popen([*command, name]) for name in states]
        while all(int((self.work / name).read_text()) == number for name, number in before.items()):
            time.sleep(0.01)
            if any(process.poll() is not None for process in processes):
                sys.exit("a writer ended by itself")
        wait_to_kill(self.work, seconds)
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


class Commands:
    """One command per change; each writer waits for its own."""

    def __init__(self, work: Path, content: ImageContent) -> None:
        self.work, self.content = work, content
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.failures = 0

    def put(self, name: str, ids: Sequence[str], label: str, version: int, present: Sequence[str]) -> None:
        paths = [self.work / "images" / item for item in ids]
        for path in paths:
            self.content.write(path, version)
        self.call(name, "add", *paths, "--label", label, *(["--replace"] if present else []))

    def remove(self, name: str, ids: Sequence[str]) -> None:
        self.call(name, "remove", *ids)

    def label(self, name: str, item: str, label: str) -> None:
        self.call(name, "update", item, "--label", label)

    def compact(self, number: int) -> None:
        """Do nothing: the commands compact an index by themselves."""

    def call(self, name: str, command: str, *arguments: str | Path) -> None:
        line = [sys.executable, "-m", "lookalike", command, str(self.work / "index"), *map(str, arguments)]
        self.running[name] = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        _, errors = self.running[name].communicate()
        code = self.running[name].returncode
        if code > 0:
            self.failures += 1
            print(f"{line} ended with {code}: {errors.decode()}", flush=True)
        if code != 0:
            raise KilledError

    def run(self, states: Mapping[str, State], seconds: float) -> None:
        """Run commands, and kill those that run after some seconds."""
        writers = start_writers(self, self.work, states)
        wait_to_kill(self.work, seconds)
        for writer in writers:
            writer.is_stopped = True
        while any(writer.is_alive() for writer in writers):
            for process in list(self.running.values()):
                process.kill()
            time.sleep(0.01)


class Server:
    """A server that serves the index to clients: one per writer, and one that searches."""

    def __init__(self, work: Path, content: ImageContent) -> None:
        self.work, self.content = work, content
        self.searches = self.wrong = self.failures = 0

    def put(self, _: str, ids: Sequence[str], label: str, version: int, present: Sequence[str]) -> None:
        (item,) = ids
        image = self.content.files[self.content.number(item, version)]
        if present:
            self.call(lambda: self.client.update(item, label=label, image=image))
        else:
            self.call(lambda: self.client.add(image, item=item, label=label))

    def remove(self, _: str, ids: Sequence[str]) -> None:
        self.call(lambda: self.client.remove(ids[0]))

    def label(self, _: str, item: str, label: str) -> None:
        self.call(lambda: self.client.update(item, label=label))

    def compact(self, number: int) -> None:
        """Do nothing: the server compacts an index by itself."""

    def call(self, send: Callable[[], Any]) -> Any:
        try:
            return send()
        except ServiceError as error:
            if error.status is not None:
                self.failures += 1
                print(error, flush=True)
            raise KilledError from error

    def run(self, states: Mapping[str, State], seconds: float) -> None:
        """Start the server, and kill it after some seconds of changes and searches."""
        from lookalike.server.access import token
        from lookalike.server.client import Client

        tokens = self.work / "tokens"
        tokens.unlink(missing_ok=True)
        secret = token(tokens, scope="write")
        code = "import lookalike as la, sys; la.serve([sys.argv[1]], port=0, token_file=sys.argv[2], on_start=print)"
        command = [sys.executable, "-u", "-c", code, str(self.work / "index"), str(tokens)]
        with (self.work / "server.log").open("ab") as log:
            server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert server.stdout is not None
        with Client(server.stdout.readline().strip(), token=secret, retries=0) as self.client:
            writers = start_writers(self, self.work, states)
            killer = threading.Thread(target=lambda: (wait_to_kill(self.work, seconds), server.kill()))
            killer.start()
            while all(writer.is_alive() for writer in writers):
                try:
                    self.search(writers)
                except KilledError:
                    break
            killer.join()
            server.wait()
            for writer in writers:
                writer.join()

    def search(self, writers: Sequence[Writer]) -> None:
        """Search by a vector or an image, and check the hits."""
        number = self.searches % IMAGES
        query = {"image": self.content.files[number]} if self.searches % 4 == 0 else {}
        query = query or {"vector": self.content.embeddings[number]}
        before = [writer.now for writer in writers]
        hits = self.call(lambda: self.client.search(**query, top_k=TOP_K))
        scores = {hit.id: hit.score for hit in hits}
        possible: dict[str, set[int | None]] = {item: {0} for item in START}
        for writer, (first, state) in zip(writers, before, strict=True):
            states = [state]
            for later in range(first, writer.now[0] + 1):  # the last one may be under way
                states.append(after(states[-1], later, writer.name))
            for item in set().union(*states):
                possible[item] = {state[item][1] if item in state else None for state in states}
        self.searches += 1
        self.wrong += not is_right(self.content, self.content.embeddings[number], scores, possible)


def wait_to_kill(work: Path, seconds: float) -> None:
    """Wait some seconds, and every other time until SQLite writes, and some milliseconds, where a kill can do harm."""
    time.sleep(seconds)
    if int(1e6 * seconds) % 2:
        log, end = work / "index" / "items.sqlite-wal", time.monotonic() + LONGEST_WAIT_S
        before = log_size(log)
        while log_size(log) <= before and time.monotonic() < end:
            before = min(before, log_size(log))
            time.sleep(0.001)
        time.sleep(seconds % 1 / 200)


def log_size(log: Path) -> int:
    try:
        return log.stat().st_size
    except FileNotFoundError:
        return 0


def start_writers(target: Commands | Server, work: Path, states: Mapping[str, State]) -> list[Writer]:
    writers = [Writer(target, work / name, state) for name, state in states.items()]
    for writer in writers:
        writer.start()
    return writers


def is_right(
    content: ImageContent, query: Vectors, scores: Mapping[str, float], possible: Mapping[str, set[int | None]]
) -> bool:
    """Whether each hit has the cosine of a version that its item may have, and no item that must be a hit is missed."""
    cosines = {
        item: [float(content.vectors({item: v})[0] @ query) for v in versions if v is not None]
        for item, versions in possible.items()
    }
    wrong = {i: score for i, score in scores.items() if not any(abs(score - c) < SAME for c in cosines.get(i, ()))}
    last = min(scores.values(), default=1.0)
    certain = {item for item, versions in possible.items() if len(versions) == 1 and None not in versions}
    missed = {item for item in certain - scores.keys() if cosines[item][0] > last + SAME}
    if wrong or missed or len(scores) < TOP_K:
        print(f"{len(scores)} hits; wrong: {wrong}; missed: {missed}", flush=True)
        return False
    return True


RUNS: Mapping[str, Callable[..., Python | Commands | Server]] = {
    "python": Python,
    "commands": Commands,
    "server": Server,
}


def start(work: Path, content: RandomContent | ImageContent, names: Sequence[str]) -> None:
    """Write the index of the first items, and the counts."""
    shutil.rmtree(work / "index", ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    content.make_index(work / "index", START)
    for name in names:
        (work / name).write_text("0\n")
    counts = dict.fromkeys(("kills", "searches", *COUNTS), 0)
    empty = {"numbers": dict.fromkeys(names, 0), "states": {name: {} for name in names}}
    write_json(work / RECORD, counts | empty)


def kill(target: Python | Commands | Server, names: Sequence[str], options: argparse.Namespace) -> None:
    """Kill, compare and count until there were enough kills."""
    work, record = target.work, target.work / RECORD
    total = json.loads(record.read_text())
    states = {n: {i: (label, version) for i, (label, version) in s.items()} for n, s in total["states"].items()}
    while total["kills"] < options.kills:
        chance = random.Random(total["kills"])
        target.run(states, chance.uniform(*options.seconds))
        index = Index.load(work / "index")
        labels = {item.id: item.label for item in index.iter_items()}
        for name in names:
            outcome, states[name], number = compare(labels, states[name], total["numbers"][name], name, work / name)
            total["numbers"][name] = number
            if outcome:
                total[outcome] += 1
                print(f"kill {total['kills'] + 1}, {name}: {outcome}", flush=True)
        versions = dict.fromkeys(START, 0)
        versions |= {item: version for state in states.values() for item, (_, version) in state.items()}
        total["wrong results"] += wrong_results(target.content, index, versions, chance)
        index.close()
        if isinstance(target, Server):
            total["searches"] += target.searches
            total["wrong results"] += target.wrong
            target.searches = target.wrong = 0
        total["failures"] += target.failures
        target.failures = 0
        total["kills"] += 1
        write_json(record, {**total, "states": states})
        if total["kills"] % 10 == 0 or total["kills"] == options.kills:
            changes, counts = sum(total["numbers"].values()), ", ".join(f"{total[name]} {name}" for name in COUNTS)
            print(f"{total['kills']} kills, {changes} acknowledged changes, {len(labels)} items: {counts}", flush=True)
    if any(total[name] for name in COUNTS):
        sys.exit(1)


def compare(
    labels: Mapping[str, str | None], state: State, number: int, name: str, log: Path
) -> tuple[str, State, int]:
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
    return COUNTS[0] if lost else COUNTS[1], state, acknowledged


def wrong_results(
    content: RandomContent | ImageContent, index: Index, versions: Mapping[str, int], chance: random.Random
) -> int:
    """Return how many of 20 searches differ from those of a dictionary; all, if an item has another vector."""
    ids = list(versions)
    if sorted(ids) != list(index.ids):
        return 20
    vectors = index.vectors_of(ids)
    if np.abs(vectors - content.vectors(versions)).max() > SAME:
        return 20
    wrong = 0
    for _ in range(20):
        row = chance.randrange(len(ids))
        cosines = dict(zip(ids, (vectors @ vectors[row]).tolist(), strict=True))
        del cosines[ids[row]]
        query = Embeddings((ids[row],), vectors[row : row + 1], index.fingerprint)
        hits = {hit.id: hit.score for hit in index.search(query, TOP_K)[0]}
        scores = [*hits.values(), *hits.values()]
        expected = sorted(cosines.values(), reverse=True)[:TOP_K] + [cosines[item] for item in hits]
        wrong += not np.allclose(scores, expected, atol=3e-6)
    return wrong


if __name__ == "__main__":
    main()
