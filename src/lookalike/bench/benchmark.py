"""`benchmark`: measure every candidate and every pair, pick one, write it all down."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lookalike.backbones.weights import PRETRAINED
from lookalike.bench.candidates import (
    Candidate,
    embedded,
    frozen_candidate,
    given_candidate,
    tuned_candidate,
    weights_of,
)
from lookalike.bench.leaderboard import Leaderboard, markdown, write_leaderboard
from lookalike.bench.measuring import Parts, measure_all, with_timing
from lookalike.bench.report import class_scores, write_report
from lookalike.bench.selection import DEFAULT_MEASURE, Choice, select
from lookalike.bench.trial import Trial
from lookalike.bench.winner import context, evaluate_winner, examples, write_best
from lookalike.data import Dataset, load_dataset, read_image, with_validation
from lookalike.errors import DataError, OptionError, StorageError, UnreadableImage
from lookalike.evaluation import DEFAULT, Measure
from lookalike.files import digest, file_digest, read_json, write_json
from lookalike.progress import SILENT, Progress
from lookalike.training import TrainingOptions
from lookalike.types import Skipped


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark found.

    Attributes:
        trials: one a candidate.
        choice: the winner and why.
        leaderboard: the table.
        out: the folder with everything.
        skipped: files that could not be read.

    """

    trials: tuple[Trial, ...]
    choice: Choice
    leaderboard: Leaderboard
    out: Path
    skipped: tuple[Skipped, ...] = field(default=())

    def __str__(self) -> str:
        """Return the table and the reason."""
        return markdown(self.leaderboard, self.choice)


def benchmark(
    data: Dataset | Path | str,
    backbones: Sequence[str] = (),
    *,
    out: Path | str | None = None,
    bundles: Sequence[Path | str] = (),
    weights: str | Path | Mapping[str, str | Path] = PRETRAINED,
    finetune: bool = True,
    options: TrainingOptions | None = None,
    budget_ms: float | None = None,
    measure: str = DEFAULT_MEASURE,
    title: str | None = None,
    notes: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Benchmark:
    """Measure the backbones, frozen and fine-tuned, the bundles, and all their pairs; choose by validation.

    A run that was killed goes on where it was when it is started again with the same arguments.

    Args:
        data: a data folder or a loaded data set.
        backbones: names; each becomes a frozen and, with `finetune`, a fine-tuned candidate.
        out: folder for leaderboard.*, report.html, trials/, members/ and best/; a new temporary one by default.
        bundles: encoders made before.
        weights: as in `train`.
        finetune: train the backbones.
        options: of the training.
        budget_ms: the most milliseconds an image may cost.
        measure: the accuracy to choose by.
        title, notes: for the report.
        progress: is told what happens.

    Raises:
        DataError: too little labelled data.
        OptionError: nothing to measure, or nothing within the budget.
        StorageError: `out` belongs to a run with other data or options.

    """
    options = options or TrainingOptions()
    measures = _measures(measure)
    if not backbones and not bundles:
        raise OptionError("a benchmark needs at least one --backbone or --bundle, got none.")
    _check_distinct(backbones, bundles)
    if budget_ms is not None and not budget_ms > 0:
        raise OptionError(f"the budget must be above 0 milliseconds an image, got {budget_ms}.")
    out = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="lookalike-benchmark-"))
    data = with_validation(
        data if isinstance(data, Dataset) else load_dataset(data, seed=options.seed),
        seed=options.seed,
        class_disjoint=options.class_disjoint,
    )
    _claim(out, data, options, weights, measures)
    progress.say(str(data))

    candidates = _candidates(data, backbones, bundles, weights, out, options, finetune, progress)
    parts = {c.name: embedded(c, data, out, progress) for c in candidates}
    skipped = _skipped(data, parts)
    trials = measure_all(candidates, parts, data, measures, out, progress)
    trials = with_timing(trials, candidates, data, parts, out, progress)
    choice = select(trials, measure=measure, budget_ms=budget_ms)

    facts = context(data, options, skipped, title, notes)
    board = write_leaderboard(out, trials, choice, facts)
    write_best(choice, candidates, parts, out, options)
    evaluation = evaluate_winner(choice, candidates, parts, data, measures)
    labels = {i.id: i.label for i in data.items}
    values = dict(zip(evaluation.query_ids, evaluation.per_query(measure).tolist(), strict=True))
    write_report(
        out / "report.html",
        trials,
        choice,
        facts,
        examples(evaluation, values, data, labels),
        class_scores(values, labels),
    )
    return Benchmark(tuple(trials), choice, board, out, skipped)


