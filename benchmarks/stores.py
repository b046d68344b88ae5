"""Measure a changed index: searches with and without filters, changes, opening and compacting.

    python benchmarks/stores.py [--count 100000] [--queries 200] [--out FOLDER]

Vectors of 512 dimensions in skewed groups. The filters allow 50 % and 5 % of the items at random, and the items of one
group, 0.5 %, which are near each other and far from most queries. Recall is that of the exact 10 nearest, by NumPy.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from contest import add_out_option, peak_memory_mb, save_result
from lookalike.index.index import Index
from lookalike.progress import SILENT
from lookalike.types import Embeddings, Vectors, l2_normalize

DIM, TOP_K, GROUPS = 512, 10, 200
FILTERS = {"all": None, "50 %": "half == 1", "5 %": "twentieth == 1", "0.5 %, one group": "label == 'group 7'"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    add_out_option(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        result = measure(Path(work) / "index", options.count, options.queries)
    for name, value in result.items():
        print(f"{name}: {value}")
    save_result(f"stores-{options.count}", result, complete=True, folder=options.out)


def measure(folder: Path, count: int, queries: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    centres = random.standard_normal((GROUPS, DIM), dtype=np.float32)
    decay = np.geomspace(1, 0.03, DIM, dtype=np.float32)

    def draw(number: int) -> tuple[np.ndarray, Vectors]:
        groups = random.integers(0, GROUPS, number)
        return groups, l2_normalize(
            (centres[groups] + 1.5 * random.standard_normal((number, DIM), dtype=np.float32)) * decay
        )

    groups, vectors = draw(count)
    half, twentieth = random.integers(0, 2, count), random.integers(0, 20, count)
    ids = [f"{n:08}" for n in range(count)]
    labels = {item: f"group {group}" for item, group in zip(ids, groups.tolist(), strict=True)}
    columns = zip(ids, half.tolist(), twentieth.tolist(), strict=True)
    metadata = {item: {"half": one, "twentieth": other} for item, one, other in columns}
    Index.build(Embeddings(tuple(ids), vectors, "model"), labels=labels, metadata=metadata).save(folder)
    masks = {"all": np.ones(count, bool), "50 %": half == 1, "5 %": twentieth == 1, "0.5 %, one group": groups == 7}
    query_vectors = draw(queries)[1]
    result: dict[str, Any] = {"count": count, "dim": DIM}
    index = Index.load(folder)
    result["unchanged"] = searches(index, query_vectors, vectors, masks)
    result["first change s"] = seconds(index.prepare_changes)
    result["exact, changed"] = searches(index, query_vectors, vectors, masks)
    result["compact s"] = seconds(lambda: index.compact(min_recall=0.99, progress=SILENT))
    result["key"] = index.key
    result["inverted lists"] = searches(index, query_vectors, vectors, masks)
    index.close()
    result["open s"] = seconds(lambda: Index.load(folder).close())
    index, reader = Index.load(folder), Index.load(folder)
    extra = draw(3000)[1]
    one = [Embeddings((f"one {n}",), extra[n : n + 1], "model") for n in range(200)]
    result["add one"] = percentiles([seconds(lambda item=item: index.add(item)) for item in one])

    def until_visible(n: int) -> float:
        index.add(Embeddings((f"visible {n}",), extra[n : n + 1], "model"))
        query = Embeddings(("q",), extra[n : n + 1], "model")
        start = time.perf_counter()
        assert reader.search(query, 1)[0][0].id == f"visible {n}"
        return time.perf_counter() - start

    result["visible after commit, with the search"] = percentiles([until_visible(n) for n in range(200, 400)])
    many = Embeddings(tuple(f"many {n}" for n in range(2000)), extra[1000:], "model")
    result["add many, per s"] = round(2000 / seconds(lambda: index.add(many)))
    result["with 2,400 changes"] = timings(index, query_vectors, None)
    compacting = threading.Thread(target=lambda: index.compact(progress=SILENT))
    start = time.perf_counter()
    compacting.start()
    during = []
    while compacting.is_alive():
        query = Embeddings(("q",), query_vectors[len(during) % queries][None], "model")
        during.append(seconds(lambda query=query: index.search(query, TOP_K)))
    result["compacting s, with searches"] = round(time.perf_counter() - start, 2)
    result["searches while compacting"] = percentiles(during)
    result["peak memory MB"] = round(peak_memory_mb())
    return result


def searches(index: Index, queries: Vectors, vectors: Vectors, masks: dict[str, np.ndarray]) -> dict[str, Any]:
    result = {}
    for name, where in FILTERS.items():
        rows = np.flatnonzero(masks[name])
        exact = rows[np.argsort(-(queries @ vectors[rows].T), axis=1)[:, :TOP_K]]
        hits = index.search(Embeddings(tuple(f"q{n}" for n in range(len(queries))), queries, "model"), TOP_K, where)
        recall = np.mean(
            [len({int(i) for i in a} & set(b)) / TOP_K for a, b in zip(hits.ids, exact.tolist(), strict=True)]
        )
        result[name] = {"recall": round(float(recall), 4), **timings(index, queries, where)}
    return result


def timings(index: Index, queries: Vectors, where: str | None) -> dict[str, float]:
    embeddings = [Embeddings(("q",), query[None], "model") for query in queries]
    return percentiles([seconds(lambda query=query: index.search(query, TOP_K, where)) for query in embeddings])


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{q} ms": round(1e3 * float(np.percentile(values, q)), 3) for q in (50, 99)}


if __name__ == "__main__":
    main()
