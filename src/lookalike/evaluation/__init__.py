"""Measuring retrieval: measures, exact judged rankings, intervals, and submission files. NumPy only."""

from lookalike.evaluation.evaluate import DEFAULT, evaluate_embeddings
from lookalike.evaluation.intervals import Comparison, bootstrap_interval, compare
from lookalike.evaluation.measures import REGISTRY, Depth, Measure, Row, parse_measures
from lookalike.evaluation.ranking import Judged, judge
from lookalike.evaluation.result import ClassMean, Evaluation
from lookalike.evaluation.submission import (
    Submission,
    build_submission,
    read_submission,
    submission_format,
    validate_submission,
    write_submission,
)

__all__ = [
    "DEFAULT",
    "REGISTRY",
    "ClassMean",
    "Comparison",
    "Depth",
    "Evaluation",
    "Judged",
    "Measure",
    "Row",
    "Submission",
    "bootstrap_interval",
    "build_submission",
    "compare",
    "evaluate_embeddings",
    "judge",
    "parse_measures",
    "read_submission",
    "submission_format",
    "validate_submission",
    "write_submission",
]
