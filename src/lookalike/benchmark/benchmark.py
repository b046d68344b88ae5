"""`benchmark`: measure every candidate and every ensemble, select the winner, and write the results; and `demo`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lookalike._arguments import checked_arguments
from lookalike._files import digest, follow_link, require_free, require_writable
from lookalike._lock import locked
from lookalike.benchmark.candidates import (
    AnyCandidate,
    make_candidates,
    make_ensembles,
    require_candidates,
    save_winner,
)
from lookalike.benchmark.estimate import estimate_benchmark
from lookalike.benchmark.leaderboard import Leaderboard, build_leaderboard, markdown, write_leaderboard
from lookalike.benchmark.report import describe_run, find_examples, write_report
from lookalike.benchmark.run_trials import (
    add_timings,
    embed_candidate,
    evaluate_all,
    evaluate_test,
    rerank_candidates,
    skipped_files,
    winner_reliability,
)
from lookalike.benchmark.selection import (
    DEFAULT_MEASURE,
    FALLBACK_MEASURE,
    Selection,
    default_measure,
    require_preference,
    select,
)
from lookalike.benchmark.spec import (
    BenchmarkSpec,
    check_candidates,
    member_folder,
    recorded_backbones,
    require_request,
    select_measures,
    slug,
    validation_ceiling,
    write_or_check_record,
)
from lookalike.benchmark.trial import Trial
from lookalike.data.dataset import Dataset
from lookalike.data.duplicates import require_no_leaks
from lookalike.data.layouts import load_training_splits
from lookalike.data.samples import DESCRIPTION, is_demo_folder, write_demo_images
from lookalike.errors import DataError, OptionError, StorageError, renamed_argument
from lookalike.evaluation.calibration import calibrate
from lookalike.evaluation.evaluation import evaluate_validation
from lookalike.evaluation.measures import Measure
from lookalike.models.auto import AUTO, expand_auto
from lookalike.models.bundle import is_bundle
from lookalike.models.encoder import AnyEncoder
from lookalike.models.function_backbone import split_functions
from lookalike.models.registry import PRETRAINED
from lookalike.progress import Progress, resolve_progress
from lookalike.runtimes.load import WeightsOption, load_pretrained
from lookalike.runtimes.select import require_runtime
from lookalike.training.config import TrainingOptions, override_options
from lookalike.training.context import labelled, require_classes
from lookalike.training.tracking import TrackerTarget, parse_targets, start_tracking
from lookalike.types import Skipped

DEMO_BACKBONES = ("efficientnet_lite0", "efficientnet_lite2")
DEMO_OPTIONS = TrainingOptions(epochs=3, resolution=0.75)  # a few minutes on two cores
_IMAGES, _BENCHMARK = "images", "benchmark"


@dataclass(frozen=True)
class Benchmark:
    """The results of a benchmark; `print` shows the table and the reason."""

    trials: tuple[Trial, ...]  # one per candidate
    selection: Selection  # the winner and why
    leaderboard: Leaderboard
    out: Path  # the folder with all results
    skipped: tuple[Skipped, ...] = ()  # files and folders that could not be read

    def __str__(self) -> str:
        return markdown(self.leaderboard, self.selection)


@checked_arguments()
def benchmark(  # noqa: PLR0913 - the options of the command
    data: Dataset | Path | str,
    backbones: Sequence[str | AnyEncoder] = (),
    *,
    out: Path | str | None = None,
    bundles: Sequence[Path | str] = (),
    weights: WeightsOption = PRETRAINED,
    finetune: bool | Collection[str] = True,
    options: TrainingOptions | None = None,
    budget_ms: float | None = None,
    measure: str | None = None,
    prefer: str = "efficiency",
    runtime: str = "auto",
    transductive: bool = True,
    title: str | None = None,
    notes: Sequence[str] = (),
    track: Sequence[str] = (),
    progress: Progress | None = None,
    **overrides: Any,
) -> Benchmark:
    """Measure backbones, frozen and fine-tuned, bundles, and all pairs of them; select the winner by validation.

    The same call with the same `out` resumes an interrupted benchmark, and reuses the results of a finished one;
    backbones and bundles can be added, budget and measure changed.

    Args:
        data: a data folder or a loaded data set.
        backbones: names; each is a frozen and, depending on `finetune`, a fine-tuned candidate. `a+b` measures only the
            ensembles of the two; `auto` picks backbones of different kinds (`lookalike.models.auto`). Also encoders
            from `as_encoder`, which are frozen candidates with a head of their own.
        out: folder for leaderboard.*, report.html, trials/, timing/, members/ and best/; default: a temporary folder.
        bundles: saved encoders to measure as well.
        weights: as in `train`.
        finetune: fine-tune all backbones, none, or those named.
        options: training options; single ones can be passed by name, such as `epochs=3`.
        budget_ms: maximum milliseconds per image.
        measure: the accuracy to select by; None is precision@3, or map@r where validation cannot show precision@3: too
            few images per class for a value of 1, or candidates so close to 1 that chance would decide.
        prefer: efficiency for the cheapest candidate that is not significantly less accurate than the most accurate
            one, or accuracy for that one.
        runtime: runtime for accuracy and time, in float32; `auto` selects the fastest.
        transductive: also choose re-rankings that use other queries or change the gallery.
        title: heading of the report.
        notes: further sentences for the report.
        track: trackers as in `train`; they receive the leaderboard, and the winner as a model.
        progress: receives progress and messages; None shows a bar in a terminal or notebook, and logs elsewhere.
        overrides: training options by name, which override `options`.

    Raises:
        DataError: too little labelled data, or training images that are in query or gallery too.
        OptionError: nothing to measure, no candidate that can win, or none within the budget.
        ModelError: an unknown backbone, weights that are not available, or a bundle that is missing or damaged.
        StorageError: `out` belongs to something else, or to a benchmark with other data, options or weights.
    """
    progress = resolve_progress(progress)
    options = override_options(options, overrides)
    if options.crop:
        raise OptionError("benchmark measures whole images, train and compete also a `crop`; omit it.", argument="crop")
    if measure is not None:
        measure = str(Measure.parse(measure, argument="measure"))
    require_runtime(runtime)
    preference = require_preference(prefer)
    require_request(backbones, bundles, Path(out) if out is not None else None, budget_ms)
    names, functions = split_functions(backbones)
    if AUTO in names:
        data = load_training_splits(data, options.to_dict())
        minutes = options.max_minutes
        earlier = recorded_backbones(Path(out) if out is not None else None)
        if earlier:
            names = tuple(dict.fromkeys(name for name in (*names, *earlier) if name != AUTO))
        else:
            names = expand_auto(names, weights, images=len(data), minutes=minutes, progress=progress)
    weights, folders, finetuned = check_candidates(names, bundles, weights, finetune, functions)
    for backbone, source in weights.items():  # missing weights are found before the data is read
        if backbone in functions:
            continue
        if out is None or not member_folder(Path(out), backbone, "frozen").exists():
            with renamed_argument("backbones", "model"):
                load_pretrained(backbone, source, seed=options.seed)
    data = load_training_splits(data, options.to_dict())
    if not labelled(data.training):
        raise DataError(
            f"{data.root} has no labelled training images, which a benchmark needs for training and selection; "
            "add training/<class>/ folders or a manifest.csv.",
            argument="data",
        )
    first_measure = DEFAULT_MEASURE if validation_ceiling(data, DEFAULT_MEASURE) == 1 else FALLBACK_MEASURE
    spec = BenchmarkSpec(
        data=data,
        out=follow_link(out) if out is not None else Path(tempfile.mkdtemp(prefix="lookalike-benchmark-")),
        weights=weights,
        bundles=folders,
        finetune=finetuned,
        options=options,
        measures=select_measures(data, measure or first_measure, options),
        budget_ms=budget_ms,
        runtime=runtime,
        transductive=transductive,
        title=title,
        notes=tuple(notes),
        progress=progress,
        requested=names,
        functions=functions,
        measure_is_default=measure is None,
        prefer=preference,
    )
    targets = parse_targets(track)
    require_candidates(spec)
    if any(not is_bundle(spec.bundle_folder(name, "fine-tuned")) for name in spec.finetune):
        require_classes(spec.data, labelled(spec.data.training))
        require_no_leaks(spec.data, allowed=spec.options.allow_leaks, progress=progress)
    with locked(spec.out):
        write_or_check_record(spec)
        progress.info(str(spec.data))
        return _run_tracked(spec, targets)


def _run_tracked(spec: BenchmarkSpec, targets: Sequence[TrackerTarget]) -> Benchmark:
    key = digest(spec.data.fingerprint, str(spec.out.absolute()))
    tracker = start_tracking(targets, spec.out.name, key, resume=True, progress=spec.progress)
    with tracker.closing():
        tracker.log_params(spec.options.to_dict() | {"data": spec.data.fingerprint})
        result = _run(replace(spec, tracker=tracker))
        for trial in result.trials:
            for split, measures in (("validation", trial.validation), ("test", trial.test)):
                if measures:
                    prefix = f"{slug(trial.name)}/{split}"
                    tracker.log_metrics({f"{prefix}/{name}": i.mean for name, i in measures.measures.items()}, 1)
        for name in ("leaderboard.json", "leaderboard.csv", "leaderboard.md", "report.html"):
            tracker.log_file(result.out / name)
        tracker.log_params({"winner": result.selection.winner, "measure": result.selection.measure})
        tracker.log_model(result.out / "best", result.out.name)
    return result


def _run(spec: BenchmarkSpec) -> Benchmark:
    estimate = estimate_benchmark(spec)
    singles = make_candidates(spec, lambda backbone: estimate.finish(f"training {backbone}"))
    everything: list[AnyCandidate] = [*singles, *make_ensembles(singles)]
    candidates = [c for c in everything if spec.is_requested([m.backbone for m in c.members])]
    embeddings = {c.name: embed_candidate(spec, c) for c in singles}
    estimate.finish("embedding")
    readable = {split: min(len(e[split]) for e in embeddings.values()) for split in ("validation", "gallery")}
    spec = replace(spec, measures=select_measures(spec.data, spec.measures[0], spec.options, readable))
    trials = add_timings(spec, evaluate_all(spec, candidates, embeddings), candidates, embeddings)
    reranked = rerank_candidates(spec, trials, candidates, embeddings, _measure(spec, trials)[0])
    trials += add_timings(spec, evaluate_all(spec, reranked, embeddings), reranked, embeddings)
    candidates += reranked
    selection = _select(spec, trials)
    leaderboard = build_leaderboard(trials, selection)

    winner = next(c for c in candidates if c.title == selection.winner)
    winner_embeddings = winner.embeddings(embeddings)
    calibration = calibrate(spec.data, winner_embeddings["validation"], winner_embeddings["training"], spec.progress)
    record = leaderboard.record(selection, spec.options.seed)
    save_winner(spec, winner, record, leaderboard.winner.trial, embeddings, calibration)
    evaluation = evaluate_test(spec, winner_embeddings, winner.reranker) or evaluate_validation(
        spec.data, winner_embeddings["validation"], spec.measures, reranker=winner.reranker
    )
    examples = find_examples(evaluation, selection.measure, spec.data)
    skipped = (*spec.data.skipped, *skipped_files(embeddings))
    description = describe_run(spec, skipped)
    per_class = evaluation.per_class(selection.measure)
    reliability = None if calibration is None else winner_reliability(spec, winner_embeddings, calibration)
    report = spec.out / "report.html"
    write_report(report, leaderboard, selection, description, examples, per_class, reliability=reliability)
    write_leaderboard(spec.out, leaderboard, selection, description)
    return Benchmark(tuple(trials), selection, leaderboard, spec.out, skipped)


def _measure(spec: BenchmarkSpec, trials: Sequence[Trial]) -> tuple[str, str]:
    """Return the measure to select by, and why it is another than the default, or ""."""
    if spec.measure_is_default:
        return default_measure(trials, validation_ceiling(spec.data, DEFAULT_MEASURE))
    return spec.measures[0], ""


def _select(spec: BenchmarkSpec, trials: Sequence[Trial]) -> Selection:
    measure, note = _measure(spec, trials)
    if note:
        spec.progress.info(note)
    ceiling = validation_ceiling(spec.data, measure)
    return select(
        trials, measure=measure, budget_ms=spec.budget_ms, ceiling=ceiling, measure_note=note, prefer=spec.prefer
    )


@checked_arguments()
def demo(
    out: Path | str = "lookalike-demo", *, data: Path | str | None = None, progress: Progress | None = None
) -> Benchmark:
    """Benchmark EfficientNet-Lite0 and -Lite2, frozen, fine-tuned and as ensembles, and select one.

    Args:
        out: folder for the images and all results; an interrupted demo resumes there.
        data: a data folder; by default the demo's own images.
        progress: receives progress and messages; None shows a bar in a terminal or notebook, and logs elsewhere.

    Raises:
        MissingExtra: the packages with the images or the weights are not installed.
        DataError: `data` cannot be loaded.
        StorageError: `out` contains anything but a demo.
    """
    out, progress = follow_link(out), resolve_progress(progress)
    require_writable(out, "out")
    notes: tuple[str, ...] = ()
    if data is None:
        folder = out / _IMAGES
        with locked(out):
            _write_images(out, folder, progress)
        progress.info(DESCRIPTION)
        name, title, notes = _BENCHMARK, "The demo: which model finds the same scene again?", (DESCRIPTION,)
    else:
        folder = Path(data)
        set_name = folder.resolve().name
        # each data set has a folder of its own
        name, title = f"{_BENCHMARK}-{set_name}", f"Which model finds best in {set_name}?"
    return benchmark(
        folder, DEMO_BACKBONES, out=out / name, options=DEMO_OPTIONS, title=title, notes=notes, progress=progress
    )


def _write_images(out: Path, folder: Path, progress: Progress) -> None:
    """Write the demo's images, unless they are there; remove what an interrupted demo wrote of them."""
    entries = list(out.iterdir()) if out.is_dir() else []
    partial = [path for path in entries if path.name.startswith(f".{_IMAGES}.")]
    demos = [path for path in entries if path.name in (_IMAGES, _BENCHMARK) or path.name.startswith(f"{_BENCHMARK}-")]
    if len(partial) + len(demos) < len(entries) or out.is_file():
        require_free(out)
    if folder.exists() and not is_demo_folder(folder):
        raise StorageError(
            f"{folder} contains images that are not the demo's; choose another `out` or remove it.", argument="out"
        )
    for path in partial:
        shutil.rmtree(path, ignore_errors=True)
    if not folder.exists():
        progress.info("creating the demo images from scikit-image's samples")
        write_demo_images(folder)
