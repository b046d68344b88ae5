"""From cosines to probabilities: fitted on the first hits of validation queries, with and without their class.

J. Platt, Probabilistic outputs for support vector machines and comparisons to regularized likelihood methods, 1999.
What else was tried, and how it measured, is in docs/log.md.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike._top_k import LAST, STEPS, best_first, cosine_steps
from lookalike.data.dataset import Dataset, Split
from lookalike.evaluation.evaluation import split_validation
from lookalike.evaluation.ranking import find_relevance
from lookalike.evaluation.reliability import (
    Bools,
    Floats,
    Reliability,
    answered_at,
    calibration_error,
    log_loss,
    reliability_bins,
)
from lookalike.progress import Progress
from lookalike.types import Calibration, Embeddings

MIN_QUERIES = 20  # fewer say too little
FOLDS = 5
_CELLS = 4_000_000  # query x gallery cells in memory at once
_ITERATIONS = 100


@dataclass(frozen=True, eq=False)
class FirstHits:
    """The first hit of each query in two galleries: with the class of the query, and without it.

    Attributes:
        scores: `(n,)` cosines.
        is_match: `(n,)` whether query and hit have the same label.
        is_present: `(n,)` whether the class of the query was in the gallery.
        labels: `(n,)` label of the query.

    """

    scores: Floats
    is_match: Bools
    is_present: Bools
    labels: npt.NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def queries(self) -> int:
        """Number of queries."""
        return int(self.is_present.sum())

    def take(self, rows: npt.NDArray[Any]) -> FirstHits:
        """Return some of them."""
        return FirstHits(**{name: array[rows] for name, array in vars(self).items()})


def judge_first_hits(
    queries: Embeddings,
    gallery: Embeddings,
    query_labels: Mapping[str, str],
    gallery_labels: Mapping[str, str],
    *,
    same_file_ids: Mapping[str, Collection[str]] | None = None,
) -> FirstHits:
    """Search the gallery for each query twice, with its class and without, and judge the first hits by labels.

    Arguments, errors and the queries that count are as in `evaluate_embeddings`. Gallery items without a label are
    skipped.
    """
    relevance = find_relevance(queries, gallery, query_labels, gallery_labels, same_file_ids)
    columns = np.arange(relevance.gallery)
    labels = np.array(relevance.query_labels, dtype=object)
    step = max(1, _CELLS // relevance.gallery)
    parts: list[FirstHits] = []
    for start in range(0, len(relevance), step):
        chunk = slice(start, start + step)
        rows = relevance.query_rows[chunk]
        steps = cosine_steps(queries.vectors[rows], gallery.vectors.__getitem__, relevance.gallery_rows)
        steps[:, relevance.gallery_codes < 0] = LAST
        first, last = np.searchsorted(relevance.same_file[:, 0], (start, start + step))
        positions, own_columns = relevance.same_file[first:last].T
        steps[positions - start, own_columns] = LAST
        of_class = relevance.gallery_codes == relevance.query_codes[chunk, None]
        for is_present in (True, False):
            searched = steps.copy() if is_present else np.where(of_class, LAST, steps)
            hits, hit_steps = (part[:, 0] for part in best_first(searched, columns, 1))
            exists = hit_steps != LAST  # a gallery of one class has nothing without it
            parts.append(
                FirstHits(
                    scores=hit_steps[exists] / STEPS,
                    is_match=of_class[np.arange(len(rows)), hits][exists],
                    is_present=np.full(int(exists.sum()), is_present),
                    labels=labels[chunk][exists],
                )
            )
    return FirstHits(**{name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])})


def fit_calibration(hits: FirstHits) -> Calibration | None:
    """Fit a calibration; None where cosines are not higher for matches, or where all hits match or none does.

    Its error is measured on classes that it was not fitted on, in five folds.
    """
    fitted = _fit(hits)
    if fitted is None:
        return None
    error = calibration_error(reliability_bins(cross_predict(hits), hits.is_match))
    return Calibration(*fitted, queries=hits.queries, error=error)


def _fit(hits: FirstHits) -> tuple[float, float] | None:
    """Return slope and intercept, or None."""
    if not len(hits) or hits.is_match.all() or not hits.is_match.any():
        return None
    slope, intercept = fit_logistic(hits.scores, hits.is_match)
    return (slope, intercept) if slope > 0 and np.isfinite(slope + intercept) else None


def fit_logistic(scores: Floats, is_match: Bools) -> tuple[float, float]:
    """Return slope and intercept of a logistic regression of `(n,)` matches on scores, by Newton's method.

    The targets are Platt's: not 1 and 0, but (n₊ + 1) / (n₊ + 2) and 1 / (n₋ + 2), so that the slope is finite where a
    threshold separates matches from the others.
    """
    positive, negative = int(is_match.sum()), int((~is_match).sum())
    targets = np.where(is_match, (positive + 1) / (positive + 2), 1 / (negative + 2))
    centre, scale = float(scores.mean()), float(scores.std()) or 1.0
    design = np.stack([(scores - centre) / scale, np.ones_like(scores)], axis=1)

    def loss(parameters: Floats) -> float:
        logits = design @ parameters
        return float((np.logaddexp(0, logits) - targets * logits).sum())

    parameters = np.zeros(2)
    current = loss(parameters)
    for _ in range(_ITERATIONS):
        probabilities = 1 / (1 + np.exp(-np.clip(design @ parameters, -700, 700)))
        curvature = probabilities * (1 - probabilities)
        hessian = (design * curvature[:, None]).T @ design
        step = np.linalg.lstsq(hessian, design.T @ (probabilities - targets), rcond=None)[0]
        size = 1.0
        while (reached := loss(parameters - size * step)) > current and size > 1e-6:
            size /= 2
        if reached >= current:
            break
        parameters, current = parameters - size * step, reached
    slope = float(parameters[0]) / scale
    return slope, float(parameters[1]) - slope * centre


def cross_predict(hits: FirstHits) -> Floats:
    """Return `(n,)` probabilities, each by a calibration fitted on the queries of other classes."""
    predicted = np.full(len(hits), hits.is_match.mean())
    for rows in _folds(hits):
        fitted = _fit(hits.take(~rows))
        if fitted is not None:
            predicted[rows] = Calibration(*fitted, queries=0, error=0.0).probabilities(hits.scores[rows])
    return predicted


def _folds(hits: FirstHits) -> Iterator[Bools]:
    """Yield which hits are in each fold: those of the queries of some classes."""
    classes = sorted(set(hits.labels.tolist()), key=lambda label: (zlib.crc32(str(label).encode()), label))
    numbers = {label: number % FOLDS for number, label in enumerate(classes)}
    fold_of_hits = np.array([numbers[label] for label in hits.labels])
    for number in range(min(FOLDS, len(classes))):
        yield fold_of_hits == number


def measure_reliability(probabilities: Floats, hits: FirstHits) -> Reliability:
    """Compare probabilities `(n,)` with the first hits that they are for."""
    bins = reliability_bins(probabilities, hits.is_match)
    return Reliability(
        error=calibration_error(bins),
        log_loss=log_loss(probabilities, hits.is_match),
        bins=bins,
        answered=answered_at(probabilities, hits.is_match, hits.is_present),
    )


def validation_hits(data: Dataset, validation: Embeddings, training: Embeddings) -> FirstHits:
    """Judge the first hits of the validation queries.

    The gallery is the other validation images and the training images: validation alone is small and, where whole
    classes were cut, has few classes, so that first hits would be less similar than in an index. A validation gallery
    of another style is searched alone.
    """
    queries, gallery = split_validation(data, validation)
    labels = data.labels(Split.VALIDATION)
    gallery_labels = dict(labels)
    if not data.validation_query_ids:
        vectors = np.concatenate([gallery.vectors, training.vectors])
        gallery = replace(gallery, ids=(*gallery.ids, *training.ids), vectors=vectors)
        gallery_labels |= data.labels(Split.TRAINING)
    return judge_first_hits(queries, gallery, labels, gallery_labels, same_file_ids=data.same_file_ids)


def calibrate(data: Dataset, validation: Embeddings, training: Embeddings, progress: Progress) -> Calibration | None:
    """Fit a calibration on the embeddings of validation and training images; say why there is none."""
    hits = validation_hits(data, validation, training)
    if hits.queries < MIN_QUERIES:
        progress.info(
            f"no calibration: it needs {MIN_QUERIES} validation queries, got {hits.queries}; hits have no probability"
        )
        return None
    calibration = fit_calibration(hits)
    if calibration is None:
        progress.info("no calibration: cosines of validation matches are not higher; hits have no probability")
    return calibration
