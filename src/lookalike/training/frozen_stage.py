"""The first stage: crop mode and head are selected, and the head is trained, while the backbone stays frozen.

Fine-tuning starts from its result, and the interpolation of weights goes back to it.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from lookalike.data.dataset import Item
from lookalike.models.heads import Head, Whitening, pca_head
from lookalike.models.info import HeadFit
from lookalike.models.trainable import State, TrainableEncoder
from lookalike.runtimes.fit import Features
from lookalike.training.batches import Indices
from lookalike.training.config import AUTO
from lookalike.training.context import TrainingContext, class_indices, labelled, require_classes
from lookalike.types import Vectors, l2_normalize

PRETRAINED_CROP = "pretrained"

# crop modes that `auto` compares; `border` was less accurate on every data set (docs/log.md)
CANDIDATE_CROP_MODES = (PRETRAINED_CROP, "center", "squash")
# from covariance normalisation (emphasis 1) to linear discriminant analysis, which few images per class need most
HEAD_FITS = tuple(
    HeadFit(shrinkage, emphasis) for emphasis in (1.0, 2.0, 4.0, 16.0) for shrinkage in (0.1, 0.3, 0.5, 0.7, 0.9)
)
HEAD_EPOCHS = 30
_HEAD_BATCH_SIZE = 128

# share of the time budget for comparing crop modes: a frozen training does little else
_CROP_SHARE_FROZEN, _CROP_SHARE = 0.7, 0.25


@dataclass(frozen=True)
class FrozenStage:
    """The result of the stage with the backbone frozen."""

    items: tuple[Item, ...]  # the training items that can be read
    targets: Indices  # `(n,)` class index of each item
    crop_mode: str  # of the encoder's preprocessing
    state: State  # weights of the encoder with its best head and the pretrained backbone
    initial_head: State  # weights of its head before any gradient step, from which fine-tuning starts
    class_means: torch.Tensor  # `(classes, dim)` float32, unit length: mean embedding of each class with that head
    head_origin: str  # how that head was fitted, in words
    pca_measure: float  # validation measure with principal components as head
    head_measure: float  # validation measure with the best head
    fit: HeadFit | None  # of a whitening head; None for principal components
    head_epochs: int  # epochs of the best head; 0 if training it did not help
    skipped: tuple[str, ...]  # training and validation files that cannot be read, with their causes

    def dump(self) -> dict[str, Any]:
        """Return a plain structure for a checkpoint; without the backbone, which is loaded from its weights again."""
        stored = {**vars(self), "ids": [i.id for i in self.items], "state": _head_weights(self.state)}
        stored["fit"] = None if self.fit is None else asdict(self.fit)
        return {name: value for name, value in stored.items() if name not in ("items", "targets")}

    @classmethod
    def restore(cls, stored: dict[str, Any], encoder: TrainableEncoder, items: tuple[Item, ...]) -> FrozenStage:
        """Undo `dump` with an encoder that is fresh from its weights, whose head and crop mode are set."""
        values = dict(stored)
        ids = set(values.pop("ids"))
        values["fit"] = None if values["fit"] is None else HeadFit(**values["fit"])
        items = tuple(i for i in items if i.id in ids)
        set_crop_mode(encoder, values["crop_mode"])
        encoder.load_state({**encoder.state(), **values.pop("state")})
        return cls(items=items, targets=class_indices(items), state=encoder.state(), **values)


@dataclass(frozen=True)
class FrozenStageConfig:
    """What an earlier frozen stage chose, for one that measures nothing."""

    crop_mode: str = PRETRAINED_CROP
    fit: HeadFit | None = None
    head_epochs: int = 0


def run_frozen_stage(context: TrainingContext, encoder: TrainableEncoder) -> FrozenStage:
    """Choose the crop mode, fit the head, then train head and classifier on cached features.

    The encoder is left with the best head.
    """
    options, recipe, name = context.options, context.recipe, encoder.name
    by_validation = options.frozen or context.data.validation_classes_unseen
    crop_mode, features, validation = _choose_crop_mode(context, encoder, by_validation)
    items = _readable(context, features, labelled(context.data.training))
    targets = class_indices(items)

    measure = partial(context.measure_head, encoder, validation)
    initial = pca_head(features.rows, encoder.dim, seed=options.seed)
    encoder.set_head(initial)
    pca_measure = measure()
    fit = None
    if recipe.head == "whitened" or (recipe.head == AUTO and by_validation):
        whitening = Whitening(features.rows, targets, encoder.dim, seed=options.seed)
        baseline = pca_measure if recipe.head == AUTO else -math.inf
        fit = _choose_fit(encoder, whitening, len(items), initial, baseline, measure)
    config = FrozenStageConfig(crop_mode, fit, HEAD_EPOCHS)
    stage = _train_stage_head(context, encoder, features, items, targets, config, measure=measure)
    context.progress.info(
        f"{name}: validation {options.stop_on} {pca_measure:.4f} frozen, {stage.head_measure:.4f} with the best head"
    )
    return replace(stage, pca_measure=pca_measure, skipped=(*stage.skipped, *map(str, validation.skipped)))


def replay_frozen_stage(context: TrainingContext, encoder: TrainableEncoder, config: FrozenStageConfig) -> FrozenStage:
    """Repeat the stage, with the validation images as training images and the choices of the first training."""
    set_crop_mode(encoder, config.crop_mode)
    splits = {"features": labelled(context.data.training), "validation": labelled(context.data.validation)}
    parts = [context.frozen_features(encoder, items, f"{encoder.name}: {task}") for task, items in splits.items()]
    features = Features(
        tuple(i for part in parts for i in part.ids),
        np.concatenate([part.rows for part in parts]),
        tuple(s for part in parts for s in part.skipped),
    )
    items = _readable(context, features, (*splits["features"], *splits["validation"]))
    targets, seed = class_indices(items), context.options.seed
    encoder.set_head(pca_head(features.rows, encoder.dim, seed=seed))
    if config.fit is not None:
        whitening = Whitening(features.rows, targets, encoder.dim, seed=seed)
        encoder.set_head(whitened_head(whitening, config.fit, len(items)))
    return _train_stage_head(context, encoder, features, items, targets, config, measure=None)


def _readable(context: TrainingContext, features: Features, items: tuple[Item, ...]) -> tuple[Item, ...]:
    ids = set(features.ids)
    readable = tuple(i for i in items if i.id in ids)
    require_classes(context.data, readable, "readable training")
    return readable


def set_crop_mode(encoder: TrainableEncoder, crop_mode: str) -> None:
    """Set the crop mode of an encoder that is fresh from its weights."""
    if crop_mode != PRETRAINED_CROP:
        encoder.preprocessing = replace(encoder.preprocessing, crop_mode=crop_mode, crop_pct=1.0)


def _choose_crop_mode(
    context: TrainingContext, encoder: TrainableEncoder, by_validation: bool
) -> tuple[str, Features, Features]:
    """Set the crop mode of the recipe, or the one that measures best with a PCA head.

    Returns it with the features of the training and of the validation images.
    """
    options, name, pretrained = context.options, encoder.name, encoder.preprocessing

    def features_of(crop_mode: str, label: str) -> tuple[Features, Features]:
        encoder.preprocessing = pretrained
        set_crop_mode(encoder, crop_mode)
        training = context.frozen_features(encoder, labelled(context.data.training), f"{label}: features")
        return training, context.frozen_features(encoder, context.data.validation, f"{label}: validation")

    crop_mode = context.recipe.crop_mode
    if crop_mode != AUTO or not by_validation:
        crop_mode = "squash" if crop_mode == AUTO else crop_mode
        return crop_mode, *features_of(crop_mode, name)

    budget = 60 * (options.max_minutes or math.inf) * (_CROP_SHARE_FROZEN if options.frozen else _CROP_SHARE)
    started = time.perf_counter()
    features: dict[str, tuple[Features, Features]] = {}
    measures: dict[str, float] = {}
    for candidate in CANDIDATE_CROP_MODES:
        features[candidate] = training, validation = features_of(candidate, f"{name}, {candidate}")
        encoder.set_head(pca_head(training.rows, encoder.dim, seed=options.seed))
        measures[candidate] = context.measure_head(encoder, validation)
        if (time.perf_counter() - started) * (1 + 1 / len(measures)) > budget:
            break  # another one would leave too little time for training
    text = ", ".join(f"{candidate} {value:.4f}" for candidate, value in measures.items())
    skipped = [candidate for candidate in CANDIDATE_CROP_MODES if candidate not in measures]
    text += f"; not enough time to try {' and '.join(skipped)}" if skipped else ""
    context.progress.info(f"{name}: validation {options.stop_on} by crop mode: {text}")
    best = max(measures, key=measures.__getitem__)
    encoder.preprocessing = pretrained
    set_crop_mode(encoder, best)
    return best, *features[best]


def logit_scale(classes: int, label_smoothing: float) -> float:
    """Return the scale of cosine logits at which perfectly separated classes meet the smoothed target exactly.

    The ideal arrangement of `classes` unit vectors is the regular simplex, where cosines differ by C / (C - 1)
    (Papyan et al. 2020, "Prevalence of neural collapse"); a smoothing of e needs logits that differ by
    ln((C (1 - e) + e) / e). With a larger scale the gradient vanishes long before the classes are compact: with 10
    classes, 16 instead of 4 cost 0.2 of map@r (docs/log.md).
    """
    smoothing = max(label_smoothing, 0.01)
    gap = math.log((classes * (1 - smoothing) + smoothing) / smoothing)
    return gap * (classes - 1) / classes


class CosineClassifier(nn.Module):
    """Classifier of the frozen stage: scaled cosines to one unit vector per class, which starts at the class mean."""

    def __init__(self, embeddings: Vectors, targets: Indices, label_smoothing: float) -> None:
        super().__init__()
        means = np.stack([embeddings[targets == c].mean(axis=0) for c in np.unique(targets)])
        self.weight = nn.Parameter(torch.from_numpy(l2_normalize(means)))
        self.scale = logit_scale(len(means), label_smoothing)
        self.label_smoothing = label_smoothing

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return logits `(n, classes)`."""
        return self.scale * nn.functional.linear(embeddings, nn.functional.normalize(self.weight, dim=1))


