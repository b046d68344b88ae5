"""After fine-tuning: which weights and which head validation prefers.

Between the pretrained and the fine-tuned weights there is often something better than both (WiSE-FT; Wortsman et al.
2022, "Robust fine-tuning of zero-shot models"). The head is the trained one, or a whitening fitted to the fine-tuned
backbone in closed form: fine-tuning makes the training classes compact in some directions more than in others, and
whitening evens that out, at no cost at search time. It helps most if the test classes are unseen (docs/log.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from lookalike.models.heads import Whitening
from lookalike.models.info import FINE_TUNED, MIN_PLANNED_SHARE, TRAINED_HEAD, UNTRAINED, HeadFit
from lookalike.models.trainable import State, TrainableEncoder
from lookalike.runtimes.fit import Features
from lookalike.training.batches import Indices
from lookalike.training.context import TrainingContext
from lookalike.training.finetune import FinetuneState
from lookalike.training.frozen_stage import FrozenStage, whitened_head

SHARES = (0.25, 0.5, 0.75)
# a larger emphasis increases map@r and decreases hit@1 here, and validation cannot select it (docs/log.md)
HEAD_FITS = tuple(HeadFit(shrinkage, emphasis) for shrinkage in (0.1, 0.3, 0.5, 0.7) for emphasis in (1.0, 2.0))


@dataclass(frozen=True)
class WeightSelection:
    """What was selected."""

    share: float  # of the fine-tuned weights in the interpolation with the pretrained ones
    measure: float  # validation measure of the selection
    posthoc_head: HeadFit | None = None  # the fit of a whitening head; None if the trained head is kept
    # validation measure of each share with the trained head; empty for random initial weights
    share_measures: Mapping[float, float] = field(default_factory=dict)


def select_weights(
    context: TrainingContext, encoder: TrainableEncoder, stage: FrozenStage, run: FinetuneState
) -> WeightSelection:
    """Set the encoder to the weights and the head that validation prefers."""
    measures: dict[float, float] = {}
    if run.best is None:  # no epoch was finished
        share = 0.0
    elif encoder.trained == UNTRAINED:  # random weights are not a useful starting point
        share = 1.0
    else:
        measures = _measure_shares(context, encoder, stage, run)
        share = max(measures, key=lambda share: (measures[share], -share))  # of equals, the closest to pretrained
    selection = WeightSelection(share, stage.head_measure if share == 0 else measures.get(share, run.best_measure))
    encoder.load_state(interpolate_weights(stage.state, run.best or stage.state, share))

    policy = context.recipe.posthoc_head
    if policy != "trained" and run.epoch:
        # for unseen classes, or where fine-tuning did not help, another share may be best with another head
        several = bool(measures) and (context.data.validation_classes_unseen or share == 0)
        shares = sorted((1.0, *SHARES), key=lambda s: abs(s - 0.7)) if several else (share,)
        at_least = -math.inf if policy == "whitened" and share > 0 else selection.measure
        selection = fit_posthoc_head(context, encoder, stage, run.best_weights, shares, at_least) or selection
    record_origin(encoder, stage, selection.share, head=None if selection.posthoc_head else context.recipe.loss)
    selection = replace(selection, share_measures=measures)
    if run.best is not None and share == 0:
        run.warnings.append(_describe_loss(context.options.stop_on, stage, run))
    context.progress.info(f"{encoder.name}: {_describe(selection, context.options.stop_on, stage, run)}")
    return selection


def _describe_loss(measure: str, stage: FrozenStage, run: FinetuneState) -> str:
    """Say that validation is not above what it was before fine-tuning."""
    cause = "fine-tuning did not help"
    if run.planned_share < MIN_PLANNED_SHARE:
        cause = f"too few steps to judge fine-tuning ({run.planned_share:.1%} of the recipe)"
    return f"{cause}: validation {measure} {run.best_measure:.4f} after the best epoch, {stage.head_measure:.4f} before"


def _describe(selection: WeightSelection, measure: str, stage: FrozenStage, run: FinetuneState) -> str:
    share, tried = selection.share, selection.share_measures
    text = f"using {share:.0%} fine-tuned + {1 - share:.0%} pretrained weights"
    if share == 0:
        text = "using the pretrained weights"
        text = text if run.best is None else f"{_describe_loss(measure, stage, run)}; {text}"
    if tried:
        values = ", ".join(f"{share:.0%} {tried[share]:.4f}" for share in sorted(tried))
        text += f"; validation {measure} by share of fine-tuned weights: {values}"
    if selection.posthoc_head is not None:
        text += f"; {selection.measure:.4f} with a new whitening head ({selection.posthoc_head})"
    return text


def interpolate_weights(pretrained: State, fine_tuned: State, share: float) -> State:
    """Return `(1 - share) * pretrained + share * fine_tuned` of all floating-point tensors, others fine-tuned.

    With a share of 0 or 1 the tensors are exactly those of one side.
    """
    if share in (0, 1):
        return dict(fine_tuned if share else pretrained)
    return {
        key: torch.lerp(pretrained[key], value, share) if value.is_floating_point() else value
        for key, value in fine_tuned.items()
    }


def _measure_shares(
    context: TrainingContext, encoder: TrainableEncoder, stage: FrozenStage, run: FinetuneState
) -> dict[float, float]:
    measures = {0.0: stage.head_measure, 1.0: run.best_measure}
    for share in SHARES:
        encoder.load_state(interpolate_weights(stage.state, run.best_weights, share))
        measures[share] = context.measure(encoder)
    return measures


def record_origin(encoder: TrainableEncoder, stage: FrozenStage, share: float | None, head: str | None) -> None:
    """Record in the encoder where its weights and its head come from.

    `share` is None without fine-tuning; `head` says how the head was trained, None keeps the record.
    """
    if share:
        encoder.trained = FINE_TUNED
        encoder.head_origin = head or encoder.head_origin
    else:
        encoder.head_origin = "cross-entropy, backbone frozen" if stage.head_epochs else stage.head_origin
        if stage.head_epochs or stage.fit is not None:  # the head is fitted with labels
            encoder.trained = TRAINED_HEAD


def fit_posthoc_head(
    context: TrainingContext,
    encoder: TrainableEncoder,
    stage: FrozenStage,
    fine_tuned: State,
    shares: Sequence[float],
    at_least: float,
) -> WeightSelection | None:
    """Set the interpolated weights and the whitening head fitted to them that measure best together.

    Returns None, with the encoder unchanged, if nothing measures above `at_least`. The shares of the fine-tuned weights
    are tried in their order while there is time.
    """
    best: WeightSelection | None = None
    best_state, best_origin = encoder.state(), encoder.head_origin
    for number, share in enumerate(shares):
        if number and not context.has_time_for_more():
            break
        encoder.load_state(interpolate_weights(stage.state, fine_tuned, share))
        task = f"closed-form head at {share:.0%} of fine-tuning" if len(shares) > 1 else "closed-form head"
        features, targets = _training_features(context, encoder, stage, task)
        whitening = Whitening(features.rows, targets, encoder.dim, seed=context.options.seed)
        measure = context.make_head_measure(encoder)
        for fit in HEAD_FITS:
            _set_head(encoder, whitening, fit, len(targets))
            value = measure()
            if value > at_least:
                best, at_least = WeightSelection(share, value, fit), value
                best_state, best_origin = encoder.state(), encoder.head_origin
    encoder.load_state(best_state)
    encoder.head_origin = best_origin
    return best


def replay_posthoc_head(context: TrainingContext, encoder: TrainableEncoder, stage: FrozenStage, fit: HeadFit) -> None:
    """Fit a whitening head with known parameters to the encoder's current backbone."""
    features, targets = _training_features(context, encoder, stage, "closed-form head")
    whitening = Whitening(features.rows, targets, encoder.dim, seed=context.options.seed)
    _set_head(encoder, whitening, fit, len(features.ids))


def _training_features(
    context: TrainingContext, encoder: TrainableEncoder, stage: FrozenStage, task: str
) -> tuple[Features, Indices]:
    features = context.current_features(encoder, stage.items, task)
    indices = dict(zip((i.id for i in stage.items), stage.targets.tolist(), strict=True))
    return features, np.array([indices[i] for i in features.ids], dtype=np.int64)


def _set_head(encoder: TrainableEncoder, whitening: Whitening, fit: HeadFit, images: int) -> None:
    encoder.set_head(whitened_head(whitening, fit, images, " after training"))
