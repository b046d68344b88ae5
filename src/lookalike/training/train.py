"""`train`: from a data folder to a fine-tuned encoder."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from lookalike._files import digest, require_free
from lookalike.data.dataset import Dataset, content_hashes
from lookalike.data.duplicates import require_no_leaks
from lookalike.data.layouts import load_dataset
from lookalike.data.split import with_validation
from lookalike.errors import ModelError, OptionError, StorageError
from lookalike.evaluation.evaluation import DEFAULT_MEASURES, evaluate_embeddings
from lookalike.evaluation.measures import Measure
from lookalike.models.alignment import fit_alignment
from lookalike.models.encoder import Encoder, require_combination
from lookalike.models.facts import is_bundle, read_facts
from lookalike.models.torch_bundle import load_bundle, save_bundle
from lookalike.models.weights import NONE, PRETRAINED
from lookalike.progress import SILENT, Progress
from lookalike.training.curves import write_curves
from lookalike.training.finetune import DivergedError
from lookalike.training.one_backbone import Outcome, fresh_member, run_key, train_member, validation_fingerprint
from lookalike.training.options import RATES, OptionChanges, TrainingOptions, changed_options
from lookalike.training.start import are_unseen, require_classes
from lookalike.training.team import ALONE, Team, open_team
from lookalike.training.tracking.target import Target, parse_targets
from lookalike.training.tracking.tracked import UNTRACKED, Tracked, begin_tracked
from lookalike.types import Vectors

Weights = str | Path


def train(  # noqa: PLR0913 - the one door to training; all but two have defaults that fit
    data: Dataset | Path | str,
    backbone: str = "efficientnet_lite0",
    *,
    weights: Weights | Mapping[str, Weights] = PRETRAINED,
    out: Path | str | None = None,
    options: TrainingOptions | None = None,
    combine: str = "aligned",
    resume: bool = False,
    replace: bool = False,
    cache: Path | None = None,
    track: Sequence[str] = (),
    progress: Progress = SILENT,
    **changes: Unpack[OptionChanges],
) -> Encoder:
    """Fine-tune a backbone on the training part as a classifier and keep the weights that retrieve best on validation.

    Stages: a head in closed form; head and classifier on cached features, backbone frozen; everything together, with a
    checkpoint each epoch; the interpolation between frozen and fine-tuned weights that measures best; last, a head
    fitted to what the fine-tuned backbone sees, where that measures better.

    Args:
        data: a data folder or a loaded data set; a validation part is cut from its training part.
        backbone: a name; several joined by `+` are trained one by one and become an aligned ensemble.
        weights: as in `build_trainable`; for several backbones a mapping by name.
        out: the bundle to write; without it nothing is written and nothing can be resumed.
        options: all that can be turned; single ones may also be given by name, as `epochs=3`.
        combine: how several backbones become one: aligned, average or concat.
        resume: go on with the unfinished run that stands beside `out`, if need be with other learning rates; a run
            that is finished is loaded as it is.
        replace: let the new bundle take the place of an older one.
        cache: a folder that keeps the features of the frozen backbone for other runs on the same images.
        track: trackers that are told of each epoch and of the bundle: `tensorboard`, `mlflow`, or with a place after
            a sign, as `mlflow=http://host:5000`.
        progress: is told what happens.
        changes: options by name, in place of what `options` says.

    Returns:
        The encoder, as saved.

    Raises:
        DataError: too little labelled training data, or training images that are in query or gallery too.
        MissingExtra: a tracker that is not installed.
        ModelError: unknown backbone or unfit weights, a loss that is no number, another process that ended, or a
            tracker that cannot be reached.
        OptionError: weights for a backbone that is not trained, or one file for several.
        StorageError: `out` is taken, or holds an unfinished run and `resume` is not set.

    """
    options = changed_options(options, changes)
    require_combination(combine)
    chosen = weights_by_position(backbone.split("+"), weights)
    targets = parse_targets(track)
    target = Path(out) if out is not None else None
    with open_team() as team:
        if not team.leads:
            progress = SILENT
        team.introduce(progress)
        work = team.agree(lambda: prepare_work(target, resume=resume, replace=replace, progress=progress))
        parts = with_validation(load_as(data, options), seed=options.seed, class_disjoint=options.class_disjoint)
        place = target.absolute() if target is not None else None
        key = digest(parts.fingerprint, repr(options.without_rates()), repr(chosen), str(place))
        if resume and target is not None and is_bundle(target):
            if _is_finished(target, parts, chosen, options, combine):
                team.agree(lambda: wind_up(target, work, targets, key, progress))
                return load_bundle(target)
            if not replace:
                _require_other_run(target, parts, chosen, options, combine)
                require_free(target)
        team.agree(lambda: _require_trainable(parts, chosen, options))
        team.agree(lambda: require_no_leaks(parts, allowed=options.allow_leaks, progress=progress))
        name = target.name if target is not None else backbone
        tracked = UNTRACKED

        def begin() -> None:
            nonlocal tracked
            tracked = begin_tracked(targets, name, key, resume=resume, progress=progress)

        team.agree(begin)
        with tracked.closing():
            tracked.params(options.to_dict() | {"backbone": backbone, "data": parts.fingerprint})
            if target is None or work is None:
                made = [
                    train_member(parts, name, given, options, None, progress, cache=cache, team=team, tracked=tracked)
                    for name, given in chosen
                ]
                return joined(made, combine, progress)
            try:
                encoder = train_into(
                    target,
                    work,
                    parts,
                    chosen,
                    options,
                    combine=combine,
                    replace=replace,
                    cache=cache,
                    progress=progress,
                    team=team,
                    tracked=tracked,
                )
            except DivergedError as error:
                raise ModelError(f"{str(error).rstrip('.')}: go on with --resume and a lower --lr.") from error
            if team.leads:
                track_bundle(tracked, target, work)
            return encoder


def train_into(  # noqa: PLR0913 - what `train` has found out
    target: Path,
    work: Path,
    data: Dataset,
    chosen: Sequence[tuple[str, Weights]],
    options: TrainingOptions,
    *,
    combine: str = "aligned",
    replace: bool = False,
    cache: Path | None = None,
    progress: Progress = SILENT,
    team: Team = ALONE,
    tracked: Tracked = UNTRACKED,
) -> Encoder:
    """Train on data that has its validation part and was looked through for leaks, and write the bundle.

    The folder of the run is left: it is to be removed once all that is to be done with the bundle is done.

    Args:
        target: the bundle.
        work: folder of the unfinished run.
        data: with its validation part.
        chosen: names of the backbones with their weights.
        options: as in `train`, and so are the others.
        combine: likewise.
        replace: likewise.
        cache: likewise.
        progress: likewise.
        team: the processes that train.
        tracked: is told of each epoch.

    """
    # what the frozen backbone saw is kept too: it is most of the work before the first epoch ends
    cache = cache or work / "cache"
    outcomes = [
        train_member(data, name, given, options, work / str(n), progress, cache=cache, team=team, tracked=tracked)
        for n, (name, given) in enumerate(chosen)
    ]
    encoder = joined(outcomes, combine, progress)

    def finish() -> None:
        facts = bundle_facts(data, options, [o.report for o in outcomes])
        facts["measures"] = {"validation": _validation_measures(encoder, data, progress)}
        reports = facts["training"]
        curves = partial(write_curves, reports=reports, measure=options.stop_on)
        save_bundle(encoder, target, facts=facts, replace=replace, further=curves)

    team.agree(finish)
    return encoder


def wind_up(target: Path, work: Path | None, targets: Sequence[Target], key: str, progress: Progress) -> None:
    """Say that a run is finished; what was interrupted after its bundle was saved, the telling of trackers, is done."""
    progress.info(f"{target} is the finished bundle of this run, there is nothing to go on with")
    if work is not None and work.exists():
        tracked = begin_tracked(targets, target.name, key, resume=True, progress=progress)
        with tracked.closing():
            track_bundle(tracked, target, work)


def track_bundle(tracked: Tracked, bundle: Path, work: Path) -> None:
    """Tell trackers what validation measured of a finished bundle, hand it over, and remove the folder of its run."""
    measures = read_facts(bundle).get("measures", {}).get("validation", {})
    tracked.metrics({f"validation/{name}": found["mean"] for name, found in measures.items()}, 1)
    for drawn in ("curves.png", "curves.html"):
        tracked.file(bundle / drawn)
    tracked.model(bundle, bundle.name)
    shutil.rmtree(work, ignore_errors=True)


def load_as(data: Dataset | Path | str, options: TrainingOptions) -> Dataset:
    """Load a data folder, class folders split as the options say; a loaded data set stays as it is."""
    if isinstance(data, Dataset):
        return data
    return load_dataset(data, seed=options.seed, class_disjoint=bool(options.class_disjoint))


def weights_by_position(names: list[str], weights: Weights | Mapping[str, Weights]) -> list[tuple[str, Weights]]:
    """Pair every backbone with its weights."""
    if not isinstance(weights, Mapping):
        if len(names) > 1 and str(weights) not in (PRETRAINED, NONE):
            raise OptionError(
                f"weights for {' and '.join(names)} must be a mapping by name, got the single file {weights}; "
                "a file fits one backbone."
            )
        return [(name, weights) for name in names]
    unknown = [name for name in weights if name not in names]
    if unknown:
        raise OptionError(
            f"weights are given for {unknown[0]!r}, which is not among {', '.join(names)}; correct the name."
        )
    return [(name, weights.get(name, PRETRAINED)) for name in names]


def bundle_facts(data: Dataset, options: TrainingOptions, reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a bundle remembers of its training."""
    return {
        "classes": list(data.classes),
        "training_data": {
            "fingerprint": data.fingerprint,
            "images": len(data.training),
            "validation_images": len(data.validation),
            "validation": validation_fingerprint(data),
            "contents": trained_contents(data),
        },
        "options": options.to_dict(),
        "training": reports,
    }


