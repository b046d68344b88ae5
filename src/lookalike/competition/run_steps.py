"""Run the steps of a competition, from the cheapest to the most expensive; each may replace the submission."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from lookalike.competition.candidates import (
    Candidate,
    TrainingPlan,
    embed_pretrained,
    read_candidate,
    refit_bundle,
    refit_candidate,
    train_candidate,
    unfinished_plans,
)
from lookalike.competition.clock import OutOfTimeError
from lookalike.competition.costs import Costs, estimate_costs, load_costs, refit_seconds, save_costs
from lookalike.competition.log import LogEntry, Outcome
from lookalike.competition.schedule import BackboneResults, Run, fits, plan_fine_tuning
from lookalike.competition.selection import (
    Selection,
    make_reranker,
    make_submission,
    means_of,
    search,
    select_models,
)
from lookalike.competition.setup import Setup
from lookalike.data.dataset import Split
from lookalike.data.duplicates import require_no_leaks
from lookalike.errors import LookalikeError, ModelError, StorageError
from lookalike.evaluation.measures import Measure
from lookalike.models.bundle import describe_encoder, is_bundle, read_bundle_info, save_bundle
from lookalike.models.encoder import Ensemble
from lookalike.progress import format_about, format_duration
from lookalike.reranking.reranker import Reranker
from lookalike.reranking.steps import Reranking
from lookalike.runtimes.load import load_bundle
from lookalike.types import Hits

T = TypeVar("T")

_FROZEN_SHARE = 0.35  # of the time, for the frozen backbones
_END_SHARE, _END_SECONDS = 0.04, (8.0, 120.0)  # of the time, for the last selection and the report
_FIRST, _END = "first submission", "the end"


class StepRunner:
    """Runs the steps and keeps the best submission; what was done before an interruption is read from the folder."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.costs: dict[str, Costs] = {}  # by backbone
        self.candidates: dict[str, Candidate] = {}  # by name
        self.refits: dict[str, Candidate] = {}  # by name of the candidate that was trained again
        self.selection: Selection | None = None  # None before a model was measured
        self._selection_seconds = 0.0

    @property
    def score(self) -> float | None:
        """The validation measure of the selected models; None before any was measured."""
        return None if self.selection is None else self.selection.evaluation.mean(self.setup.measures[0])

    def run(self) -> None:
        """Run all steps that the time allows."""
        self._measure_costs()
        order = sorted(self.costs, key=lambda name: (self.costs[name].frozen, name))
        self._submit_first(order[0])
        if (self.setup.out / "models").is_dir():
            self._restore()
        leaks = partial(require_no_leaks, self.setup.data, allowed=True, progress=self.setup.progress)
        self._run_step("looking for images that are in training and in test", leaks, following="the frozen backbones")
        for number, backbone in enumerate(order):
            self._train_frozen(backbone, following=order[number + 1] if number + 1 < len(order) else "fine-tuning")
        self._refit_all("fine-tuning")
        while (plan := self._plan()) is not None:
            self._fine_tune(plan)
        self._refit_all(_END)

    # ---------------------------------------------------------------- steps

    def _measure_costs(self) -> None:
        """Estimate the seconds of each backbone, unless an earlier run of the competition did."""
        progress, errors = self.setup.progress, []
        stored = load_costs(self.setup.costs_file)
        for backbone in self.setup.weights:
            if backbone not in stored:
                try:
                    stored[backbone] = estimate_costs(self.setup, backbone)
                except LookalikeError as error:
                    errors.append(error)
                    self._log(f"measuring {backbone}", "failed", str(error))
                    continue
                save_costs(self.setup.costs_file, stored)
            self.costs[backbone] = costs = stored[backbone]
            tuning = "cannot be fine-tuned" if costs.recipe is None else f"{format_about(costs.recipe)} for fine-tuning"
            progress.info(f"{backbone}: {format_about(costs.frozen)} frozen, {tuning}")
        if not self.costs:
            raise errors[0] if errors else ModelError("no backbone can be used.", argument="backbones")

    def _submit_first(self, backbone: str) -> None:
        if self.setup.submission.is_file():
            return

        def compute_hits() -> Hits:
            embeddings = embed_pretrained(self.setup, backbone)
            return Reranker(Reranking()).search(
                embeddings[Split.QUERY],
                embeddings[Split.GALLERY],
                self.setup.top_k,
                same_file_ids=self.setup.data.same_file_ids,
            )

        hits = self._run_step(_FIRST, compute_hits, following="the frozen backbones")
        if hits is not None:
            model = f"{backbone} frozen, head fitted to the gallery"
            self._write(hits, model, _FIRST, f"{model}; not measured on validation yet")

    def _train_frozen(self, backbone: str, following: str) -> None:
        clock, cost = self.setup.clock, self.costs[backbone].frozen
        name, step = f"{backbone} frozen", f"frozen {backbone}"
        left = _FROZEN_SHARE * clock.total - clock.elapsed
        if name in self.candidates:
            return
        if self.candidates and not fits(cost, left):
            self._log(step, "dropped", f"it takes {format_about(cost)}, more than is left for frozen backbones")
            return
        minutes = max(cost, 0.0 if self.candidates else left) / 60
        plan = TrainingPlan(name, backbone, "frozen", minutes)
        candidate = self._run_step(step, partial(train_candidate, self.setup, plan), following=following)
        if candidate is not None:
            self._add(step, candidate)

    def _restore(self) -> None:
        """Read the models of an interrupted run; the submission changes only if they allow a better one."""
        setup = self.setup

        def read() -> list[Candidate]:
            candidates = []
            for backbone in self.costs:
                frozen = f"{backbone} frozen"
                if is_bundle(setup.bundle(frozen)):
                    candidates.append(read_candidate(setup, frozen, backbone, "frozen"))
                *finished, _ = self._fine_tuned(backbone)
                candidates += [read_candidate(setup, name, backbone, "fine-tuned") for name in finished]
            return candidates

        step = "reading the models of the interrupted run"
        candidates = self._run_step(step, read, following="the next model")
        if not candidates:
            return
        self.candidates = {candidate.name: candidate for candidate in candidates}
        self.selection = select_models(setup, candidates)
        for name in self.selection.weights:
            if is_bundle(refit_bundle(setup, self.candidates[name])):
                self.refits[name] = refit_candidate(setup, self.candidates[name])
        submitted = setup.log.submitted
        before = None if submitted is None else submitted.score
        if before is None or self.score is None or self.score > before:
            self._submit(step, f"the best now is {self.selection}")

    def _fine_tuned(self, backbone: str) -> Iterator[str]:
        """Yield the names of the trainings of a backbone that are finished, then that of the next one."""
        for number in itertools.count(1):
            name = f"{backbone} fine-tuned" + (f" {number}" if number > 1 else "")
            yield name
            if not is_bundle(self.setup.bundle(name)):
                return

    def _plan(self) -> TrainingPlan | None:
        for plan in unfinished_plans(self.setup):
            if plan.kind == "fine-tuned" and self._can_be_tuned(plan.backbone):
                return replace(plan, reason="it was interrupted")
        left = self.setup.clock.left - self._end_seconds
        backbones = [self._results_of(name) for name in self.costs if self._can_be_tuned(name)]
        best = plan_fine_tuning(backbones, left)
        if best is None:
            return None
        names = list(self._fine_tuned(best.backbone))
        return TrainingPlan(names[-1], best.backbone, "fine-tuned", best.seconds / 60, best.reason, len(names) - 1)

    def _fine_tune(self, plan: TrainingPlan) -> None:
        step = f"training {plan.name}"
        candidate = self._run_step(
            step,
            partial(train_candidate, self.setup, plan),
            seconds=60 * plan.minutes,
            reason=plan.reason,
            following="more fine-tuning if time allows, then training on all labelled images",
        )
        if candidate is not None:
            self._add(step, candidate)

    def _refit_all(self, following: str) -> None:
        """Train the models of the submission again on all labelled images, that with the largest weight first."""
        for name in list(self.selection.weights) if self.selection is not None else []:
            candidate = self.candidates[name]
            seconds = refit_seconds(candidate, self.costs[candidate.backbone])
            step = f"{name} on all labelled images"
            if name in self.refits:
                continue
            if not fits(seconds, self.setup.clock.left - self._end_seconds):
                if following != _END:
                    continue  # it is tried again at the end
                self._log(step, "dropped", f"it takes {format_about(seconds)}, more than is left")
                continue
            work = partial(refit_candidate, self.setup, candidate)
            refitted = self._run_step(step, work, seconds=seconds, following=following)
            if refitted is not None:
                self.refits[name] = refitted
                self._submit(step, "trained with the validation images too, so that validation cannot measure it")

    # ---------------------------------------------------------------- running a step

    def _run_step(
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
        if setup.log.has_failed(step):
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
        except StorageError:
            raise
        except OutOfTimeError:
            text = f"it was stopped after {format_duration(clock.now() - started)}, to finish before the deadline"
        except (LookalikeError, MemoryError, RuntimeError) as error:
            text = str(error) or type(error).__name__
        finally:
            setup.progress.until = clock.ends
        self._log(step, "failed", text, took=clock.now() - started)
        setup.progress.info(f"{step} failed: {text}")
        return None

    def _add(self, step: str, candidate: Candidate) -> None:
        """Add a candidate; select models and re-ranking again, and submit if validation is better than before."""
        setup, measure = self.setup, self.setup.measures[0]
        self.candidates[candidate.name] = candidate
        started = setup.clock.now()
        selection = select_models(setup, list(self.candidates.values()))
        self._selection_seconds = setup.clock.now() - started
        assert candidate.evaluation is not None
        alone = f"{candidate.name} alone has {measure} {candidate.evaluation.mean(measure):.4g}"
        if self.selection is None or means_of(selection.evaluation, setup.measures) > means_of(
            self.selection.evaluation, setup.measures
        ):
            before = "" if self.score is None else f", {self.score:.4g} before"
            self.selection = selection
            reason = f"{alone}; the best now is {selection} with {self.score:.4g}{before}"
            self._submit(step, reason, took=candidate.seconds)
        else:
            self._log(step, "dropped", f"{alone}, which does not improve the submission", took=candidate.seconds)
            setup.progress.info(f"{step}: {alone}, which does not improve the submission")

    def _submit(self, step: str, reason: str, *, took: float = 0.0) -> None:
        """Write the submission of the selected models, or of their refits."""
        assert self.selection is not None
        hits = search(self.setup, self.selection, self._submitted())
        model = f"{self.selection}" + (" (on all labelled images)" if self.refits else "")
        self._write(hits, model, step, reason, took=took)

    def _write(self, hits: Hits, model: str, step: str, reason: str, *, took: float = 0.0) -> None:
        """Replace the submission in one step; the earlier ones stay in `submissions/`."""
        setup = self.setup
        submission = make_submission(setup, hits)
        number = 1 + sum(entry.submission is not None for entry in setup.log.entries)
        path = setup.out / "submissions" / f"{number:03}.json"
        submission.write(path)
        submission.write(setup.submission)
        self._log(step, "kept", reason, took=took, submission=path.relative_to(setup.out).as_posix(), model=model)
        setup.progress.info(f"{step}: submission {number} written: {reason}")

    # ---------------------------------------------------------------- state

    def _submitted(self) -> list[Candidate]:
        """Return the models of the submission; refitted ones replace those that they repeat."""
        names = self.selection.weights if self.selection is not None else {}
        return [self.refits.get(name, self.candidates[name]) for name in names]

    @property
    def _end_seconds(self) -> float:
        low, high = _END_SECONDS
        return min(high, max(low, _END_SHARE * self.setup.clock.total)) + 2 * self._selection_seconds

    def _can_be_tuned(self, backbone: str) -> bool:
        """Whether a backbone can be fine-tuned: it has a frozen candidate, and no fine-tuning of it failed."""
        failed = any(self.setup.log.has_failed(f"training {name}") for name in self._fine_tuned(backbone))
        return f"{backbone} frozen" in self.candidates and self.costs[backbone].recipe is not None and not failed

    def _results_of(self, name: str) -> BackboneResults:
        measure, costs = self.setup.measures[0], self.costs[name]
        best = Measure.parse(measure).max_value

        def score(candidate: Candidate) -> float:
            return 0.0 if candidate.evaluation is None else candidate.evaluation.mean(measure) / best

        runs, recipe_seconds = [], costs.recipe or 0.0
        for candidate in self.candidates.values():
            if candidate.backbone == name and candidate.kind == "fine-tuned":
                share = candidate.recipe_share
                runs.append(Run(share, score(candidate)))
                recipe_seconds = max(recipe_seconds, candidate.seconds / max(share, 0.01))  # the estimate was too small
        frozen = self.candidates[f"{name} frozen"]
        return BackboneResults(name, score(frozen), recipe_seconds, costs.refit_factor, tuple(runs))

    def _log(
        self,
        step: str,
        outcome: Outcome,
        reason: str,
        *,
        took: float = 0.0,
        submission: str | None = None,
        model: str = "",
    ) -> None:
        seconds, score = round(self.setup.clock.elapsed, 1), self.score if outcome == "kept" else None
        self.setup.log.add(LogEntry(seconds, step, outcome, reason, round(took, 1), score, submission, model))

    def save_model(self, path: Path) -> None:
        """Save the models of the submission as one bundle, with its re-ranking: `submit` makes the same submission."""
        if self.selection is None:
            return
        candidates = self._submitted()
        members = [load_bundle(candidate.bundle).members[0] for candidate in candidates]
        weights = tuple(self.selection.weights.values())
        encoder = members[0] if len(members) == 1 else Ensemble(tuple(members), "concat", weights=weights)
        infos = [read_bundle_info(candidate.bundle) for candidate in candidates]
        record = describe_encoder(
            encoder,
            classes=infos[0].classes,
            options=infos[0].options,
            training_data=infos[0].training_data,
            training=tuple(report for info in infos for report in info.training),
        )
        reranker = make_reranker(self.setup, self.selection, candidates) if self.selection.reranking.steps else None
        save_bundle(encoder, path, record, reranker=reranker, replace_existing=True)