def _measures(measure: str) -> tuple[str, ...]:
    wanted = str(Measure.parse(measure))
    return tuple(dict.fromkeys([wanted, *(str(m) for m in DEFAULT)]))


def _check_distinct(backbones: Sequence[str], bundles: Sequence[Path | str]) -> None:
    names = [*backbones, *(Path(b).name for b in bundles)]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise OptionError(f"{twice!r} is given more than once; candidates need distinct names.")
    joined = next((b for b in backbones if "+" in b), None)
    if joined is not None:
        raise OptionError(f"{joined!r} is an ensemble; give its members one by one, every pair is measured anyway.")


def _claim(
    out: Path,
    data: Dataset,
    options: TrainingOptions,
    weights: str | Path | Mapping[str, str | Path],
    measures: Sequence[str],
) -> None:
    """Make the folder ours, or see that it already belongs to the same run."""
    if not data.training:
        raise DataError(f"{data.root} has no training part; a benchmark needs labelled training images.")
    given = (
        {k: _weights_mark(v) for k, v in weights.items()} if isinstance(weights, Mapping) else _weights_mark(weights)
    )
    test = digest(*(f"{i.id}\t{i.label}\t{i.split}" for i in (*data.query, *data.gallery)))
    run = {
        "training_data": data.fingerprint,
        "validation": digest(*(i.id for i in data.validation)),
        "test_data": test,
        "options": options.to_dict(),
        "weights": given,
        "measures": list(measures),
    }
    place = out / "run.json"
    if place.is_file():
        stored = read_json(place, "the description of the benchmark run")
        differs = [name for name in run if not isinstance(stored, dict) or stored.get(name) != run[name]]
        if differs:
            raise StorageError(
                f"{out} holds a benchmark with other {' and '.join(n.replace('_', ' ') for n in differs)}; "
                "choose another --out or remove it."
            )
        return
    if out.exists() and any(out.iterdir()):
        raise StorageError(f"{out} is not empty and holds no benchmark; choose another --out.")
    write_json(place, run)


def _weights_mark(weights: str | Path) -> str:
    path = Path(weights)
    return file_digest(path) if path.is_file() else str(weights)


def _candidates(
    data: Dataset,
    backbones: Sequence[str],
    bundles: Sequence[Path | str],
    weights: str | Path | Mapping[str, str | Path],
    out: Path,
    options: TrainingOptions,
    finetune: bool,
    progress: Progress,
) -> list[Candidate]:
    found = [given_candidate(data, Path(b)) for b in bundles]
    for backbone in backbones:
        own = weights_of(backbone, weights)
        found.append(frozen_candidate(data, backbone, own, out, options.seed, progress))
        if finetune:
            found.append(tuned_candidate(data, backbone, own, out, options, progress))
    return found


def _skipped(data: Dataset, parts: Parts) -> tuple[Skipped, ...]:
    """Return the files that some candidate could not read, with their causes."""
    read = {i for found in parts.values() for e in found.values() for i in e.ids}
    skipped = []
    for item in data.items:
        if item.id not in read:
            try:
                read_image(item.path)
            except UnreadableImage as error:
                skipped.append(Skipped(error.path, error.cause))
    return tuple(skipped)
