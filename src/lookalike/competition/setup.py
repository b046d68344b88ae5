"""What stays constant during a competition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lookalike.benchmark.spec import slug
from lookalike.competition.clock import Clock, ClockProgress
from lookalike.competition.log import Log
from lookalike.data.dataset import Dataset
from lookalike.models.encoder import Encoder
from lookalike.models.preprocessing import Crop
from lookalike.runtimes.load import Weights
from lookalike.training.config import TrainingOptions

# files in the folder of a competition
SUBMISSION, RECORD, LOG, COSTS = "submission.json", "competition.json", "log.jsonl", "costs.json"
REPORT, BEST = "report.html", "best"


@dataclass(frozen=True)
class Setup:
    """The data and the options of a competition, its folder, its clock and its log."""

    data: Dataset  # with its validation split
    out: Path
    weights: Mapping[str, Weights]  # by backbone
    options: TrainingOptions
    measures: tuple[str, ...]  # the first is the score; the others break ties and are shown with it
    group: str
    top_k: int
    transductive: bool  # whether a re-ranking may use other queries and change the gallery
    clock: Clock
    progress: ClockProgress
    log: Log

    @property
    def submission(self) -> Path:
        """The file of the best submission so far."""
        return self.out / SUBMISSION

    @property
    def costs_file(self) -> Path:
        """The file of the costs of each backbone."""
        return self.out / COSTS

    @property
    def functions(self) -> tuple[Encoder | Crop, ...]:
        """The functions among the backbones, and the crop: what the bundles need and do not hold."""
        return *(weights for weights in self.weights.values() if isinstance(weights, Encoder)), *self.options.crops

    @property
    def cache(self) -> Path:
        """The folder of the features of frozen backbones, and of embeddings."""
        return self.out / "cache"

    def bundle(self, name: str) -> Path:
        """Return the folder of a model's bundle."""
        return self.out / "models" / slug(name)
