"""How far predicted probabilities agree with what happens: reliability curve, calibration error, answered queries.

A. Niculescu-Mizil and R. Caruana, Predicting good probabilities with supervised learning, ICML 2005 (the curve);
C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, On calibration of modern neural networks, ICML 2017 (the error).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

BINS = 10
PRECISION = 0.95
_TINY = 1e-12


@dataclass(frozen=True)
class ReliabilityBin:
    """The hits whose probability lies in one tenth of the range from 0 to 1.

    Attributes:
        probability: their mean probability.
        matches: share of them that match.
        share: of all hits that are in the bin.

    """

    probability: float
    matches: float
    share: float


@dataclass(frozen=True)
class Answered:
    """Queries that are answered where only a first hit above a threshold is an answer.

    Attributes:
        min_probability: the threshold; None if no threshold has the precision.
        precision: share of the answers that match.
        present: share answered of the queries whose class is in the gallery.
        absent: share answered of the queries whose class is not in the gallery: all of these answers are wrong.

    """

    min_probability: float | None
    precision: float
    present: float
    absent: float


@dataclass(frozen=True)
class Reliability:
    """How good the probabilities of first hits are.

    Attributes:
        error: expected calibration error: the mean over the bins of the distance of probability and matches.
        log_loss: mean negative logarithm of the probability of what happened.
        bins: the reliability curve, without empty bins.
        answered: queries that are answered at a precision of 95 %.

    """

    error: float
    log_loss: float
    bins: tuple[ReliabilityBin, ...]
    answered: Answered

    def __str__(self) -> str:
        answered = self.answered
        return (
            f"calibration error {self.error:.4f}; at a precision of {PRECISION:.0%}, {answered.present:.1%} of the "
            f"queries are answered, and {answered.absent:.1%} of those whose class is taken out of the gallery"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a plain structure for JSON."""
        return asdict(self)


def reliability_bins(probabilities: Floats, is_match: Bools) -> tuple[ReliabilityBin, ...]:
    """Return the curve of hits, `(n,)` each, in ten bins of equal width; empty ones are omitted."""
    number = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
    sums = [np.bincount(number, part, BINS) for part in (np.ones(len(number)), probabilities, is_match)]
    return tuple(
        ReliabilityBin(float(predicted / count), float(matches / count), float(count / len(number)))
        for count, predicted, matches in zip(*sums, strict=True)
        if count
    )


def calibration_error(bins: tuple[ReliabilityBin, ...]) -> float:
    """Return the expected calibration error of a curve."""
    return sum(b.share * abs(b.probability - b.matches) for b in bins)


def log_loss(probabilities: Floats, is_match: Bools) -> float:
    """Return the mean negative logarithm of the probability of what happened."""
    happened = np.where(is_match, probabilities, 1 - probabilities)
    return float(-np.log(np.maximum(happened, _TINY)).mean())


def answered_at(probabilities: Floats, is_match: Bools, is_present: Bools, precision: float = PRECISION) -> Answered:
    """Return how many queries can be answered at a precision, by the best threshold for their first hits, `(n,)` each.

    Queries with equal probabilities are answered together.
    """
    order = np.argsort(-probabilities, kind="stable")
    sorted_probabilities, matches = probabilities[order], np.cumsum(is_match[order])
    counts = np.arange(1, len(order) + 1)
    last_of_tie = np.append(sorted_probabilities[1:] < sorted_probabilities[:-1], True)
    possible = np.flatnonzero(last_of_tie & (matches >= precision * counts - _TINY))
    if not len(possible):
        return Answered(None, 1.0, 0.0, 0.0)
    best = int(possible[-1])
    threshold = float(sorted_probabilities[best])
    return answered_above(probabilities, is_match, is_present, threshold)


def answered_above(probabilities: Floats, is_match: Bools, is_present: Bools, threshold: float) -> Answered:
    """Return how many queries a threshold answers, from their first hits, `(n,)` each."""
    answered = probabilities >= threshold

    def share(part: Bools) -> float:
        return float(answered[part].mean()) if part.any() else 0.0

    precision = float(is_match[answered].mean()) if answered.any() else 1.0
    return Answered(threshold, precision, share(is_present), share(~is_present))
