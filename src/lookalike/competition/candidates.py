"""The models of a competition: each is a bundle with the embeddings of every split, which are kept for ensembles."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from lookalike._files import read_json, write_json
from lookalike._records import read_record
from lookalike.competition.setup import Setup
from lookalike.data.dataset import Split, sample_evenly
from lookalike.embeddings.splits import embed_splits
from lookalike.errors import StorageError
from lookalike.evaluation.evaluation import Evaluation, evaluate_validation
from lookalike.models.bundle import is_bundle, read_bundle_info
from lookalike.models.encoder import SAMPLE_SIZE, AnyEncoder, Encoder
from lookalike.models.heads import pca_head
from lookalike.runtimes.fit import compute_features, project_features
from lookalike.runtimes.load import load_bundle, load_pretrained
from lookalike.runtimes.select import AUTO, backbone_with_runtime, with_runtime
from lookalike.training.config import override_options
from lookalike.training.context import TrainingContext
from lookalike.training.refit import refit
from lookalike.training.train import build_ensemble, save_trained
from lookalike.training.train_backbone import train_backbone
from lookalike.types import Embeddings

Kind = Literal["frozen", "fine-tuned", "refit"]
_PLAN = "plan.json"


@dataclass(frozen=True)
class TrainingPlan:
    """A training that is to be done; it is stored, so that an interrupted training resumes as planned."""

    name: str  # of the candidate, such as `resnet50 fine-tuned`
    backbone: str
    kind: Kind  # frozen or fine-tuned
    minutes: float  # time budget of the training
    reason: str = ""  # in words
    repeat: int = 0  # number of earlier fine-tunings of the backbone; it is added to the seed


@dataclass(frozen=True, eq=False)
class SubmissionModel:
    """A model that the submission may be made of, with its embeddings of every split."""

    name: str  # such as `resnet50 fine-tuned`
    backbone: str
    kind: Kind  # frozen (with its best head), fine-tuned, or refit (on training and validation images)
    bundle: Path
    embeddings: Mapping[str, Embeddings] = field(repr=False)  # by split; a refit has all labelled images in training
    evaluation: Evaluation | None = field(repr=False, default=None)  # on validation; None for a refit
    seconds: float = 0.0  # that its training took
    recipe_share: float = 1.0  # of the recipe's epochs, which the time budget allowed


def embed_pretrained(setup: Setup, backbone: str) -> dict[str, Embeddings]:
    """Embed query and gallery with a pretrained backbone whose head is fitted to the gallery, for the first submission.

    The features are kept, so that the frozen backbone embeds no image twice.
    """
    data, progress = setup.data, setup.progress
    ((pretrained, state),) = load_pretrained(backbone, setup.weights[backbone], seed=setup.options.seed)
    for crop in setup.options.crops:
        pretrained = pretrained.with_preprocessing(replace(pretrained.info.preprocessing, crop=crop))
    runner = backbone_with_runtime(pretrained, AUTO, "float32")
    runner = runner.prepare(sample_evenly(data.test, SAMPLE_SIZE), len(data.items), progress)
    features = {
        split: compute_features(
            runner, data.split(split), progress=progress, task=f"{backbone}: {split}", cache=setup.cache, min_count=0
        )
        for split in (Split.GALLERY, Split.QUERY)
    }
    encoder = Encoder.of(runner, pca_head(features[Split.GALLERY].rows, seed=setup.options.seed), state)
    return {split: project_features(encoder, f) for split, f in features.items()}


def train_candidate(setup: Setup, plan: TrainingPlan) -> SubmissionModel:
    """Train as planned; an interrupted training resumes, and a finished one is read."""
    bundle, folder = setup.bundle(plan.name), setup.bundle(f"{plan.name}.training")
    if not is_bundle(bundle):
        plan = _read_plan(folder) or plan
        write_json(folder / _PLAN, asdict(plan))
        changes = {
            "frozen": plan.kind == "frozen",
            "max_minutes": plan.minutes,
            "seed": setup.options.seed + plan.repeat,
        }
        options = override_options(setup.options, changes)
        context = TrainingContext(setup.data, options, setup.progress, folder, setup.cache, ends=setup.progress.until)
        trained = train_backbone(context.for_backbone(0), plan.backbone, setup.weights[plan.backbone])
        encoder = build_ensemble([trained], "aligned", setup.progress)
        save_trained(encoder, bundle, setup.data, options, [trained.report], replace=True)
    shutil.rmtree(folder, ignore_errors=True)
    return read_candidate(setup, plan.name, plan.backbone, plan.kind)


def read_candidate(setup: Setup, name: str, backbone: str, kind: Kind) -> SubmissionModel:
    """Return a trained candidate: embed all splits, unless that was done before, and measure it on validation."""
    bundle = setup.bundle(name)
    embeddings = _embed(setup, bundle, name)
    evaluation = evaluate_validation(setup.data, embeddings[Split.VALIDATION], setup.measures)
    (report,) = read_bundle_info(bundle).training
    assert report is not None, "every candidate is trained"
    return SubmissionModel(name, backbone, kind, bundle, embeddings, evaluation, report.seconds, report.planned_share)


def unfinished_plans(setup: Setup) -> list[TrainingPlan]:
    """Return the trainings that were interrupted."""
    folders = sorted((setup.out / "models").glob("*.training"))
    plans = [plan for folder in folders if (plan := _read_plan(folder)) is not None]
    return [plan for plan in plans if not is_bundle(setup.bundle(plan.name))]


def _read_plan(folder: Path) -> TrainingPlan | None:
    """Return the plan of an interrupted training; None if there is none, or it cannot be read."""
    try:
        return read_record(TrainingPlan, read_json(folder / _PLAN, "the plan"))
    except (StorageError, ValueError):
        return None


def refit_bundle(setup: Setup, candidate: SubmissionModel) -> Path:
    """Return the folder of the model that is trained again on all labelled images."""
    return setup.bundle(f"{candidate.name} refit")


def refit_candidate(setup: Setup, candidate: SubmissionModel) -> SubmissionModel:
    """Train a model again on training and validation images together; a finished one is read."""
    name, bundle = f"{candidate.name} refit", refit_bundle(setup, candidate)
    weights = setup.weights[candidate.backbone]
    refit(
        setup.data,
        candidate.bundle,
        out=bundle,
        weights={} if isinstance(weights, Encoder) else {candidate.backbone: weights},
        functions=setup.functions,
        resume=True,
        cache=setup.cache,
        progress=setup.progress,
    )
    items = [replace(i, split=Split.TRAINING) if i.split is Split.VALIDATION else i for i in setup.data.items]
    all_labelled = replace(setup, data=setup.data.replace_items(items))
    return SubmissionModel(name, candidate.backbone, "refit", bundle, _embed(all_labelled, bundle, name))


def _embed(setup: Setup, bundle: Path, name: str) -> dict[str, Embeddings]:
    return embed_splits(
        setup.data,
        partial(_load, setup, bundle),
        read_bundle_info(bundle).fingerprint,
        cache=setup.cache,
        name=name,
        progress=setup.progress,
        share_features=True,
    )


def _load(setup: Setup, bundle: Path) -> AnyEncoder:
    # in float32, as `submit` computes, and as the training of a frozen backbone has stored its features
    return with_runtime(load_bundle(bundle, setup.functions), precision="float32")
