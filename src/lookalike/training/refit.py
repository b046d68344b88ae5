"""`refit`: train once more on all labelled images, with the choices that validation made the first time."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

from lookalike._arguments import checked_arguments
from lookalike._files import digest, follow_link, require_free
from lookalike._lock import locked
from lookalike.data.dataset import Dataset, Split
from lookalike.data.duplicates import require_no_leaks
from lookalike.data.layouts import load_training_splits
from lookalike.errors import DataError, ModelError, OptionError
from lookalike.models.backbone_files import parse_backbone_file
from lookalike.models.bundle import is_bundle, read_bundle_info
from lookalike.models.encoder import AnyEncoder, Encoder
from lookalike.models.info import BundleInfo, EpochReport, TrainingReport
from lookalike.models.preprocessing import Crop
from lookalike.models.registry import PRETRAINED
from lookalike.models.trainable import TrainableEncoder, build_trainable
from lookalike.progress import Progress, resolve_progress
from lookalike.reranking.reranker import Reranker, class_means
from lookalike.runtimes.load import Weights, WeightsOption, load_encoder
from lookalike.runtimes.select import with_runtime
from lookalike.training.config import Recipe, TrainingOptions, override_options
from lookalike.training.context import TrainingContext
from lookalike.training.finetune import FinetuneState, load_checkpoint
from lookalike.training.frozen_stage import FrozenStage, FrozenStageConfig, replay_frozen_stage
from lookalike.training.run_folder import prepare_run_folder
from lookalike.training.tracking import parse_targets, start_tracking
from lookalike.training.train import (
    build_ensemble,
    finish_resumed_run,
    pair_initial_weights,
    save_trained,
    track_bundle,
)
from lookalike.training.train_backbone import (
    TrainedEncoder,
    fresh_encoder,
    run_full_stage,
    run_key,
    untrained_report,
    validation_fingerprint,
)
from lookalike.training.trainer import Trainer
from lookalike.training.weight_selection import interpolate_weights, record_origin, replay_posthoc_head


@checked_arguments()
def refit(  # noqa: PLR0913 - the command's options, all but two by name
    data: Dataset | Path | str,
    model: Path | str,
    *,
    out: Path | str,
    weights: WeightsOption = PRETRAINED,
    resume: bool = False,
    replace: bool = False,
    cache: Path | str | None = None,
    track: Sequence[str] = (),
    functions: Sequence[AnyEncoder | Crop] = (),
    progress: Progress | None = None,
) -> AnyEncoder:
    """Train the encoders of a bundle again, on the training and the validation images together.

    Validation has chosen the number of epochs and the share of the fine-tuned weights; now its images are more useful
    for training. The new encoder has no validation accuracy of its own: use that of the bundle.

    Args:
        data: the data that the bundle was trained on.
        model: a bundle made by `train` or `benchmark`.
        out: folder of the new bundle.
        weights: the weights that the bundle was trained from, as in `train`.
        resume: continue the unfinished run next to `out`.
        replace: overwrite an existing bundle, and nothing else.
        cache: as in `train`.
        track: as in `train`.
        functions: as in `load_encoder`.
        progress: receives progress and messages; None shows a bar in a terminal or notebook, and logs elsewhere.

    Returns:
        The encoder, as saved.

    Raises:
        DataError: other data than the bundle was trained on.
        ModelError: not a bundle, one without a record of its training, or other weights than it was trained from.
        OptionError: weights for a backbone that is not in the bundle, or several processes.
        StorageError: `out` exists, or has an unfinished run and `resume` is not set.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptionError("refit runs in one process; start it without torchrun or accelerate.")
    progress = resolve_progress(progress)
    first, bundle, targets = _read_first(Path(model), functions), follow_link(out), parse_targets(track)
    names = [encoder.name for encoder in first.encoder.members]
    encoders = [member for function in functions if not isinstance(function, Crop) for member in function.members]
    by_name = {encoder.name: encoder for encoder in encoders if encoder.name in names}
    initial = dict(pair_initial_weights(names, weights, by_name))
    folder = prepare_run_folder(bundle, resume=resume, replace=replace, progress=progress)
    key = digest(first.encoder.fingerprint, str(bundle.absolute()))
    if resume and is_bundle(bundle) and read_bundle_info(bundle).refit_of == first.encoder.fingerprint:
        finish_resumed_run(bundle, targets, key, progress)
        return load_encoder(bundle, functions=functions)
    if not replace:
        require_free(bundle, replaceable=is_bundle(bundle))
    split = first.split(data)
    options = first.options[0]
    require_no_leaks(split, allowed=options.allow_leaks, progress=progress)
    with locked(bundle):
        tracker = start_tracking(targets, bundle.name, key, resume=resume, progress=progress)
        with tracker.closing():
            tracker.log_params({"refit_of": first.encoder.fingerprint, "data": split.fingerprint})
            for report in filter(None, first.reports):
                tracker.log_params({f"{report.backbone}/{field}": value for field, value in report.recipe.items()})
            features = None if cache is None else Path(cache)
            context = TrainingContext(split, options, progress, folder, features, tracker=tracker)
            trained = [
                _refit_backbone(
                    changed(context.for_backbone(n), options=first.options[n]), m, initial[m.name], first.reports[n]
                )
                for n, m in enumerate(first.encoder.members)
            ]
            encoder = build_ensemble(trained, first.info.combination or "aligned", progress)
            items = [changed(i, split=Split.TRAINING) if i.split is Split.VALIDATION else i for i in split.items]
            data, reports = split.replace_items(items), [t.report for t in trained]
            reranker = _refit_reranker(first.info, encoder, data, progress)
            # no image is left to fit another calibration on: those of validation are training images now
            record: dict[str, Any] = {"refit_of": first.encoder.fingerprint, "calibration": first.info.calibration}
            save_trained(encoder, bundle, data, options, reports, replace=replace, reranker=reranker, **record)
            track_bundle(tracker, bundle)
    return encoder


