"""A trial: one candidate of the benchmark with what was measured on it, as a value that JSON can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict

from lookalike.errors import OptionError, StorageError
from lookalike.evaluation.evaluation import Evaluation
from lookalike.evaluation.measures import Measure

SCHEMA = 2
"""Version of the files in trials/; another version is refused, so that a resumed run measures again."""

Kind = Literal["single", "ensemble"]
Trained = Literal["frozen", "fine-tuned", "untrained"]

KINDS = ("single", "ensemble")
COMBINES = ("", "aligned", "average", "concat")
TRAINED = ("frozen", "fine-tuned", "untrained")


class Interval(TypedDict):
    """A mean over queries with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Scores:
    """Accuracy on one pair of queries and gallery.

    Attributes:
        measures: each measure's mean over queries with its 95 % bootstrap interval.
        values: each measure's value for each scored query, in the order of `query_ids`.
        query_ids: the scored queries.
        queries: how many were scored.
        left_out: how many had nothing relevant in the gallery and were left out.
        gallery: number of gallery images.

    Raises:
        OptionError: when a measure's values are not one for each query, or a number is not finite.

    """

    measures: Mapping[str, Interval]
    values: Mapping[str, list[float]]
    query_ids: list[str]
    queries: int
    left_out: int
    gallery: int

    def __post_init__(self) -> None:
        for name, values in self.values.items():
            if len(values) != len(self.query_ids):
                raise OptionError(
                    f"{name} needs one value for each of the {len(self.query_ids)} scored queries, got {len(values)}."
                )
            if not all(map(math.isfinite, values)):
                raise OptionError(f"{name} needs finite values, but one of the {len(values)} is not a number.")
        for name, interval in self.measures.items():
            if not all(math.isfinite(interval[key]) for key in ("mean", "low", "high")):
                raise OptionError(f"{name} needs a finite mean and interval, got {dict(interval)}.")

    @classmethod
    def of(cls, evaluation: Evaluation) -> Scores:
        """Return what an evaluation measured."""
        summary = evaluation.to_dict()
        summary["left_out"] = summary.pop("excluded")
        values = {name: [float(v) for v in found] for name, found in evaluation.values.items()}
        return cls(values=values, query_ids=list(evaluation.query_ids), **summary)

    def mean(self, measure: str) -> float:
        """Return the mean of one measure; an unknown one raises `OptionError` naming those that were taken."""
        return self.interval(measure)["mean"]

    def interval(self, measure: str) -> Interval:
        """Return mean, low and high of one measure; an unknown one raises `OptionError`."""
        if measure not in self.measures:
            raise OptionError(f"the measure {measure!r} was not taken; taken were {', '.join(sorted(self.measures))}.")
        return self.measures[measure]


