"""Measure a changed index: searches with and without filters, changes, opening and compacting.

    python benchmarks/stores.py [--count 100000] [--queries 200] [--only-recall] [--out FOLDER]

Vectors of 512 dimensions in groups. The filters allow 50 % and 5 % of the items at random, and the items of one group,
0.5 %, which are near each other and far from most queries. Recall is that of the exact 10 nearest, by NumPy.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from contest import add_out_option, peak_memory_mb, save_result
from lookalike.benchmark.timing import machine
from lookalike.index.index import Index
from lookalike.progress import SILENT
from lookalike.types import Embeddings, Vectors, l2_normalize

DIM, TOP_K, GROUPS = 512, 10, 200
FILTERS = {"all": None, "50 %": "half == 1", "5 %": "twentieth == 1", "0.5 %, one group": "label == 'group 7'"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--only-recall", action="store_true", help="measure no times, for a machine that is in use")
    add_out_option(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        result = measure(Path(work) / "index", options.count, options.queries, times=not options.only_recall)
    for name, value in result.items():
        print(f"{name}: {value}")
    save_result(f"stores-{options.count}", {"machine": machine(), **result}, complete=True, folder=options.out)


def measure(folder: Path, count: int, queries: int, *, times: bool) -> dict[str, Any]:
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
    search = partial(searches, queries=query_vectors, vectors=vectors, masks=masks, times=times)
    index, figures = Index.load(folder), {}
    recall = {"not changed yet": search(index)}
    figures["the first change, s"] = seconds(index.prepare_changes)
    recall["changed, exact"] = search(index)
    figures["compacting, s"] = seconds(lambda: index.compact(min_recall=0.99, progress=SILENT))
    recall[f"changed, {index.key}"] = search(index)
    result = {"count": count, "dim": DIM, "searches": recall}
    index.close()
    if times:
        figures |= changes(folder, draw(3000)[1], query_vectors)
        result["figures"] = {name: round(value, 3) for name, value in figures.items()}
    return result


def changes(folder: Path, extra: Vectors, queries: Vectors) -> dict[str, float]:
    """Measure changes of an index, and searches meanwhile."""
    figures = {"opening, s": seconds(lambda: Index.load(folder).close())}
    index, reader = Index.load(folder), Index.load(folder)
    one = [Embeddings((f"one {n}",), extra[n : n + 1], "model") for n in range(200)]
    figures |= percentiles("adding one", [seconds(lambda item=item: index.add(item)) for item in one])

    def until_visible(n: int) -> float:
        index.add(Embeddings((f"visible {n}",), extra[n : n + 1], "model"))
        query = Embeddings(("q",), extra[n : n + 1], "model")
        start = time.perf_counter()
        assert reader.search(query, 1)[0][0].id == f"visible {n}"
        return time.perf_counter() - start

    figures |= percentiles("a search by another reader after a change", [until_visible(n) for n in range(200, 400)])
    many = Embeddings(tuple(f"many {n}" for n in range(2000)), extra[1000:], "model")
    figures["adding many at once, per s"] = 2000 / seconds(lambda: index.add(many))
    figures |= percentiles("a search after 2,400 changes", timings(index, queries, None))
    some = [many.take(many.ids[n : n + 1]) for n in range(1000)]
    works = {
        "adding one after the other": lambda: [index.add(item, replace=True) for item in some],
        "compacting": lambda: index.compact(progress=SILENT),
    }
    for name, where in (("a search", None), ("a filtered search", FILTERS["5 %"])):
        for what, work in works.items():
            thread, during = threading.Thread(target=work), []
            start = time.perf_counter()
            thread.start()
            while thread.is_alive():
                during += timings(index, queries[len(during) % len(queries)][None], where)
            figures[f"{what} during searches, s"] = time.perf_counter() - start
            figures |= percentiles(f"{name} while {what}", during)
    return figures | {"peak memory, MB": peak_memory_mb()}


def searches(
    index: Index, queries: Vectors, vectors: Vectors, masks: dict[str, np.ndarray], *, times: bool
) -> dict[str, dict[str, float]]:
    """Return recall and times by filter."""
    result = {}
    for name, where in FILTERS.items():
        rows = np.flatnonzero(masks[name])
        exact = rows[np.argsort(-(queries @ vectors[rows].T), axis=1)[:, :TOP_K]]
        hits = index.search(Embeddings(tuple(f"q{n}" for n in range(len(queries))), queries, "model"), TOP_K, where)
        recall = np.mean(
            [len({int(i) for i in a} & set(b)) / TOP_K for a, b in zip(hits.ids, exact.tolist(), strict=True)]
        )
        result[name] = {"recall": round(float(recall), 4)}
        if times:
            result[name] |= percentiles("", timings(index, queries, where))
    return result


def timings(index: Index, queries: Vectors, where: str | None) -> list[float]:
    embeddings = [Embeddings(("q",), query[None], "model") for query in queries]
    return [seconds(lambda query=query: index.search(query, TOP_K, where)) for query in embeddings]


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def percentiles(name: str, times: list[float]) -> dict[str, float]:
    return {f"{name}, p{q} ms".lstrip(", "): round(1e3 * float(np.percentile(times, q)), 3) for q in (50, 99)}


if __name__ == "__main__":
    main()
