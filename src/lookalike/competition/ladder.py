"""The steps of a competition, from the cheapest to the most expensive; each may replace the submission."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from lookalike.competition.clock import OutOfTimeError
from lookalike.competition.entries import (
    Costs,
    Entry,
    Plan,
    Setup,
    by_cost,
    embed_test_first,
    refit_bundle,
    refit_entry,
    refit_seconds,
    train_entry,
    unfinished_plans,
)
from lookalike.competition.log import LogEntry, Outcome
from lookalike.competition.schedule import Backbone, Run, fits, plan_fine_tuning
from lookalike.competition.system import System, complete, make_reranker, search, search_embeddings, select_system
from lookalike.data.duplicates import require_no_leaks
from lookalike.errors import LookalikeError, ModelError, StorageError
from lookalike.evaluation.measures import Measure
from lookalike.models.bundle import describe_encoder, is_bundle, read_bundle_info, save_bundle
from lookalike.models.encoder import Ensemble
from lookalike.progress import format_about, format_duration
from lookalike.runtimes.load import load_bundle
from lookalike.types import Hits

T = TypeVar("T")

_FROZEN_SHARE = 0.35  # of the time, for the frozen backbones
_END_SHARE, _END_SECONDS = 0.04, (8.0, 120.0)  # of the time, for the last selection and the report
_FIRST, _END = "first submission", "the end"


class Ladder:
    """Runs the steps and keeps the submission; what was done before an interruption is read from the folder."""

    def __init__(self, setup: Setup, submission: Path) -> None:
        self.setup = setup
        self.submission = submission
        self.costs: dict[str, Costs] = {}
        self.entries: dict[str, Entry] = {}
        self.refits: dict[str, Entry] = {}  # by name of the entry that they repeat
        self.system: System | None = None
        self.description = "a pretrained backbone"
        self._selection_seconds = 0.0

    @property
    def score(self) -> float | None:
        """The validation measure of the submission; None before anything was measured."""
        return None if self.system is None else self.system.score(self.setup.measures[0])

    def climb(self) -> None:
        """Run all steps that the time allows."""
        self._measure_costs()
        order = by_cost(self.costs)
        self._submit_first(order[0])
        if (self.setup.out / "models").is_dir():
            self._restore()
        leaks = partial(require_no_leaks, self.setup.data, allowed=True, progress=self.setup.progress)
        self._run("looking for images that are in training and in test", leaks, following="the frozen backbones")
        for number, backbone in enumerate(order):
            self._add_frozen(backbone, following=order[number + 1] if number + 1 < len(order) else "fine-tuning")
        self._refit_all("fine-tuning")
        while (plan := self._plan()) is not None:
            self._fine_tune(plan)
        self._refit_all(_END)

    # ---------------------------------------------------------------- steps

    def _measure_costs(self) -> None:
        progress, errors = self.setup.progress, []
        for backbone in self.setup.weights:
            try:
                self.costs[backbone] = costs = Costs.estimate(self.setup, backbone)
            except LookalikeError as error:
                errors.append(error)
                self._log(f"measuring {backbone}", "failed", str(error))
                continue
            tuning = (
                format_about(costs.recipe) + " for fine-tuning"
                if math.isfinite(costs.recipe)
                else "cannot be fine-tuned"
            )
            progress.info(f"{backbone}: {format_about(costs.frozen)} frozen, {tuning}")
        if not self.costs:
            raise errors[0] if errors else ModelError("no backbone can be used.", argument="backbones")

    def _submit_first(self, backbone: str) -> None:
        if self.submission.is_file():
            return

        def work() -> Hits:
            embeddings = embed_test_first(self.setup, backbone)
            return search_embeddings(self.setup, embeddings["query"], embeddings["gallery"])

        hits = self._run(_FIRST, work, following="the frozen backbones")
        if hits is not None:
            self.description = f"{backbone} frozen, head fitted to the gallery"
            self._write(hits, _FIRST, f"{self.description}; not measured on validation yet")

    def _add_frozen(self, backbone: str, following: str) -> None:
        clock, cost = self.setup.clock, self.costs[backbone].frozen
        name, step = f"{backbone} frozen", f"frozen {backbone}"
        left = _FROZEN_SHARE * clock.total - clock.elapsed
        if name in self.entries:
            return
        if self.entries and not fits(cost, left):
            self._log(step, "dropped", f"{format_about(cost)} is too long for what is left of the time for this step")
            return
        minutes = max(cost, 0.0 if self.entries else left) / 60
        plan = Plan(name, backbone, "frozen", minutes)
        entry = self._run(step, partial(train_entry, self.setup, plan), following=following)
        if entry is not None:
            self._consider(step, entry)

    def _restore(self) -> None:
        """Read the models of an interrupted run; the submission changes only if they allow a better one."""
        plans = []
        for backbone in self.costs:
            plans.append(Plan(f"{backbone} frozen", backbone, "frozen", 0.0))
            plans += [Plan(name, backbone, "fine-tuned", 0.0) for name in self._fine_tuned(backbone)]
        plans = [plan for plan in plans if is_bundle(self.setup.bundle(plan.name))]
        step = "reading the models of the interrupted run"
        entries = self._run(step, lambda: [train_entry(self.setup, plan) for plan in plans], following="the next model")
        if not entries:
            return
        self.entries = {entry.name: entry for entry in entries}
        self.system = select_system(self.setup, entries)
        for name in self.system.weights:
            if is_bundle(refit_bundle(self.setup, self.entries[name])):
                self.refits[name] = refit_entry(self.setup, self.entries[name])
        self.description = self._describe()
        before = [e.score for e in self.setup.log.entries if e.outcome == "kept" and e.score is not None]
        if not before or self.score is None or self.score > before[-1]:
            self._submit(step, f"the best now is {self.system}")

    def _fine_tuned(self, backbone: str) -> Iterator[str]:
        """Yield the names of the trainings of a backbone that are finished, then that of the next one."""
        for number in itertools.count(1):
            name = f"{backbone} fine-tuned" + (f" {number}" if number > 1 else "")
            yield name
            if not is_bundle(self.setup.bundle(name)):
                return

    def _plan(self) -> Plan | None:
        unfinished = [p for p in unfinished_plans(self.setup) if p.kind == "fine-tuned" and self._frozen(p.backbone)]
        if unfinished:
            return replace(unfinished[0], reason="it was interrupted")
        left = self.setup.clock.left - self._end_seconds
        backbones = [self._backbone(name) for name in self.costs if self._frozen(name)]
        best = plan_fine_tuning(backbones, left)
        if best is None:
            return None
        names = list(self._fine_tuned(best.backbone))
        return Plan(names[-1], best.backbone, "fine-tuned", best.seconds / 60, best.reason, len(names) - 1)

    def _fine_tune(self, plan: Plan) -> None:
        step = f"training {plan.name}"
        entry = self._run(
            step,
            partial(train_entry, self.setup, plan),
            seconds=60 * plan.minutes,
            reason=plan.reason,
            following="more fine-tuning if time allows, then training on all labelled images",
        )
        if entry is not None:
            self._consider(step, entry)

    def _refit_all(self, following: str) -> None:
        """Train the models of the submission again on all labelled images, the heaviest first."""
        for name in list(self.system.weights) if self.system is not None else []:
            entry = self.entries[name]
            seconds = refit_seconds(entry, self.costs[entry.backbone])
            step = f"{name} on all labelled images"
            if name in self.refits:
                continue
            if not fits(seconds, self.setup.clock.left - self._end_seconds):
                if following != _END:
                    continue  # it is tried again at the end
                self._log(step, "dropped", f"it takes {format_about(seconds)}, more than is left")
                continue
            work = partial(refit_entry, self.setup, entry)
            again = self._run(step, work, seconds=seconds, following=following)
            if again is not None:
                self.refits[name] = again
                self._submit(step, "the same training with the validation images, which then cannot measure it")

    # ---------------------------------------------------------------- running a step

    def _run(
        self,
        step: str,
        work: Callable[[], T],
        *,
        following: str,
        seconds: float = 0.0,
        reason: str = "",
    ) -> T | None:
        """Run a step unless it failed before; None if it fails or would not end in time. The others follow."""
        setup, clock = self.setup, self.setup.clock
        if any(e.step == step and e.outcome == "failed" for e in setup.log.entries):
            return None
        about = f", {format_about(seconds)}" if seconds else ""
        setup.progress.info(f"now: {step}{about}{f' ({reason})' if reason else ''}; next: {following}")
        self._log(step, "started", reason)
        setup.progress.until = clock.ends - self._end_seconds
        if seconds:
            setup.progress.until = min(setup.progress.until, clock.now() + 2 * seconds + 30)
        started = clock.now()
        try:
            return work()
        except OutOfTimeError:
            outcome: Outcome = "failed"
            text = f"it was ended after {format_duration(clock.now() - started)}, to end the competition in time"
        except (LookalikeError, MemoryError, RuntimeError) as error:
            if isinstance(error, StorageError):
                raise
            outcome, text = "failed", str(error) or type(error).__name__
        finally:
            setup.progress.until = clock.ends
        self._log(step, outcome, text, took=clock.now() - started)
        setup.progress.info(f"{step} failed: {text}")
        return None

    def _consider(self, step: str, entry: Entry) -> None:
        """Add an entry; select models and re-ranking again, and submit if validation is better than before."""
        setup, measure = self.setup, self.setup.measures[0]
        self.entries[entry.name] = entry
        started = setup.clock.now()
        system = select_system(setup, list(self.entries.values()))
        self._selection_seconds = setup.clock.now() - started
        assert entry.evaluation is not None
        alone = f"{entry.name} alone has {measure} {entry.evaluation.mean(measure):.4g}"
        if self.system is None or system.rank(setup.measures) > self.system.rank(setup.measures):
            before = "" if self.score is None else f", {self.score:.4g} before"
            self.system = system
            reason = f"{alone}; the best now is {system} with {self.score:.4g}{before}"
            self._submit(step, reason, took=entry.seconds)
        else:
            self._log(step, "dropped", f"{alone}, which improves nothing", took=entry.seconds)
            setup.progress.info(f"{step}: {alone}, which improves nothing")

    def _submit(self, step: str, reason: str, *, took: float = 0.0) -> None:
        """Write the submission of the present system; refitted models replace those they repeat."""
        assert self.system is not None
        hits = search(self.setup, self.system, self._submitted())
        self.description = self._describe()
        self._write(hits, step, reason, took=took)

    def _write(self, hits: Hits, step: str, reason: str, *, took: float = 0.0) -> None:
        """Write a valid submission in one step, and keep the earlier ones."""
        setup = self.setup
        submission = complete(setup, hits)
        number = 1 + sum(entry.submission is not None for entry in setup.log.entries)
        path = setup.out / "submissions" / f"{number:03}.json"
        submission.write(path)
        submission.write(self.submission)
        self._log(step, "kept", reason, took=took, submission=path.relative_to(setup.out).as_posix())
        setup.progress.info(f"{step}: submission {number} written: {reason}")

    # ---------------------------------------------------------------- state

    def _describe(self) -> str:
        return f"{self.system}" + (" (on all labelled images)" if self.refits else "")

    def _submitted(self) -> list[Entry]:
        """Return the models of the submission; refitted ones replace those that they repeat."""
        names = self.system.weights if self.system is not None else {}
        return [self.refits.get(name, self.entries[name]) for name in names]

    @property
    def _end_seconds(self) -> float:
        low, high = _END_SECONDS
        return min(high, max(low, _END_SHARE * self.setup.clock.total)) + 2 * self._selection_seconds

    def _frozen(self, backbone: str) -> bool:
        """Whether a backbone can be fine-tuned: it has a frozen entry, and no fine-tuning of it failed."""
        failed = {e.step for e in self.setup.log.entries if e.outcome == "failed"}
        return (
            f"{backbone} frozen" in self.entries
            and math.isfinite(self.costs[backbone].recipe)
            and not any(step.startswith(f"training {backbone} fine-tuned") for step in failed)
        )

    def _backbone(self, name: str) -> Backbone:
        measure, costs = self.setup.measures[0], self.costs[name]
        best = Measure.parse(measure).max_value

        def score(entry: Entry) -> float:
            return 0.0 if entry.evaluation is None else entry.evaluation.mean(measure) / best

        runs, recipe_seconds = [], costs.recipe
        for entry in self.entries.values():
            if entry.backbone == name and entry.kind == "fine-tuned":
                (report,) = read_bundle_info(entry.bundle).training
                share = report.planned_share if report is not None else 1.0
                runs.append(Run(share, score(entry)))
                recipe_seconds = max(recipe_seconds, entry.seconds / max(share, 0.01))  # the estimate was too small
        frozen = self.entries[f"{name} frozen"]
        return Backbone(name, score(frozen), recipe_seconds, costs.refit_factor, tuple(runs))

    def _log(
        self, step: str, outcome: Outcome, reason: str, *, took: float = 0.0, submission: str | None = None
    ) -> None:
        score = self.score if outcome == "kept" else None
        self.setup.log.add(
            LogEntry(round(self.setup.clock.elapsed, 1), step, outcome, reason, round(took, 1), score, submission)
        )

    def save_model(self, path: Path) -> None:
        """Save the models of the submission as one bundle, with its re-ranking: `submit` makes the same submission."""
        if self.system is None:
            return
        entries = self._submitted()
        members = [load_bundle(entry.bundle).members[0] for entry in entries]
        weights = tuple(self.system.weights.values())
        encoder = members[0] if len(members) == 1 else Ensemble(tuple(members), "concat", weights=weights)
        infos = [read_bundle_info(entry.bundle) for entry in entries]
        record = describe_encoder(
            encoder,
            classes=infos[0].classes,
            options=infos[0].options,
            training_data=infos[0].training_data,
            training=tuple(report for info in infos for report in info.training),
        )
        reranker = make_reranker(self.setup, self.system, entries) if self.system.reranking.steps else None
        save_bundle(encoder, path, record, reranker=reranker, replace_existing=True)
