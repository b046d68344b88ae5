"""What stays constant during a training run, and how an encoder is measured in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lookalike.data.dataset import Dataset, Item
from lookalike.errors import DataError
from lookalike.evaluation.evaluation import evaluate_validation
from lookalike.models.trainable import TrainableEncoder
from lookalike.progress import SILENT, Progress
from lookalike.runtimes.fit import Features, compute_features, feature_backbone
from lookalike.training.batches import Indices
from lookalike.training.config import Recipe, TrainingOptions
from lookalike.training.distributed import SINGLE_PROCESS, DistributedContext
from lookalike.training.tracking import NO_TRACKER, RunTracker
from lookalike.training.trainer import resolve_precision
from lookalike.types import Embeddings


@dataclass(frozen=True)
class TrainingContext:
    """What stays constant while encoders are trained; `dataclasses.replace` makes the context of one backbone."""

    data: Dataset  # with its validation split
    options: TrainingOptions
    progress: Progress = SILENT
    folder: Path | None = None  # for checkpoints
    cache: Path | None = None  # keeps the features of frozen backbones
    distributed: DistributedContext = SINGLE_PROCESS
    tracker: RunTracker = NO_TRACKER
    recipe: Recipe = field(default_factory=Recipe)
    key: str = ""  # identifies the backbone's run in its checkpoint
    earlier_seconds: float = 0.0  # time that earlier sessions took until their last checkpoint
    ends: float | None = None  # `time.time()` at which training must be over, whatever its time budget
    # `time.perf_counter()` at the start of this session of the backbone
    started: float = field(default_factory=time.perf_counter)

    def for_backbone(self, number: int) -> TrainingContext:
        """Return the context of one of several backbones, with a folder and a clock of its own."""
        clock = time.perf_counter()
        if self.folder is None:
            return replace(self, started=clock)
        cache = self.cache or self.folder / "cache"
        return replace(self, folder=self.folder / str(number), cache=cache, started=clock)

    @property
    def seconds(self) -> float:
        """Seconds so far, over all sessions."""
        return self.earlier_seconds + time.perf_counter() - self.started

    @property
    def seconds_left(self) -> float | None:
        """Seconds that are left of the time budget of all sessions, or until `ends`; None without both."""
        limits = []
        if self.options.max_minutes is not None:
            limits.append(60 * self.options.max_minutes - self.seconds)
        if self.ends is not None:
            limits.append(self.ends - time.time())
        return min(limits, default=None)

    def has_time_for(self, seconds: float) -> bool:
        """Whether more than `seconds` of the budget are left, by the clock of the main process."""
        seconds_left = self.seconds_left
        return seconds_left is None or self.distributed.broadcast_from_main(lambda: seconds_left > seconds)

    def has_time_for_more(self) -> bool:
        """Whether a tenth of the budget is left: enough for steps that are optional."""
        return self.has_time_for(6 * (self.options.max_minutes or 0))

    def frozen_features(self, encoder: TrainableEncoder, items: Sequence[Item], task: str) -> Features:
        """Return the features of a pretrained backbone, from the cache if they are there.

        A few are computed by torch in the precision of the recipe, many by the fastest runtime in float32.
        """
        backbone = encoder.torch_backbone(resolve_precision(encoder.device, self.recipe.precision))
        fast = feature_backbone(backbone, items, self.progress)
        return compute_features(fast, items, cache=self.cache, progress=self.progress, task=task)

    def current_features(
        self, encoder: TrainableEncoder, items: Sequence[Item], task: str, progress: Progress | None = None
    ) -> Features:
        """Return the features of the backbone's current weights; the processes share the images."""
        part = compute_features(
            encoder.torch_backbone(resolve_precision(encoder.device, self.recipe.precision)),
            items[self.distributed.rank :: self.distributed.world_size],
            progress=progress or self.progress,
            task=f"{encoder.name}: {task}",
            min_count=0,
        )
        parts = self.distributed.all_gather_object(part)
        rows = {i: row for part in parts for i, row in zip(part.ids, part.rows, strict=True)}
        readable = tuple(i.id for i in items if i.id in rows)
        return Features(readable, np.stack([rows[i] for i in readable]), tuple(s for p in parts for s in p.skipped))

    def make_head_measure(self, encoder: TrainableEncoder, progress: Progress | None = None) -> Callable[[], float]:
        """Embed the validation images once; the returned function measures the encoder with its current head."""
        features = self.current_features(encoder, self.data.validation, "closed-form head, validation", progress)
        return lambda: self.distributed.broadcast_from_main(lambda: self.measure_head(encoder, features))

    def measure(self, encoder: TrainableEncoder) -> float:
        """Return the validation measure of the encoder's current weights."""
        return self.make_head_measure(encoder, SILENT)()

    def measure_head(self, encoder: TrainableEncoder, features: Features) -> float:
        """Return the validation measure from the features of the validation split and the current head."""
        embeddings = Embeddings(features.ids, encoder.project(features.rows), "")
        return evaluate_validation(self.data, embeddings, [self.options.stop_on]).mean(self.options.stop_on)


def labelled(items: Sequence[Item]) -> tuple[Item, ...]:
    """Return the items that have a label."""
    return tuple(i for i in items if i.label is not None)


def class_indices(items: Sequence[Item]) -> Indices:
    """Return the class index of each item `(n,)`; classes are sorted by name."""
    numbers = {name: number for number, name in enumerate(sorted({str(i.label) for i in items}))}
    return np.array([numbers[str(i.label)] for i in items], dtype=np.int64)


def require_classes(data: Dataset, items: Sequence[Item], kind: str = "training") -> None:
    """Raise `DataError` when the items have fewer than two classes."""
    count = len({i.label for i in items})
    if count < 2:
        raise DataError(
            f"{data.root} has {kind} images of {count} {'class' if count == 1 else 'classes'}, but fine-tuning needs "
            "at least 2; add a class folder.",
            argument="data",
        )