def _validation_measures(encoder: Encoder, data: Dataset, progress: Progress) -> dict[str, Any]:
    """Take the usual measures of the finished encoder within the validation part, as many as it has images for."""
    found = encoder.embed(data.validation, progress=progress, task=f"{encoder.name}: measures")
    labels = data.labels("validation")
    fitting = [m for m in map(Measure.parse, DEFAULT_MEASURES) if m.min_gallery < len(found)]
    measures: dict[str, Any] = evaluate_embeddings(found, found, labels, labels, fitting).to_dict()["measures"]
    return measures


def trained_contents(data: Dataset) -> list[str]:
    """Return short fingerprints of the training images' bytes: whoever measures the model can see what it has seen."""
    return sorted({found[:16] for found in content_hashes(data.training).values()})


def prepare_work(target: Path | None, *, resume: bool, replace: bool, progress: Progress = SILENT) -> Path | None:
    """Check that the result can be written and return the folder for checkpoints beside it."""
    if target is None:
        return None
    if target.name in ("", ".."):
        raise OptionError(f"out must be a folder with a name of its own, got {target}; write a name after it.")
    work = target.with_name(f"{target.name}.training")
    if not replace and not (resume and is_bundle(target)):
        require_free(target)
    if work.exists() and not resume:
        raise StorageError(f"{work} holds an unfinished run; go on with --resume, or remove it to start anew.")
    if resume and not work.exists() and not is_bundle(target):
        progress.info(f"there is nothing to go on with beside {target}, so it begins anew")
    return work


