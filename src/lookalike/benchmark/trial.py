"""A trial: one candidate of a benchmark with its accuracy and time, a value that is stored as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from lookalike._records import read_record
from lookalike.errors import OptionError, StorageError
from lookalike.evaluation.bootstrap import paired_bootstrap
from lookalike.evaluation.evaluation import Evaluation
from lookalike.evaluation.measures import Measure
from lookalike.models.info import TrainingState
from lookalike.types import Comparison, Estimate

# Version of the files in trials/. A file of another version is ignored, so that a resumed benchmark measures again.
VERSION = 4

TrialKind = Literal["single", "ensemble"]


@dataclass(frozen=True)
class SplitMeasures:
    """Measures of one candidate on one split: a set of queries and its gallery."""

    measures: Mapping[str, Estimate]  # mean and interval by measure
    queries: int
    excluded: int  # number of queries without a relevant image in the gallery
    gallery: int
    # by measure, one value per measured query, in the order of `query_ids`; empty in a summary
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    query_ids: tuple[str, ...] = ()  # the measured queries; empty in a summary

    @classmethod
    def of(cls, evaluation: Evaluation) -> SplitMeasures:
        """Return the measures of an evaluation."""
        return cls(
            measures=dict(evaluation.measures),
            queries=len(evaluation),
            excluded=len(evaluation.excluded),
            gallery=evaluation.gallery,
            values={name: tuple(values.tolist()) for name, values in evaluation.values.items()},
            query_ids=tuple(evaluation.query_ids),
        )

    def summary(self) -> SplitMeasures:
        """Return the measures without values per query."""
        return replace(self, values={}, query_ids=())

    def estimate(self, measure: str) -> Estimate:
        """Return mean and interval of a measure."""
        if measure not in self.measures:
            raise OptionError(
                f"{measure!r} was not measured; available: {', '.join(sorted(self.measures))}.", argument="measure"
            )
        return self.measures[measure]

    def mean(self, measure: str) -> float:
        """Return the mean of a measure."""
        return self.estimate(measure).mean

    def by_query(self, measure: str) -> dict[str, float]:
        """Return the values of a measure by query id; a summary has none."""
        if measure not in self.values:
            raise OptionError(f"no values of {measure!r} per query; measure the candidate again.", argument="measure")
        return dict(zip(self.query_ids, self.values[measure], strict=True))

    def compare(self, other: SplitMeasures, measure: str) -> Comparison:
        """Compare with another candidate, paired, on the queries that both scored; above 0 this one is better."""
        values, other_values = self.by_query(measure), other.by_query(measure)
        shared = [query for query in other_values if query in values]
        return paired_bootstrap([values[q] for q in shared], [other_values[q] for q in shared])


@dataclass(frozen=True)
class Timing:
    """Time of one image on a loaded and warmed-up encoder, in milliseconds, from file to embedding."""

    single_p50_ms: float  # median, one image at a time
    single_p95_ms: float  # 95th percentile, one image at a time
    single_decode_ms: float  # median of decoding and preprocessing
    single_model_p50_ms: float  # median of the encoder
    batched_ms: float  # mean per image in batches of `batch_size`
    batch_size: int
    peak_memory_mb: float
    images: int  # number of images timed one at a time
    threads: int
    device: str  # such as "cpu"
    runtime: str = "torch in float32"  # with the precision


@dataclass(frozen=True)
class Member:
    """One candidate that a trial uses: itself, or one of the two that an ensemble combines."""

    name: str  # of its own trial
    backbone: str  # name of its backbone, "" for a bundle that was passed in
    state: TrainingState


@dataclass(frozen=True)
class Trial:
    """One candidate and its measured result."""

    name: str  # unique in a benchmark, such as "resnet50 fine-tuned"
    kind: TrialKind
    members: tuple[Member, ...]  # two of an ensemble, else one; a bundle is one member
    combination: str  # how an ensemble combines its members, "" for a single encoder
    state: TrainingState
    dim: int
    validation: SplitMeasures  # the selection uses these
    test: SplitMeasures | None = None  # accuracy on query and gallery, None if they have no labels
    timing: Timing | None = None  # None if it was not measured
    note: str = ""  # one sentence for the reader
    from_random: bool = False  # whether a member started from random weights
    leaked: bool = False  # whether a member may have been trained on images that it is evaluated on

    @property
    def type(self) -> str:
        """Kind and state in words, such as "single, fine-tuned"."""
        return f"{self.kind}, {self.state}"

    @property
    def exclusion(self) -> str:
        """Why it cannot win, whatever the budget; empty if it can."""
        if self.state == "untrained":
            return "untrained: its weights are random"
        if self.leaked:
            return "it may have been trained on images that it is evaluated on"
        return "" if self.timing else "its time was not measured"

    @property
    def is_candidate(self) -> bool:
        """Whether it can win."""
        return not self.exclusion

    @property
    def trained_from_random(self) -> bool:
        """Whether it was trained from random weights; tables mark it, since it has no pretrained backbone."""
        return self.from_random and self.state != "untrained"

    @property
    def cost_ms(self) -> float:
        """Median milliseconds of one image; infinite if it was not measured."""
        return self.timing.single_p50_ms if self.timing else math.inf

    def summary(self) -> Trial:
        """Return the trial without its values per query."""
        test = self.test.summary() if self.test else None
        return replace(self, validation=self.validation.summary(), test=test)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON structure of trials/*.json, which `from_dict` reads."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Trial:
        """Build a trial from its JSON structure; raise `StorageError` for another version or a wrong field."""
        version, name = stored.get("version"), stored.get("name")
        if version != VERSION:
            raise StorageError(
                f"trial {name!r} has version {version!r}, but this lookalike reads version {VERSION}; "
                "remove the file to measure it again.",
                argument="stored",
            )
        try:
            return read_record(cls, {field: value for field, value in stored.items() if field != "version"})
        except ValueError as error:
            raise StorageError(
                f"trial {name!r} is damaged ({error}); remove the file to measure it again.", argument="stored"
            ) from error


def matching_hit(measure: str | Measure) -> str:
    """Return the hit@k that tables show next to a measure: with the same k, or 3 for a measure without k."""
    return f"hit@{Measure.parse(measure).k or 3}"


def format_ms(ms: float) -> str:
    """Format milliseconds with two or three significant digits: 0.84, 8.2, 41.3, 120."""
    return f"{ms:.0f}" if ms >= 99.95 else f"{ms:.1f}" if ms >= 0.995 else f"{ms:.2f}"


def format_estimate(estimate: Estimate) -> str:
    """Format a mean with its interval: 0.919 (0.890–0.944)."""
    return f"{estimate.mean:.3f} ({estimate.low:.3f}–{estimate.high:.3f})"


def format_comparison(comparison: Comparison) -> str:
    """Format a difference with its interval: −0.025 (−0.050 to +0.010); without one if all queries differ equally."""
    difference, low, high = map(format_difference, (comparison.difference, comparison.low, comparison.high))
    if comparison.low == comparison.high:  # an interval without width would claim certainty
        return f"{difference} on every query"
    return f"{difference} ({low} to {high})"


def format_difference(value: float) -> str:
    """Format a difference with its sign: +0.025, −0.500; 0.000 if it rounds to zero."""
    text = f"{abs(value):.3f}"
    return text if float(text) == 0 else f"{'−' if value < 0 else '+'}{text}"
