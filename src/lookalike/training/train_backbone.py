"""Training of one backbone: frozen stage, fine-tuning, selection of the weights to keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from torch import nn

from lookalike._files import digest
from lookalike.data.dataset import Dataset, Item
from lookalike.errors import OptionError
from lookalike.models.adapt import family_of
from lookalike.models.backbone_files import parse_backbone_file
from lookalike.models.encoder import Encoder
from lookalike.models.info import TRANSFORMERS, Adaptation, StageMeasures, TrainingReport
from lookalike.models.pipeline import FixedBackbone
from lookalike.models.preprocessing import require_crop
from lookalike.models.trainable import FixedEncoder, TrainableEncoder, build_trainable
from lookalike.runtimes.load import Weights, load_pretrained
from lookalike.training.config import AUTO, Recipe, TrainingOptions, override_options
from lookalike.training.context import TrainingContext, labelled, require_classes
from lookalike.training.finetune import (
    FinetuneState,
    Validation,
    finetune,
    load_checkpoint,
    plan_epochs,
    save_checkpoint,
)
from lookalike.training.frozen_stage import FrozenStage, run_frozen_stage
from lookalike.training.trainer import Trainer, resolve_precision
from lookalike.training.weight_selection import SHARES, record_origin, select_weights


@dataclass(frozen=True)
class TrainedEncoder:
    """A trained encoder, the training items that it could read, and the report."""

    encoder: TrainableEncoder
    items: tuple[Item, ...]
    report: TrainingReport


def train_backbone(context: TrainingContext, backbone: str, weights: Weights) -> TrainedEncoder:
    """Train one backbone; see `train`."""
    data, options = context.data, context.options
    training = labelled(data.training)
    require_classes(data, training)
    encoder, recipe = fresh_encoder(backbone, weights, options, unseen=data.validation_classes_unseen)
    key = run_key(encoder, data, options, recipe, with_rates=False)
    checkpoint = load_checkpoint(context.folder, key)
    run = FinetuneState.restore(checkpoint["run"]) if checkpoint is not None else None
    if run is not None and run.is_over(options.patience):
        # nothing is left to train, so that other learning rates would have no effect
        lr, head_lr = run.requested_rates or (recipe.lr, recipe.head_lr)
        if (lr, head_lr) != (recipe.lr, recipe.head_lr):
            options = override_options(options, {"lr": lr, "head_lr": head_lr})
            recipe = replace(recipe, lr=lr, head_lr=head_lr)
    fingerprint = run_key(encoder, data, options, recipe)  # of the encoder before any stage changes it
    seconds = checkpoint["seconds"] if checkpoint is not None else 0.0
    context = replace(context, options=options, recipe=recipe, key=key, earlier_seconds=seconds)
    context.tracker.log_params({f"{backbone}/{field}": value for field, value in asdict(recipe).items()})

    if checkpoint is None:
        stage = _run_frozen_stage_once(context, encoder)
    else:
        stage = FrozenStage.restore(checkpoint["frozen_stage"], encoder, training)
        context.progress.info(f"{backbone}: resuming after epoch {run.epoch if run is not None else 0}")
    report = replace(
        untrained_report(encoder, options, recipe),
        run=fingerprint,
        crop_mode=stage.crop_mode,
        initial_head=stage.fit,
        head_epochs=stage.head_epochs,
        measures=StageMeasures(stage.pca_measure, stage.head_measure),
        images=len(stage.items),
        skipped=stage.skipped,
    )
    if options.frozen:
        record_origin(encoder, stage, None, head=None)
    else:
        run = run_full_stage(context, encoder, stage, checkpoint, lambda trainer: _plan(context, stage, trainer))
        selection = select_weights(context, encoder, stage, run)
        report = replace(
            report,
            epochs=tuple(run.epochs),
            planned_epochs=run.planned_epochs,
            planned_share=run.planned_share,
            steps_per_epoch=run.steps_per_epoch,
            rates=tuple(run.rates),
            measures=StageMeasures(
                stage.pca_measure,
                stage.head_measure,
                run.best_measure if run.best is not None else None,
                selection.measure,
            ),
            fine_tuned_share=selection.share,
            share_measures={f"{s:g}": round(value, 5) for s, value in sorted(selection.share_measures.items())},
            posthoc_head=selection.posthoc_head,
            warnings=tuple(run.warnings),
        )
    return TrainedEncoder(encoder, stage.items, replace(report, seconds=round(context.seconds, 1)))


def fresh_encoder(
    backbone: str, weights: Weights, options: TrainingOptions, *, unseen: bool
) -> tuple[TrainableEncoder, Recipe]:
    """Build an encoder for training, and return it with the recipe for its network."""
    encoder, recipe = _pretrained_encoder(backbone, weights, options, unseen=unseen)
    if options.crop:
        encoder.preprocessing = replace(encoder.preprocessing, crop=require_crop(options.crop))
    return encoder, recipe


def _pretrained_encoder(
    backbone: str, weights: Weights, options: TrainingOptions, *, unseen: bool
) -> tuple[TrainableEncoder, Recipe]:
    if isinstance(weights, Encoder) or parse_backbone_file(backbone) is not None:
        return _fixed_encoder(backbone, weights, options, unseen=unseen)
    recipes: list[Recipe] = []

    def adapt(module: nn.Module) -> Adaptation:
        recipe = options.recipe_for(family_of(module), unseen=unseen)
        recipes.append(recipe)
        return Adaptation(pooling=recipe.pooling, side=recipe.side)

    return build_trainable(backbone, weights, seed=options.seed, adapt=adapt), recipes[0]


def _fixed_encoder(
    name: str, weights: Weights, options: TrainingOptions, *, unseen: bool
) -> tuple[TrainableEncoder, Recipe]:
    """Return the encoder of a backbone that is only run, with the recipe for its head; refuse to fine-tune it."""
    if not options.frozen:
        raise OptionError(
            f"{name} cannot be fine-tuned, only used as it is; pass `frozen` to train its head.", argument="frozen"
        )
    file = parse_backbone_file(name)
    if file is not None and file.library == TRANSFORMERS and not isinstance(weights, Encoder):
        encoder = build_trainable(name, weights, seed=options.seed)
    else:
        ((backbone, state),) = load_pretrained(name, weights, seed=options.seed)
        encoder = FixedEncoder(cast(FixedBackbone, backbone), state, seed=options.seed)
    recipe = options.recipe_for(family_of(encoder.module), unseen=unseen)
    if Adaptation(recipe.pooling, recipe.side) != Adaptation():
        raise OptionError(
            f"pooling and input size of {name} cannot be changed; omit `pooling` and `side`.", argument="pooling"
        )
    return encoder, recipe


def untrained_report(encoder: TrainableEncoder, options: TrainingOptions, recipe: Recipe) -> TrainingReport:
    """Return the report of an encoder before any stage."""
    family = family_of(encoder.module)
    return TrainingReport(
        backbone=encoder.name,
        options=options.to_dict(),
        recipe=asdict(recipe),
        recipe_name=family if options.recipe == AUTO else options.recipe,
        family=family,
        precision=resolve_precision(encoder.device, recipe.precision),
        sampler=recipe.resolved_sampler,
    )


def run_key(
    encoder: TrainableEncoder, data: Dataset, options: TrainingOptions, recipe: Recipe, *, with_rates: bool = True
) -> str:
    """Return the fingerprint of all that decides a run: fresh encoder, images, options and recipe.

    Without the learning rates it identifies a checkpoint: a run may be resumed with others.
    """
    values = options.to_dict()
    if not with_rates:
        recipe, values = replace(recipe, lr=1.0, head_lr=1.0), options.without_rates()
    parts = repr(sorted(values.items())), repr(recipe)
    return digest(encoder.fingerprint, data.fingerprint, validation_fingerprint(data), *parts)


def validation_fingerprint(data: Dataset) -> str:
    """Return the fingerprint of which images are held out, and which of them are searched."""
    return digest(*sorted(i.id for i in data.validation), *sorted(data.validation_query_ids))


def _run_frozen_stage_once(context: TrainingContext, encoder: TrainableEncoder) -> FrozenStage:
    """Run the frozen stage in the main process and give its result to the others."""
    distributed = context.distributed
    if distributed.world_size == 1:
        return run_frozen_stage(context, encoder)

    def run() -> tuple[dict[str, Any], dict[str, torch.Tensor], str]:
        stage = run_frozen_stage(context, encoder)
        return stage.dump(), encoder.state(), encoder.head_origin

    stored, weights, encoder.head_origin = distributed.broadcast_from_main(run)
    encoder.load_state(weights)
    return FrozenStage.restore(stored, encoder, labelled(context.data.training))


def run_full_stage(
    context: TrainingContext,
    encoder: TrainableEncoder,
    stage: FrozenStage,
    checkpoint: dict[str, Any] | None,
    plan: Callable[[Trainer], FinetuneState],
    *,
    validate: bool = True,
) -> FinetuneState:
    """Fine-tune the whole network from the frozen stage, or from a checkpoint.

    With `validate`, each epoch is measured for early stopping and the best one is kept; otherwise the last one is.
    """
    name, options, recipe, distributed = encoder.name, context.options, context.recipe, context.distributed
    encoder.load_state({**stage.state, **stage.initial_head})
    warnings: list[str] = []

    def warn(text: str) -> None:
        context.progress.info(f"{name}: {text}")
        warnings.append(text)

    classes = len(stage.class_means)
    trainer = Trainer(encoder, classes, recipe, seed=options.seed, distributed=distributed, warn=warn)
    stored_stage = stage.dump()
    if checkpoint is None:
        trainer.objective.initialize_proxies(stage.class_means)
        planned = plan(trainer)
        run = distributed.broadcast_from_main(lambda: planned)
    else:
        run = FinetuneState.restore(checkpoint["run"])
        trainer.load(checkpoint["state"])
    warnings[:0] = run.warnings
    run.warnings = warnings
    if run.set_rates(recipe.lr, recipe.head_lr):
        context.progress.info(f"{name}: new learning rates, lr {recipe.lr:g} and head_lr {recipe.head_lr:g}")
        changed = {"lr": recipe.lr, "head_lr": recipe.head_lr}
        context.tracker.log_params(
            {f"{name}/{field} after epoch {run.epoch}": value for field, value in changed.items()}
        )

    def after_epoch(run: FinetuneState) -> None:
        epoch = run.epochs[-1]
        values = {"loss": epoch.loss, "measure": epoch.measure, "seconds": epoch.seconds}
        logged = {f"{name}/{key}": value for key, value in values.items() if value is not None}
        context.tracker.log_metrics(logged, run.epoch)
        if context.folder is not None and distributed.is_main:
            parts = {"frozen_stage": stored_stage, "state": trainer.dump(), "run": run.dump()}
            save_checkpoint(context.folder, {"key": context.key, "seconds": context.seconds, **parts})

    validation = Validation(
        options.stop_on, lambda: context.measure(encoder), options.patience, frozen=stage.head_measure
    )
    finetune(
        trainer,
        run,
        stage.items,
        stage.targets,
        validation if validate else None,
        after_epoch,
        has_time=lambda: context.has_time_for(run.epochs[-1].seconds + run.reserved_seconds),
        progress=context.progress,
    )
    encoder.module.to(memory_format=torch.channels_last)
    return run


def _plan(context: TrainingContext, stage: FrozenStage, trainer: Trainer) -> FinetuneState:
    """Plan the epochs; with a time budget, from the time of one validation and what is left of the budget."""
    if context.options.max_minutes is None:
        return plan_epochs(trainer, stage.items, stage.targets, None, 0.0)
    before = context.seconds
    context.measure(trainer.encoder)
    overhead = context.seconds - before
    # weight selection costs about five validations, and each closed-form head reads all images once
    passes = 1 + len(SHARES) * context.data.validation_classes_unseen
    passes = 0 if context.recipe.posthoc_head == "trained" else passes
    heads = passes * overhead * (1 + len(stage.items) / max(1, len(context.data.validation)))
    reserved = 5 * overhead + min(heads, 0.3 * 60 * context.options.max_minutes)
    seconds_left = None if context.seconds_left is None else context.seconds_left - reserved
    run = plan_epochs(trainer, stage.items, stage.targets, seconds_left, overhead, context.progress)
    run.reserved_seconds = reserved
    return run