def _is_finished(
    target: Path, data: Dataset, chosen: Sequence[tuple[str, Weights]], options: TrainingOptions, combine: str
) -> bool:
    """Whether the bundle at `target` came out of a run with these data, weights and options."""
    facts = read_facts(target)
    found = [(report or {}).get("run") for report in facts.get("training", [])]
    if len(found) != len(chosen) or facts["how"] not in (None, combine):
        return False
    fresh = [fresh_member(name, given, options, unseen=are_unseen(data)) for name, given in chosen]
    return found == [run_key(member, data, options, recipe) for member, recipe in fresh]


def _require_trainable(data: Dataset, chosen: Sequence[tuple[str, Weights]], options: TrainingOptions) -> None:
    """Raise what would end the training before its first epoch: too few classes, no such backbone, no weights."""
    require_classes(data, tuple(i for i in data.training if i.label is not None))
    for name, given in chosen:
        fresh_member(name, given, options, unseen=are_unseen(data))


def _require_other_run(
    target: Path, data: Dataset, chosen: Sequence[tuple[str, Weights]], options: TrainingOptions, combine: str
) -> None:
    """Refuse to go on with a run that is finished, with other learning rates than it was finished with."""
    stored = read_facts(target).get("options", {})
    rates = {name: stored[name] for name in RATES if name in stored}
    before = TrainingOptions(**{**options.without_rates(), **rates})
    if _is_finished(target, data, chosen, before, combine):
        raise StorageError(
            f"{target} is the finished bundle of this run, trained with other learning rates, and is left as it is; "
            "choose another place to train with these."
        )


def joined(outcomes: list[Outcome], combine: str, progress: Progress) -> Encoder:
    """One encoder of all members; when aligned, each rotated onto the first by their embeddings of training images."""
    members = [o.member for o in outcomes]
    if len(members) == 1 or combine != "aligned":
        return Encoder(members, combine)
    embedded = [
        Encoder([o.member]).embed(o.items, progress=progress, task=f"{o.member.backbone}: alignment") for o in outcomes
    ]
    first = embedded[0]
    alignments: list[Vectors | None] = [None]
    for other in embedded[1:]:
        kept = set(other.ids)
        shared = [i for i in first.ids if i in kept]
        alignments.append(fit_alignment(other.take(shared).vectors, first.take(shared).vectors))
    return Encoder(members, combine, alignments)
