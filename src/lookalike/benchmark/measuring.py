"""Taking every trial's accuracy and time, each kept in a file of its own so that a killed run goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from lookalike._files import digest, read_json, write_json
from lookalike.benchmark.candidates import Candidate
from lookalike.benchmark.embedded import Parts
from lookalike.benchmark.machine import timing_setup
from lookalike.benchmark.pairs import Pair, pair_parts, pairs
from lookalike.benchmark.run import Run, slug
from lookalike.benchmark.timing import measure_timing
from lookalike.benchmark.trial import SCHEMA, Scores, Timing, Trial
from lookalike.data.dataset import sample_evenly
from lookalike.errors import DataError, LookalikeError
from lookalike.evaluation.evaluation import Evaluation, evaluate_embeddings
from lookalike.models.facts import read_facts
from lookalike.models.weights import NONE
from lookalike.types import Embeddings

_TIMED_FILES = 40


def measure_all(run: Run, candidates: Sequence[Candidate], parts: Parts) -> list[Trial]:
    """Take the measures of every candidate and every pair, or read them from an earlier sitting.

    A kept trial holds for the same embeddings, labels and measures.
    """
    labels = digest(*(f"{i.id}\t{i.label}\t{i.split}" for i in run.data.items))
    content = {name: _content(own) for name, own in parts.items()}
    random = {c.name: _from_random(c) for c in candidates}
    entries: list[Candidate | Pair] = [*candidates, *pairs(candidates)]
    trials = []
    for done, entry in enumerate(entries, start=1):
        members = [entry] if isinstance(entry, Candidate) else [entry.first, entry.second]
        marks = (f"{content[m.name]} {m.trained} {random[m.name]} {m.note}" for m in members)
        key = digest(str(SCHEMA), labels, *run.measures, *marks)
        trial = _kept_trial(run, entry.name, key)
        if trial is None:
            trial = _single_trial(run, entry, parts) if isinstance(entry, Candidate) else _pair_trial(run, entry, parts)
            trial = replace(trial, from_random=any(random[m.name] for m in members))
            write_json(_place(run, entry.name), {"key": key, "trial": trial.to_dict()})
        trials.append(trial)
        run.progress.step("measuring", done, len(entries), entry.name)
    return trials


def _content(own: Mapping[str, Embeddings]) -> str:
    return digest(*(piece for e in own.values() for piece in ("\n".join(e.ids), e.vectors.tobytes())))


def _from_random(candidate: Candidate) -> bool:
    """Say whether the weights of a member were random before anything was trained."""
    return any(m["origin"].get("weights") == NONE for m in read_facts(candidate.bundle)["members"])


def _single_trial(run: Run, candidate: Candidate, parts: Parts) -> Trial:
    validation, test = _scores(run, parts[candidate.name])
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
        leaked=candidate.leaked,
    )


def _pair_trial(run: Run, pair: Pair, parts: Parts) -> Trial:
    validation, test = _scores(run, pair_parts(pair, parts))
    return Trial(
        name=pair.name,
        kind="ensemble",
        members=(pair.first.name, pair.second.name),
        combine=pair.how,
        trained=pair.trained,
        dim=pair.dim,
        validation=validation,
        test=test,
        leaked=pair.first.leaked or pair.second.leaked,
    )


def _scores(run: Run, own: Mapping[str, Embeddings]) -> tuple[Scores, Scores | None]:
    test = evaluate_test(run, own)
    return Scores.of(evaluate_validation(run, own)), Scores.of(test) if test is not None else None


def evaluate_validation(run: Run, own: Mapping[str, Embeddings]) -> Evaluation:
    """Measure one candidate's embeddings by leave-one-out within the validation part."""
    labels = run.data.labels("validation")
    return evaluate_embeddings(own["validation"], own["validation"], labels, labels, run.measures)


def evaluate_test(run: Run, own: Mapping[str, Embeddings]) -> Evaluation | None:
    """Measure one candidate's embeddings on query and gallery; None where these carry no labels."""
    data = run.data
    if not data.test_is_labelled:
        return None
    labels = data.labels("query"), data.labels("gallery")
    return evaluate_embeddings(own["query"], own["gallery"], *labels, run.measures)


def _place(run: Run, name: str) -> Path:
    return run.out / "trials" / f"{slug(name)}.json"


def _kept_trial(run: Run, name: str, key: str) -> Trial | None:
    try:
        stored = read_json(_place(run, name), "the trial")
        return Trial.from_dict(stored["trial"]) if stored["key"] == key else None
    except (LookalikeError, KeyError, TypeError):
        return None  # absent, damaged or of another version: it is measured anew


def with_timing(run: Run, trials: Sequence[Trial], candidates: Sequence[Candidate], parts: Parts) -> list[Trial]:
    """Add the time of one image; trials of the same architectures share one measurement, weights do not change it.

    Raises:
        DataError: when no image to time with can be read.

    """
    by_name = {c.name: c for c in candidates}
    members = {t.name: [by_name[m] for m in t.members] for t in trials}
    ways: dict[str, set[str]] = {}
    bundles: dict[str, list[Path]] = {}
    for trial in trials:
        signature = _signature(members[trial.name])
        ways.setdefault(signature, set()).add(_way(trial))
        bundles.setdefault(signature, [m.bundle.resolve() for m in members[trial.name]])
    images = _timed_files(run, parts)
    found: dict[str, Mapping[str, Timing]] = {}
    for done, signature in enumerate(ways, start=1):
        found[signature] = _timing(run, signature, bundles[signature], sorted(ways[signature]), images)
        run.progress.step("timing", done, len(ways), signature)
    return [replace(t, timing=found[_signature(members[t.name])][_way(t)]) for t in trials]


def _way(trial: Trial) -> str:
    return trial.combine if trial.kind == "ensemble" else ""


def _signature(members: Sequence[Candidate]) -> str:
    return "+".join(m.signature for m in members)


def _timed_files(run: Run, parts: Parts) -> list[Path]:
    """Return files that every candidate could read, evenly spread over the gallery (or validation)."""
    data = run.data
    part = "gallery" if data.gallery else "validation"
    readable = set.intersection(*(set(own[part].ids) for own in parts.values()))
    items = [i for i in data.split(part) if i.id in readable]
    if not items:
        raise DataError(f"{data.root} has no readable {part} image to time the candidates with; add some.")
    return [item.path.resolve() for item in sample_evenly(items, _TIMED_FILES)]


def _timing(
    run: Run, signature: str, bundles: Sequence[Path], ways: Sequence[str], images: Sequence[Path]
) -> Mapping[str, Timing]:
    """Measure, or read what an earlier sitting measured with the same processor, device, threads and packages.

    The file holds all ways that were ever asked for together.
    """
    setup = {**timing_setup(), "runtime": run.runtime}
    place = run.out / "timing" / f"{slug(signature)}.json"
    try:
        stored = read_json(place, "the timing")
        if stored["setup"] == setup:
            return {way: Timing(**stored["ways"][way]) for way in ways}
    except (LookalikeError, KeyError, TypeError):
        pass  # absent, damaged, or without one of the ways: all are measured
    found = measure_timing(bundles, ways, images, runtime=run.runtime, count=len(run.data.items))
    write_json(place, {"setup": setup, "ways": {way: asdict(timing) for way, timing in found.items()}})
    return found
