"""`refit`: train once more on all labelled images, by what validation found out the first time."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lookalike._files import digest, require_free
from lookalike.data.dataset import Dataset, Split
from lookalike.data.duplicates import require_no_leaks
from lookalike.data.split import with_validation
from lookalike.errors import DataError, ModelError, OptionError
from lookalike.models.encoder import Encoder
from lookalike.models.facts import is_bundle, read_facts
from lookalike.models.member import TrainableEncoder, members_of
from lookalike.models.pretrained import build_trainable
from lookalike.models.torch_bundle import load_bundle, save_bundle
from lookalike.progress import SILENT, Progress
from lookalike.training.checkpoint import load_checkpoint
from lookalike.training.choice import keep_share, keep_start, repeat_last_head
from lookalike.training.curves import write_curves
from lookalike.training.finetune import Run
from lookalike.training.interpolate import mix
from lookalike.training.job import Job
from lookalike.training.last_head import Fit
from lookalike.training.one_backbone import Outcome, fresh_member, full_stage, run_key, validation_fingerprint
from lookalike.training.options import TrainingOptions
from lookalike.training.recipe import Recipe
from lookalike.training.start import NOTHING, Known, Start, are_unseen, repeat_start
from lookalike.training.tracking.target import parse_targets
from lookalike.training.tracking.tracked import Tracked, begin_tracked
from lookalike.training.train import (
    Weights,
    bundle_facts,
    joined,
    load_as,
    prepare_work,
    track_bundle,
    weights_by_position,
    wind_up,
)
from lookalike.training.trainee import Rates, Trainee
from lookalike.training.view import AS_IT_CAME


@dataclass(frozen=True)
class Schedule:
    """What validation found out about training one backbone.

    Attributes:
        known: of the stage with the backbone frozen.
        epochs, steps: the plan that the learning rate followed.
        last: the epoch whose weights were best; 0 without a full stage.
        share: of the fine-tuned weights that was kept.
        last_head: shrinkage and emphasis of the head that was fitted to them; None where the trained one was kept.
        rates: peak learning rates, by the epoch that they hold from.

    """

    known: Known = NOTHING
    epochs: int = 0
    steps: int = 0
    last: int = 0
    share: float = 0.0
    last_head: Fit | None = None
    rates: tuple[Rates, ...] = ()

    @classmethod
    def of(cls, report: Mapping[str, Any] | None) -> Schedule:
        """Read it from a report of a training; without one the backbone stayed as it came."""
        if report is None:
            return cls()
        measures = [epoch["measure"] for epoch in report.get("history", [])]
        share = (report.get("interpolation") or {"share": 0.0})["share"]
        known = Known(report["head_epochs"], report["shrinkage"], report.get("view", AS_IT_CAME))
        if not measures or share == 0:
            return cls(known)
        fit = report.get("last_head")
        last_head = (float(fit[0]), float(fit[1])) if fit else None
        rates = tuple(Rates(**given) for given in report["rates"])
        last = int(np.argmax(measures)) + 1
        return cls(known, **report["plan"], last=last, share=share, last_head=last_head, rates=rates)


def refit(  # noqa: PLR0913 - all but two by name, with defaults that fit
    data: Dataset | Path | str,
    model: Path | str,
    *,
    out: Path | str,
    weights: Weights | Mapping[str, Weights] = "pretrained",
    resume: bool = False,
    replace: bool = False,
    cache: Path | None = None,
    track: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Encoder:
    """Train the members of a bundle once more, on the training and validation images together.

    Validation has said how many epochs are best and how much of the fine-tuned weights to keep; now its images are
    worth more as training images. The new model has no validation accuracy of its own: that of the bundle is the one to
    choose by.

    Args:
        data: what the bundle was trained on.
        model: a bundle that `train` or `benchmark` made.
        out: the new bundle.
        weights: that the bundle was trained from, as in `train`.
        resume: go on with the unfinished run that stands beside `out`.
        replace: let the new bundle take the place of an older one.
        cache: as in `train`.
        track: as in `train`.
        progress: is told what happens.

    Returns:
        The encoder, as saved.

    Raises:
        DataError: other data than the bundle was trained on.
        ModelError: no bundle, one that says nothing of its training, or other weights than it was trained from.
        OptionError: weights for a backbone that is not in the bundle, or several processes.
        StorageError: `out` is taken, or holds an unfinished run and `resume` is not set.

    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptionError("refit runs in one process; start it without a launcher.")
    model, target, targets = Path(model), Path(out), parse_targets(track)
    facts = read_facts(model)
    if "exported_from" in facts:
        raise ModelError(f"{model} is an exported model; give the bundle that it was exported from.")
    first = load_bundle(model)
    if "refit_of" in facts:
        raise ModelError(f"{model} was refitted already, on all images that there are; give the bundle it was made of.")
    reports, options = _training_of(model, facts)
    given = dict(weights_by_position([m.backbone for m in first.members], weights))
    work = prepare_work(target, resume=resume, replace=replace, progress=progress)
    assert work is not None
    key = digest(first.fingerprint, str(target.absolute()))
    if resume and is_bundle(target) and read_facts(target).get("refit_of") == first.fingerprint:
        wind_up(target, work, targets, key, progress)
        return load_bundle(target)
    if not replace:
        require_free(target)
    if len({(o.seed, o.class_disjoint) for o in options}) > 1:
        raise ModelError(f"the members of {model} were trained with different validation parts; refit them one by one.")
    cut = with_validation(load_as(data, options[0]), seed=options[0].seed, class_disjoint=options[0].class_disjoint)
    known = facts["training_data"]
    if (cut.fingerprint, validation_fingerprint(cut)) != (known["fingerprint"], known["validation"]):
        raise DataError(f"{model} was not trained on the images in {cut.root}; give the folder that it was trained on.")
    require_no_leaks(cut, allowed=options[0].allow_leaks, progress=progress)
    tracked = begin_tracked(targets, target.name, key, resume=resume, progress=progress)
    with tracked.closing():
        tracked.params({"refit_of": first.fingerprint, "data": cut.fingerprint})
        for report in filter(None, reports):
            tracked.params({f"{report['backbone']}/{field}": value for field, value in report["recipe"].items()})
        outcomes = [
            _refit_member(
                cut,
                member,
                given[member.backbone],
                own,
                report,
                work / str(n),
                cache=cache or work / "cache",
                progress=progress,
                tracked=tracked,
            )
            for n, (member, report, own) in enumerate(zip(members_of(first), reports, options, strict=True))
        ]
        everything = _all_training(cut)
        encoder = joined(outcomes, first.how, progress)
        new = bundle_facts(everything, options[0], [o.report for o in outcomes])
        curves = partial(write_curves, reports=new["training"], measure=options[0].stop_on)
        save_bundle(encoder, target, facts={**new, "refit_of": first.fingerprint}, replace=replace, further=curves)
        track_bundle(tracked, target, work)
    return encoder


