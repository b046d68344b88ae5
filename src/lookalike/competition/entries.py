"""The models of a competition: each is a bundle with the embeddings of every split, kept for the ensembles."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from lookalike._files import read_json, write_json
from lookalike._records import read_record
from lookalike.benchmark.spec import slug
from lookalike.competition.clock import Clock, ClockProgress
from lookalike.competition.log import Log
from lookalike.data.dataset import Dataset, Split, sample_evenly
from lookalike.embeddings.splits import SPLITS, embed_splits
from lookalike.errors import StorageError
from lookalike.evaluation.evaluation import Evaluation, evaluate_validation
from lookalike.models.backbone_files import parse_backbone_file
from lookalike.models.bundle import is_bundle, read_bundle_info
from lookalike.models.encoder import SAMPLE_SIZE, Encoder
from lookalike.models.heads import pca_head
from lookalike.models.info import FINE_TUNED
from lookalike.runtimes.fit import compute_features, project_features
from lookalike.runtimes.load import load_bundle, load_pretrained
from lookalike.runtimes.select import AUTO, backbone_with_runtime, with_runtime
from lookalike.training.config import TrainingOptions, override_options
from lookalike.training.context import TrainingContext
from lookalike.training.estimate import seconds_per_image, training_seconds
from lookalike.training.refit import refit
from lookalike.training.train import build_ensemble, save_trained
from lookalike.training.train_backbone import fresh_encoder, train_backbone
from lookalike.training.trainer import resolve_precision
from lookalike.types import Embeddings

Kind = Literal["frozen", "fine-tuned", "refit"]
PLAN = "plan.json"


@dataclass(frozen=True)
class Setup:
    """What stays constant during a competition."""

    data: Dataset  # with its validation split
    out: Path
    weights: Mapping[str, str | Path]  # by backbone
    options: TrainingOptions
    measures: tuple[str, ...]  # the score, then what is shown with it
    group: str
    top_k: int
    transductive: bool  # whether a re-ranking may use other queries and change the gallery
    clock: Clock
    progress: ClockProgress
    log: Log

    @property
    def cache(self) -> Path:
        """Features of frozen backbones, and embeddings."""
        return self.out / "cache"

    def bundle(self, name: str) -> Path:
        """Return the folder of a model's bundle."""
        return self.out / "models" / slug(name)


@dataclass(frozen=True)
class Plan:
    """A training that is to be done.

    Attributes:
        name: of the entry, such as `resnet50 fine-tuned`.
        backbone: the backbone's name.
        kind: frozen or fine-tuned.
        minutes: time budget of the training.
        reason: why, in words.
        repeat: 0 for the first training of its kind; others have another seed.

    """

    name: str
    backbone: str
    kind: Kind
    minutes: float
    reason: str = ""
    repeat: int = 0


@dataclass(frozen=True, eq=False)
class Entry:
    """A model and its embeddings of every split.

    Attributes:
        name: such as `resnet50 fine-tuned`.
        backbone: the backbone's name.
        kind: frozen (with its best head), fine-tuned, or refit (on training and validation images).
        bundle: its folder.
        embeddings: by split; a refitted model has none of validation.
        evaluation: on validation; None for a refitted model.
        seconds: that training it took.

    """

    name: str
    backbone: str
    kind: Kind
    bundle: Path
    embeddings: Mapping[str, Embeddings] = field(repr=False)
    evaluation: Evaluation | None = field(repr=False, default=None)
    seconds: float = 0.0


def embed_test_first(setup: Setup, backbone: str) -> dict[str, Embeddings]:
    """Embed query and gallery with a pretrained backbone whose head is fitted to the gallery, for the first submission.

    The features are kept, so that no image is embedded twice by the frozen backbone.
    """
    data, progress = setup.data, setup.progress
    ((auto, state),) = load_pretrained(backbone, setup.weights[backbone], seed=setup.options.seed)
    runtime = backbone_with_runtime(auto, AUTO, "float32")
    ready = runtime.prepare(sample_evenly(data.test, SAMPLE_SIZE), len(data.items), progress)
    features = {
        split: compute_features(
            ready, data.split(split), progress=progress, task=f"{backbone}: {split}", cache=setup.cache, min_count=0
        )
        for split in (Split.GALLERY, Split.QUERY)
    }
    encoder = Encoder.of(ready, pca_head(features[Split.GALLERY].rows, seed=setup.options.seed), state)
    return {split: project_features(encoder, f) for split, f in features.items()}


def train_entry(setup: Setup, plan: Plan) -> Entry:
    """Train as planned; an interrupted training resumes, and a finished entry is read again."""
    bundle, folder = setup.bundle(plan.name), setup.bundle(f"{plan.name}.training")
    started = time.perf_counter()
    if not is_bundle(bundle):
        plan = find_plan(folder) or plan
        write_json(folder / PLAN, asdict(plan))
        changes = {
            "frozen": plan.kind == "frozen",
            "max_minutes": plan.minutes,
            "seed": setup.options.seed + plan.repeat,
        }
        options = override_options(setup.options, changes)
        context = TrainingContext(setup.data, options, setup.progress, folder, setup.cache)
        trained = train_backbone(context.for_backbone(0), plan.backbone, setup.weights[plan.backbone])
        encoder = build_ensemble([trained], "aligned", setup.progress)
        save_trained(encoder, bundle, setup.data, options, [trained.report], replace=True)
    shutil.rmtree(folder, ignore_errors=True)
    embeddings = _embed(setup, bundle, plan.name)
    evaluation = evaluate_validation(setup.data, embeddings[Split.VALIDATION], setup.measures)
    seconds = _training_seconds(bundle) or time.perf_counter() - started
    return Entry(plan.name, plan.backbone, plan.kind, bundle, embeddings, evaluation, seconds)