def train_head(
    encoder: TrainableEncoder,
    classifier: CosineClassifier,
    features: Features,
    targets: Indices,
    measure: Callable[[], float] | None,
    *,
    seed: int,
    epochs: int,
) -> tuple[float, int]:
    """Train head and classifier in place with cross-entropy on cached features; keep the epoch that measures best.

    Returns the best measure and its epoch, counted from 1; the initial measure and 0 if training did not help; NaN and
    the last epoch without a measure.
    """
    head, device = encoder.head.train(), encoder.device
    modules = nn.ModuleList([head, classifier.to(device)])
    x, y = torch.from_numpy(features.rows).to(device), torch.from_numpy(targets).to(device)
    optimizer = torch.optim.AdamW(modules.parameters(), lr=1e-3, weight_decay=1e-2)
    order = torch.Generator().manual_seed(seed)
    best, best_epoch, best_state = measure() if measure else math.nan, 0, copy.deepcopy(modules.state_dict())
    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(len(x), generator=order).to(device).split(_HEAD_BATCH_SIZE):  # type: ignore[no-untyped-call]
            logits = classifier(head(x[rows]))
            loss = nn.functional.cross_entropy(logits, y[rows], label_smoothing=classifier.label_smoothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        value = measure() if measure else math.nan
        if not value <= best:  # better, or not measured
            best, best_epoch, best_state = value, epoch, copy.deepcopy(modules.state_dict())
    modules.load_state_dict(best_state)
    head.eval()
    return best, best_epoch


def _train_stage_head(
    context: TrainingContext,
    encoder: TrainableEncoder,
    features: Features,
    items: tuple[Item, ...],
    targets: Indices,
    config: FrozenStageConfig,
    *,
    measure: Callable[[], float] | None,
) -> FrozenStage:
    """Train the fitted head for at most `config.head_epochs`; the PCA measure of the stage is not set."""
    classifier = CosineClassifier(encoder.project(features.rows), targets, context.recipe.label_smoothing)
    class_means = classifier.weight.detach().to("cpu", copy=True)
    initial_head, origin = _head_weights(encoder.state()), encoder.head_origin
    seed, epochs = context.options.seed, config.head_epochs
    head_measure, head_epochs = train_head(encoder, classifier, features, targets, measure, seed=seed, epochs=epochs)
    return FrozenStage(
        items=items,
        targets=targets,
        crop_mode=config.crop_mode,
        state=encoder.state(),
        initial_head=initial_head,
        class_means=class_means,
        head_origin=origin,
        pca_measure=math.nan,
        head_measure=head_measure,
        fit=config.fit,
        head_epochs=head_epochs,
        skipped=tuple(map(str, features.skipped)),
    )


def _choose_fit(
    encoder: TrainableEncoder,
    whitening: Whitening,
    images: int,
    initial: Head,
    baseline: float,
    measure: Callable[[], float],
) -> HeadFit | None:
    """Set the head that measures best, and return its fit; None if no whitening is above the baseline."""
    best, best_head = None, initial
    for fit in HEAD_FITS:
        head = whitened_head(whitening, fit, images)
        encoder.set_head(head)
        value = measure()
        if value > baseline:
            best, best_head, baseline = fit, head, value
    encoder.set_head(best_head)
    return best


def whitened_head(whitening: Whitening, fit: HeadFit, images: int, when: str = "") -> Head:
    """Return the whitening head with these parameters; `when` completes the words on its origin."""
    return Head(
        *whitening.fit(fit.shrinkage, fit.emphasis), f"whitened within the classes of {images} images{when}, {fit}"
    )


def _head_weights(state: State) -> State:
    return {k: v for k, v in state.items() if k.startswith("head.")}
