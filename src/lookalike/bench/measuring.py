"""Taking every trial's accuracy and time, each kept in a file of its own so that a killed run goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lookalike.bench.candidates import Candidate, Pair, alignment_of, combined, pairs, slug
from lookalike.bench.timing import measure_timing
from lookalike.bench.trial import Scores, Timing, Trial
from lookalike.data import Dataset, Item
from lookalike.errors import DataError
from lookalike.evaluation import Evaluation, evaluate_embeddings
from lookalike.files import digest, read_json, write_json
from lookalike.progress import Progress
from lookalike.types import Embeddings

_TIMED_FILES = 40
Parts = Mapping[str, Mapping[str, Embeddings]]


def measure_all(
    candidates: Sequence[Candidate],
    parts: Parts,
    data: Dataset,
    measures: Sequence[str],
    out: Path,
    progress: Progress,
) -> list[Trial]:
    """Take the measures of every candidate and every pair, or read them from an earlier sitting."""
    trials = []
    joined = pairs(candidates)
    for n, candidate in enumerate(candidates):
        kept = _kept_trial(out, candidate.name, candidate.fingerprint)
        trials.append(kept or _keep_trial(out, _single_trial(candidate, parts, data, measures), candidate.fingerprint))
        progress.step("measuring", n + 1, len(candidates) + len(joined), candidate.name)
    for n, pair in enumerate(joined):
        key = digest(pair.first.fingerprint, pair.second.fingerprint)
        kept = _kept_trial(out, pair.name, key)
        trials.append(kept or _keep_trial(out, _pair_trial(pair, parts, data, measures), key))
        progress.step("measuring", len(candidates) + n + 1, len(candidates) + len(joined), pair.name)
    return trials


def _single_trial(candidate: Candidate, parts: Parts, data: Dataset, measures: Sequence[str]) -> Trial:
    validation, test = _scores(parts[candidate.name], data, measures)
    return Trial(
        name=candidate.name,
        kind="ensemble" if candidate.is_ensemble else "single",
        members=(candidate.name,),
        combine=candidate.how,
        trained=candidate.trained,
        dim=candidate.dim,
        validation=validation,
        test=test,
        note=candidate.note,
    )


def _pair_trial(pair: Pair, parts: Parts, data: Dataset, measures: Sequence[str]) -> Trial:
    validation, test = _scores(pair_parts(pair, parts), data, measures)
    return Trial(
        name=pair.name,
        kind="ensemble",
        members=(pair.first.name, pair.second.name),
        combine=pair.how,
        trained=pair.trained,
        dim=pair.first.dim + pair.second.dim if pair.how == "concat" else pair.first.dim,
        validation=validation,
        test=test,
    )


def pair_parts(pair: Pair, parts: Parts) -> dict[str, Embeddings]:
    alignment = alignment_of(pair, parts)
    return {part: combined(pair, alignment, part, parts) for part in ("validation", "query", "gallery")}


def _scores(own: Mapping[str, Embeddings], data: Dataset, measures: Sequence[str]) -> tuple[Scores, Scores | None]:
    validation = Scores.of(evaluate_validation(own, data, measures))
    test = evaluate_test(own, data, measures)
    return validation, Scores.of(test) if test is not None else None


def _labels(items: Sequence[Item]) -> dict[str, str]:
    return {i.id: i.label for i in items if i.label is not None}


def evaluate_validation(own: Mapping[str, Embeddings], data: Dataset, measures: Sequence[str]) -> Evaluation:
    """Leave-one-out within the validation part."""
    labels = _labels(data.validation)
    return evaluate_embeddings(own["validation"], own["validation"], labels, labels, measures)


def evaluate_test(own: Mapping[str, Embeddings], data: Dataset, measures: Sequence[str]) -> Evaluation | None:
    if not data.test_is_labelled:
        return None
    return evaluate_embeddings(own["query"], own["gallery"], _labels(data.query), _labels(data.gallery), measures)


def _kept_trial(out: Path, name: str, key: str) -> Trial | None:
    place = out / "trials" / f"{slug(name)}.json"
    if not place.is_file():
        return None
    stored = read_json(place, "the trial")
    return Trial.from_dict(stored["trial"]) if stored.get("key") == key else None


def _keep_trial(out: Path, trial: Trial, key: str) -> Trial:
    write_json(out / "trials" / f"{slug(trial.name)}.json", {"key": key, "trial": trial.to_dict()})
    return trial


def with_timing(
    trials: Sequence[Trial], candidates: Sequence[Candidate], data: Dataset, parts: Parts, out: Path, progress: Progress
) -> list[Trial]:
    """Add the time of one image; trials of the same architectures share one measurement, weights do not change it."""
    by_name = {c.name: c for c in candidates}
    jobs: dict[str, tuple[list[Path], set[str]]] = {}
    for trial in trials:
        members = [by_name[m] for m in trial.members]
        jobs.setdefault(_signature(members), ([m.bundle for m in members], set()))[1].add(_way(trial))
    images = _timed_files(data, parts)
    found: dict[str, dict[str, Timing]] = {}
    for n, (signature, (bundles, ways)) in enumerate(jobs.items()):
        found[signature] = _timing(signature, bundles, sorted(ways), images, out)
        progress.step("timing", n + 1, len(jobs), signature)
    result = []
    for trial in trials:
        signature = _signature([by_name[m] for m in trial.members])
        result.append(Trial.from_dict({**trial.to_dict(), "timing": found[signature][_way(trial)].__dict__}))
    return result


def _way(trial: Trial) -> str:
    return trial.combine if trial.kind == "ensemble" else ""


def _signature(members: Sequence[Candidate]) -> str:
    return "+".join(m.signature for m in members)


def _timed_files(data: Dataset, parts: Parts) -> list[Path]:
    """Return readable files, evenly spread over the gallery (or validation)."""
    readable = {i for e in next(iter(parts.values())).values() for i in e.ids}
    items = [i for i in (data.gallery or data.validation) if i.id in readable]
    if not items:
        raise DataError(f"{data.root} has no readable image to time the candidates with.")
    step = max(1, len(items) // _TIMED_FILES)
    return [i.path.resolve() for i in items[::step]][:_TIMED_FILES]


def _timing(
    signature: str, bundles: Sequence[Path], ways: Sequence[str], images: Sequence[Path], out: Path
) -> dict[str, Timing]:
    place = out / "timing" / f"{slug(signature)}.json"
    if place.is_file():
        stored = read_json(place, "the timing")
        if set(ways) <= set(stored):
            return {way: Timing(**stored[way]) for way in ways}
    found = measure_timing(bundles, ways, images)
    write_json(place, {way: timing.__dict__ for way, timing in found.items()})
    return found
