"""Measuring candidates against each other, choosing one, and reporting it."""

from lookalike.bench.benchmark import Benchmark, benchmark
from lookalike.bench.selection import Choice, select
from lookalike.bench.trial import Scores, Timing, Trial

__all__ = ["Benchmark", "Choice", "Scores", "Timing", "Trial", "benchmark", "select"]
