r"""Search among many vectors: ours beside FAISS flat, hnswlib, usearch, autofaiss and FAISS's graphs set by hand.

    python benchmarks/search.py --count 1000000 --rounds 3         all kinds; needs 12 GB of memory and two hours
    python benchmarks/search.py --count 200000 --only "ours, recall 0.95" --only "hnswlib M=32, ef 64"

The vectors are made up, for want of a million photographs: groups of loosely alike directions (`--spread` says how
loose) of 512 dimensions, the first a hundred times as large as the last, as a head of principal components makes
them. Queries are made like them and are not among them; recall@10 is against FAISS's flat index. Every index is built
once, in a process of its own, and written; a contender opens it, answers a thousand queries and more to warm up, then
all together against the clock, and a hundred of them one by one, all contenders in turn in each round. The figures are
queries a second, recall, build time, the size of the index's files and the searching process's peak memory. Ratios are
to `FAISS flat`. All graphs have 32 links a vector; FAISS's and hnswlib's are built twice, with 40 candidates a vector
and with 200, usearch's with its default of 128.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from contest import answer, contest, keep, peak_memory_mb

DIM, TOP_K, SINGLES = 512, 10, 100
AGAINST = "FAISS flat"
QUICK, DEEP = 40, 200
"""Candidates a vector while a graph is built: FAISS's default, and hnswlib's."""
Vectors = np.ndarray
Search = Callable[[Vectors], np.ndarray]


@dataclass(frozen=True)
class Way:
    """An index: `build` writes one of vectors to a path, `search` opens it, to look as deep as it is told."""

    build: Callable[[Vectors, Path], None]
    search: Callable[[Path, int], Search]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--spread", type=float, default=0.8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=CONTENDERS, help="a contender; may be repeated")
    parser.add_argument("--work", type=Path, help="keep what was made and built here, and use what is here already")
    parser.add_argument("--build", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.build:
        built(given.build, given.work)
    elif given.contender:
        measure(given.contender, given.work)
    elif given.work:
        compare(given, given.work)
    else:
        with tempfile.TemporaryDirectory() as work:
            compare(given, Path(work))


def compare(given: argparse.Namespace, work: Path) -> None:
    chosen = list(dict.fromkeys([*(given.only or CONTENDERS), AGAINST]))
    work.mkdir(parents=True, exist_ok=True)
    facts = {"count": given.count, "dim": DIM, "queries": given.queries, "spread": given.spread}
    if not (work / "made.json").exists():
        make(work, given.count, given.queries, given.spread)
        (work / "made.json").write_text(json.dumps(facts))
    elif json.loads((work / "made.json").read_text()) != facts:
        sys.exit(f"{work} holds other vectors; give another folder")
    failed: dict[str, str] = {}
    for way in dict.fromkeys(CONTENDERS[name][0] for name in chosen):
        if not facts_of(work, way).exists():
            done = subprocess.run(
                [sys.executable, __file__, "--build", way, "--work", str(work)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                failed[way] = (done.stderr.strip().splitlines() or ["no output"])[-1]
            print(f"  built {way}: {failed.get(way) or facts_of(work, way).read_text()}", flush=True)
    result = contest(
        __file__,
        [name for name in chosen if CONTENDERS[name][0] not in failed],
        given.rounds,
        arguments=["--work", str(work)],
        against=AGAINST,
        facts=facts,
    )
    result["left_out"] |= {name: failed[CONTENDERS[name][0]] for name in chosen if CONTENDERS[name][0] in failed}
    flat = result["contenders"].get(AGAINST)
    for name, row in result["contenders"].items():
        row.update(json.loads(facts_of(work, CONTENDERS[name][0]).read_text()))
        row["single_ratio"] = flat and flat["single_ms"]["median"] / row["single_ms"]["median"]
    keep(f"search-{given.count}", result, whole=not given.only)


def facts_of(work: Path, way: str) -> Path:
    return work / f"{way}.json"


def make(work: Path, count: int, queries: int, spread: float) -> None:
    """Write vectors, queries and the queries' exact neighbours."""
    import faiss

    random = np.random.default_rng(0)
    centres = random.standard_normal((max(10, count // 100), DIM), dtype=np.float32)

    def some(number: int) -> Vectors:
        noise = random.standard_normal((number, DIM), dtype=np.float32)
        found = centres[random.integers(0, len(centres), number)] + spread * noise
        found *= np.geomspace(1, 0.01, DIM, dtype=np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    vectors = np.lib.format.open_memmap(work / "vectors.npy", "w+", np.float32, (count, DIM))
    for start in range(0, count, 50_000):
        vectors[start : start + 50_000] = some(min(50_000, count - start))
    vectors.flush()
    asked = some(queries)
    flat = faiss.IndexFlatIP(DIM)
    for start in range(0, count, 50_000):
        flat.add(np.ascontiguousarray(vectors[start : start + 50_000]))
    np.save(work / "queries.npy", asked)
    np.save(work / "truth.npy", flat.search(asked, TOP_K)[1])


def built(name: str, work: Path) -> None:
    """Build an index of the vectors in a folder; what it cost is written last."""
    vectors = np.load(work / "vectors.npy", mmap_mode="r")
    clock = time.perf_counter()
    WAYS[name].build(vectors, work / name)
    seconds = time.perf_counter() - clock
    size = sum(file.stat().st_size for file in [work / name, *(work / name).glob("*")] if file.is_file())
    size -= sum(file.stat().st_size for file in (work / name).glob("*.json"))  # names, which the others have none of
    facts = {"build_s": seconds, "index_mb": size / 1e6, "build_memory_mb": peak_memory_mb()}
    facts_of(work, name).write_text(json.dumps(facts))


def measure(name: str, work: Path) -> None:
    way, depth = CONTENDERS[name]
    queries, truth = np.load(work / "queries.npy"), np.load(work / "truth.npy")
    search = WAYS[way].search(work / way, depth)
    for _ in range(0, 1001, len(queries)):  # what is prepared after a thousand queries is prepared then
        search(queries)
    clock = time.perf_counter()
    found = search(queries)
    together = time.perf_counter() - clock
    single = []
    for query in queries[:SINGLES]:
        clock = time.perf_counter()
        search(query[None])
        single.append(time.perf_counter() - clock)
    recall = np.mean([len(set(a) & set(b)) / TOP_K for a, b in zip(found.tolist(), truth.tolist(), strict=True)])
    answer(
        per_second=len(queries) / together,
        single_ms=1e3 * float(np.median(single)),
        recall=float(recall),
    )


def ours(budget: Callable[[Vectors], dict[str, Any]]) -> Way:
    def build(vectors: Vectors, place: Path) -> None:
        from lookalike.index.index import Index
        from lookalike.types import Embeddings

        ids = tuple(f"{n:08}" for n in range(len(vectors)))
        Index.build(Embeddings(ids, vectors, "made up"), **budget(vectors)).save(place)

    def search(place: Path, _: int) -> Search:
        from lookalike.index.index import Index
        from lookalike.types import Embeddings

        index = Index.load(place)

        def run(queries: Vectors) -> np.ndarray:
            names = tuple(f"query {n}" for n in range(len(queries)))
            hits = index.search(Embeddings(names, queries, "made up"), TOP_K)
            return np.array([[int(name) for name in found] for found in hits.ids])

        return run

    return Way(build, search)


def faiss_way(key: str, knob: str = "", depth: int = 0) -> Way:
    """Return an index of FAISS's by its factory string, a graph built with some depth."""

    def build(vectors: Vectors, place: Path) -> None:
        import faiss

        index = faiss.index_factory(DIM, key, faiss.METRIC_INNER_PRODUCT)
        if depth:
            index.hnsw.efConstruction = depth
        for start in range(0, len(vectors), 100_000):
            index.add(np.ascontiguousarray(vectors[start : start + 100_000]))
        faiss.write_index(index, str(place))

    def search(place: Path, depth: int) -> Search:
        import faiss

        index = faiss.read_index(str(place))
        if knob:
            faiss.ParameterSpace().set_index_parameter(index, knob, depth)
        return lambda queries: index.search(queries, TOP_K)[1]

    return Way(build, search)


def hnswlib_way(depth: int) -> Way:
    """Return hnswlib's graph, built with some depth."""

    def build(vectors: Vectors, place: Path) -> None:
        import hnswlib

        index = hnswlib.Index(space="ip", dim=DIM)
        index.init_index(max_elements=len(vectors), M=32, ef_construction=depth)
        index.add_items(np.ascontiguousarray(vectors))
        index.save_index(str(place))

    def search(place: Path, depth: int) -> Search:
        import hnswlib

        index = hnswlib.Index(space="ip", dim=DIM)
        index.load_index(str(place))
        index.set_ef(depth)
        return lambda queries: index.knn_query(queries, TOP_K)[0].astype(np.int64)

    return Way(build, search)


def build_usearch(vectors: Vectors, place: Path) -> None:
    from usearch.index import Index

    index = Index(ndim=DIM, metric="ip", dtype="f32", connectivity=32)
    index.add(np.arange(len(vectors)), np.ascontiguousarray(vectors))
    index.save(str(place))


def search_usearch(place: Path, depth: int) -> Search:
    from usearch.index import Index

    index = Index(ndim=DIM, metric="ip", dtype="f32", connectivity=32, expansion_search=depth)
    index.load(str(place))
    index.expansion_search = depth
    return lambda queries: np.atleast_2d(index.search(queries, TOP_K).keys).astype(np.int64)


def build_autofaiss(vectors: Vectors, place: Path) -> None:
    import faiss
    from autofaiss import build_index

    index, _ = build_index(
        np.ascontiguousarray(vectors),
        save_on_disk=False,
        max_index_memory_usage=f"{round(1.2 * DIM * len(vectors) / 1e6)}MB",
        metric_type="ip",
        verbose=40,
    )
    faiss.write_index(index, str(place))


def search_autofaiss(place: Path, _: int) -> Search:
    import faiss

    index = faiss.read_index(str(place))
    return lambda queries: index.search(queries, TOP_K)[1]


WAYS: dict[str, Way] = {
    "flat": faiss_way("Flat"),
    "ours-exact": ours(lambda _: {}),
    "ours": ours(lambda _: {"min_recall": 0.95}),
    "ours-small": ours(lambda v: {"min_recall": 0.95, "max_memory": int(1.2 * DIM * len(v))}),
    "faiss-hnsw": faiss_way("HNSW32,Flat", "efSearch", QUICK),
    "faiss-hnsw-deep": faiss_way("HNSW32,Flat", "efSearch", DEEP),
    "hnswlib": hnswlib_way(QUICK),
    "hnswlib-deep": hnswlib_way(DEEP),
    "usearch": Way(build_usearch, search_usearch),
    "autofaiss": Way(build_autofaiss, search_autofaiss),
}
DEPTHS = (16, 32, 48, 64, 96, 128)
CONTENDERS: dict[str, tuple[str, int]] = {
    AGAINST: ("flat", 0),
    "ours, exact": ("ours-exact", 0),
    "ours, recall 0.95": ("ours", 0),
    "ours, recall 0.95, 30 % of flat's memory": ("ours-small", 0),
    "autofaiss, 30 % of flat's memory": ("autofaiss", 0),
    **{f"FAISS HNSW32, efSearch {depth}": ("faiss-hnsw", depth) for depth in DEPTHS},
    **{f"FAISS HNSW32 built with {DEEP}, efSearch {depth}": ("faiss-hnsw-deep", depth) for depth in DEPTHS},
    **{f"hnswlib M=32, ef {depth}": ("hnswlib", depth) for depth in DEPTHS},
    **{f"hnswlib M=32 built with {DEEP}, ef {depth}": ("hnswlib-deep", depth) for depth in DEPTHS},
    **{f"usearch M=32, expansion {depth}": ("usearch", depth) for depth in DEPTHS},
}
"""By name: the way, and how deep to look."""

if __name__ == "__main__":
    main()
