"""Training one backbone: start, full stage, choice of the weights to keep."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from lookalike.backbones import Adaptation, Encoder, Member, Whitening, build_member, family_of
from lookalike.data import Dataset, Item
from lookalike.embedding import Features, compute_features
from lookalike.files import digest
from lookalike.progress import Progress
from lookalike.tracking import UNTRACKED, Tracked
from lookalike.training.checkpoint import load_checkpoint, save_checkpoint
from lookalike.training.finetune import Run, Validation, finetune, plan
from lookalike.training.interpolate import SHARES, best_mix, mix
from lookalike.training.last_head import Fit, Kept, best_last_head, joined_features, set_last_head
from lookalike.training.options import TrainingOptions
from lookalike.training.precision import autocast, is_lowered
from lookalike.training.recipe import Recipe
from lookalike.training.start import Rows, Start, are_unseen, make_start, measured, measured_head, require_classes
from lookalike.training.team import ALONE, Team, split_evenly
from lookalike.training.trainee import Trainee
from lookalike.types import Embeddings


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
        options: of the run.
        recipe: for this backbone.
        work: folder for checkpoints, None for none.
        progress: is told what happens.
        began: `time.perf_counter()` at the start of this sitting, in seconds.
        key: identifies the run in its checkpoint.
        team: the processes that train.
        tracked: is told of each epoch, by the leading process.

    """

    data: Dataset
    options: TrainingOptions
    recipe: Recipe
    work: Path | None
    progress: Progress
    began: float
    key: str
    team: Team = ALONE
    tracked: Tracked = UNTRACKED

    def validate(self, member: Member) -> float:
        """Take the validation measure of the member's present weights; each process embeds its share."""
        with autocast(member.device, self.recipe.precision):
            part = Encoder([member]).embed(split_evenly(self.data.validation, self.team))
        parts = self.team.collect(part)
        if len(parts) == 1:
            return measured(part, self.data, self.options.stop_on)
        ids = tuple(i for p in parts for i in p.ids)
        together = Embeddings(ids, np.concatenate([p.vectors for p in parts]), part.fingerprint)
        return self.team.agree(lambda: measured(together, self.data, self.options.stop_on))

    def features(self, member: Member, items: Sequence[Item]) -> Features:
        """Return what the member's present backbone sees in images; each process goes through its share."""
        with autocast(member.device, self.recipe.precision):
            own, task = split_evenly(items, self.team), f"{member.backbone}: last head"
            part = compute_features(member, own, progress=self.progress, task=task, least=0)
        return joined_features(self.team.collect(part), [i.id for i in items])

    def measure_heads(self, member: Member) -> Callable[[], float]:
        """Go through the validation images once; what is returned takes the measure for the member's present head."""
        held_out = self.features(member, self.data.validation)

        def measure() -> float:
            with autocast(member.device, self.recipe.precision):
                return self.team.agree(lambda: measured_head(member, held_out, self.data, self.options.stop_on))

        return measure

    def has_time_for_more(self) -> bool:
        """Whether a tenth of the budget is left: for what may better the result but need not be done."""
        if self.options.max_minutes is None:
            return True
        left = 1 - (time.perf_counter() - self.began) / (60 * self.options.max_minutes)
        return self.team.agree(lambda: left > 0.1)


