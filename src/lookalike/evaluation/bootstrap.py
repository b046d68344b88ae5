"""Intervals of means by the percentile bootstrap over queries, and its paired form for two candidates.

B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lookalike.errors import DataError
from lookalike.types import Comparison

_FEW = 10  # with fewer queries, resamples repeat the same few values and the interval is too narrow
_Z = 1.959964  # 97.5 % quantile of the normal distribution
_RESAMPLES = 2000
_LEVEL = 0.95
_SEED = 0
_ROUNDING = 1e-12
_CHUNK_CELLS = 2_000_000  # resamples x queries in memory at once


def mean_interval(values: npt.ArrayLike, max_value: float = 1.0) -> tuple[float, float]:
    """Return low and high of a 95 % interval of the mean of `(n_query,)` values between 0 and `max_value`.

    It is the bootstrap interval, but for fewer than ten queries, or if all values are equal, the score interval (Wilson
    1927): resampling equal values gives an interval without width. It assumes the largest variance that values in this
    range can have, so that it is wide enough for values other than 0 and `max_value`, too.
    """
    array = _as_finite(values)
    n = len(array)
    if n >= _FEW and array.min() < array.max():
        return bootstrap_interval(array)
    share = min(1.0, max(0.0, float(array.mean()) / max_value))
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z * np.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
    low, high = float(centre - half), float(centre + half)
    return max_value * max(0.0, low), max_value * (1.0 if share == 1 else min(1.0, high))  # rounding can miss 1


def bootstrap_interval(values: npt.ArrayLike) -> tuple[float, float]:
    """Return low and high of the 95 % percentile bootstrap interval of the mean of `(n_query,)` finite values."""
    array = _as_finite(values)
    offset = array[0]  # the mean of a constant is then the constant to the last bit
    random = np.random.default_rng(_SEED)
    step = max(1, _CHUNK_CELLS // len(array))
    means = []
    for start in range(0, _RESAMPLES, step):  # chunks draw from one stream, so their size does not change the result
        rows = random.integers(0, len(array), size=(min(step, _RESAMPLES - start), len(array)))
        means.append((array - offset)[rows].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]) + offset
    return float(low), float(high)


def paired_bootstrap(a: npt.ArrayLike, b: npt.ArrayLike) -> Comparison:
    """Compare two candidates by their values `(n_query,)` for the same queries: each drawn query brings both values."""
    first, second = _as_finite(a), _as_finite(b)
    if first.shape != second.shape:
        raise DataError(
            f"a paired comparison needs the same queries on both sides, got {len(first)} and {len(second)} values."
        )
    differences = first - second
    interval = bootstrap_interval(differences)
    # thirds do not add up exactly: without this a tie of 1e-18 would be a significant difference
    return Comparison(*(0.0 if abs(x) < _ROUNDING else x for x in (float(differences.mean()), *interval)))


def _as_finite(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise DataError(f"an interval needs one value per query and at least one query, got shape {array.shape}.")
    n_bad = int((~np.isfinite(array)).sum())
    if n_bad:
        raise DataError(f"an interval needs finite values, but {n_bad} of {len(array)} are not.")
    return array
