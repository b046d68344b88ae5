"""Training one backbone: start, full stage, choice of the weights to keep."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lookalike.backbones import Encoder, Member, build_member
from lookalike.data import Dataset, Item
from lookalike.files import digest
from lookalike.progress import Progress
from lookalike.training.checkpoint import load_checkpoint, save_checkpoint
from lookalike.training.finetune import Run, Trainee, finetune, plan
from lookalike.training.interpolate import best_mix
from lookalike.training.options import TrainingOptions
from lookalike.training.precision import autocast, is_lowered
from lookalike.training.start import Start, make_start, measured, require_classes


@dataclass
class Outcome:
    """A trained member, the training items that it could read, and what happened."""

    member: Member
    items: tuple[Item, ...]
    report: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """What stays the same while one backbone is trained.

    Attributes:
        data: with its validation part.
        options: all that can be turned.
        work: folder for checkpoints, None for none.
        progress: is told what happens.
        began: `time.perf_counter()` at the start of this sitting, in seconds.
        key: identifies the run in its checkpoint.

    """

    data: Dataset
    options: TrainingOptions
    work: Path | None
    progress: Progress
    began: float
    key: str

    def validate(self, member: Member) -> float:
        """Take the validation measure of the member's present weights."""
        with autocast(member.device, self.options.precision):
            embeddings = Encoder([member]).embed(self.data.validation)
        return measured(embeddings, self.data, self.options.stop_on)


def train_member(
    data: Dataset,
    backbone: str,
    weights: str | Path,
    options: TrainingOptions,
    work: Path | None,
    progress: Progress,
    *,
    cache: Path | None = None,
) -> Outcome:
    """Train one backbone; see `train`."""
    began = time.perf_counter()
    training = tuple(i for i in data.training if i.label is not None)
    require_classes(data, training)
    member = build_member(backbone, weights, seed=options.seed)
    job = Job(data, options, work, progress, began, run_key(member, data, options))
    stored = load_checkpoint(work, job.key) if work is not None else None
    if stored is None:
        start = make_start(member, data, training, options, cache=cache, progress=progress)
    else:
        start = Start.restore(stored["start"], member, training)
        progress.say(f"{backbone}: going on after epoch {stored['run']['epoch']}")
    report: dict[str, Any] = {
        "backbone": backbone,
        "run": job.key,
        "validation": {"frozen": start.frozen, "head": start.with_head},
        "head_epochs": start.head_epochs,
        "skipped": start.skipped,
    }
    if options.frozen:
        keep_start(member, start)
    else:
        run = full_stage(job, member, start, stored, partial(_planned, job, start), partial(job.validate, member))
        report["history"] = run.history
        report["plan"] = {"epochs": run.epochs, "steps": run.steps}
        report["validation"]["fine-tuned"] = run.best_measure
        report["interpolation"] = _choose_weights(job, member, start, run)
    report["seconds"] = round(time.perf_counter() - began, 1)
    return Outcome(member, start.items, report)


def run_key(member: Member, data: Dataset, options: TrainingOptions) -> str:
    """Fingerprint of all that decides a run: first weights, training and validation images, options."""
    return digest(
        member.fingerprint, data.fingerprint, validation_fingerprint(data), repr(sorted(options.to_dict().items()))
    )


def validation_fingerprint(data: Dataset) -> str:
    """Fingerprint of which images are held out."""
    return digest(*sorted(i.id for i in data.validation))


def keep_share(member: Member, start: Start, share: float) -> None:
    """Say how much of the fine-tuned weights the member has."""
    if share > 0:
        member.origin.update(trained="fine-tuned", head="cross-entropy")
    else:
        keep_start(member, start)
    member.origin["fine_tuned_share"] = share
    member.changed()


def keep_start(member: Member, start: Start) -> None:
    """Say what the stage with the frozen backbone made; a head that training did not better is still the PCA one."""
    if start.head_helped:
        member.origin.update(trained="fine-tuned", head="cross-entropy, backbone frozen")
    else:
        member.origin.update(head=start.head)
    member.changed()


def full_stage(
    job: Job,
    member: Member,
    start: Start,
    stored: dict[str, Any] | None,
    planned: Callable[[Trainee], Run],
    measure: Callable[[], float] | None,
) -> Run:
    """Train everything together from the start, or from where a checkpoint left it.

    Args:
        job: what stays the same.
        member: is changed in place.
        start: what the stage with the frozen backbone left.
        stored: the checkpoint, if there is one.
        planned: plans a run that begins.
        measure: as in `finetune`.

    """
    member.load_state({**start.state, **start.pca})
    trainee = Trainee(member, start.classes, job.options)
    frozen_start = start.dump()

    def after_epoch(run: Run) -> None:
        if job.work is not None:
            content = {
                "key": job.key,
                "start": frozen_start,
                "state": trainee.state(),
                "optimizer": trainee.optimizer.state_dict(),
                "run": dict(vars(run)),
            }
            save_checkpoint(job.work, content)

    if stored is None:
        run = planned(trainee)
    else:
        run = Run(**stored["run"])
        trainee.load(stored["state"])
        trainee.optimizer.load_state_dict(stored["optimizer"])
    finetune(trainee, run, start.items, start.targets, measure, after_epoch, progress=job.progress)
    return run


def _planned(job: Job, start: Start, trainee: Trainee) -> Run:
    """Plan the run; with a budget, from what one validation takes and from what is left of it."""
    if job.options.max_minutes is None:
        return plan(trainee, start.items, start.targets, None, 0.0)
    clock = time.perf_counter()
    job.validate(trainee.member)
    overhead = time.perf_counter() - clock
    # the interpolations and the last pass cost about five more validations
    left = job.options.max_minutes * 60 - (time.perf_counter() - job.began) - 5 * overhead
    return plan(trainee, start.items, start.targets, left, overhead)


def _choose_weights(job: Job, member: Member, start: Start, run: Run) -> dict[str, Any]:
    """Set the member to the best epoch, or to its best interpolation with where it came from; return both shares."""
    assert run.best is not None
    end = run.best["member"]
    if member.trained == "untrained":  # random weights are nothing to go back to
        member.load_state(end)
        share, shares = 1.0, dict[str, float]()
    else:
        started = start.with_head
        if is_lowered(member.device, job.options.precision):  # that was in float32, the others are not
            member.load_state(start.state)
            started = job.validate(member)
        share, shares = best_mix(member, start.state, end, started, run.best_measure, lambda: job.validate(member))
    keep_share(member, start, share)
    job.progress.say(
        f"{member.backbone}: keeps {share:.0%} of the fine-tuned weights, the rest of those it came with {shares}"
    )
    return {"share": share, "measures": shares}
