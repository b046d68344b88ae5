"""`compete`: make the best submission before a deadline; there is a valid one from the first minutes on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from lookalike._arguments import checked_arguments
from lookalike._files import digest, follow_link, read_json, require_free, require_writable, write_json
from lookalike._lock import locked
from lookalike._records import read_record
from lookalike.benchmark.spec import require_same_run
from lookalike.competition.clock import Clock, ClockProgress, is_duration, parse_deadline
from lookalike.competition.log import Log, LogEntry
from lookalike.competition.run_steps import StepRunner
from lookalike.competition.setup import LOG, RECORD, Setup
from lookalike.data.dataset import Dataset
from lookalike.data.layouts import load_training_splits
from lookalike.errors import DataError, OptionError, StorageError, renamed_argument, require_integer
from lookalike.evaluation.measures import Measure
from lookalike.evaluation.submission import Submission, file_names
from lookalike.models.auto import AUTO, expand_auto
from lookalike.models.backbone_files import parse_backbone_file
from lookalike.models.encoder import Encoder
from lookalike.models.function_backbone import split_functions
from lookalike.models.info import FUNCTION
from lookalike.models.registry import PRETRAINED, find_backbone
from lookalike.progress import Progress, format_duration, resolve_progress
from lookalike.runtimes.load import Weights, WeightsOption, weights_identity
from lookalike.training.config import TrainingOptions, override_options
from lookalike.training.context import labelled, require_classes
from lookalike.training.train import pair_initial_weights

_VERSION = 2
DEFAULT_MEASURE, FALLBACK_MEASURE = "points@1,5,10", "hit@1"


@dataclass(frozen=True)
class Competition:
    """The result of a competition; printing it shows the steps.

    Attributes:
        submission: the submission, which is also the file `submission.json` in `out`.
        model: the models it is made from, with their weights and re-ranking, in words.
        measure: what was compared on validation.
        score: its validation measure; None if nothing was measured.
        log: every step with its reason.
        out: the folder with all results.
    """

    submission: Path
    model: str
    measure: str
    score: float | None
    log: tuple[LogEntry, ...]
    out: Path

    def __str__(self) -> str:
        lines = [f"{'time':>10}  {'outcome':<8}  {self.measure:>13}  step"]
        for entry in self.log:
            if entry.outcome != "started":
                score = "" if entry.score is None else f"{entry.score:.4g}"
                time = format_duration(entry.seconds)
                lines.append(f"{time:>10}  {entry.outcome:<8}  {score:>13}  {entry.step}: {entry.reason}")
        return "\n".join([*lines, "", f"submission: {self.submission}, made by {self.model}"])


@dataclass(frozen=True)
class CompetitionRecord:
    """The content of `competition.json`: what must stay the same when a competition is resumed, and its clock."""

    data: str  # fingerprint of the images, labels and splits
    options: str  # digest of the training options
    weights: Mapping[str, str]  # by backbone, where they come from; of a file, the digest of its content
    group: str
    top_k: int
    measure: str
    transductive: bool
    deadline: str  # as it was given
    started: float
    ends: float
    version: int = _VERSION


@checked_arguments()
def compete(  # noqa: PLR0913 - the command's options, all but the first by name
    data: Dataset | Path | str,
    *,
    group: str,
    out: Path | str,
    deadline: str = "2h",
    backbones: Sequence[str | Encoder] = (AUTO,),
    weights: WeightsOption = PRETRAINED,
    top_k: int = 10,
    measure: str | None = None,
    transductive: bool = True,
    options: TrainingOptions | None = None,
    progress: Progress | None = None,
    **overrides: Any,
) -> Competition:
    """Make the best submission for the queries of a data set before a deadline.

    The steps: a first submission by a pretrained backbone; the frozen backbones with heads in closed form and trained;
    fine-tuning of the most promising, by the expected gain per minute; a training on all labelled images; ensembles
    by forward selection; re-ranking. A submission is replaced only by one that measures better on validation, or by the
    same models trained on all labelled images. The same call resumes an interrupted competition; its clock does not
    stop.

    Args:
        data: a data folder with labelled training images, and query and gallery images; their labels are not used.
        group: the group's name in the submission.
        out: folder for submission.json, log.jsonl, report.html, models/ and best/.
        deadline: a duration such as `2h` or `90min`, counted from the first start, or a time such as `14:30`.
        backbones: names; `auto` picks up to three by the available weights and the time. Also encoders from
            `as_encoder`, which are candidates with a trained head; to use `best/`, pass them to `load_encoder`.
        weights: as in `train`.
        top_k: gallery images per query.
        measure: what is compared on validation; None is `points@1,5,10`, or `hit@1` if validation is too small for it.
        transductive: whether a re-ranking may use other queries and change the gallery.
        options: training options; single ones can be passed by name.
        progress: receives progress and messages; None shows a bar in a terminal or notebook, and logs elsewhere.
        overrides: training options by name, which override `options`.

    Raises:
        DataError: too little labelled data, no queries or no gallery.
        OptionError: no time, or a value outside its limits.
        ModelError: none of the backbones can be used.
        StorageError: `out` belongs to something else, or to a competition with other data, options or weights.
    """
    now = datetime.now().astimezone()
    progress = resolve_progress(progress)
    # images that are in training and in test are the organiser's choice; `check` reports them
    options = override_options(options, {**overrides, "allow_leaks": True})
    out = follow_link(out)
    require_writable(out, "out")
    top_k = require_integer(top_k, "top_k")
    split = load_training_splits(data, options.to_dict())
    _require_data(split, top_k, group)
    earlier = _read_record(out / RECORD) if (out / RECORD).is_file() else None
    started, ends = _clock(deadline, now, earlier)
    selected = _select_backbones(backbones, weights, earlier, len(split), (ends - started) / 60, progress)
    measures = _select_measures(split, measure, progress)
    with locked(out):
        record = CompetitionRecord(
            data=_data_digest(split),
            options=digest(repr(sorted(options.to_dict().items()))),
            weights={backbone: weights_identity(backbone, source) for backbone, source in selected.items()},
            group=group,
            top_k=top_k,
            measure=measures[0],
            transductive=transductive,
            deadline=deadline,
            started=started,
            ends=ends,
        )
        _write_record(out, record, earlier)
        clock = Clock(started, ends)
        timed = ClockProgress(progress, clock)
        log = Log(out / LOG)
        setup = Setup(split, out, selected, options, measures, group, top_k, transductive, clock, timed, log)
        progress.info(str(split))
        runner = StepRunner(setup)
        if clock.left > 0:
            runner.run()
        else:
            progress.info(f"the deadline of this competition, {deadline}, is over; pass a later one to continue")
            runner.finish_late()
        return _result(setup)


def _result(setup: Setup) -> Competition:
    entry = setup.log.submitted
    if entry is None:
        raise StorageError(f"{setup.out} has no submission; {LOG} in it says why.", argument="out")
    return Competition(
        setup.submission, entry.model, setup.measures[0], entry.score, tuple(setup.log.entries), setup.out
    )


def _require_data(data: Dataset, top_k: int, group: str) -> None:
    Submission(group, {"query": ("gallery",)})  # an empty group is an error
    require_classes(data, labelled(data.training))
    for split in ("query", "gallery"):
        if not data.split(split):
            raise DataError(
                f"{data.root} has no {split} images; put them in test/{split}, or list them in a manifest.",
                argument="data",
            )
        file_names([item.id for item in data.split(split)], split)  # two images of one name are an error
    if not 1 <= top_k <= data.max_hits:
        raise OptionError(
            f"`top_k` must be from 1 to {data.max_hits}, the number of gallery images, got {top_k}.", argument="top_k"
        )


def _select_backbones(
    backbones: Sequence[str | Encoder],
    weights: WeightsOption,
    earlier: CompetitionRecord | None,
    images: int,
    minutes: float,
    progress: Progress,
) -> dict[str, Weights]:
    """Return the backbones with their weights; `auto` keeps what it picked when the competition began."""
    if not backbones:
        raise OptionError("`backbones` is empty; name one, or pass auto.", argument="backbones")
    names, functions = split_functions(backbones)
    if AUTO in names and earlier is not None:
        names = tuple(name for name in dict.fromkeys((*names, *earlier.weights)) if name != AUTO)
        _require_functions(earlier, functions)
    elif AUTO in names:
        # a third of the time per backbone
        names = expand_auto(names, weights, images=images, minutes=minutes / 3, progress=progress)
    with renamed_argument("backbones", "backbone"):
        for name in names:  # a misspelt name does not start the clock
            if name not in functions and parse_backbone_file(name) is None:
                find_backbone(name)
    return dict(pair_initial_weights(tuple(dict.fromkeys(names)), weights, functions))


def _require_functions(earlier: CompetitionRecord, functions: Collection[str]) -> None:
    """Raise `OptionError` if a competition is resumed without a function that it began with."""
    missing = [n for n, i in earlier.weights.items() if i.startswith(f"{FUNCTION} ") and n not in functions]
    if missing:
        raise OptionError(
            f"this competition uses the function {missing[0]}, which is not stored; in Python, pass the encoder that "
            "as_encoder made of it in `backbones`.",
            argument="backbones",
        )


def _read_record(path: Path) -> CompetitionRecord:
    try:
        return read_record(CompetitionRecord, read_json(path, "the record of the competition"))
    except ValueError as error:
        raise StorageError(
            f"{path} is not the record of a competition; choose another `out`, or remove the file.", argument="out"
        ) from error


def _select_measures(data: Dataset, measure: str | None, progress: Progress) -> tuple[str, ...]:
    """Return the measure to compare by, then those that break ties and are shown."""
    hits = len(data.validation_gallery) - (not data.validation_query_ids)
    if measure is not None:
        selected = Measure.parse(measure, argument="measure")
        if selected.min_gallery > hits:
            raise OptionError(
                f"`measure` {selected} needs {selected.min_gallery} hits, but validation has only {hits} images to "
                "find; choose a smaller k.",
                argument="measure",
            )
        name = str(selected)
    else:
        name = DEFAULT_MEASURE if Measure.parse(DEFAULT_MEASURE).min_gallery <= hits else FALLBACK_MEASURE
        progress.info(f"comparing by {name} on validation")
    return tuple(dict.fromkeys((name, "map@r", "hit@1")))


def _clock(deadline: str, now: datetime, earlier: CompetitionRecord | None) -> tuple[float, float]:
    """Return start and end in seconds since the epoch; of a resumed competition only another deadline is read."""
    if earlier is not None and deadline == earlier.deadline:
        return earlier.started, earlier.ends
    started = now.timestamp() if earlier is None else earlier.started
    seconds = parse_deadline(deadline, now)
    return started, (started if is_duration(deadline) else now.timestamp()) + seconds


def _data_digest(data: Dataset) -> str:
    test = digest(*(f"{i.id}\t{i.split}" for i in data.test))
    return digest(data.fingerprint, test, *sorted(i.id for i in data.validation))


def _write_record(out: Path, record: CompetitionRecord, earlier: CompetitionRecord | None) -> None:
    """Write the record of a new or resumed competition, or raise `StorageError` if the folder belongs to another."""
    if earlier is None and out.exists():
        require_free(out)
    if earlier is not None:
        names = ("data", "options", "group", "top_k", "measure", "transductive")
        require_same_run(out, "competition", record, earlier, {name: name for name in names})
        record = replace(record, weights={**earlier.weights, **record.weights})
    write_json(out / RECORD, asdict(record))
