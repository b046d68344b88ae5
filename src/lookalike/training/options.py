"""What can be turned in training; the defaults are meant to be left alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, TypedDict

from lookalike.errors import OptionError
from lookalike.evaluation import Measure

OPTIMIZERS = ("adamw", "sgd")
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True)
class TrainingOptions:
    """Options of a training run; checked when made.

    Attributes:
        epochs: of the full stage, at most.
        frozen: stop after the stage with the backbone frozen (seconds).
        max_minutes: wall-clock budget for everything; the number of epochs is planned to fit.
        batch_size: images a step.
        optimizer: adamw or sgd (Nesterov, momentum 0.9).
        lr, head_lr: peak learning rates; None takes what fits the optimizer and the backbone.
        weight_decay: on weights, not on biases or normalisation.
        warmup: share of all steps with a rising learning rate; a cosine to zero follows.
        label_smoothing: of the cross-entropy.
        patience: epochs without a better measure before stopping.
        stop_on: the measure of the validation part which decides early stopping and what is kept.
        class_disjoint: how validation is cut; None decides by the data.
        precision: auto takes bfloat16 where the device computes in it.
        resolution: side of the training views over the side at test time; less is faster. Networks of a fixed
            input size keep theirs.
        seed: of the split, the order, the augmentation and the weights.

    Raises:
        OptionError: for a value outside what is allowed.

    """

    epochs: int = 6
    frozen: bool = False
    max_minutes: float | None = None
    batch_size: int = 32
    optimizer: str = "adamw"
    lr: float | None = None
    head_lr: float | None = None
    weight_decay: float = 0.02
    warmup: float = 0.1
    label_smoothing: float = 0.1
    patience: int = 3
    stop_on: str = "map@r"
    class_disjoint: bool | None = None
    precision: str = "auto"
    resolution: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        self._require_numbers()
        self._at_least("epochs", 1)
        self._at_least("batch_size", 2)
        self._at_least("patience", 1)
        self._at_least("seed", 0)
        if not isinstance(self.frozen, bool):
            raise OptionError(f"frozen must be true or false, got {self.frozen!r}.")
        Measure.parse(self.stop_on)
        if self.max_minutes is not None and not (self.max_minutes > 0 and math.isfinite(self.max_minutes)):
            raise OptionError(f"max_minutes must be above 0, got {self.max_minutes}.")
        for name in ("lr", "head_lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 10:
                raise OptionError(f"{name} must be above 0 and at most 10, got {value}.")
        for name in ("warmup", "label_smoothing", "weight_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}.")
        if not 0.25 <= self.resolution <= 1:
            raise OptionError(f"resolution must be from 0.25 to 1, got {self.resolution}.")
        if self.optimizer not in OPTIMIZERS:
            raise OptionError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}.")
        if self.precision not in PRECISIONS:
            raise OptionError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}.")

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise OptionError(f"{name} must be a whole number of at least {least}, got {value!r}.")

    def _require_numbers(self) -> None:
        for name in (
            "max_minutes",
            "lr",
            "head_lr",
            "weight_decay",
            "warmup",
            "label_smoothing",
            "resolution",
        ):
            value = getattr(self, name)
            if value is not None and not isinstance(value, int | float):
                raise OptionError(f"{name} must be a number, got {value!r}.")

    def learning_rates(self, *, sturdy: bool) -> tuple[float, float]:
        """Return the peak rates of the backbone, and of head and classifier.

        Args:
            sturdy: the backbone bears a high rate, see `is_sturdy`; two networks were measured, docs/log.md.

        """
        backbone, head = {"adamw": (5e-4 if sturdy else 1e-4, 1e-3), "sgd": (1e-2, 3e-2)}[self.optimizer]
        return self.lr or backbone, self.head_lr or head

    def to_dict(self) -> dict[str, Any]:
        """Return a plain structure for JSON."""
        return asdict(self)


class OptionChanges(TypedDict, total=False):
    """The options by name, as `train` and `benchmark` take them; those left out keep what they are."""

    epochs: int
    frozen: bool
    max_minutes: float | None
    batch_size: int
    optimizer: str
    lr: float | None
    head_lr: float | None
    weight_decay: float
    warmup: float
    label_smoothing: float
    patience: int
    stop_on: str
    class_disjoint: bool | None
    precision: str
    resolution: float
    seed: int


def changed_options(options: TrainingOptions | None, changes: OptionChanges) -> TrainingOptions:
    """Return the options, by default the usual ones, with what was given by name in place of what they say."""
    return replace(options or TrainingOptions(), **changes)