@dataclass(frozen=True)
class Timing:
    """What one image costs on a warm model; milliseconds throughout.

    Attributes:
        single_p50_ms: median, images one at a time, file to embedding, decoding included.
        single_p95_ms: 95th percentile of the same.
        single_decode_ms: median of the part that decodes and preprocesses.
        single_model_p50_ms: median of the model's part.
        batched_ms: mean per image in batches of `batch_size`, decoding included.
        batched_model_ms: the model's part of that.
        batch_size: images in a batch.
        peak_memory_mb: largest memory of the process while measuring, MB.
        images: how many images were timed one at a time.
        threads: threads the model could use.
        device: where it ran, for example "cpu".
        runtime: what computed, for example "openvino in float32".

    Raises:
        OptionError: when a time is not a finite positive number.

    """

    single_p50_ms: float
    single_p95_ms: float
    single_decode_ms: float
    single_model_p50_ms: float
    batched_ms: float
    batched_model_ms: float
    batch_size: int
    peak_memory_mb: float
    images: int
    threads: int
    device: str
    runtime: str = "torch in float32"

    def __post_init__(self) -> None:
        for name in ("single_p50_ms", "single_p95_ms", "batched_ms"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise OptionError(f"{name} must be a positive number of milliseconds, got {value}.")


@dataclass(frozen=True)
class Trial:
    """One candidate and its measurements.

    Attributes:
        name: what tables call it, for example "resnet50 fine-tuned"; distinct in one benchmark.
        kind: "single" or "ensemble".
        members: names of the single trials it is made of; a single one names itself.
        combine: how an ensemble joins its members' embeddings; "" for a single one.
        trained: "frozen" (pretrained weights as they are), "fine-tuned", or "untrained" (random weights).
        dim: dimensions of its embeddings.
        validation: accuracy on the part that the choice is made by.
        test: accuracy on query and gallery, None where they carry no labels.
        timing: what an image costs, None where it was not measured.
        note: anything a reader should know, one sentence.
        from_random: whether the weights of a member began random, not pretrained.
        leaked: whether a member may have been trained on images that it is measured on here.

    Raises:
        OptionError: for a kind, combination or training that does not exist.

    """

    name: str
    kind: Kind
    members: tuple[str, ...]
    combine: str
    trained: Trained
    dim: int
    validation: Scores
    test: Scores | None = None
    timing: Timing | None = None
    note: str = ""
    from_random: bool = False
    leaked: bool = False

    def __post_init__(self) -> None:
        allowed = {"kind": KINDS, "combine": COMBINES, "trained": TRAINED}
        for field, words in allowed.items():
            if getattr(self, field) not in words:
                listed = ", ".join(repr(word) for word in words)
                got = getattr(self, field)
                raise OptionError(f"{field} of the trial {self.name!r} is {got!r}; allowed are {listed}.")

    @property
    def is_candidate(self) -> bool:
        """Whether it may be chosen: trained, not on images that it is measured on, and timed."""
        return self.trained != "untrained" and not self.leaked and self.timing is not None

    @property
    def cost_ms(self) -> float:
        """Median milliseconds for one image; infinite where it was not measured."""
        return self.timing.single_p50_ms if self.timing else math.inf

    def to_dict(self) -> dict[str, Any]:
        """Return a plain structure for trials/*.json; `from_dict` takes it back."""
        return {"schema": SCHEMA} | {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Trial:
        """Build a trial from `to_dict`'s structure.

        Raises:
            StorageError: when it has another schema version, or a field is missing or unknown.

        """
        if data.get("schema") != SCHEMA:
            raise StorageError(
                f"the trial {data.get('name')!r} has the schema {data.get('schema')!r}, this version reads {SCHEMA}; "
                "remove its file to measure again."
            )
        values = {key: value for key, value in data.items() if key != "schema"}
        try:
            values["members"] = tuple(values["members"])
            values["validation"] = Scores(**values["validation"])
            values["test"] = Scores(**values["test"]) if values["test"] else None
            values["timing"] = Timing(**values["timing"]) if values["timing"] else None
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise StorageError(
                f"the trial {data.get('name')!r} is not complete ({error}); remove its file to measure again."
            ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, Scores | Timing):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def measure_label(measure: str) -> str:
    """Return what tables call a measure: precision@k is the top-k accuracy, the others keep their name."""
    return Measure.parse(measure).title


def ms_text(ms: float) -> str:
    """Write milliseconds with two or three digits that matter: 0.84, 8.2, 41.3, 120."""
    return f"{ms:.0f}" if ms >= 99.95 else f"{ms:.1f}" if ms >= 0.995 else f"{ms:.2f}"


def interval_text(found: Interval) -> str:
    """Write a mean with its interval: 0.919 (0.890–0.944)."""
    return f"{found['mean']:.3f} ({found['low']:.3f}–{found['high']:.3f})"


def signed_text(value: float) -> str:
    """Write a difference with its sign: +0.025, −0.500; what rounds to nothing is 0.000."""
    text = f"{abs(value):.3f}"
    return text if float(text) == 0 else f"{'−' if value < 0 else '+'}{text}"


def counted(number: int, one: str, many: str) -> str:
    """Write a number with its noun: 1 query, 1,200 queries."""
    return f"{number:,} {one if number == 1 else many}"


def hit_beside(measure: str | Measure) -> str:
    """Return the hit@k that stands beside a measure: that of the measure's own k, of 3 where it has none.

    Raises:
        OptionError: for an unknown measure.

    """
    return f"hit@{Measure.parse(measure).k or 3}"
