"""`train`: from a data folder to a fine-tuned encoder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace as changed
from functools import partial
from pathlib import Path
from typing import Any

from lookalike._arguments import checked_arguments
from lookalike._files import digest, follow_link, read_json, require_free, write_json
from lookalike._lock import locked
from lookalike.data.dataset import Dataset, content_hashes, sample_evenly
from lookalike.data.duplicates import require_no_leaks
from lookalike.data.layouts import load_training_splits
from lookalike.errors import OptionError
from lookalike.evaluation.calibration import MIN_QUERIES, calibrate
from lookalike.evaluation.evaluation import DEFAULT_MEASURES, evaluate_validation
from lookalike.evaluation.measures import Measure
from lookalike.models.auto import AUTO, expand_auto
from lookalike.models.bundle import describe_encoder, is_bundle, read_bundle_info, save_bundle
from lookalike.models.encoder import AnyEncoder, Encoder, require_combination
from lookalike.models.function_backbone import split_functions
from lookalike.models.info import BundleInfo, TrainingData, TrainingReport
from lookalike.models.registry import NONE, PRETRAINED
from lookalike.progress import SILENT, Progress, format_about, resolve_progress
from lookalike.reranking.reranker import Reranker
from lookalike.runtimes.fit import align
from lookalike.runtimes.load import Weights, WeightsOption, load_encoder, pair_weights
from lookalike.runtimes.select import with_runtime
from lookalike.training.config import TrainingOptions, override_options
from lookalike.training.context import TrainingContext, labelled, require_classes
from lookalike.training.curves import write_curves
from lookalike.training.distributed import open_distributed
from lookalike.training.estimate import measure_backbone, training_seconds
from lookalike.training.run_folder import prepare_run_folder, run_folder
from lookalike.training.tracking import NO_TRACKER, RunTracker, TrackerTarget, parse_targets, start_tracking
from lookalike.training.train_backbone import (
    TrainedEncoder,
    fresh_encoder,
    run_key,
    train_backbone,
    validation_fingerprint,
)
from lookalike.types import take_shared

Backbones = Sequence[tuple[str, Weights]]
_CALIBRATION_GALLERY = 2000  # training images among which validation images are searched, at most
_CHOICE = "auto.json"  # in the folder of a run: the backbones that `auto` picked


@checked_arguments()
def train(  # noqa: PLR0913 - the command's options, all but two by name
    data: Dataset | Path | str,
    backbone: str | Encoder | Sequence[str | Encoder] = "efficientnet_lite0",
    *,
    weights: WeightsOption = PRETRAINED,
    out: Path | str | None = None,
    options: TrainingOptions | None = None,
    combination: str = "aligned",
    resume: bool = False,
    replace: bool = False,
    cache: Path | str | None = None,
    track: Sequence[str] = (),
    progress: Progress | None = None,
    **overrides: Any,
) -> AnyEncoder:
    """Fine-tune a backbone on the training split and keep the weights that retrieve best on validation.

    Stages: a head in closed form; head and classifier on cached features, with the backbone frozen; fine-tuning of the
    whole network with a checkpoint per epoch; the best interpolation of pretrained and fine-tuned weights; a new head
    in closed form if it measures better.

    Args:
        data: a data folder or a loaded data set; a validation split is taken from its training split.
        backbone: a name; several, as a list or joined by `+`, are trained one after the other and become an ensemble.
            `auto` picks backbones of different kinds (`lookalike.models.auto`). Also encoders from `as_encoder`, whose
            heads are trained, with the option `frozen`.
        weights: as in `load_encoder`.
        out: folder of the bundle to write; without it nothing is written and the run cannot be resumed.
        options: training options; single ones can also be passed by name, as in `epochs=3`.
        combination: how several backbones are combined: aligned, average or concat.
        resume: continue the unfinished run next to `out`, also with other learning rates; a finished run is loaded.
        replace: overwrite an existing bundle, and nothing else.
        cache: a folder that keeps the features of the frozen backbone for other runs on the same images.
        track: trackers that receive each epoch and the bundle: `tensorboard`, `mlflow`, `wandb`, or with a location, as
            in `mlflow=http://host:5000` or `wandb=team/project`.
        progress: receives progress and messages; None shows a bar in a terminal or notebook, and logs elsewhere.
        overrides: options by name that replace those in `options`.

    Returns:
        The encoder, as saved.

    Raises:
        DataError: too little labelled training data, or query or gallery contain training images.
        MissingExtra: a tracker that is not installed.
        ModelError: an unknown backbone, weights that do not fit, too little memory for two images, another process that
            died, or a tracker that cannot be reached.
        OptionError: weights for a backbone that is not trained, or one file for several backbones.
        StorageError: `out` exists, or has an unfinished run and `resume` is not set.
    """
    options = override_options(options, overrides)
    require_combination(combination)
    names, functions = _split_backbone(backbone)
    requested = "+".join(names)
    backbones: Backbones = () if AUTO in names else pair_initial_weights(names, weights, functions)
    targets = parse_targets(track)
    bundle = follow_link(out) if out is not None else None
    with open_distributed() as distributed, ExitStack() as locks:
        progress = resolve_progress(progress) if distributed.is_main else SILENT
        if distributed.description:
            progress.info(distributed.description)
        main = distributed.broadcast_from_main
        folder = None
        if bundle is not None:
            main(lambda: locks.enter_context(locked(bundle)))
            folder = main(partial(prepare_run_folder, bundle, resume=resume, replace=replace, progress=progress))
        split = _load_splits(data, options, progress)
        if AUTO in names:
            count = len(split.training) + len(split.validation)
            names = main(lambda: _earlier_choice(bundle, folder, resume=resume)) or main(
                lambda: expand_auto(names, weights, images=count, minutes=options.max_minutes, progress=progress)
            )
            backbones = pair_initial_weights(names, weights, functions)
        location = bundle.absolute() if bundle is not None else None
        fingerprints = split.fingerprint, *(function.fingerprint for function in functions.values())
        key = digest(*fingerprints, repr(options.without_rates()), repr(backbones), str(location))
        if resume and bundle is not None and is_bundle(bundle):
            if _is_bundle_of(bundle, split, backbones, options, combination):
                main(lambda: finish_resumed_run(bundle, targets, key, progress))
                return load_encoder(bundle, functions=(*functions.values(), *options.crops))
            if not replace:
                require_free(bundle)
        seconds = main(lambda: _estimate_seconds(split, backbones, options))
        main(lambda: require_no_leaks(split, allowed=options.allow_leaks, progress=progress))
        if folder is not None and requested != "+".join(names):
            main(lambda: write_json(folder / _CHOICE, {"backbones": list(names)}))
        name = bundle.name if bundle is not None else requested
        trackers = [NO_TRACKER]  # of the main process only; one that cannot be reached is an error in all of them
        main(lambda: trackers.append(start_tracking(targets, name, key, resume=resume, progress=progress)))
        tracker = trackers[-1]
        limit = "" if options.max_minutes is None else f"; the limit is {options.max_minutes:g} min per backbone"
        progress.info(f"estimate: {format_about(seconds)} for training, less if it stops early{limit}")
        features = None if cache is None else Path(cache)
        context = TrainingContext(split, options, progress, folder, features, distributed, tracker)
        with tracker.closing():
            tracker.log_params(options.to_dict() | {"backbone": requested, "data": split.fingerprint})
            if bundle is None:
                trained = [train_backbone(context.for_backbone(n), *pair) for n, pair in enumerate(backbones)]
                return build_ensemble(trained, combination, progress)
            encoder = train_into_bundle(context, backbones, bundle, combination=combination, replace=replace)
            if distributed.is_main:
                track_bundle(tracker, bundle)
            return encoder


def train_into_bundle(
    context: TrainingContext, backbones: Backbones, bundle: Path, *, combination: str = "aligned", replace: bool = False
) -> AnyEncoder:
    """Train the backbones and write the bundle; the caller checks for leaks and removes the run folder."""
    trained = [train_backbone(context.for_backbone(n), *pair) for n, pair in enumerate(backbones)]
    encoder = build_ensemble(trained, combination, context.progress)

    def save() -> None:
        record = _measure_on_validation(encoder, context.data, context.progress)
        reports = [t.report for t in trained]
        save_trained(encoder, bundle, context.data, context.options, reports, replace=replace, **record)

    context.distributed.broadcast_from_main(save)
    return encoder


def build_ensemble(trained: Sequence[TrainedEncoder], combination: str, progress: Progress) -> AnyEncoder:
    """Combine trained encoders; `aligned` rotates each onto the first, by their embeddings of the training images."""
    members = [with_runtime(t.encoder.freeze()) for t in trained]
    if len(members) == 1 or combination != "aligned":
        return align(members, [], combination)
    embeddings = [
        with_runtime(member, precision="float32").embed(t.items, progress=progress, task=f"{member.name}: alignment")
        for member, t in zip(members, trained, strict=True)
    ]
    return align(members, [e.vectors for e in take_shared(embeddings)], combination)


def _split_backbone(backbone: str | Encoder | Sequence[str | Encoder]) -> tuple[tuple[str, ...], dict[str, Encoder]]:
    """Return the names of all backbones, and the functions among them by name."""
    names, functions = split_functions([backbone] if isinstance(backbone, str | Encoder) else backbone, "backbone")
    if not names:
        raise OptionError("`backbone` is empty; name one, or pass auto.", argument="backbone")
    return tuple(name for joined in names for name in joined.split("+")), functions


def pair_initial_weights(
    names: Sequence[str], weights: WeightsOption, functions: Mapping[str, Encoder] | None = None
) -> Backbones:
    """Return each backbone with its weights, or with its function; one file cannot be the weights of several."""
    functions, all_names = functions or {}, names
    names = [name for name in names if name not in functions]
    if len(names) > 1 and not isinstance(weights, Mapping) and str(weights) not in (PRETRAINED, NONE):
        raise OptionError(
            f"`weights` for {' and '.join(names)} must be a mapping by name, got the single file {weights}.",
            argument="weights",
        )
    paired: dict[str, Weights] = {**dict(pair_weights(names, weights)), **functions}
    return [(name, paired[name]) for name in all_names]


def _earlier_choice(bundle: Path | None, folder: Path | None, *, resume: bool) -> tuple[str, ...]:
    """Return the backbones that `auto` picked when the run began; a resumed run keeps them."""
    if not resume or bundle is None or folder is None:
        return ()
    if is_bundle(bundle):
        return tuple(member.backbone.name for member in read_bundle_info(bundle).members)
    file = folder / _CHOICE
    return tuple(read_json(file, "the choice of backbones")["backbones"]) if file.is_file() else ()


def _load_splits(data: Dataset | Path | str, options: TrainingOptions, progress: Progress) -> Dataset:
    """Load the data set with a validation split, and report its notes."""
    split = load_training_splits(data, options.to_dict())
    for note in split.notes:
        progress.info(f"note: {note}")
    return split


def _estimate_seconds(data: Dataset, backbones: Backbones, options: TrainingOptions) -> float:
    """Return about how long the training takes.

    Raises what would end it before its first epoch: too few classes, an unknown backbone, no weights.
    """
    require_classes(data, labelled(data.training))
    total = 0.0
    for name, weights in backbones:
        per_image, recipe = measure_backbone(name, weights, data, options)
        total += training_seconds(per_image, data, options, recipe)
    return total


def _is_bundle_of(
    bundle: Path, data: Dataset, backbones: Backbones, options: TrainingOptions, combination: str
) -> bool:
    """Whether a bundle is the result of a run with these data, weights and options."""
    info = read_bundle_info(bundle)
    runs = [report.run if report is not None else None for report in info.training]
    if len(runs) != len(backbones) or info.combination not in (None, combination):
        return False
    fresh = [fresh_encoder(*pair, options, unseen=data.validation_classes_unseen) for pair in backbones]
    return runs == [run_key(encoder, data, options, recipe) for encoder, recipe in fresh]


def finish_resumed_run(bundle: Path, targets: Sequence[TrackerTarget], key: str, progress: Progress) -> None:
    """Report that a run is complete; if it was interrupted after its bundle was saved, track the bundle now."""
    progress.info(f"{bundle} is already complete; nothing to resume")
    if run_folder(bundle).exists():
        tracker = start_tracking(targets, bundle.name, key, resume=True, progress=progress)
        with tracker.closing():
            track_bundle(tracker, bundle)


def track_bundle(tracker: RunTracker, bundle: Path) -> None:
    """Log a finished bundle with its validation measures and curves, and remove the folder of its run."""
    measures = read_bundle_info(bundle).measures.get("validation", {})
    tracker.log_metrics({f"validation/{name}": value.mean for name, value in measures.items()}, 1)
    for name in ("curves.png", "curves.html"):
        tracker.log_file(bundle / name)
    tracker.log_model(bundle, bundle.name)
    shutil.rmtree(run_folder(bundle), ignore_errors=True)


def save_trained(
    encoder: AnyEncoder,
    bundle: Path,
    data: Dataset,
    options: TrainingOptions,
    reports: Sequence[TrainingReport],
    *,
    replace: bool,
    reranker: Reranker | None = None,
    **record: Any,
) -> None:
    """Save a trained encoder with its curves and re-ranking; `record` is what else its record says, fields by name."""
    info = changed(training_info(encoder, data, options, reports), **record)
    curves = partial(write_curves, reports=reports, measure=options.stop_on)
    save_bundle(encoder, bundle, info, reranker=reranker, replace_existing=replace, write_extra=curves)


def training_info(
    encoder: AnyEncoder, data: Dataset, options: TrainingOptions, reports: Sequence[TrainingReport | None]
) -> BundleInfo:
    """Return what a bundle records of its training."""
    training_data = TrainingData(
        fingerprint=data.fingerprint,
        images=len(data.training),
        validation_images=len(data.validation),
        validation=validation_fingerprint(data),
        contents=image_hashes(data),
    )
    return describe_encoder(
        encoder,
        classes=tuple(data.classes),
        training_data=training_data,
        options=options.to_dict(),
        training=tuple(reports),
    )


def image_hashes(data: Dataset) -> tuple[str, ...]:
    """Return short hashes of the training images' bytes, by which a later evaluation finds leaks."""
    return tuple(sorted({content[:16] for content in content_hashes(data.training).values()}))


def _measure_on_validation(encoder: AnyEncoder, data: Dataset, progress: Progress) -> Mapping[str, Any]:
    """Return what the record says of validation: the default measures, if there are enough images, and calibration."""
    ready = with_runtime(encoder, precision="float32")
    embeddings = ready.embed(data.validation, progress=progress, task=f"{encoder.name}: measures")
    depth = len(embeddings) - data.validation_excluded
    possible = [m for m in map(Measure.parse, DEFAULT_MEASURES) if m.min_gallery <= depth]
    evaluation = evaluate_validation(data, embeddings, possible)
    training = embeddings.take(())
    if len(embeddings) >= MIN_QUERIES:
        sample = sample_evenly(labelled(data.training), _CALIBRATION_GALLERY)
        training = ready.embed(sample, progress=progress, task=f"{encoder.name}: calibration")
    return {
        "measures": {"validation": evaluation.measures},
        "calibration": calibrate(data, embeddings, training, progress),
    }