def unfinished_plans(setup: Setup) -> list[Plan]:
    """Return the trainings that were interrupted."""
    folders = sorted((setup.out / "models").glob("*.training"))
    plans = [plan for folder in folders if (plan := find_plan(folder)) is not None]
    return [plan for plan in plans if not is_bundle(setup.bundle(plan.name))]


def find_plan(folder: Path) -> Plan | None:
    """Return the plan of an interrupted training; None if there is none, or it cannot be read."""
    try:
        return read_record(Plan, read_json(folder / PLAN, "the plan"))
    except (StorageError, ValueError):
        return None


def refit_bundle(setup: Setup, entry: Entry) -> Path:
    """Return the bundle of a model that was trained again on all labelled images."""
    return setup.bundle(f"{entry.name} refit")


def refit_entry(setup: Setup, entry: Entry) -> Entry:
    """Train a model again on training and validation images together; a finished one is read again."""
    name, bundle = f"{entry.name} refit", refit_bundle(setup, entry)
    refit(
        setup.data,
        entry.bundle,
        out=bundle,
        weights={entry.backbone: setup.weights[entry.backbone]},
        resume=True,
        cache=setup.cache,
        progress=setup.progress,
    )
    items = [replace(i, split=Split.TRAINING) if i.split is Split.VALIDATION else i for i in setup.data.items]
    everything = replace(setup, data=setup.data.replace_items(items))
    return Entry(name, entry.backbone, "refit", bundle, _embed(everything, bundle, name))


def _embed(setup: Setup, bundle: Path, name: str) -> dict[str, Embeddings]:
    """Embed all splits; the features of a frozen backbone are kept, for all heads that it gets."""
    encoder = load_bundle(bundle)
    if isinstance(encoder, Encoder) and encoder.head is not None and encoder.state != FINE_TUNED:
        backbone = (
            with_runtime(encoder, precision="float32")
            .prepare(sample_evenly(setup.data.items, SAMPLE_SIZE), len(setup.data.items), setup.progress)
            .backbone
        )
        parts = {
            split: compute_features(
                backbone,
                setup.data.split(split),
                progress=setup.progress,
                task=f"{name}: {split}",
                cache=setup.cache,
                min_count=0,
            )
            for split in SPLITS
        }
        return {split: project_features(encoder, f) for split, f in parts.items()}
    return embed_splits(
        setup.data,
        partial(load_bundle, bundle),
        read_bundle_info(bundle).fingerprint,
        cache=setup.cache,
        name=name,
        progress=setup.progress,
    )


def _training_seconds(bundle: Path) -> float:
    return sum(report.seconds for report in read_bundle_info(bundle).training if report is not None)


# ---------------------------------------------------------------- estimates


@dataclass(frozen=True)
class Costs:
    """Estimated seconds of the steps with one backbone."""

    frozen: float
    recipe: float  # fine-tuning with the whole recipe; infinite for a backbone that can only be run
    refit_factor: float  # a refit on all labelled images, relative to the fine-tuning
    embedding: float  # of query, gallery and training

    @classmethod
    def estimate(cls, setup: Setup, backbone: str) -> Costs:
        """Measure the rate of a backbone for a second and estimate the rest."""
        data, options = setup.data, setup.options
        frozen_options = override_options(options, {"frozen": True})
        fixed = parse_backbone_file(backbone) is not None
        encoder, recipe = fresh_encoder(
            backbone,
            setup.weights[backbone],
            frozen_options if fixed else options,
            unseen=data.validation_classes_unseen,
        )
        precision = resolve_precision(encoder.device, recipe.precision)
        per_image = seconds_per_image(encoder.torch_backbone(precision), data.training)
        frozen = training_seconds(per_image, data, frozen_options, recipe)
        embedding = per_image * (len(data.training) + len(data.test))
        images = len(data.training)
        return cls(
            frozen=frozen + embedding,
            recipe=math.inf if fixed else training_seconds(per_image, data, options, recipe) + embedding,
            refit_factor=(images + len(data.validation)) / images,
            embedding=embedding,
        )


def refit_seconds(entry: Entry, costs: Costs) -> float:
    """Return about how long the refit of a model takes: its epochs up to the best one, on more images."""
    (report,) = read_bundle_info(entry.bundle).training
    if report is None or not report.fine_tuned_share:
        return 10 + 0.1 * costs.frozen  # the features are kept; heads are fitted and trained again
    epochs = sum(epoch.seconds for epoch in report.epochs[: report.best_epoch])
    return epochs * costs.refit_factor + costs.embedding


def by_cost(costs: Mapping[str, Costs]) -> Sequence[str]:
    """Return the backbones, the cheapest first."""
    return sorted(costs, key=lambda name: (costs[name].frozen, name))