@dataclass(frozen=True)
class _FirstTraining:
    path: Path
    encoder: AnyEncoder
    info: BundleInfo
    reports: Sequence[TrainingReport | None]  # of each member; None for one that was not trained
    options: Sequence[TrainingOptions]

    def split(self, data: Dataset | Path | str) -> Dataset:
        """Return the data with the validation split of the first training."""
        if len({(o.seed, o.class_disjoint) for o in self.options}) > 1:
            raise ModelError(
                f"{self.path} has members trained with different validation splits; refit each one separately.",
                argument="model",
            )
        options, stored = self.options[0], self.info.training_data
        split = load_training_splits(data, options.to_dict())
        fingerprints = split.fingerprint, validation_fingerprint(split)
        if stored is None or fingerprints != (stored.fingerprint, stored.validation):
            raise DataError(
                f"{self.path} was not trained on the images in {split.root}; pass its training data.", argument="data"
            )
        return split


def _read_first(path: Path, functions: Sequence[AnyEncoder | Crop]) -> _FirstTraining:
    info = read_bundle_info(path)
    if info.is_exported:
        raise ModelError(f"{path} is an exported model; pass the bundle that it was exported from.", argument="model")
    if info.refit_of is not None:
        raise ModelError(
            f"{path} was already refitted on all images; pass the bundle that it was refitted from.", argument="model"
        )
    try:
        reports = info.training or (None,) * len(info.members)
        crops: dict[str, dict[str, Crop]] = {crop: {"crop": crop} for crop in functions if isinstance(crop, Crop)}
        options = [TrainingOptions(**(report.options if report else info.options)) for report in reports]
        options = [override_options(o, crops.get(o.crop, {})) for o in options]
        if info.training_data is None:
            raise KeyError("training_data")
    except (KeyError, TypeError, OptionError) as error:
        raise ModelError(
            f"{path} has no complete record of its training; pass a bundle that 'lookalike train' trained.",
            argument="model",
        ) from error
    return _FirstTraining(path, load_encoder(path, functions=functions), info, reports, options)


