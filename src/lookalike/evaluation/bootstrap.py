"""Intervals of means by the percentile bootstrap over queries, and its paired form for two candidates.

B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lookalike.errors import DataError, OptionError

_ROUNDING = 1e-12
_CHUNK_CELLS = 2_000_000  # resamples x queries in memory at once


def bootstrap_interval(
    values: npt.ArrayLike, *, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean over queries.

    Args:
        values: `(n_query,)` one value per query.
        seed: seed of the resamples; the same seed gives the same interval.
        resamples: number of times that the queries are drawn with replacement.
        level: share of resampled means inside the interval.

    Returns:
        low and high.

    Raises:
        DataError: there is no value, or one is not finite.
        OptionError: a level outside 0 to 1, or no resamples.

    """
    array = _as_finite(values)
    if not 0 < level < 1:
        raise OptionError(f"`level` must be between 0 and 1, got {level}.", argument="level")
    if resamples < 1:
        raise OptionError(f"`resamples` must be at least 1, got {resamples}.", argument="resamples")
    offset = array[0]  # the mean of a constant is then the constant to the last bit
    means = _resampled_means(array - offset, seed, resamples)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2]) + offset
    return float(low), float(high)


@dataclass(frozen=True)
class Comparison:
    """Two candidates on the same queries.

    Attributes:
        difference: mean of the first minus mean of the second.
        low: lower end of the interval of the difference.
        high: upper end.

    """

    difference: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether 0 lies outside the interval."""
        return not self.low <= 0 <= self.high


def paired_bootstrap(
    a: npt.ArrayLike, b: npt.ArrayLike, *, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> Comparison:
    """Compare two candidates by the paired bootstrap: each drawn query brings both of its values.

    Args:
        a: `(n_query,)` values of the first candidate.
        b: `(n_query,)` values of the second, for the same queries in the same order.
        seed: seed of the resamples.
        resamples: number of times that the queries are drawn with replacement.
        level: share of resampled differences inside the interval.

    Raises:
        DataError: the lengths differ, there is no value, or one is not finite.
        OptionError: a level outside 0 to 1, or no resamples.

    """
    first, second = _as_finite(a), _as_finite(b)
    if first.shape != second.shape:
        raise DataError(
            f"a paired comparison needs the same queries on both sides, got {len(first)} and {len(second)} values."
        )
    differences = first - second
    interval = bootstrap_interval(differences, seed=seed, resamples=resamples, level=level)
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


def _resampled_means(values: npt.NDArray[np.float64], seed: int, resamples: int) -> npt.NDArray[np.float64]:
    """Return `(resamples,)` means; chunks draw from one stream, so their size does not change the result."""
    random = np.random.default_rng(seed)
    step = max(1, _CHUNK_CELLS // len(values))
    means = []
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = random.integers(0, len(values), size=(count, len(values)))
        means.append(values[drawn].mean(axis=1))
    return np.concatenate(means)