def train_member(  # noqa: PLR0913 - what `train` has found out, for one backbone
    data: Dataset,
    backbone: str,
    weights: str | Path,
    options: TrainingOptions,
    work: Path | None,
    progress: Progress,
    *,
    cache: Path | None = None,
    team: Team = ALONE,
    tracked: Tracked = UNTRACKED,
) -> Outcome:
    """Train one backbone; see `train`."""
    began = time.perf_counter()
    training = tuple(i for i in data.training if i.label is not None)
    require_classes(data, training)
    member, recipe = fresh_member(backbone, weights, options, unseen=are_unseen(data))
    job = Job(data, options, recipe, work, progress, began, run_key(member, data, options, recipe), team, tracked)
    tracked.params({f"{backbone}/{field}": value for field, value in recipe.to_dict().items()})
    stored = load_checkpoint(work, job.key) if work is not None else None
    if stored is None:
        start = _made_once(
            team,
            member,
            training,
            lambda: make_start(member, data, training, options, recipe, cache=cache, progress=progress),
        )
    else:
        start = Start.restore(stored["start"], member, training)
        progress.say(f"{backbone}: going on after epoch {stored['run']['epoch']}")
    report: dict[str, Any] = {
        "backbone": backbone,
        "run": job.key,
        "recipe": recipe.to_dict(),
        "family": family_of(member.module),
        "validation": {"frozen": start.frozen, "head": start.with_head},
        "view": start.view,
        "shrinkage": start.shrinkage,
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
        chosen = _choose_weights(job, member, start, run)
        report["validation"]["kept"] = chosen.pop("kept")
        report |= chosen
    report["seconds"] = round(time.perf_counter() - began, 1)
    return Outcome(member, start.items, report)


def fresh_member(
    backbone: str, weights: str | Path, options: TrainingOptions, *, unseen: bool
) -> tuple[Member, Recipe]:
    """Build a member as the recipe for its network and for (un)seen test classes wants it, and return both."""
    recipes: list[Recipe] = []

    def adapt(module: nn.Module) -> Adaptation:
        recipe = options.recipe_for(family_of(module), unseen=unseen)
        recipes.append(recipe)
        return Adaptation(recipe.pooling, recipe.last_stride, recipe.side)

    member = build_member(backbone, weights, seed=options.seed, adapt=adapt)
    return member, recipes[0]


def _made_once(team: Team, member: Member, items: tuple[Item, ...], make: Callable[[], Start]) -> Start:
    """Let the leading process make the start, and give the others the same."""
    if team.size == 1:
        return make()
    stored = team.agree(lambda: make().dump() | {"full": member.state(), "origin": dict(member.origin)})
    member.load_state(stored["full"])
    member.origin.update(stored["origin"])
    return Start.restore(stored, member, items)


def run_key(member: Member, data: Dataset, options: TrainingOptions, recipe: Recipe) -> str:
    """Fingerprint of all that decides a run: first weights, training and validation images, options, recipe."""
    return digest(
        member.fingerprint,
        data.fingerprint,
        validation_fingerprint(data),
        repr(sorted(options.to_dict().items())),
        repr(recipe),
    )


def validation_fingerprint(data: Dataset) -> str:
    """Fingerprint of which images are held out."""
    return digest(*sorted(i.id for i in data.validation))


def keep_share(member: Member, start: Start, share: float, head: str) -> None:
    """Say how much of the fine-tuned weights the member has, and what made its head."""
    if share > 0:
        member.origin.update(trained="fine-tuned", head=head)
    else:
        keep_start(member, start)
    member.origin["fine_tuned_share"] = share
    member.changed()


def keep_start(member: Member, start: Start) -> None:
    """Say what the stage with the frozen backbone made; a head that training did not better is still the PCA one."""
    if start.head_helped:
        trained = "cross-entropy, backbone frozen" if start.head_epochs else start.head
        member.origin.update(trained="fine-tuned", head=trained)
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
    member.load_state({**start.state, **start.fitted})
    trainee = Trainee(member, start.classes, job.recipe, seed=job.options.seed, team=job.team)
    frozen_start = start.dump()

    def after_epoch(run: Run) -> None:
        told = {f"{member.backbone}/{name}": value for name, value in run.history[-1].items()}
        job.tracked.metrics(told, run.epoch)
        if job.work is not None and job.team.leads:
            content = {"key": job.key, "start": frozen_start, "trainee": trainee.state(), "run": dict(vars(run))}
            save_checkpoint(job.work, content)

    if stored is None:
        trainee.objective.start_from(start.means)
        first = planned(trainee)
        run = job.team.agree(lambda: first)
    else:
        run = Run(**stored["run"])
        trainee.load(stored["trainee"])
    finetune(
        trainee,
        run,
        start.items,
        start.targets,
        Validation(job.options.stop_on, measure, job.options.patience) if measure else None,
        after_epoch,
        progress=job.progress,
    )
    return run


def _planned(job: Job, start: Start, trainee: Trainee) -> Run:
    """Plan the run; with a budget, from what one validation takes and from what is left of it."""
    if job.options.max_minutes is None:
        return plan(trainee, start.items, start.targets, None, 0.0)
    clock = time.perf_counter()
    job.validate(trainee.member)
    overhead = time.perf_counter() - clock
    # the interpolations and the last pass cost about five more validations, each fit of a head a pass over all images
    budget = job.options.max_minutes * 60
    passes = 0 if job.recipe.last_head == "trained" else 1 + len(SHARES) if are_unseen(job.data) else 1
    fits = passes * overhead * (1 + len(start.items) / max(1, len(job.data.validation)))
    left = budget - (time.perf_counter() - job.began) - 5 * overhead - min(fits, 0.3 * budget)
    return plan(trainee, start.items, start.targets, left, overhead)


def _choose_weights(job: Job, member: Member, start: Start, run: Run) -> dict[str, Any]:
    """Set the member to the weights and the head that validation prefers, and return what the report says of it."""
    assert run.best is not None
    end = run.best
    if member.trained == "untrained":  # random weights are nothing to go back to
        member.load_state(end)
        share, shares = 1.0, dict[str, float]()
    else:
        started = start.with_head
        if is_lowered(member.device, job.recipe.precision):  # that was in float32, the others are not
            member.load_state(start.state)
            started = job.validate(member)
        share, shares = best_mix(member, start.state, end, started, run.best_measure, lambda: job.validate(member))
    best = shares.get(f"{share:g}", run.best_measure)
    kept: Kept | None = None
    if job.recipe.last_head != "trained" and run.epoch:
        # for unseen classes, or where none was kept, another share may be the best once the head is another
        several = bool(shares) and (are_unseen(job.data) or share == 0)
        kept = best_last_head(
            member,
            sorted((1.0, *SHARES), key=lambda s: abs(s - 0.7)) if several else (share,),
            lambda s: mix(start.state, end, s),
            lambda: _seen(job, member, start),
            lambda: job.measure_heads(member),
            -math.inf if job.recipe.last_head == "whitened" and share > 0 else best,
            seed=job.options.seed,
            may_go_on=job.has_time_for_more,
        )
    share, best = (share, best) if kept is None else (kept.share, kept.measure)
    keep_share(member, start, share, job.recipe.loss if kept is None else str(member.origin["head"]))
    said = ""
    if kept is not None:
        said = f"; with a head fitted to them, shrinkage {kept.fit[0]:g}, emphasis {kept.fit[1]:g}: {best:.4f}"
    job.progress.say(
        f"{member.backbone}: keeps {share:.0%} of the fine-tuned weights, the rest of those it came with {shares}{said}"
    )
    return {
        "interpolation": {"share": share, "measures": shares},
        "last_head": list(kept.fit) if kept else None,
        "kept": best,
    }


def repeat_last_head(job: Job, member: Member, start: Start, fit: Fit) -> None:
    """Fit the head to the member's present backbone, as validation has found it best."""
    features, targets = _seen(job, member, start)
    whitening = Whitening(features.rows, targets, member.dim, seed=job.options.seed)
    set_last_head(member, whitening, fit, len(features.ids))


def _seen(job: Job, member: Member, start: Start) -> tuple[Features, Rows]:
    """Take the features of the training images with the present backbone, and their class rows."""
    features = job.features(member, start.items)
    rows = dict(zip((i.id for i in start.items), start.targets.tolist(), strict=True))
    return features, np.array([rows[i] for i in features.ids], dtype=np.int64)