def _refit_reranker(info: BundleInfo, encoder: AnyEncoder, data: Dataset, progress: Progress) -> Reranker | None:
    """Return the re-ranking of the first training, with the class means of the new encoder."""
    if info.reranking is None:
        return None
    if info.reranking.steps.class_similarity is None:
        return Reranker(info.reranking.steps)
    embeddings = with_runtime(encoder, precision="float32").embed(
        data.training, progress=progress, task=f"{encoder.name}: class means"
    )
    return Reranker(info.reranking.steps, class_means(embeddings, data.labels(Split.TRAINING)))


def _refit_backbone(
    context: TrainingContext, first: Encoder, weights: Weights, report: TrainingReport | None
) -> TrainedEncoder:
    """Train one backbone again; without a report, only its head is fitted again."""
    name, data, options = first.name, context.data, context.options
    if report is not None:
        encoder, recipe = fresh_encoder(name, weights, options, unseen=data.validation_classes_unseen)
        same_weights = run_key(encoder, data, options, recipe) == report.run
        config = FrozenStageConfig(report.crop_mode, report.initial_head, report.head_epochs)
    else:
        if isinstance(weights, Encoder) or parse_backbone_file(name) is not None:
            options = override_options(options, {"frozen": True})
            encoder, _ = fresh_encoder(name, weights, options, unseen=data.validation_classes_unseen)
        else:
            encoder = build_trainable(name, weights, seed=options.seed)
        recipe = Recipe(precision="float32")
        same_weights = encoder.torch_backbone().info.fingerprint == first.info.backbone.fingerprint
        config = FrozenStageConfig()
    if not same_weights:
        raise ModelError(
            f"these are not the weights that {name} was trained from; pass the original `weights`.", argument="weights"
        )
    fine_tuning = report if report is not None and report.fine_tuned_share else None
    key = digest(run_key(encoder, data, options, recipe), "refit", repr((config, fine_tuning)))
    checkpoint = load_checkpoint(context.folder, key)
    seconds = checkpoint["seconds"] if checkpoint is not None else 0.0
    context = changed(context, recipe=recipe, key=key, earlier_seconds=seconds)

    if checkpoint is None:
        stage = replay_frozen_stage(context, encoder, config)
    else:
        stage = FrozenStage.restore(checkpoint["frozen_stage"], encoder, (*data.training, *data.validation))
        context.progress.info(f"{name}: resuming after epoch {len(checkpoint['run']['epochs'])}")
    epochs: tuple[EpochReport, ...] = ()
    if fine_tuning is not None:
        epochs = _repeat_fine_tuning(context, encoder, stage, checkpoint, fine_tuning)
    elif report is not None:
        record_origin(encoder, stage, None, head=None)
    result = changed(
        report or untrained_report(encoder, options, recipe),
        run=key,
        images=len(stage.items),
        skipped=stage.skipped,
        epochs=epochs,
        seconds=round(context.seconds, 1),
    )
    return TrainedEncoder(encoder, stage.items, result)


def _repeat_fine_tuning(
    context: TrainingContext,
    encoder: TrainableEncoder,
    stage: FrozenStage,
    checkpoint: dict[str, Any] | None,
    report: TrainingReport,
) -> tuple[EpochReport, ...]:
    """Fine-tune until the epoch that was best the first time, and set the same share of weights and kind of head."""

    def plan(trainer: Trainer) -> FinetuneState:
        size, steps = trainer.recipe.batch_size, report.steps_per_epoch
        training = sum(i.split is Split.TRAINING for i in stage.items)
        if steps >= math.ceil(training / size):  # not shortened by a time budget
            steps = math.ceil(len(stage.items) / size)
        return FinetuneState(
            report.planned_epochs,
            steps,
            last_epoch=report.best_epoch,
            rates=list(report.rates),
            requested_rates=(trainer.recipe.lr, trainer.recipe.head_lr),
        )

    run = run_full_stage(context, encoder, stage, checkpoint, plan, validate=False)
    share = (report.fine_tuned_share or 0.0) if run.best is not None else 0.0
    encoder.load_state(interpolate_weights(stage.state, run.best or stage.state, share))
    record_origin(encoder, stage, share, head=context.recipe.loss)
    if report.posthoc_head is not None:
        replay_posthoc_head(context, encoder, stage, report.posthoc_head)
    return tuple(run.epochs)
