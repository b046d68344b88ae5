"""`benchmark`: measure every candidate and every pair, pick one, write it all down."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Unpack

from lookalike._files import digest
from lookalike.benchmark.candidates import make_candidates, require_choosable
from lookalike.benchmark.embedded import Parts, embedded, skipped_files
from lookalike.benchmark.leaderboard import Leaderboard
from lookalike.benchmark.leaderboard_files import write_leaderboard
from lookalike.benchmark.markdown import markdown
from lookalike.benchmark.measuring import measure_all, with_timing
from lookalike.benchmark.report import class_scores, write_report
from lookalike.benchmark.run import Run, measures_for, slug
from lookalike.benchmark.selection import DEFAULT_MEASURE, Choice, select
from lookalike.benchmark.trial import Trial
from lookalike.benchmark.wanted import Wanted
from lookalike.benchmark.winner import context, evaluate_winner, examples, write_best
from lookalike.data.dataset import Dataset
from lookalike.data.duplicates import require_no_leaks
from lookalike.data.split import with_validation
from lookalike.errors import DataError, OptionError
from lookalike.evaluation.measures import Measure
from lookalike.models.facts import is_bundle
from lookalike.models.weights import PRETRAINED
from lookalike.progress import SILENT, Progress
from lookalike.runtimes.choice import require_runtime
from lookalike.training.options import OptionChanges, TrainingOptions, changed_options
from lookalike.training.tracking.target import parse_targets
from lookalike.training.tracking.tracked import Tracked, begin_tracked
from lookalike.training.train import load_as
from lookalike.types import Skipped


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark found.

    Attributes:
        trials: one a candidate.
        choice: the winner and why.
        leaderboard: the table.
        out: the folder with everything.
        skipped: files and folders that could not be read.

    """

    trials: tuple[Trial, ...]
    choice: Choice
    leaderboard: Leaderboard
    out: Path
    skipped: tuple[Skipped, ...] = field(default=())

    def __str__(self) -> str:
        """Return the table and the reason."""
        return markdown(self.leaderboard, self.choice)


def benchmark(  # noqa: PLR0913 - the command's options, all but two by name
    data: Dataset | Path | str,
    backbones: Sequence[str] = (),
    *,
    out: Path | str | None = None,
    bundles: Sequence[Path | str] = (),
    weights: str | Path | Mapping[str, str | Path] = PRETRAINED,
    finetune: bool | Collection[str] = True,
    options: TrainingOptions | None = None,
    budget_ms: float | None = None,
    measure: str = DEFAULT_MEASURE,
    runtime: str = "auto",
    title: str | None = None,
    notes: Sequence[str] = (),
    track: Sequence[str] = (),
    progress: Progress = SILENT,
    **changes: Unpack[OptionChanges],
) -> Benchmark:
    """Measure the backbones, frozen and fine-tuned, the bundles, and all their pairs; choose by validation.

    Started again on the same `out` it goes on where it was: what an earlier sitting made is taken as it is, whether
    that was killed or finished, and further backbones, bundles, another budget or measure may be given.

    Args:
        data: a data folder or a loaded data set.
        backbones: names; each becomes a frozen and, as `finetune` says, a fine-tuned candidate.
        out: folder for leaderboard.*, report.html, trials/, timing/, members/ and best/; by default a new temporary
            one.
        bundles: encoders made before.
        weights: as in `train`.
        finetune: train all backbones, none, or those named.
        options: of the training; single ones may also be given by name, as `epochs=3`.
        budget_ms: the most milliseconds an image may cost.
        measure: the accuracy to choose by.
        runtime: what computes embeddings, in float32, for accuracy and time: auto takes the fastest of this machine.
        title: heading of the report.
        notes: further sentences for the report.
        track: trackers, as in `train`; they get the leaderboard, and the winner as a model.
        progress: is told what happens.
        changes: options by name, in place of what `options` says.

    Raises:
        DataError: too little labelled data, or training images that are in query or gallery too.
        OptionError: nothing to measure, nothing that could be chosen, or nothing within the budget.
        ModelError: an unknown backbone, weights that cannot be had, or a bundle that is missing or damaged.
        StorageError: `out` belongs to something else, or to a run with other data, options or weights.

    """
    options = changed_options(options, changes)
    measure = str(Measure.parse(measure))
    require_runtime(runtime)
    if budget_ms is not None and not (math.isfinite(budget_ms) and budget_ms > 0):
        raise OptionError(f"the budget must be a number above 0 milliseconds an image, got {budget_ms}.")
    wanted = Wanted.of(backbones, bundles, weights, finetune)
    data = _with_parts(data, options)
    measures = measures_for(data, measure, options)
    place = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="lookalike-benchmark-"))
    targets = parse_targets(track)
    run = Run(data, place, options, measures, progress, runtime=runtime)
    require_choosable(data, wanted)
    wanted.require_weights(run)
    if any(not is_bundle(run.member(name, "fine-tuned")) for name in wanted.finetune):
        require_no_leaks(data, allowed=options.allow_leaks, progress=progress)
    run.claim(wanted.weights)
    progress.info(str(data))
    key = digest(data.fingerprint, str(place.absolute()))
    tracked = begin_tracked(targets, place.name, key, resume=True, progress=progress)
    with tracked.closing():
        tracked.params(options.to_dict() | {"data": data.fingerprint, "measure": measure})
        found = _measured(replace(run, tracked=tracked), wanted, budget_ms, title, notes)
        _track(tracked, found)
    return found