def _training_of(
    model: Path, facts: Mapping[str, Any]
) -> tuple[Sequence[Mapping[str, Any] | None], list[TrainingOptions]]:
    """Return each member's report, None for one that was not trained, and its options."""
    try:
        members = len(facts["members"])
        reports = facts["training"] or [None] * members
        if len(reports) != members or "validation" not in facts["training_data"]:
            raise KeyError("training")
        if any(report is not None and not report["run"] for report in reports):
            raise KeyError("run")
        own = [(r or {}).get("options") or facts["options"] for r in reports]
        for report in reports:
            Schedule.of(report)
        return reports, [TrainingOptions(**o) for o in own]
    except (KeyError, TypeError, OptionError) as error:
        raise ModelError(
            f"{model} does not say how it was trained; give a bundle that 'lookalike train' or 'benchmark' made."
        ) from error


def _all_training(data: Dataset) -> Dataset:
    return data.replace_items(
        [replace(i, split=Split.TRAINING) if i.split is Split.VALIDATION else i for i in data.items]
    )


def _refit_member(  # noqa: PLR0913 - what `refit` has found out, for one backbone
    data: Dataset,
    first: TrainableEncoder,
    weights: Weights,
    options: TrainingOptions,
    report: Mapping[str, Any] | None,
    work: Path,
    *,
    cache: Path,
    progress: Progress,
    tracked: Tracked,
) -> Outcome:
    began = time.perf_counter()
    name = first.backbone
    if report:
        member, recipe = fresh_member(name, weights, options, unseen=are_unseen(data))
        same = run_key(member, data, options, recipe) == report["run"]
    else:
        member, recipe = build_trainable(name, weights, seed=options.seed), Recipe(precision="float32")
        same = member.backbone_fingerprint == first.backbone_fingerprint
    if not same:
        raise ModelError(
            f"{name} was not trained from these weights with the options that its bundle names; "
            "give the weights that it was trained from."
        )
    schedule = Schedule.of(report)
    key = digest(run_key(member, data, options, recipe), "refit", repr(schedule))
    stored = load_checkpoint(work, key)
    before = stored["seconds"] if stored is not None else 0.0
    job = Job(data, options, recipe, work, progress, began, key, tracked=tracked, before=before)
    if stored is None:
        start = repeat_start(member, data, options, recipe, schedule.known, cache=cache, progress=progress)
    else:
        start = Start.restore(stored["start"], member, (*data.training, *data.validation))
        progress.info(f"{name}: going on after epoch {stored['run']['epoch']}")
    new: dict[str, Any] = {
        "backbone": name,
        "run": job.key,
        "options": options.to_dict(),
        "recipe": recipe.to_dict(),
        "images": len(start.items),
        "skipped": start.skipped,
    }
    if schedule.last:
        run = full_stage(job, member, start, stored, lambda trainee: _planned(schedule, start, trainee), None)
        assert run.best is not None
        member.load_state(mix(start.state, run.best, schedule.share))
        keep_share(member, start, schedule.share, recipe.loss)
        if schedule.last_head is not None:
            repeat_last_head(job, member, start, schedule.last_head)
        new["history"] = run.history
    elif report is not None:
        keep_start(member, start)
    if report is not None:
        kept = (
            "family",
            "resolved",
            "validation",
            "view",
            "shrinkage",
            "head_epochs",
            "plan",
            "rates",
            "interpolation",
            "last_head",
        )
        new |= {key: report[key] for key in kept if key in report}
    new["seconds"] = round(job.seconds, 1)
    return Outcome(member, start.items, new)


def _planned(schedule: Schedule, start: Start, trainee: Trainee) -> Run:
    """As many epochs, each over all images now, unless a budget had cut the first ones short."""
    size = trainee.recipe.batch_size
    whole = math.ceil(sum(i.split is Split.TRAINING for i in start.items) / size)
    steps = math.ceil(len(start.items) / size) if schedule.steps >= whole else schedule.steps
    return Run(schedule.epochs, steps, last=schedule.last, rates=list(schedule.rates))
