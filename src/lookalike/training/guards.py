"""Guards: detect failures of a training within its first steps.

| failure | guard | reaction |
|---|---|---|
| the loss is that of guessing | `LossGuard` | a warning; later fine-tuning ends with the best weights so far |
| the loss rises, or is not finite | `LossGuard` | back to the last epoch with lower rates; later an end as above |
| weights receive no gradient | `GradientGuard` | a warning that names them; an end if the backbone has none |
| memory runs out | `MemoryGuard` | smaller parts of a batch, whose gradients are added |
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from lookalike.errors import ModelError
from lookalike.models.torch_backbone import is_out_of_memory, release_memory
from lookalike.progress import count_noun

T = TypeVar("T")

WINDOW = 20  # number of steps over which a loss is averaged
# a loss of guessing is reported after this step, or later if the learning rate rises slowly: the sum of the rates
# grows with the square of the step ...
WARNING_STEPS = 40
_STEPS_PER_WARMUP_ROOT = 6
# ... and ends fine-tuning after this multiple of them
_FINAL_FACTOR = 3
GRADIENT_UPDATES = 5  # a layer that starts at zero delays the first gradient of the layers before it
# the loss is that of guessing if it is lower by less than this share
_MIN_GAIN = 0.01
# training has diverged when the average loss exceeds the first loss, or that of guessing, by this factor
_DIVERGENCE_FACTOR = 4
_MAX_NOT_FINITE = 3  # steps of a window whose loss or gradient may not be finite
_LISTED_NAMES = 3  # parameters that a message lists


class DivergenceError(Exception):
    """The training diverges; the text says what was observed."""


class FutileTrainingError(Exception):
    """The training learns nothing; the text says what was observed."""


@dataclass(frozen=True)
class LossGuard:
    """The recent losses of a training, over epochs and sessions; `add` returns the next one.

    Attributes:
        classes: number of classes.
        warmup: number of steps in which the learning rate rises.
        planned: number of steps of the whole training; None if it is unknown.
        steps: number of losses so far.
        first_loss: the first loss, or that of guessing among the classes if that is larger; None before it.
        losses: the last `WINDOW` losses; NaN for a step that was skipped.
        guesses: the losses of the same steps with shuffled labels, which is what guessing costs.
        has_learned: whether the mean loss was below that of guessing, which ends the comparison.

    """

    classes: int
    warmup: int = 0
    planned: int | None = None
    steps: int = 0
    first_loss: float | None = None
    losses: tuple[float, ...] = ()
    guesses: tuple[float, ...] = ()
    has_learned: bool = False

    def add(self, loss: float, guess: float = math.nan) -> LossGuard:
        """Return the guard after a step with this loss; NaN if the step was skipped.

        Raises:
            DivergenceError: the mean loss is far above the first one, or too many losses are not finite.
            FutileTrainingError: the mean loss is still that of guessing.

        """
        first = self.first_loss
        if first is None and math.isfinite(loss):
            first = max(loss, math.log(self.classes))
        losses, guesses = (*self.losses, loss)[-WINDOW:], (*self.guesses, guess)[-WINDOW:]
        after = replace(self, steps=self.steps + 1, first_loss=first, losses=losses, guesses=guesses)
        after = replace(after, has_learned=self.has_learned or after.is_below_guessing)
        after._require_convergence()
        if after.steps == after.final_step and not after.has_learned:
            raise FutileTrainingError(after.describe_guessing())
        return after

    @property
    def mean(self) -> float:
        """Mean of the last losses, without the skipped steps."""
        finite = [loss for loss in self.losses if math.isfinite(loss)]
        return float(np.mean(finite)) if finite else math.nan

    @property
    def mean_guess(self) -> float:
        """Mean of the losses with shuffled labels at the same steps."""
        pairs = zip(self.losses, self.guesses, strict=True)
        finite = [guess for loss, guess in pairs if math.isfinite(loss) and math.isfinite(guess)]
        return float(np.mean(finite)) if finite else math.nan

    @property
    def is_below_guessing(self) -> bool:
        """Whether the labels explain a share of the loss; False while the window is not full."""
        return len(self.losses) == WINDOW and self.mean < (1 - _MIN_GAIN) * self.mean_guess

    @property
    def warning_step(self) -> int:
        """The step after which a loss of guessing is reported: half of a short training, but not before the window."""
        step = max(WARNING_STEPS, math.ceil(_STEPS_PER_WARMUP_ROOT * math.sqrt(self.warmup)))
        return step if self.planned is None else min(step, max(WINDOW, self.planned // 2))

    @property
    def final_step(self) -> int:
        """The step after which a loss of guessing ends the training: the last step of a short one."""
        step = _FINAL_FACTOR * self.warning_step
        return step if self.planned is None else min(step, max(WINDOW, self.planned))

    @property
    def warning(self) -> str:
        """What to report after this very step; empty if there is nothing."""
        if self.steps == self.warning_step and not self.has_learned:
            return f"{self.describe_guessing()}; fine-tuning ends at step {self.final_step} unless it falls"
        skipped = sum(not math.isfinite(loss) for loss in self.losses)
        if skipped == 1 and not math.isfinite(self.losses[-1]):
            return f"a loss or gradient is not finite at step {self.steps}; the step is skipped"
        return ""

    @property
    def last_words(self) -> str:
        """What to report if the training ends now; empty if something was learned, or the window is not full."""
        return "" if self.has_learned or len(self.losses) < WINDOW else self.describe_guessing()

    def describe_guessing(self) -> str:
        """Say that the loss is that of guessing."""
        return (
            f"nothing is learned after {self.steps} steps: the mean loss is {self.mean:.3f}, and with shuffled labels "
            f"{self.mean_guess:.3f} (ln {self.classes} = {math.log(self.classes):.3f})"
        )

    def _require_convergence(self) -> None:
        if sum(not math.isfinite(loss) for loss in self.losses) >= _MAX_NOT_FINITE:
            raise DivergenceError(f"a loss or gradient is not finite at step {self.steps}, the third time")
        if self.first_loss is not None and self.mean > _DIVERGENCE_FACTOR * self.first_loss:
            raise DivergenceError(
                f"the mean loss rose from {self.first_loss:.3g} to {self.mean:.3g} at step {self.steps}"
            )


def require_finite(tensors: Iterable[torch.Tensor], what: str) -> None:
    """Raise `DivergenceError` unless all floating-point values are finite."""
    floats = [t for t in tensors if t.is_floating_point()]
    if floats and not bool(torch.stack([t.isfinite().all() for t in floats]).all()):
        raise DivergenceError(f"{what} are not finite")


@dataclass
class GradientGuard:
    """Finds parameters whose gradient is missing or zero in each of the first updates.

    Attributes:
        parameters: those that should be trained, by name.
        needed: the start of the names of which at least one must have a gradient.
        updates: how many updates were observed.

    """

    parameters: Mapping[str, nn.Parameter]
    needed: str = ""
    updates: int = 0
    _missing: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._missing = set(self.parameters)

    def observe(self) -> str:
        """Look at the gradients before an update; return a sentence after the last one if some are missing.

        Raises `FutileTrainingError` if none of the needed ones has a gradient.
        """
        if self.updates >= GRADIENT_UPDATES:
            return ""
        self.updates += 1
        self._missing = {name for name in self._missing if not _has_gradient(self.parameters[name])}
        if self.updates < GRADIENT_UPDATES or not self._missing:
            return ""
        missing = [name for name in self.parameters if name in self._missing]
        names = ", ".join(missing[:_LISTED_NAMES])
        names += f" and {len(missing) - _LISTED_NAMES} more" if len(missing) > _LISTED_NAMES else ""
        text = (
            f"{len(missing)} of {count_noun(len(self.parameters), 'parameter')} received no gradient in the first "
            f"{self.updates} updates: {names}"
        )
        if all(name in self._missing for name in self.parameters if name.startswith(self.needed)):
            raise FutileTrainingError(text)
        return f"{text}; they are not trained"


def _has_gradient(parameter: nn.Parameter) -> bool:
    return parameter.grad is not None and bool(parameter.grad.any())


class MemoryGuard:
    """Halves the number of images that are computed at once when memory runs out.

    Attributes:
        at_once: the largest number of images of one forward and backward pass.

    """

    def __init__(
        self, at_once: int, device: torch.device, consequences: Sequence[str] = (), *, may_divide: bool = True
    ) -> None:
        self.at_once = at_once
        self._device = device
        self._consequences = consequences  # what smaller parts change, as clauses with the field {images}
        self._may_divide = may_divide

    def parts(self, count: int) -> list[slice]:
        """Return slices of about equal length that divide a batch of `count` images.

        None has one image if there are more: losses cannot compare it, and it has no batch statistics. So of an odd
        number of images at two at once, one slice has three.
        """
        number = max(1, min(math.ceil(count / self.at_once), count // 2))
        bounds = [round(count * n / number) for n in range(number + 1)]
        return [slice(start, end) for start, end in itertools.pairwise(bounds)]

    def run(self, compute: Callable[[], T], count: int, warn: Callable[[str], None]) -> T:
        """Return `compute()` on `count` images, which divides them by `parts`; again with smaller parts if it must.

        Raises `ModelError` if two images are still too many, or if the batch may not be divided.
        """
        while True:
            try:
                return compute()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # after the handler: the traceback of the error keeps the activations in memory
            largest = max(part.stop - part.start for part in self.parts(count))
            if largest < 4 or not self._may_divide:
                raise ModelError(
                    f"memory runs out with {count_noun(largest, 'image')} at once; use a smaller `batch_size`, `side` "
                    "or backbone, or `checkpointing`.",
                    argument="batch_size",
                )
            self.at_once = math.ceil(largest / 2)
            release_memory(self._device)
            text = f"memory runs out with {largest} images at once; continuing with {self.at_once}, and the gradients"
            changes = [consequence.format(images=self.at_once) for consequence in self._consequences]
            warn(f"{text} of a batch are added" + "".join(f"; {change}" for change in changes))
