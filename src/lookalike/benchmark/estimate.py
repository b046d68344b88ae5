"""How long a benchmark takes: estimated before the work starts, and corrected by the time that each stage took."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from lookalike.benchmark.candidates import pretrained_backbone
from lookalike.benchmark.spec import BenchmarkSpec
from lookalike.models.backbone_files import parse_backbone_file
from lookalike.progress import Progress, format_about
from lookalike.training.estimate import measure_backbone, seconds_per_image, training_seconds

_TIMING_SECONDS = 15.0  # of one architecture, or of one pair of them


@dataclass
class TimeEstimate:
    """The seconds of the remaining stages."""

    seconds: dict[str, float]  # by stage
    progress: Progress
    _factor: float = 1.0  # the time that the last stage took, divided by its estimate
    _started: float = field(default_factory=time.perf_counter)

    def finish(self, stage: str) -> None:
        """Note that a stage is complete, and report the time left."""
        now = time.perf_counter()
        expected, taken, self._started = self.seconds.pop(stage, 0.0), now - self._started, now
        if expected > 1:
            self._factor = min(4.0, max(0.25, taken / expected))
        left = sum(self.seconds.values()) * self._factor
        if left >= 1:
            self.progress.info(f"estimate: {format_about(left)} left ({stage} is complete)")


def estimate_benchmark(spec: BenchmarkSpec) -> TimeEstimate:
    """Estimate every stage that has no result yet from the rate of each backbone, and report the sum."""
    data, options = spec.data, spec.options
    images = len(data.training) + len(data.validation) + len(data.test)
    seconds = {**dict.fromkeys((f"training {b}" for b in spec.weights), 0.0), "embedding": 0.0, "timing": 0.0}
    missing = [
        b for b in spec.weights
        if not spec.bundle_folder(b, "frozen").exists()
        or (b in spec.finetune and not spec.bundle_folder(b, "fine-tuned").exists())
    ]  # fmt: skip
    for name in missing:
        if name in spec.functions or parse_backbone_file(name):
            per_image = seconds_per_image(pretrained_backbone(spec, name)[0], data.training)
        else:
            per_image, recipe = measure_backbone(name, spec.weights[name], data, options)
        candidates = 1 + (name in spec.finetune)
        seconds[f"training {name}"] = per_image * len(data.training)  # the features of the frozen candidate
        if name in spec.finetune:
            seconds[f"training {name}"] += training_seconds(per_image, data, options, recipe)
        seconds["embedding"] += per_image * candidates * images
    if missing:
        count = len(spec.weights) + len(spec.bundles)
        seconds["timing"] = _TIMING_SECONDS * (count + count * (count + 1) / 2)
        spec.progress.info(
            f"estimate: {format_about(sum(seconds.values()))} for the whole run{_explain(spec, seconds)}"
        )
    return TimeEstimate(seconds, spec.progress)


def _explain(spec: BenchmarkSpec, seconds: Mapping[str, float]) -> str:
    training = sum(value for stage, value in seconds.items() if stage.startswith("training "))
    stages = {"training": training, "embedding": seconds["embedding"], "timing": seconds["timing"]}
    parts = ", ".join(f"{stage} {format_about(value).removeprefix('about ')}" for stage, value in stages.items())
    limit = spec.options.max_minutes
    if limit is None or not spec.finetune:
        return f" ({parts})"
    total = f"{limit * len(spec.finetune):g} min in all"
    return f" ({parts}; fine-tuning takes at most {limit:g} min per backbone, {total})"