def _measured(run: Run, wanted: Wanted, budget_ms: float | None, title: str | None, notes: Sequence[str]) -> Benchmark:
    """Make the candidates, measure them, choose, and write everything."""
    data, place, measure = run.data, run.out, run.measures[0]
    candidates = make_candidates(run, wanted)
    parts = {c.name: embedded(run, c) for c in candidates}
    run = _with_readable(run, parts)
    trials = with_timing(run, measure_all(run, candidates, parts), candidates, parts)
    choice = select(trials, measure=measure, budget_ms=budget_ms)

    skipped = (*data.skipped, *skipped_files(parts))
    facts = context(run, bool(wanted.finetune), skipped, title, notes)
    write_best(run, choice, trials, candidates, parts)
    evaluation = evaluate_winner(run, choice, candidates, parts)
    values = dict(zip(evaluation.query_ids, evaluation.per_query(measure).tolist(), strict=True))
    labels = {i.id: i.label for i in data.items}
    shown = examples(evaluation, values, data)
    write_report(place / "report.html", trials, choice, facts, shown, class_scores(values, labels))
    board = write_leaderboard(place, trials, choice, facts)
    return Benchmark(tuple(trials), choice, board, place, skipped)


def _track(tracked: Tracked, found: Benchmark) -> None:
    """Tell trackers the table, figure by figure and as files, and hand the winner over."""
    for trial in found.trials:
        for part, scores in (("validation", trial.validation), ("test", trial.test)):
            if scores is not None:
                means = {f"{slug(trial.name)}/{part}/{name}": own["mean"] for name, own in scores.measures.items()}
                tracked.metrics(means, 1)
    for name in ("leaderboard.json", "leaderboard.csv", "leaderboard.md", "report.html"):
        tracked.file(found.out / name)
    tracked.params({"winner": found.choice.winner})
    tracked.model(found.out / "best", found.out.name)


def _with_readable(run: Run, parts: Parts) -> Run:
    """Leave out the usual measures that look deeper than the images that every candidate could read."""
    readable = {part: min(len(own[part]) for own in parts.values()) for part in ("validation", "gallery")}
    return replace(run, measures=measures_for(run.data, run.measures[0], run.options, readable))


def _with_parts(data: Dataset | Path | str, options: TrainingOptions) -> Dataset:
    """Load the data, if need be, and cut a validation part from its training part.

    Raises:
        DataError: when there is nothing labelled to train on.

    """
    loaded = load_as(data, options)
    if not any(i.label for i in loaded.training):
        raise DataError(
            f"{loaded.root} has no labelled training images, which a benchmark fits, trains and chooses with; "
            "give training/<class>/ folders or a manifest.csv."
        )
    return with_validation(loaded, seed=options.seed, class_disjoint=options.class_disjoint)
