"""What stays the same while one backbone is trained, and how its members are measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lookalike.data.dataset import Dataset, Item
from lookalike.embeddings.fit import Features, compute_features
from lookalike.models.member import TrainableEncoder
from lookalike.progress import SILENT, Progress
from lookalike.training.last_head import joined_features
from lookalike.training.options import TrainingOptions
from lookalike.training.precision import autocast
from lookalike.training.recipe import Recipe
from lookalike.training.start import measured_head
from lookalike.training.team import ALONE, Team, split_evenly
from lookalike.training.tracking.tracked import UNTRACKED, Tracked


@dataclass(frozen=True)
class Job:
    """What stays the same while one backbone is trained.

    Attributes:
        data: with its validation part.
        options: of the run.
        recipe: for this backbone.
        work: folder for checkpoints, None for none.
        progress: is told what happens.
        began: `time.perf_counter()` at the start of this sitting, in seconds.
        key: identifies the run in its checkpoint.
        team: the processes that train.
        tracked: is told of each epoch, by the leading process.
        before: seconds that earlier sittings took, up to their last checkpoint.

    """

    data: Dataset
    options: TrainingOptions
    recipe: Recipe
    work: Path | None
    progress: Progress
    began: float
    key: str
    team: Team = ALONE
    tracked: Tracked = UNTRACKED
    before: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds so far, over all sittings."""
        return self.before + time.perf_counter() - self.began

    def validate(self, member: TrainableEncoder) -> float:
        """Take the validation measure of the member's present weights."""
        return self.measure_heads(member, SILENT)()

    def features(
        self, member: TrainableEncoder, items: Sequence[Item], task: str, progress: Progress | None = None
    ) -> Features:
        """Return what the member's present backbone sees in images; each process goes through its share."""
        with autocast(member.device, self.recipe.precision):
            own, task = split_evenly(items, self.team), f"{member.backbone}: {task}"
            part = compute_features(member, own, progress=progress or self.progress, task=task, least=0)
        return joined_features(self.team.collect(part), [i.id for i in items])

    def measure_heads(self, member: TrainableEncoder, progress: Progress | None = None) -> Callable[[], float]:
        """Go through the validation images once; what is returned takes the measure for the member's present head."""
        held_out = self.features(member, self.data.validation, "last head, validation", progress)

        def measure() -> float:
            return self.team.agree(lambda: measured_head(member, held_out, self.data, self.options.stop_on))

        return measure

    def has_time_for_more(self) -> bool:
        """Whether a tenth of the budget is left: for what may better the result but need not be done."""
        return self.has_time_for(6 * (self.options.max_minutes or 0))

    def has_time_for(self, seconds: float) -> bool:
        """Whether more than so many seconds of the budget are left, by the clock of the leading process."""
        if self.options.max_minutes is None:
            return True
        left = 60 * self.options.max_minutes - (time.perf_counter() - self.began)
        return self.team.agree(lambda: left > seconds)
