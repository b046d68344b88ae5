r"""Search in many vectors: Lookalike, FAISS flat, hnswlib, usearch, autofaiss, and FAISS graphs configured by hand.

    python benchmarks/search.py --count 1000000 --rounds 3         all contenders; needs 12 GB of memory and two hours
    python benchmarks/search.py --count 200000 --only "ours, recall 0.95" --only "hnswlib M=32, ef 64"

The vectors are synthetic: loose groups of directions (`--spread` sets how loose) of 512 dimensions, of which the first
is a hundred times as large as the last, as from a PCA head. Queries are drawn alike and are not among the vectors;
recall@10 is measured against FAISS's flat index. Each index is built once, in its own process, and written to disk. A
contender opens it, answers at least a thousand queries to warm up, then all queries in one call and a hundred of them
one by one; all contenders take turns in each round. The figures are queries per second, recall, build time, size of
the index's files and peak memory of the searching process. Ratios are to `FAISS flat`. All graphs have 32 links per
vector; those of FAISS and hnswlib are built twice, with 40 and with 200 candidates per vector, usearch's with its
default of 128.
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

from contest import add_out_option, answer, contest, peak_memory_mb, save_result

DIM, TOP_K, SINGLES = 512, 10, 100
BASELINE = "FAISS flat"
QUICK, DEEP = 40, 200  # candidates per vector while a graph is built: the defaults of FAISS and hnswlib
Vectors = np.ndarray
Search = Callable[[Vectors], np.ndarray]


@dataclass(frozen=True)
class Method:
    """An index: `build` writes the index of vectors to a path, `search` opens it with a search depth."""

    build: Callable[[Vectors, Path], None]
    search: Callable[[Path, int], Search]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--spread", type=float, default=0.8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=CONTENDERS, help="a contender; may be repeated")
    parser.add_argument("--work", type=Path, help="keep vectors and indexes in this folder, and use what it holds")
    add_out_option(parser)
    parser.add_argument("--build", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build:
        build(options.build, options.work)
    elif options.contender:
        measure(options.contender, options.work)
    elif options.work:
        compare(options, options.work)
    else:
        with tempfile.TemporaryDirectory() as work:
            compare(options, Path(work))


def compare(options: argparse.Namespace, work: Path) -> None:
    contenders = list(dict.fromkeys([*(options.only or CONTENDERS), BASELINE]))
    work.mkdir(parents=True, exist_ok=True)
    facts = {"count": options.count, "dim": DIM, "queries": options.queries, "spread": options.spread}
    if not (work / "made.json").exists():
        make(work, options.count, options.queries, options.spread)
        (work / "made.json").write_text(json.dumps(facts))
    elif json.loads((work / "made.json").read_text()) != facts:
        sys.exit(f"{work} holds other vectors; choose another folder")
    failed: dict[str, str] = {}
    for method in dict.fromkeys(CONTENDERS[name][0] for name in contenders):
        if not facts_of(work, method).exists():
            done = subprocess.run(
                [sys.executable, __file__, "--build", method, "--work", str(work)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                failed[method] = (done.stderr.strip().splitlines() or ["no output"])[-1]
            print(f"  built {method}: {failed.get(method) or facts_of(work, method).read_text()}", flush=True)
    result = contest(
        __file__,
        [name for name in contenders if CONTENDERS[name][0] not in failed],
        options.rounds,
        arguments=["--work", str(work)],
        baseline=BASELINE,
        facts=facts,
    )
    result["skipped"] |= {name: failed[CONTENDERS[name][0]] for name in contenders if CONTENDERS[name][0] in failed}
    flat = result["contenders"].get(BASELINE)
    for name, row in result["contenders"].items():
        row.update(json.loads(facts_of(work, CONTENDERS[name][0]).read_text()))
        row["single_ratio"] = flat and flat["single_ms"]["median"] / row["single_ms"]["median"]
    save_result(f"search-{options.count}", result, complete=not options.only, folder=options.out)


def facts_of(work: Path, method: str) -> Path:
    return work / f"{method}.json"


def make(work: Path, count: int, queries: int, spread: float) -> None:
    """Write vectors, queries and the queries' exact neighbours."""
    import faiss

    random = np.random.default_rng(0)
    centres = random.standard_normal((max(10, count // 100), DIM), dtype=np.float32)

    def draw(number: int) -> Vectors:
        noise = random.standard_normal((number, DIM), dtype=np.float32)
        drawn = centres[random.integers(0, len(centres), number)] + spread * noise
        drawn *= np.geomspace(1, 0.01, DIM, dtype=np.float32)
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    vectors = np.lib.format.open_memmap(work / "vectors.npy", "w+", np.float32, (count, DIM))
    for start in range(0, count, 50_000):
        vectors[start : start + 50_000] = draw(min(50_000, count - start))
    vectors.flush()
    query_vectors = draw(queries)
    flat = faiss.IndexFlatIP(DIM)
    for start in range(0, count, 50_000):
        flat.add(np.ascontiguousarray(vectors[start : start + 50_000]))
    np.save(work / "queries.npy", query_vectors)
    np.save(work / "truth.npy", flat.search(query_vectors, TOP_K)[1])


def build(name: str, work: Path) -> None:
    """Build an index of the vectors in a folder; its costs are written last."""
    vectors = np.load(work / "vectors.npy", mmap_mode="r")
    clock = time.perf_counter()
    METHODS[name].build(vectors, work / name)
    seconds = time.perf_counter() - clock
    size = sum(file.stat().st_size for file in [work / name, *(work / name).glob("*")] if file.is_file())
    size -= sum(file.stat().st_size for file in (work / name).glob("*.json"))  # ids, which the others do not have
    facts = {"build_s": seconds, "index_mb": size / 1e6, "build_memory_mb": peak_memory_mb()}
    facts_of(work, name).write_text(json.dumps(facts))


def measure(name: str, work: Path) -> None:
    method, depth = CONTENDERS[name]
    queries, truth = np.load(work / "queries.npy"), np.load(work / "truth.npy")
    search = METHODS[method].search(work / method, depth)
    for _ in range(0, 1001, len(queries)):  # an exact index builds its prefilter after a thousand queries
        search(queries)
    clock = time.perf_counter()
    hits = search(queries)
    together = time.perf_counter() - clock
    single = []
    for query in queries[:SINGLES]:
        clock = time.perf_counter()
        search(query[None])
        single.append(time.perf_counter() - clock)
    recall = np.mean([len(set(a) & set(b)) / TOP_K for a, b in zip(hits.tolist(), truth.tolist(), strict=True)])
    answer(
        per_second=len(queries) / together,
        single_ms=1e3 * float(np.median(single)),
        recall=float(recall),
    )


def ours(budget: Callable[[Vectors], dict[str, Any]]) -> Method:
    def build(vectors: Vectors, path: Path) -> None:
        from lookalike.index.index import Index
        from lookalike.types import Embeddings

        ids = tuple(f"{n:08}" for n in range(len(vectors)))
        Index.build(Embeddings(ids, vectors, "synthetic"), **budget(vectors)).save(path)

    def search(path: Path, _: int) -> Search:
        from lookalike.index.index import Index
        from lookalike.types import Embeddings

        index = Index.load(path)

        def run(queries: Vectors) -> np.ndarray:
            query_ids = tuple(f"query {n}" for n in range(len(queries)))
            hits = index.search(Embeddings(query_ids, queries, "synthetic"), TOP_K)
            return np.array([[int(item) for item in row] for row in hits.ids])

        return run

    return Method(build, search)


def faiss_method(key: str, knob: str = "", depth: int = 0) -> Method:
    """Return a FAISS index by its factory string; `depth` is the candidates per vector while a graph is built."""

    def build(vectors: Vectors, path: Path) -> None:
        import faiss

        index = faiss.index_factory(DIM, key, faiss.METRIC_INNER_PRODUCT)
        if depth:
            index.hnsw.efConstruction = depth
        for start in range(0, len(vectors), 100_000):
            index.add(np.ascontiguousarray(vectors[start : start + 100_000]))
        faiss.write_index(index, str(path))

    def search(path: Path, depth: int) -> Search:
        import faiss

        index = faiss.read_index(str(path))
        if knob:
            faiss.ParameterSpace().set_index_parameter(index, knob, depth)
        return lambda queries: index.search(queries, TOP_K)[1]

    return Method(build, search)


def hnswlib_method(depth: int) -> Method:
    """Return the graph of hnswlib, built with `depth` candidates per vector."""

    def build(vectors: Vectors, path: Path) -> None:
        import hnswlib

        index = hnswlib.Index(space="ip", dim=DIM)
        index.init_index(max_elements=len(vectors), M=32, ef_construction=depth)
        index.add_items(np.ascontiguousarray(vectors))
        index.save_index(str(path))

    def search(path: Path, depth: int) -> Search:
        import hnswlib

        index = hnswlib.Index(space="ip", dim=DIM)
        index.load_index(str(path))
        index.set_ef(depth)
        return lambda queries: index.knn_query(queries, TOP_K)[0].astype(np.int64)

    return Method(build, search)


def build_usearch(vectors: Vectors, path: Path) -> None:
    from usearch.index import Index

    index = Index(ndim=DIM, metric="ip", dtype="f32", connectivity=32)
    index.add(np.arange(len(vectors)), np.ascontiguousarray(vectors))
    index.save(str(path))


def search_usearch(path: Path, depth: int) -> Search:
    from usearch.index import Index

    index = Index(ndim=DIM, metric="ip", dtype="f32", connectivity=32, expansion_search=depth)
    index.load(str(path))
    index.expansion_search = depth
    return lambda queries: np.atleast_2d(index.search(queries, TOP_K).keys).astype(np.int64)


def build_autofaiss(vectors: Vectors, path: Path) -> None:
    import faiss
    from autofaiss import build_index

    index, _ = build_index(
        np.ascontiguousarray(vectors),
        save_on_disk=False,
        max_index_memory_usage=f"{round(1.2 * DIM * len(vectors) / 1e6)}MB",
        metric_type="ip",
        verbose=40,
    )
    faiss.write_index(index, str(path))


def search_autofaiss(path: Path, _: int) -> Search:
    import faiss

    index = faiss.read_index(str(path))
    return lambda queries: index.search(queries, TOP_K)[1]


METHODS: dict[str, Method] = {
    "flat": faiss_method("Flat"),
    "ours-exact": ours(lambda _: {}),
    "ours": ours(lambda _: {"min_recall": 0.95}),
    "ours-small": ours(lambda v: {"min_recall": 0.95, "max_memory": int(1.2 * DIM * len(v))}),
    "faiss-hnsw": faiss_method("HNSW32,Flat", "efSearch", QUICK),
    "faiss-hnsw-deep": faiss_method("HNSW32,Flat", "efSearch", DEEP),
    "hnswlib": hnswlib_method(QUICK),
    "hnswlib-deep": hnswlib_method(DEEP),
    "usearch": Method(build_usearch, search_usearch),
    "autofaiss": Method(build_autofaiss, search_autofaiss),
}
DEPTHS = (16, 32, 48, 64, 96, 128)
CONTENDERS: dict[str, tuple[str, int]] = {  # key of `METHODS`, search depth
    BASELINE: ("flat", 0),
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

if __name__ == "__main__":
    main()
