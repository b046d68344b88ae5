"""From FAISS's float32 candidates to the exact ranking: the same order on every machine, ties by item id."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lookalike.index.approximate import ApproximateIndex
from lookalike.index.flat import FlatIndex
from lookalike.index.flat_file import Rows
from lookalike.index.tuning import SPARE
from lookalike.types import Vectors

_STEPS = 1_000_000  # cosine is compared in steps of one millionth, as where models are measured
_FAR = 10 * _STEPS  # below every cosine
_SPARE = 15  # candidates fetched beyond those asked for, so that a small tie needs no second look
_DEEPER = 4  # how many times as many candidates the next look takes
_CELLS = 4_000_000  # query × candidate cells in memory at once
_BLOCK = 8192  # candidates cast to float64 at once


def rank(flat: FlatIndex, queries: Vectors, own: Rows, top_k: int) -> tuple[Rows, npt.NDArray[np.float32]]:
    """Return rows and scores `(n_query, top_k)`, ordered by falling score, then row.

    FAISS chooses candidates in float32; their cosine is taken again in float64 and rounded to millionths. Where an
    item that was not fetched could still tie with the last hit, more are fetched.

    Args:
        flat: the index; rows stand in the order of item ids, so that a lower row wins a tie.
        queries: `(n_query, dim)` float32, unit length.
        own: `(n_query,)` row of the query itself, -1 where it is not in the index.
        top_k: at most the size of the index, less one where `own` names a row.

    """
    rows = np.empty((len(queries), top_k), dtype=np.int64)
    steps = np.empty((len(queries), top_k), dtype=np.int64)
    pending = np.arange(len(queries))
    fetch = top_k + 1 + _SPARE
    while len(pending):
        fetch = min(fetch, len(flat))
        open_ended: list[int] = []
        chunk = max(1, _CELLS // fetch)
        for start in range(0, len(pending), chunk):
            part = pending[start : start + chunk]
            near, found = flat.nearest(queries[part], fetch)
            for query, lowest, candidates in zip(part.tolist(), near[:, -1].tolist(), found, strict=True):
                best, exact = _exact(flat, queries[query], candidates[candidates != own[query]], top_k)
                rows[query], steps[query] = best, exact
                if fetch < len(flat) and lowest >= exact[-1] / _STEPS - _slack(flat.dim):
                    open_ended.append(query)
        pending = np.array(open_ended, dtype=np.int64)
        fetch *= _DEEPER
    return rows, (steps / _STEPS).astype(np.float32)


def rank_approximately(
    index: ApproximateIndex, queries: Vectors, own: Rows | None, top_k: int
) -> tuple[Rows, npt.NDArray[np.float32]]:
    """Return rows and scores as `rank` does, of what an approximate index finds, by the vectors as it keeps them.

    Where the last that was fetched ties with the last hit, more are fetched.

    Args:
        index: rows stand in the order of item ids, so that a lower row wins a tie.
        queries: `(n_query, dim)` float32, unit length.
        own: `(n_query,)` row of the query itself, -1 where it is not in the index; None where none of them is.
        top_k: at most the size of the index, less one where `own` names a row.

    """
    fetch = min(top_k + (own is not None) + SPARE, len(index))
    rows, steps, open_ended = _look(index, queries, own, top_k, fetch)
    while fetch < len(index) and open_ended.any():
        fetch = min(fetch * _DEEPER, len(index))
        pending = np.flatnonzero(open_ended)
        rows[pending], steps[pending], open_ended[pending] = _look(
            index, queries[pending], None if own is None else own[pending], top_k, fetch
        )
    return rows, (steps / _STEPS).astype(np.float32)


def _look(
    index: ApproximateIndex, queries: Vectors, own: Rows | None, top_k: int, fetch: int
) -> tuple[Rows, npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return rows and cosine in millionths `(n_query, top_k)`, and for which queries the last fetched is as near."""
    near, found = index.nearest(queries, fetch)
    steps = np.rint(np.multiply(near, -_STEPS, dtype=np.float64))  # negative, so that what sorts first is nearest
    lowest = steps[:, -1].copy()
    if own is not None:
        steps[found == own[:, None]] = _FAR
    places = np.arange(len(found))[:, None], np.lexsort((found, steps))[:, :top_k]
    best = steps[places]
    return found[places], 0.0 - best, lowest <= best[:, -1]


def _exact(flat: FlatIndex, query: Vectors, candidates: Rows, top_k: int) -> tuple[Rows, Rows]:
    """Return the best rows of the candidates and their cosine in millionths, both `(top_k,)`."""
    wide = query.astype(np.float64)
    steps = np.empty(len(candidates), dtype=np.int64)
    for start in range(0, len(candidates), _BLOCK):
        part = slice(start, start + _BLOCK)
        steps[part] = np.rint(flat.vectors(candidates[part]).astype(np.float64) @ wide * _STEPS)
    order = np.lexsort((candidates, -steps))[:top_k]
    return candidates[order], steps[order]


def _slack(dim: int) -> float:
    """How far below the last hit's rounded score a float32 score can be while the item still ties with it.

    A float32 sum of `dim` products of unit vectors is off by at most `dim` roundings, whatever their order (Higham
    2002, section 3.1); half a millionth goes to rounding to millionths, the rest is room for lengths near 1.
    """
    return 1.01 * dim * 2.0**-24 + 1e-6
