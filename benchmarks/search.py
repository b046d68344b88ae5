r"""Search among many vectors: ours beside FAISS flat, hnswlib, usearch and FAISS's graphs set by hand.

    python benchmarks/search.py --count 1000000 --rounds 3                    all kinds; needs 12 GB of memory
    python benchmarks/search.py --count 200000 --only "ours, recall 0.95"

The vectors are made up, for want of a million photographs: groups of loosely alike directions (`--spread` says how
loose) of 512 dimensions, the first a hundred times as large as the last, as a head of principal components makes
them. Queries are made like them and are not among them; recall@10 is against FAISS's flat index. Every contender
builds its index in a process of its own, then answers all queries together and a hundred of them one by one. The
figures are queries a second, recall, build time, the size of the index's files (ours is written, opened from there and
searched, as users have it) and the process's peak memory. Ratios are to `FAISS flat`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from contest import answer, contest, keep

DIM, TOP_K, SINGLES = 512, 10, 100
Vectors = np.ndarray
Search = Callable[[Vectors], np.ndarray]
Build = Callable[[Vectors], tuple[Search, float]]
"""Makes an index of vectors: how it is searched, and the bytes that it takes."""
OURS = ("index.faiss", "rows.npy")
GRAPH = 2 * 32 * 4 + 12
"""Bytes of a vector's links."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--spread", type=float, default=0.8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", help="a contender; may be repeated")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contender:
        measure(given.contender, given.work)
        return
    with tempfile.TemporaryDirectory() as work:
        make(Path(work), given.count, given.queries, given.spread)
        facts = {"count": given.count, "dim": DIM, "queries": given.queries, "spread": given.spread}
        result = contest(
            __file__,
            list(dict.fromkeys([*(given.only or CONTENDERS), "FAISS flat"])),
            given.rounds,
            arguments=["--work", work],
            against="FAISS flat",
            facts=facts,
        )
    for row in result["contenders"].values():
        row["single_ratio"] = result["contenders"]["FAISS flat"]["single_ms"]["median"] / row["single_ms"]["median"]
    keep(f"search-{given.count}", result, whole=not given.only)


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


def measure(name: str, work: Path) -> None:
    vectors = np.load(work / "vectors.npy", mmap_mode="r")
    queries, truth = np.load(work / "queries.npy"), np.load(work / "truth.npy")
    clock = time.perf_counter()
    search, size = CONTENDERS[name](vectors)
    build = time.perf_counter() - clock
    search(queries[:16])
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
        build_s=build,
        index_mb=size / 1e6,
    )


def ours(**budget: float | str) -> Build:
    def build(vectors: Vectors) -> tuple[Search, float]:
        from lookalike.indexing import Index
        from lookalike.types import Embeddings

        ids = tuple(f"{n:08}" for n in range(len(vectors)))
        with tempfile.TemporaryDirectory() as folder:  # the files stay mapped
            Index.build(Embeddings(ids, vectors, "made up"), **budget).save(Path(folder) / "index")
            index = Index.load(Path(folder) / "index")
            size = sum((Path(folder) / "index" / name).stat().st_size for name in OURS if name in listed(folder))
        row = {name: n for n, name in enumerate(ids)}

        def search(queries: Vectors) -> np.ndarray:
            names = tuple(f"query {n}" for n in range(len(queries)))
            hits = index.search(Embeddings(names, queries, "made up"), TOP_K)
            return np.array([[row[name] for name in found] for found in hits.ids])

        return search, size

    return build


def listed(folder: str) -> set[str]:
    return {path.name for path in (Path(folder) / "index").iterdir()}


def faiss_flat(vectors: Vectors) -> tuple[Search, float]:
    import faiss

    index = faiss.IndexFlatIP(DIM)
    index.add(np.ascontiguousarray(vectors))
    return lambda queries: index.search(queries, TOP_K)[1], vectors.nbytes


def faiss_graph(depth: int) -> Build:
    def build(vectors: Vectors) -> tuple[Search, float]:
        import faiss

        index = faiss.index_factory(DIM, "HNSW32,Flat", faiss.METRIC_INNER_PRODUCT)
        index.add(np.ascontiguousarray(vectors))
        index.hnsw.efSearch = depth
        return lambda queries: index.search(queries, TOP_K)[1], vectors.nbytes + GRAPH * len(vectors)

    return build


def hnswlib_graph(depth: int) -> Build:
    def build(vectors: Vectors) -> tuple[Search, float]:
        import hnswlib

        index = hnswlib.Index(space="ip", dim=DIM)
        index.init_index(max_elements=len(vectors), M=32, ef_construction=40)
        index.add_items(np.ascontiguousarray(vectors))
        index.set_ef(depth)
        return lambda queries: index.knn_query(queries, TOP_K)[0].astype(np.int64), index.index_file_size()

    return build


def usearch_graph(depth: int) -> Build:
    def build(vectors: Vectors) -> tuple[Search, float]:
        from usearch.index import Index

        index = Index(ndim=DIM, metric="ip", dtype="f32", connectivity=32, expansion_search=depth)
        index.add(np.arange(len(vectors)), np.ascontiguousarray(vectors))
        size = index.serialized_length
        return lambda queries: np.atleast_2d(index.search(queries, TOP_K).keys).astype(np.int64), size

    return build


CONTENDERS: dict[str, Build] = {
    "FAISS flat": faiss_flat,
    "ours, exact": ours(),
    "ours, recall 0.95": ours(min_recall=0.95),
    "ours, recall 0.95, 30 % of flat's memory": lambda v: ours(min_recall=0.95, max_memory=int(1.2 * DIM * len(v)))(v),
    **{f"FAISS HNSW32, efSearch {depth}": faiss_graph(depth) for depth in (16, 64)},
    **{f"hnswlib M=32, ef {depth}": hnswlib_graph(depth) for depth in (16, 64)},
    **{f"usearch M=32, expansion {depth}": usearch_graph(depth) for depth in (16, 64)},
}

if __name__ == "__main__":
    main()
