"""How sure a mean is: the percentile bootstrap over queries, and its paired form for two candidates.

B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lookalike.errors import DataError, OptionError

_ROUNDING = 1e-12
_CHUNK_CELLS = 2_000_000  # resamples × queries in memory at once


def bootstrap_interval(
    values: npt.ArrayLike, *, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean over queries.

    Args:
        values: `(n_query,)` one value a query.
        seed: decides the resamples; the same seed gives the same interval.
        resamples: how many times the queries are drawn anew, with replacement.
        level: share of resampled means inside the interval.

    Returns:
        low and high.

    Raises:
        DataError: when there is no value, or one that is not finite.
        OptionError: for a level outside 0 to 1 or no resamples.

    """
    array = _checked(values)
    if not 0 < level < 1:
        raise OptionError(f"the level of an interval must lie between 0 and 1, got {level}.")
    if resamples < 1:
        raise OptionError(f"an interval needs at least 1 resample, got {resamples}.")
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


def compare(
    a: npt.ArrayLike, b: npt.ArrayLike, *, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> Comparison:
    """Compare two candidates by the paired bootstrap: queries are drawn anew, each with both of its values.

    Args:
        a: `(n_query,)` values of the first candidate.
        b: `(n_query,)` values of the second, for the same queries in the same order.
        seed: decides the resamples.
        resamples: how many times the queries are drawn anew.
        level: share of resampled differences inside the interval.

    Raises:
        DataError: when the lengths differ, there is no value, or one is not finite.
        OptionError: for a level outside 0 to 1 or no resamples.

    """
    first, second = _checked(a), _checked(b)
    if first.shape != second.shape:
        raise DataError(
            f"a paired comparison needs the same queries on both sides, got {len(first)} and {len(second)} values."
        )
    differences = first - second
    interval = bootstrap_interval(differences, seed=seed, resamples=resamples, level=level)
    # thirds do not add up exactly: without this a tie of 1e-18 would count as a difference, and as a significant one
    return Comparison(*(0.0 if abs(x) < _ROUNDING else x for x in (float(differences.mean()), *interval)))


def _checked(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise DataError(f"an interval needs one value for each of at least one query, got shape {array.shape}.")
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise DataError(f"an interval needs finite values, but {bad} of {len(array)} are not.")
    return array


def _resampled_means(values: npt.NDArray[np.float64], seed: int, resamples: int) -> npt.NDArray[np.float64]:
    """Return `(resamples,)` means; chunks draw from one stream, so their size does not change the result."""
    random = np.random.default_rng(seed)
    step = max(1, _CHUNK_CELLS // len(values))
    parts = []
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn = random.integers(0, len(values), size=(count, len(values)))
        parts.append(values[drawn].mean(axis=1))
    return np.concatenate(parts)
