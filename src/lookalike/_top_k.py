"""The one ranking rule: nearest by cosine first, rounded to millionths so that ties are ties on every machine.

Equal cosines are ordered by row. Where rows are sorted by item id, ties are therefore broken by item id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

STEPS = 1_000_000  # cosines are compared in whole millionths
LAST = -10 * STEPS  # below every cosine: ranks a query behind all others in its own hits
_BLOCK = 8192  # vectors cast to float64 at once
_CELLS = 4_000_000  # query x vector products in memory at once


def cosine_steps(queries: Floats, take: Callable[[Ints], Floats], rows: Ints) -> Ints:
    """Return the cosines `(n_query, n_row)` in whole millionths; `take` returns the vectors of rows.

    Products are summed in float64: in float32 the order of summation, which a BLAS selects by shape, changes the sixth
    decimal, and equal images would not always tie.
    """
    wide = queries.astype(np.float64)
    steps = np.empty((len(queries), len(rows)), dtype=np.int64)
    for start in range(0, len(rows), _BLOCK):
        part = slice(start, start + _BLOCK)
        steps[:, part] = np.rint(wide @ take(rows[part]).astype(np.float64).T * STEPS)
    return steps


def best_first(steps: Ints, rows: Ints, count: int) -> tuple[Ints, Ints]:
    """Return the rows and steps `(n_query, count)` with the highest steps, ordered by descending step, then row.

    Step and row are packed in one integer, so that a single sort orders by both and no two are equal. `steps` come from
    `cosine_steps` and are overwritten; `rows`, `(n,)` or `(n_query, n)`, are distinct within a query.
    """
    size = int(rows.max(initial=0)) + 1
    keys = np.negative(steps, out=steps)
    keys *= size
    keys += rows
    if count < keys.shape[1]:
        keys.partition(count - 1, axis=1)
    best = np.sort(keys[:, :count], axis=1)
    return best % size, -(best // size)


def nearest_in_blocks(queries: Floats, blocks: Iterable[Floats], count: int) -> tuple[Floats, Ints]:
    """Compare queries with every vector, in consecutive blocks `(n, dim)`, in float32.

    Returns inner products and rows `(n_query, count)`, best first; fewer columns where there are fewer vectors. The
    order of equal products is undefined.
    """
    scores = np.empty((len(queries), 0), dtype=np.float32)
    rows = np.empty((len(queries), 0), dtype=np.int64)
    start = 0
    for block in blocks:
        step = max(1, _CELLS // len(block))
        parts = [_largest(queries[n : n + step] @ block.T, count) for n in range(0, max(1, len(queries)), step)]
        block_scores, block_rows = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        if start:
            scores, columns = _largest(np.concatenate([scores, block_scores], axis=1), count)
            rows = np.take_along_axis(np.concatenate([rows, block_rows + start], axis=1), columns, axis=1)
        else:
            scores, rows = block_scores, block_rows
        start += len(block)
    return scores, rows


def take_allowed(scores: Floats, rows: Ints, allowed: npt.NDArray[np.bool_], count: int) -> tuple[Floats, Ints]:
    """Return the first `count` allowed rows of each query, best first, filled up with -inf and -1, as `rows` may be."""
    dropped = (rows < 0) | ~allowed[rows]
    columns = np.argsort(dropped, axis=1, kind="stable")[:, :count]
    dropped = np.take_along_axis(dropped, columns, axis=1)
    scores, rows = np.take_along_axis(scores, columns, axis=1), np.take_along_axis(rows, columns, axis=1)
    return np.where(dropped, np.float32(-np.inf), scores), np.where(dropped, -1, rows)


def _largest(values: Floats, count: int) -> tuple[Floats, Ints]:
    """Return the largest values of each row of a matrix and their columns, descending."""
    lines = np.arange(len(values))[:, None]
    columns = np.argpartition(values, -min(count, values.shape[1]), axis=1)[:, -count:]
    values = values[lines, columns]
    order = np.argsort(-values, axis=1, kind="stable")
    return values[lines, order], columns[lines, order]
