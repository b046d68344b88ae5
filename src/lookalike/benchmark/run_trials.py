"""From candidates to trials: embeddings, accuracy and time, each stored in a file, so that a run can be resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from lookalike._files import digest, read_json, write_json
from lookalike._records import read_record
from lookalike.benchmark.candidates import AnyCandidate, Candidate, SplitEmbeddings
from lookalike.benchmark.spec import BenchmarkSpec, slug
from lookalike.benchmark.timing import TimingRequest, load_candidate, measure_timing, time_here, timing_setup
from lookalike.benchmark.trial import VERSION, Member, SplitMeasures, Timing, Trial
from lookalike.data.dataset import Split, sample_evenly
from lookalike.embeddings.splits import SPLITS, embed_splits
from lookalike.errors import DataError, LookalikeError
from lookalike.evaluation.calibration import cross_predict, judge_first_hits, measure_reliability, validation_hits
from lookalike.evaluation.evaluation import Evaluation, evaluate_embeddings, evaluate_validation
from lookalike.evaluation.reliability import Reliability
from lookalike.evaluation.reranking import choose_on_validation
from lookalike.models.encoder import Encoder
from lookalike.reranking.reranker import Reranker
from lookalike.types import Calibration, Embeddings, Skipped

_TIMED_IMAGES = 40
_RERANKED = 3  # for which a re-ranking is chosen


def embed_candidate(spec: BenchmarkSpec, candidate: Candidate) -> dict[str, Embeddings]:
    """Embed all splits, or read them from the cache of an earlier session."""
    return embed_splits(
        spec.data,
        lambda: load_candidate(candidate.bundle, spec.runtime, candidate.functions),
        candidate.fingerprint,
        cache=spec.cache,
        name=candidate.name,
        progress=spec.progress,
        kind=candidate.export,
    )


def skipped_files(embeddings: SplitEmbeddings) -> tuple[Skipped, ...]:
    """Return the files that a candidate could not read, each once, in the order of the splits."""
    by_path = {s.path: s for split in SPLITS for by_split in embeddings.values() for s in by_split[split].skipped}
    return tuple(by_path.values())


def evaluate_all(spec: BenchmarkSpec, candidates: Sequence[AnyCandidate], embeddings: SplitEmbeddings) -> list[Trial]:
    """Evaluate every candidate, or read its trial if embeddings, labels and measures are the same."""
    same = {query: sorted(ids) for query, ids in spec.data.same_file_ids.items()}
    labels = digest(*(f"{i.id}\t{i.label}\t{i.split}\t{same.get(i.id, '')}" for i in spec.data.items))
    contents = {
        name: digest(*(part for e in by_split.values() for part in ("\n".join(e.ids), e.vectors.tobytes())))
        for name, by_split in embeddings.items()
    }
    trials = []
    for done, candidate in enumerate(candidates, start=1):
        members = (f"{contents[m.name]} {m.state} {m.from_random} {m.note}" for m in candidate.members)
        reranking = "" if candidate.reranker is None else repr(candidate.reranker.reranking)
        key = digest(str(VERSION), labels, *spec.measures, *members, reranking)
        path = spec.out / "trials" / f"{slug(candidate.title)}.json"
        trial = _read_trial(path, key)
        if trial is None:
            trial = _evaluate(spec, candidate, candidate.embeddings(embeddings))
            write_json(path, {"key": key, "trial": trial.to_dict()})
        trials.append(trial)
        spec.progress.step("measuring", done, len(candidates), candidate.title)
    return trials


def _read_trial(path: Path, key: str) -> Trial | None:
    try:
        stored = read_json(path, "the trial")
        return Trial.from_dict(stored["trial"]) if stored["key"] == key else None
    except (LookalikeError, AttributeError, KeyError, TypeError):
        return None  # absent, damaged or of another version


def _evaluate(spec: BenchmarkSpec, candidate: AnyCandidate, embeddings: Mapping[str, Embeddings]) -> Trial:
    test = evaluate_test(spec, embeddings, candidate.reranker)
    return Trial(
        name=candidate.title,
        kind=candidate.kind,
        members=tuple(Member(m.name, m.backbone, m.state) for m in candidate.members),
        combination=candidate.combination,
        state=candidate.state,
        dim=candidate.dim,
        validation=SplitMeasures.of(
            evaluate_validation(spec.data, embeddings["validation"], spec.measures, reranker=candidate.reranker)
        ),
        test=SplitMeasures.of(test) if test is not None else None,
        note=candidate.note,
        from_random=candidate.from_random,
        leaked=candidate.leaked,
    )


def evaluate_test(
    spec: BenchmarkSpec, embeddings: Mapping[str, Embeddings], reranker: Reranker | None = None
) -> Evaluation | None:
    """Evaluate embeddings on query and gallery; None if these have no labels."""
    if not spec.data.test_is_labelled:
        return None
    labels = spec.data.labels("query"), spec.data.labels("gallery")
    return evaluate_embeddings(
        embeddings["query"],
        embeddings["gallery"],
        *labels,
        spec.measures,
        same_file_ids=spec.data.same_file_ids,
        reranker=reranker,
    )


def winner_reliability(
    spec: BenchmarkSpec, embeddings: Mapping[str, Embeddings], calibration: Calibration
) -> Reliability:
    """Compare the probabilities of the winner with query and gallery; without labels with other classes of validation.

    The cosines alone count: a re-ranking has no part in a search.
    """
    if spec.data.test_is_labelled:
        labels = spec.data.labels("query"), spec.data.labels("gallery")
        sides = embeddings["query"], embeddings["gallery"]
        hits = judge_first_hits(*sides, *labels, same_file_ids=spec.data.same_file_ids)
        return measure_reliability(calibration.probabilities(hits.scores), hits)
    hits = validation_hits(spec.data, embeddings["validation"], embeddings["training"])
    return measure_reliability(cross_predict(hits), hits)


def add_timings(
    spec: BenchmarkSpec, trials: Sequence[Trial], candidates: Sequence[AnyCandidate], embeddings: SplitEmbeddings
) -> list[Trial]:
    """Add the time of one image; candidates of the same architectures share one measurement."""
    split = Split.GALLERY if spec.data.gallery else Split.VALIDATION
    readable = set.intersection(*(set(by_split[split].ids) for by_split in embeddings.values()))
    items = [i for i in spec.data.split(split) if i.id in readable]
    if not items:
        raise DataError(
            f"{spec.data.root} has no readable {split} image to time the candidates with; add some.", argument="data"
        )
    images = [item.path.resolve() for item in sample_evenly(items, _TIMED_IMAGES)]
    groups: dict[str, list[AnyCandidate]] = {}
    for candidate in candidates:
        groups.setdefault("+".join(m.architecture for m in candidate.members), []).append(candidate)
    timings: dict[str, Timing] = {}
    for done, (architecture, group) in enumerate(groups.items(), start=1):
        bundles = [m.bundle.resolve() for m in group[0].members]
        needed = sorted({c.combination for c in group})
        request = TimingRequest(bundles, needed, images, spec.runtime, len(spec.data.items))
        functions = [function for m in group[0].members for function in m.functions]
        by_combination = _timing(spec.out / "timing" / f"{slug(architecture)}.json", request, functions)
        timings |= {c.title: by_combination[c.combination] for c in group}
        spec.progress.step("timing", done, len(groups), architecture)
    return [replace(t, timing=timings[t.name]) for t in trials]


def _timing(path: Path, request: TimingRequest, functions: Sequence[Encoder]) -> Mapping[str, Timing]:
    """Time an architecture, or read the timing of an earlier session with the same processor, threads and packages."""
    setup = {**timing_setup(), "runtime": request.runtime}
    try:
        stored = read_json(path, "the timing")
        if stored["setup"] == setup:
            return {c: read_record(Timing, stored["timings"][c]) for c in request.combinations}
    except (LookalikeError, AttributeError, KeyError, TypeError, ValueError):
        pass  # absent, damaged, or without one of the combinations: all are timed
    # a function exists in this process only
    timings = time_here(request, functions) if functions else measure_timing(request)
    write_json(path, {"setup": setup, "timings": {c: asdict(timing) for c, timing in timings.items()}})
    return timings


def rerank_candidates(
    spec: BenchmarkSpec,
    trials: Sequence[Trial],
    candidates: Sequence[AnyCandidate],
    embeddings: SplitEmbeddings,
    measure: str,
) -> list[AnyCandidate]:
    """Return those of the most accurate candidates for which a re-ranking gains on validation, with it."""
    pairs = [(t, c) for t, c in zip(trials, candidates, strict=True) if t.is_candidate]
    pairs = sorted(pairs, key=lambda pair: pair[0].validation.mean(measure), reverse=True)[:_RERANKED]
    reranked: list[AnyCandidate] = []
    for done, (_, candidate) in enumerate(pairs, start=1):
        by_split = candidate.embeddings(embeddings)
        choice = choose_on_validation(
            spec.data,
            by_split["training"],
            by_split["validation"],
            measure,
            allow_transductive=spec.transductive,
        )
        spec.progress.step("choosing a re-ranking", done, len(pairs), candidate.name)
        if choice.gain is not None:
            kind = ", transductive" if choice.reranker.transductive else ""
            note = " ".join(filter(None, (candidate.note, f"re-ranked by {choice.reranker}{kind}.")))
            reranked.append(replace(candidate, reranker=choice.reranker, note=note))
    return reranked
