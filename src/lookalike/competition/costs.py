"""How long the steps of a competition take, from the measured rate of each backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from lookalike._files import read_json, write_json
from lookalike._records import read_record
from lookalike.competition.candidates import SubmissionModel
from lookalike.competition.setup import Setup
from lookalike.errors import StorageError
from lookalike.models.backbone_files import parse_backbone_file
from lookalike.models.bundle import read_bundle_info
from lookalike.models.encoder import Encoder
from lookalike.runtimes.cache import machine_key
from lookalike.training.config import override_options
from lookalike.training.estimate import measure_backbone, training_seconds


@dataclass(frozen=True)
class Costs:
    """Estimated seconds of the steps with one backbone."""

    frozen: float
    recipe: float | None  # fine-tuning with the whole recipe; None for a backbone that cannot be fine-tuned
    refit_factor: float  # a refit on all labelled images, relative to the fine-tuning
    embedding: float  # of query, gallery and training


@dataclass(frozen=True)
class _StoredCosts:
    """The content of `costs.json`."""

    machine: str
    backbones: Mapping[str, Costs]


def estimate_costs(setup: Setup, backbone: str) -> Costs:
    """Measure the rate of a backbone for a second and estimate its steps."""
    data, options = setup.data, setup.options
    frozen_options = override_options(options, {"frozen": True})
    can_be_tuned = parse_backbone_file(backbone) is None and not isinstance(setup.weights[backbone], Encoder)
    per_image, recipe = measure_backbone(
        backbone, setup.weights[backbone], data, options if can_be_tuned else frozen_options
    )
    images = len(data.training)
    embedding = per_image * (images + len(data.test))
    return Costs(
        frozen=training_seconds(per_image, data, frozen_options, recipe) + embedding,
        recipe=training_seconds(per_image, data, options, recipe) + embedding if can_be_tuned else None,
        refit_factor=(images + len(data.validation)) / images,
        embedding=embedding,
    )


def load_costs(path: Path) -> dict[str, Costs]:
    """Return the costs by backbone that an earlier run estimated on this machine; empty if there are none."""
    try:
        stored = read_record(_StoredCosts, read_json(path, "the costs"))
    except (StorageError, ValueError):
        return {}
    return dict(stored.backbones) if stored.machine == machine_key() else {}


def save_costs(path: Path, costs: Mapping[str, Costs]) -> None:
    """Store costs by backbone, for a run that resumes."""
    write_json(path, asdict(_StoredCosts(machine_key(), costs)))


def refit_seconds(candidate: SubmissionModel, costs: Costs) -> float:
    """Return about how long the refit of a model takes: its epochs up to the best one, on more images."""
    (report,) = read_bundle_info(candidate.bundle).training
    if report is None or not report.fine_tuned_share:
        return 10 + 0.1 * costs.frozen  # the features are kept; heads are fitted and trained again
    epochs = sum(epoch.seconds for epoch in report.epochs[: report.best_epoch])
    return epochs * costs.refit_factor + costs.embedding
