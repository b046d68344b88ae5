"""Run the steps of a competition, from the cheapest to the most expensive; each may replace the submission."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from lookalike._files import open_regular, reading_errors, write_file
from lookalike.competition.candidates import (
    Kind,
    SubmissionModel,
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
from lookalike.competition.log import LogEntry, Outcome, SubmittedModels
from lookalike.competition.report import write_report
from lookalike.competition.schedule import BackboneResults, Run, fits, plan_fine_tuning
from lookalike.competition.selection import (
    SelectedModels,
    evaluate_selection,
    join_embeddings,
    make_reranker,
    make_submission,
    means_of,
    search_queries,
    select_models,
)
from lookalike.competition.setup import BEST, REPORT, Setup
from lookalike.data.dataset import Split
from lookalike.data.duplicates import require_no_leaks
from lookalike.errors import LookalikeError, ModelError
from lookalike.evaluation.calibration import calibrate
from lookalike.evaluation.measures import Measure
from lookalike.models.bundle import describe_encoder, is_bundle, read_bundle_info, save_bundle
from lookalike.models.encoder import Ensemble
from lookalike.progress import format_about, format_duration
from lookalike.reranking.reranker import Reranker
from lookalike.reranking.steps import Reranking
from lookalike.runtimes.load import load_bundle
from lookalike.types import Calibration, Hits

T = TypeVar("T")

_FROZEN_SHARE = 0.35  # of the time, for the frozen backbones
_END_SHARE, _END_SECONDS = 0.04, (8.0, 120.0)  # of the time, for the last selection and the report
_FIRST_SHARE = 0.05  # of the time; a first submission that takes longer waits until all backbones are measured
_SUBMISSIONS, _MAX_BYTES = "submissions", 100_000_000
_FIRST, _END = "first submission", "the end"


class StepRunner:
    """Runs the steps and keeps the best submission; what was done before an interruption is read from the folder."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.costs: dict[str, Costs] = {}  # by backbone
        self.candidates: dict[str, SubmissionModel] = {}  # by name
        self.refits: dict[str, SubmissionModel] = {}  # by name of the candidate that was trained again
        self.selection: SelectedModels | None = None  # None before a model was measured
        self._selection_seconds = 0.0

    @property
    def score(self) -> float | None:
        """The validation measure of the selected models; None before any was measured."""
        return None if self.selection is None else self.selection.evaluation.mean(self.setup.measures[0])

    def run(self) -> None:
        """Run all steps that the time allows."""
        self._repair_submission()
        order = self._measure_costs()
        for backbone in order:
            self._submit_first(backbone)
        self._restore()
        leaks = partial(require_no_leaks, self.setup.data, allowed=True, progress=self.setup.progress)
        self._run_step("looking for images that are in training and in test", leaks, following="the frozen backbones")
        for number, backbone in enumerate(order):
            following = order[number + 1] if number + 1 < len(order) else "fine-tuning"
            self._train_frozen(backbone, _FROZEN_SHARE * self.setup.clock.total - self.setup.clock.elapsed, following)
        self._refit_all("fine-tuning")
        while (plan := self._plan()) is not None:
            self._fine_tune(plan)
        for backbone in order:  # those that would have taken time from fine-tuning
            self._train_frozen(backbone, self.setup.clock.left - self._end_seconds - self._refit_seconds(), "the end")
        self._refit_all(_END)
        self._finish()

    def finish_late(self) -> None:
        """After the deadline: save what was submitted, if the run was killed before it did."""
        self._repair_submission()
        if not self.setup.log.has(_END, "finished"):
            self._restore()
            self._finish()

    def _finish(self) -> None:
        """Save the submitted models and end the log."""
        self._attempt("saving the submitted models", self._save_models)
        submitted = self.setup.log.submitted
        model = "nothing" if submitted is None else submitted.model
        self._log(_END, "finished", f"submitted: {model}")
        self._write_report()

    def _measure_costs(self) -> list[str]:
        """Estimate the seconds of each backbone, unless an earlier run did, and return them, the cheapest first.

        The first backbone that is fast enough makes the first submission, before the others are measured.
        """
        setup, errors = self.setup, []
        stored = load_costs(setup.costs_file)
        for backbone in setup.weights:
            if backbone not in stored:
                try:
                    stored[backbone] = estimate_costs(setup, backbone)
                except Exception as error:
                    errors.append(error)
                    self._log(f"measuring {backbone}", "failed", _describe(error))
                    setup.progress.info(f"{backbone} cannot be used: {_describe(error)}")
                    continue
                save_costs(setup.costs_file, stored)
            self.costs[backbone] = costs = stored[backbone]
            tuning = "cannot be fine-tuned" if costs.recipe is None else f"{format_about(costs.recipe)} for fine-tuning"
            setup.progress.info(f"{backbone}: {format_about(costs.frozen)} frozen, {tuning}")
            if costs.embedding <= _FIRST_SHARE * setup.clock.total:
                self._submit_first(backbone)
        if not self.costs:
            raise errors[0] if errors else ModelError("no backbone can be used.", argument="backbones")
        return sorted(self.costs, key=lambda name: (self.costs[name].frozen, name))

    def _submit_first(self, backbone: str) -> None:
        setup = self.setup
        if setup.submission.is_file():
            return

        def submit() -> None:
            embeddings = embed_pretrained(setup, backbone)
            hits = Reranker(Reranking()).search(
                embeddings[Split.QUERY],
                embeddings[Split.GALLERY],
                setup.top_k,
                same_file_ids=setup.data.same_file_ids,
            )
            model = f"{backbone} frozen, head fitted to the gallery"
            self._write(hits, model, _FIRST, f"{model}; not measured on validation yet")

        self._run_step(_FIRST, submit, following="the frozen backbones", once=False)

    def _train_frozen(self, backbone: str, left: float, following: str) -> None:
        """Train the head of a frozen backbone if the `left` seconds are enough, or if there is no candidate yet."""
        cost = self.costs[backbone].frozen
        name, step = f"{backbone} frozen", f"frozen {backbone}"
        if name in self.candidates:
            return
        if self.candidates and not fits(cost, left):
            self._log(step, "dropped", f"it takes {format_about(cost)}, more than is left for frozen backbones")
            return
        minutes = max(cost, 0.0 if self.candidates else left) / 60
        plan = TrainingPlan(name, backbone, "frozen", minutes)
        candidate = self._run_step(step, partial(train_candidate, self.setup, plan), following=following)
        if candidate is not None:
            self._add(candidate)

    def _restore(self) -> None:
        """Read the models of an interrupted run and continue with those that are submitted.

        A model that the run had trained, but not yet compared or submitted, is compared or submitted now.
        """
        setup = self.setup
        for name, backbone, kind in self._finished():
            candidate = self._attempt(f"reading {name}", partial(read_candidate, setup, name, backbone, kind))
            if candidate is not None:
                self.candidates[name] = candidate
        submitted = setup.log.submitted
        models = None if submitted is None else submitted.models
        if models is not None and models.weights.keys() <= self.candidates.keys():
            selected = [self.candidates[name] for name in models.weights]
            self.selection = evaluate_selection(setup, models.weights, models.reranking, selected)
            for candidate in selected:
                name, bundle = candidate.name, refit_bundle(setup, candidate)
                work = partial(refit_candidate, setup, candidate)
                refitted = self._attempt(f"reading {name} refit", work) if is_bundle(bundle) else None
                if refitted is not None and name in models.refitted:
                    self.refits[name] = refitted
                elif refitted is not None:
                    self._submit_refit(name, refitted)
        for candidate in list(self.candidates.values()):
            if not setup.log.has(_step_of(candidate), "kept", "dropped"):
                self._add(candidate)

    def _finished(self) -> Iterator[tuple[str, str, Kind]]:
        """Yield name, backbone and kind of the models that are trained."""
        for backbone in self.setup.weights:
            frozen = f"{backbone} frozen"
            if is_bundle(self.setup.bundle(frozen)):
                yield frozen, backbone, "frozen"
            *finished, _ = self._fine_tuned(backbone)
            for name in finished:
                yield name, backbone, "fine-tuned"

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
            self._add(candidate)

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
                self._submit_refit(name, refitted)

    def _refit_seconds(self) -> float:
        """Return about how long the training of the submitted models on all labelled images takes."""
        names = [] if self.selection is None else [name for name in self.selection.weights if name not in self.refits]
        candidates = [self.candidates[name] for name in names]
        return sum(refit_seconds(candidate, self.costs[candidate.backbone]) for candidate in candidates)

    def _submit_refit(self, name: str, refitted: SubmissionModel) -> None:
        self.refits[name] = refitted
        reason = "trained with the validation images too, so that validation cannot measure it"
        self._submit(f"{name} on all labelled images", reason)

    def _run_step(
        self,
        step: str,
        work: Callable[[], T],
        *,
        following: str,
        seconds: float = 0.0,
        reason: str = "",
        once: bool = True,
    ) -> T | None:
        """Announce a step and run it; None if it fails, would not end in time, or, with `once`, failed before."""
        setup, clock = self.setup, self.setup.clock
        if once and setup.log.has(step, "failed"):
            return None
        about = f", {format_about(seconds)}" if seconds else ""
        setup.progress.info(f"now: {step}{about}{f' ({reason})' if reason else ''}; next: {following}")
        self._log(step, "started", reason)
        until = clock.ends - self._end_seconds
        return self._attempt(step, work, min(until, clock.now() + 2 * seconds + 30) if seconds else until)

    def _attempt(self, step: str, work: Callable[[], T], until: float | None = None) -> T | None:
        """Return what `work` returns; log why and return None if it fails or is not done at `until`.

        By default that is the deadline, or never if it is over. Whatever fails, the competition continues.
        """
        setup, clock = self.setup, self.setup.clock
        started = clock.now()
        setup.progress.until = until if until is not None else clock.ends if clock.left > 0 else math.inf
        try:
            return work()
        except OutOfTimeError:
            text = f"it was stopped after {format_duration(clock.now() - started)}, to finish before the deadline"
        except Exception as error:
            text = _describe(error)
        finally:
            setup.progress.until = clock.ends if clock.left > 0 else math.inf
        self._log(step, "failed", text, took=clock.now() - started)
        setup.progress.info(f"{step} failed: {text}")
        return None

    def _add(self, candidate: SubmissionModel) -> None:
        """Add a candidate; select models and re-ranking again, and submit if validation is better than before."""
        setup, measure, step = self.setup, self.setup.measures[0], _step_of(candidate)
        self.candidates[candidate.name] = candidate
        started = setup.clock.now()
        work = partial(select_models, setup, list(self.candidates.values()), self.selection)
        selection = self._attempt("selecting models", work, setup.clock.ends - self._least_end_seconds)
        self._selection_seconds = setup.clock.now() - started
        assert candidate.evaluation is not None
        alone = f"{candidate.name} alone has {measure} {candidate.evaluation.mean(measure):.4g}"
        if selection is not None and self._is_better(selection):
            before = self._submitted_score
            text = "" if before is None else f", {before:.4g} before"
            self.selection = selection
            reason = f"{alone}; the best now is {selection} with {self.score:.4g}{text}"
            self._submit(step, reason, took=candidate.seconds)
        else:
            self._log(step, "dropped", f"{alone}, which does not improve the submission", took=candidate.seconds)
            setup.progress.info(f"{step}: {alone}, which does not improve the submission")

    def _is_better(self, selection: SelectedModels) -> bool:
        """Whether a selection is better on validation than what is submitted."""
        measures, before = self.setup.measures, self._submitted_score
        if self.selection is not None:
            return means_of(selection.evaluation, measures) > means_of(self.selection.evaluation, measures)
        return before is None or selection.evaluation.mean(measures[0]) > before

    def _submit(self, step: str, reason: str, *, took: float = 0.0) -> None:
        """Write the submission of the selected models, or of their refits."""
        selection = self.selection
        assert selection is not None
        refitted = tuple(name for name in selection.weights if name in self.refits)
        which = "" if len(refitted) == len(selection.weights) else f"{' and '.join(refitted)} "
        model = f"{selection}" + (f" ({which}on all labelled images)" if refitted else "")
        models = SubmittedModels(selection.weights, selection.reranking, refitted)

        def submit() -> None:
            hits = search_queries(self.setup, selection, self._submitted())
            self._write(hits, model, step, reason, took=took, models=models)

        self._attempt(step, submit)

    def _write(
        self,
        hits: Hits,
        model: str,
        step: str,
        reason: str,
        *,
        took: float = 0.0,
        models: SubmittedModels | None = None,
    ) -> None:
        """Replace the submission; what counts is the line in the log, which names one of those in `submissions/`."""
        setup = self.setup
        submission = make_submission(setup, hits)
        number = 1 + sum(entry.submission is not None for entry in setup.log.entries)
        path = setup.out / _SUBMISSIONS / f"{number:03}.json"
        submission.write(path)
        file = path.relative_to(setup.out).as_posix()
        self._log(step, "kept", reason, took=took, submission=file, model=model, models=models)
        submission.write(setup.submission)
        setup.progress.info(f"{step}: submission {number} written: {reason}")
        self._write_report()

    def _repair_submission(self) -> None:
        """Write the submission that the log names, if a run was killed between the two."""
        submitted = self.setup.log.submitted
        if submitted is not None and submitted.submission is not None:
            path = self.setup.out / _SUBMISSIONS / Path(submitted.submission).name  # of no other folder
            with reading_errors(path, "the submission"), open_regular(path, _MAX_BYTES) as file:
                content = file.read()
            if not self.setup.submission.is_file() or self.setup.submission.read_bytes() != content:
                write_file(self.setup.submission, lambda temporary: temporary.write_bytes(content))

    def _write_report(self) -> None:
        setup, submitted = self.setup, self.setup.log.submitted
        write_report(
            setup.out / REPORT,
            setup.data,
            setup.log.entries,
            measure=setup.measures[0],
            model="" if submitted is None else submitted.model,
            total_seconds=setup.clock.total,
        )

    def _submitted(self) -> list[SubmissionModel]:
        """Return the models of the submission; refitted ones replace those that they repeat."""
        names = self.selection.weights if self.selection is not None else {}
        return [self.refits.get(name, self.candidates[name]) for name in names]

    @property
    def _submitted_score(self) -> float | None:
        submitted = self.setup.log.submitted
        return None if submitted is None else submitted.score

    @property
    def _least_end_seconds(self) -> float:
        """Seconds before the deadline at which everything but saving is done."""
        low, high = _END_SECONDS
        return min(high, max(low, _END_SHARE * self.setup.clock.total))

    @property
    def _end_seconds(self) -> float:
        """Seconds before the deadline at which the last model must be trained: selecting it takes time as well."""
        return self._least_end_seconds + 2 * self._selection_seconds

    def _can_be_tuned(self, backbone: str) -> bool:
        """Whether a backbone can be fine-tuned: it has a frozen candidate, and no fine-tuning of it failed."""
        failed = any(self.setup.log.has(f"training {name}", "failed") for name in self._fine_tuned(backbone))
        return f"{backbone} frozen" in self.candidates and self.costs[backbone].recipe is not None and not failed

    def _results_of(self, name: str) -> BackboneResults:
        measure, costs = self.setup.measures[0], self.costs[name]
        best = Measure.parse(measure).max_value

        def score(candidate: SubmissionModel) -> float:
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
        models: SubmittedModels | None = None,
    ) -> None:
        seconds, score = round(self.setup.clock.elapsed, 1), self.score if outcome in ("kept", "finished") else None
        self.setup.log.add(LogEntry(seconds, step, outcome, reason, round(took, 1), score, submission, model, models))

    def _save_models(self) -> None:
        """Save the models of the submission as one bundle, with its re-ranking: `submit` makes the same submission."""
        if self.selection is None:
            return
        candidates = self._submitted()
        members = [load_bundle(candidate.bundle, self.setup.functions).members[0] for candidate in candidates]
        weights = tuple(self.selection.weights.values())
        encoder = members[0] if len(members) == 1 else Ensemble(tuple(members), "concat", weights=weights)
        infos = [read_bundle_info(candidate.bundle) for candidate in candidates]
        record = describe_encoder(
            encoder,
            classes=infos[0].classes,
            options=infos[0].options,
            training_data=infos[0].training_data,
            training=tuple(report for info in infos for report in info.training),
            calibration=self._calibrate(),
        )
        reranker = make_reranker(self.setup, self.selection, candidates) if self.selection.reranking.steps else None
        save_bundle(encoder, self.setup.out / BEST, record, reranker=reranker, replace_existing=True)

    def _calibrate(self) -> Calibration | None:
        """Calibrate the models of the submission on validation; refitted ones by their embeddings before the refit."""
        assert self.selection is not None
        candidates = [self.candidates[name] for name in self.selection.weights]
        weights = tuple(self.selection.weights.values())
        splits = (Split.VALIDATION, Split.TRAINING)
        validation, training = (join_embeddings(candidates, weights, split) for split in splits)
        return calibrate(self.setup.data, validation, training, self.setup.progress)


def _step_of(candidate: SubmissionModel) -> str:
    """Return the name of the step that trains a candidate."""
    return f"frozen {candidate.backbone}" if candidate.kind == "frozen" else f"training {candidate.name}"


def _describe(error: Exception) -> str:
    """Return the sentence of an error of ours; of another, its kind too."""
    if isinstance(error, LookalikeError):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
