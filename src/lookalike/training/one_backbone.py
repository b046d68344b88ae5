"""Training one backbone: start, full stage, choice of the weights to keep."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lookalike._files import digest
from lookalike.data.dataset import Dataset, Item
from lookalike.models.adapt import Adaptation, family_of
from lookalike.models.member import TrainableEncoder
from lookalike.models.pretrained import build_trainable
from lookalike.progress import Progress
from lookalike.training.checkpoint import load_checkpoint, save_checkpoint
from lookalike.training.choice import choose_weights, keep_start
from lookalike.training.finetune import Run, Validation, finetune, plan
from lookalike.training.interpolate import SHARES
from lookalike.training.job import Job
from lookalike.training.layers import no_shortcuts, shortcuts
from lookalike.training.options import TrainingOptions, changed_options
from lookalike.training.precision import resolved_precision
from lookalike.training.recipe import AUTO, Recipe
from lookalike.training.sampling import sampler_of
from lookalike.training.start import Start, are_unseen, make_start, require_classes
from lookalike.training.team import ALONE, Team
from lookalike.training.tracking.tracked import UNTRACKED, Tracked
from lookalike.training.trainee import Trainee


@dataclass
class Outcome:
    """A trained member, the training items that it could read, and what happened."""

    member: TrainableEncoder
    items: tuple[Item, ...]
    report: dict[str, Any] = field(default_factory=dict)


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
    key = run_key(member, data, options, recipe, rated=False)
    stored = load_checkpoint(work, key) if work is not None else None
    of_all = options
    options, recipe = _keep_rates(stored, options, recipe)
    run = run_key(member, data, options, recipe)
    before = stored["seconds"] if stored is not None else 0.0
    job = Job(data, options, recipe, work, progress, began, key, team, tracked, before)
    tracked.params({f"{backbone}/{field}": value for field, value in recipe.to_dict().items()})
    if stored is None:
        start = _made_once(
            team,
            member,
            training,
            lambda: make_start(member, data, training, options, recipe, cache=cache, progress=progress),
        )
    else:
        start = Start.restore(stored["start"], member, training)
        progress.info(f"{backbone}: going on after epoch {stored['run']['epoch']}")
    report: dict[str, Any] = {
        "backbone": backbone,
        "run": run,
        **({"options": options.to_dict()} if options is not of_all else {}),
        "recipe": recipe.to_dict(),
        "resolved": {
            "recipe": family_of(member.module) if options.recipe == AUTO else options.recipe,
            "precision": resolved_precision(member.device, recipe.precision),
            "sampler": sampler_of(recipe),
        },
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
        done = full_stage(job, member, start, stored, partial(_planned, job, start), partial(job.validate, member))
        report["history"] = done.history
        report["plan"] = {"epochs": done.epochs, "steps": done.steps}
        report["rates"] = [r._asdict() for r in done.rates]
        report["validation"]["fine-tuned"] = done.best_measure
        chosen = choose_weights(job, member, start, done)
        report["validation"]["kept"] = chosen.pop("kept")
        report |= chosen
    report["seconds"] = round(job.seconds, 1)
    return Outcome(member, start.items, report)


def _keep_rates(
    stored: dict[str, Any] | None, options: TrainingOptions, recipe: Recipe
) -> tuple[TrainingOptions, Recipe]:
    """Take the learning rates of a checkpoint with nothing left to train: others would be told of, and not used."""
    run = Run.restore(stored["run"]) if stored is not None else None
    if run is None or not run.is_over(options.patience) or run.rates[-1][1:] == (recipe.lr, recipe.head_lr):
        return options, recipe
    _, lr, head_lr = run.rates[-1]
    return changed_options(options, {"lr": lr, "head_lr": head_lr}), replace(recipe, lr=lr, head_lr=head_lr)


def fresh_member(
    backbone: str, weights: str | Path, options: TrainingOptions, *, unseen: bool
) -> tuple[TrainableEncoder, Recipe]:
    """Build a member as the recipe for its network and for (un)seen test classes wants it, and return both."""
    recipes: list[Recipe] = []

    def adapt(module: nn.Module) -> Adaptation:
        recipe = options.recipe_for(family_of(module), unseen=unseen)
        if recipe.drop_path and not shortcuts(module):
            if "drop_path" in options.changes:
                raise no_shortcuts(module)
            recipe = replace(recipe, drop_path=0.0)
        recipes.append(recipe)
        return Adaptation(recipe.pooling, recipe.last_stride, recipe.side)

    member = build_trainable(backbone, weights, seed=options.seed, adapt=adapt)
    return member, recipes[0]


def _made_once(team: Team, member: TrainableEncoder, items: tuple[Item, ...], make: Callable[[], Start]) -> Start:
    """Let the leading process make the start, and give the others the same."""
    if team.size == 1:
        return make()
    stored = team.agree(lambda: make().dump() | {"full": member.state(), "origin": dict(member.origin)})
    member.load_state(stored["full"])
    member.origin.update(stored["origin"])
    return Start.restore(stored, member, items)


def run_key(
    member: TrainableEncoder, data: Dataset, options: TrainingOptions, recipe: Recipe, *, rated: bool = True
) -> str:
    """Fingerprint of all that decides a run: fresh member, training and validation images, options, recipe.

    Without the learning rates, `rated` false, it names a checkpoint: a run may go on with others.
    """
    own = options.to_dict()
    if not rated:
        recipe, own = replace(recipe, lr=1.0, head_lr=1.0), options.without_rates()
    parts = repr(sorted(own.items())), repr(recipe)
    return digest(member.fingerprint, data.fingerprint, validation_fingerprint(data), *parts)


def validation_fingerprint(data: Dataset) -> str:
    """Fingerprint of which images are held out."""
    return digest(*sorted(i.id for i in data.validation))


def full_stage(
    job: Job,
    member: TrainableEncoder,
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
            parts = {"start": frozen_start, "trainee": trainee.state(), "run": run.dump()}
            save_checkpoint(job.work, {"key": job.key, "seconds": job.seconds, **parts})

    if stored is None:
        trainee.objective.start_from(start.means)
        first = planned(trainee)
        run = job.team.agree(lambda: first)
    else:
        run = Run.restore(stored["run"])
        trainee.load(stored["trainee"])
    if run.go_on_with(job.recipe.lr, job.recipe.head_lr):
        told = {"lr": job.recipe.lr, "head_lr": job.recipe.head_lr}
        job.progress.info(f"{member.backbone}: with other learning rates, {told['lr']:g} and {told['head_lr']:g}")
        job.tracked.params({f"{member.backbone}/{name} after epoch {run.epoch}": v for name, v in told.items()})
    finetune(
        trainee,
        run,
        start.items,
        start.targets,
        Validation(job.options.stop_on, measure, job.options.patience) if measure else None,
        after_epoch,
        may_go_on=lambda: job.has_time_for(run.history[-1]["seconds"] + run.reserve),
        progress=job.progress,
    )
    member.module.to(memory_format=torch.channels_last)
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
    reserve = 5 * overhead + min(fits, 0.3 * budget)
    left = budget - (time.perf_counter() - job.began) - reserve
    run = plan(trainee, start.items, start.targets, left, overhead)
    run.reserve = reserve
    return run
