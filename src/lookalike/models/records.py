"""Typed records that a bundle stores as JSON: how each of its encoders was trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lookalike.errors import ModelError

REPORT_VERSION = 1


@dataclass(frozen=True)
class EpochReport:
    """One epoch of fine-tuning: mean training loss, wall-clock seconds, and the validation measure if one was taken."""

    loss: float
    seconds: float
    measure: float | None = None


@dataclass(frozen=True)
class LearningRates:
    """Peak learning rates of the backbone and of the head, and the epoch from which they hold, counted from 0."""

    epoch: int
    lr: float
    head_lr: float


@dataclass(frozen=True)
class HeadFit:
    """Parameters of a whitening head: `Whitening.fit` takes them."""

    shrinkage: float
    emphasis: float


@dataclass(frozen=True)
class StageMeasures:
    """The validation measure after each stage of a training; None for a stage that did not run.

    Attributes:
        frozen: the pretrained backbone with the principal components as head.
        head: the pretrained backbone with its best head.
        fine_tuned: the best epoch of fine-tuning.
        selected: the weights and the head that were selected in the end.

    """

    frozen: float
    head: float
    fine_tuned: float | None = None
    selected: float | None = None

    def __str__(self) -> str:
        """Return the measures in one line: `frozen 0.5102, head 0.6034`."""
        values = {name.replace("_", "-"): value for name, value in asdict(self).items() if value is not None}
        return ", ".join(f"{name} {value:.4f}" for name, value in values.items())


@dataclass(frozen=True)
class TrainingReport:
    """How one encoder was trained.

    Attributes:
        backbone: the name that the user gave.
        options: the training options, as `TrainingOptions(**options)` takes them.
        recipe: the values of the whole recipe, by field.
        recipe_name: the recipe's name; of `auto`, the selected one.
        family: kind of network: cnn, mobile-cnn, transformer or hybrid.
        precision: the precision that was trained in; of `auto`, the selected one.
        sampler: how batches were made; of `auto`, the selected one.
        crop_mode: how an image becomes the network's input; of `auto`, the selected one.
        run: fingerprint of all that decided the run: weights, images, options, recipe.
        shrinkage: of the whitening head that fine-tuning started from; None for principal components.
        head_epochs: epochs of training the head on the frozen backbone; 0 if they did not help.
        measures: the validation measure after each stage; for a refit, those of the first training.
        images: number of training images that could be read.
        skipped: files that could not be read, with their causes.
        epochs: of fine-tuning.
        planned_epochs: the number of epochs that the learning-rate schedule is for; 0 without fine-tuning.
        steps_per_epoch: the number of steps in each.
        rates: peak learning rates; several where a resumed run changed them.
        fine_tuned_share: share of the fine-tuned weights in the interpolation with the pretrained ones; None without
            fine-tuning.
        share_measures: validation measure of each share that was tried.
        posthoc_head: the whitening head fitted after fine-tuning; None where the trained head is used.
        seconds: wall-clock time over all sessions.
        version: of this record.

    """

    backbone: str
    options: Mapping[str, Any]
    recipe: Mapping[str, Any]
    recipe_name: str
    family: str
    precision: str
    sampler: str
    crop_mode: str = "pretrained"
    run: str = ""
    shrinkage: float | None = None
    head_epochs: int = 0
    measures: StageMeasures | None = None
    images: int = 0
    skipped: tuple[str, ...] = ()
    epochs: tuple[EpochReport, ...] = ()
    planned_epochs: int = 0
    steps_per_epoch: int = 0
    rates: tuple[LearningRates, ...] = ()
    fine_tuned_share: float | None = None
    share_measures: Mapping[str, float] = field(default_factory=dict)
    posthoc_head: HeadFit | None = None
    seconds: float = 0.0
    version: int = REPORT_VERSION

    @property
    def best_epoch(self) -> int:
        """The epoch with the best validation measure, counted from 1; 0 if none was measured."""
        measures = [-math.inf if epoch.measure is None else epoch.measure for epoch in self.epochs]
        return measures.index(max(measures)) + 1 if any(map(math.isfinite, measures)) else 0

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> TrainingReport:
        """Undo `dataclasses.asdict`."""
        version = value.get("version")
        if version != REPORT_VERSION:
            raise ModelError(f"the training report has version {version}, expected {REPORT_VERSION}; train again.")
        try:
            measures, fit = value["measures"], value["posthoc_head"]
            nested = {
                "measures": StageMeasures(**measures) if measures is not None else None,
                "skipped": tuple(value["skipped"]),
                "epochs": tuple(EpochReport(**epoch) for epoch in value["epochs"]),
                "rates": tuple(LearningRates(**rates) for rates in value["rates"]),
                "posthoc_head": HeadFit(**fit) if fit is not None else None,
            }
            return cls(**{**value, **nested})
        except (KeyError, TypeError) as error:
            raise ModelError(f"the training report is damaged ({error}); train again.") from error
