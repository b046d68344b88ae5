"""What a submission is made from: one model or several with weights, and a re-ranking, chosen on validation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from lookalike._files import digest
from lookalike.competition.entries import Entry, Setup
from lookalike.data.dataset import Split
from lookalike.evaluation.evaluation import Evaluation, evaluate_validation, split_validation
from lookalike.evaluation.measures import Measure
from lookalike.evaluation.reranking import choose_reranking
from lookalike.evaluation.submission import Submission
from lookalike.models.encoder import combine
from lookalike.progress import count_noun
from lookalike.reranking.reranker import Reranker, class_means
from lookalike.reranking.steps import Reranking
from lookalike.types import Embeddings, Hits, take_shared

MAX_MODELS = 4  # of an ensemble; more make its embeddings long and hardly gain
_ROUNDS = 8  # of forward selection; the weights are multiples of one over the number of rounds
_RERANKING_MEASURE = "map@r"  # it judges more of the ranking than the first hits, which are often perfect on validation
_MIN_GAIN = 0.002  # share of the best possible score; less is chance


@dataclass(frozen=True, eq=False)
class System:
    """Models with weights that sum to 1, and a re-ranking; its evaluation is that on validation.

    Attributes:
        weights: by name of the entry.
        reranking: the steps, none if no step gains.
        evaluation: on validation.

    """

    weights: Mapping[str, float]
    reranking: Reranking
    evaluation: Evaluation

    def __str__(self) -> str:
        names = [f"{weight:.0%} {name}" if len(self.weights) > 1 else name for name, weight in self.weights.items()]
        text = " + ".join(names)
        return f"{text}, {self.reranking}" if self.reranking.steps else text

    def rank(self, measures: Sequence[str]) -> tuple[float, ...]:
        """Return the means by which systems are compared, the first one first."""
        return _rank(self.evaluation, measures)

    def score(self, measure: str) -> float:
        """Return the mean of a measure on validation."""
        return self.evaluation.mean(measure)


def select_system(setup: Setup, entries: Sequence[Entry]) -> System:
    """Choose models by forward selection with replacement (Caruana et al. 2004), then a re-ranking.

    Both use validation. A further model is added only if the score rises by more than 0.2 % of its best value.
    """
    measure = setup.measures[0]
    measured = {entry.name: entry for entry in entries if entry.evaluation is not None}
    best_single = max(measured.values(), key=lambda e: _rank(e.evaluation, setup.measures))
    counts, best = Counter({best_single.name: 1}), best_single.evaluation
    assert best is not None
    for _ in range(_ROUNDS - 1):
        names = measured if len(counts) < MAX_MODELS else counts
        trials = {}
        for name in names:
            weights = _shares(counts + Counter({name: 1}))
            joined = join([measured[n] for n in weights], list(weights.values()))
            trials[name] = evaluate_validation(setup.data, joined[Split.VALIDATION], setup.measures)
        name = max(trials, key=lambda n: _rank(trials[n], setup.measures))
        if trials[name].mean(measure) - best.mean(measure) <= _MIN_GAIN * Measure.parse(measure).max_value:
            break
        counts, best = counts + Counter({name: 1}), trials[name]
    weights = _shares(counts)
    reranking, evaluation = _choose_reranking(setup, [measured[n] for n in weights], weights)
    return System(weights, reranking, evaluation)


def _choose_reranking(
    setup: Setup, entries: Sequence[Entry], weights: Mapping[str, float]
) -> tuple[Reranking, Evaluation]:
    """Choose by the score, or, if no step raises it significantly, by map@r as long as the score does not fall."""
    data = setup.data
    joined = join(entries, list(weights.values()))
    validation, labels = joined[Split.VALIDATION], data.labels("validation")
    means = class_means(joined[Split.TRAINING], data.labels("training"))
    plain = evaluate_validation(data, validation, setup.measures)
    for measure in dict.fromkeys((setup.measures[0], _RERANKING_MEASURE)):
        choice = choose_reranking(
            *split_validation(data, validation),
            labels,
            labels,
            measure,
            class_means=means,
            same_file_ids=data.same_file_ids,
            allow_transductive=setup.transductive,
        )
        if choice.reranker.reranking.steps:
            reranked = evaluate_validation(data, validation, setup.measures, reranker=choice.reranker)
            if reranked.mean(setup.measures[0]) >= plain.mean(setup.measures[0]):
                return choice.reranker.reranking, reranked
    return Reranking(), plain


def search(setup: Setup, system: System, entries: Sequence[Entry]) -> Hits:
    """Return the hits of all queries; `entries` are the models in the order of the system's weights.

    They may be refitted ones, whose training split includes validation.
    """
    joined = join(entries, list(system.weights.values()))
    reranker = make_reranker(setup, system, entries)
    queries, gallery = joined[Split.QUERY], joined[Split.GALLERY]
    return reranker.search(queries, gallery, setup.top_k, same_file_ids=setup.data.same_file_ids)


def make_reranker(setup: Setup, system: System, entries: Sequence[Entry]) -> Reranker:
    """Return the re-ranking of a system with the class means of these models' training images."""
    means = None
    if system.reranking.class_similarity is not None:
        training = join(entries, list(system.weights.values()))[Split.TRAINING]
        means = class_means(training, {**setup.data.labels("training"), **setup.data.labels("validation")})
    return Reranker(system.reranking, means)


def join(entries: Sequence[Entry], weights: Sequence[float]) -> dict[str, Embeddings]:
    """Return embeddings by split whose cosines are the weighted means of the models' cosines."""
    if len(entries) == 1:
        return dict(entries[0].embeddings)
    fingerprint = digest(*(f"{e.name} {w:.6f}" for e, w in zip(entries, weights, strict=True)))
    joined = {}
    for split in entries[0].embeddings:
        shared = take_shared([entry.embeddings[split] for entry in entries])
        vectors = combine([e.vectors for e in shared], "concat", (), weights)
        joined[split] = Embeddings(shared[0].ids, vectors, fingerprint, shared[0].skipped)
    return joined


def _shares(counts: Counter[str]) -> dict[str, float]:
    return {name: count / counts.total() for name, count in counts.most_common()}


def _rank(evaluation: Evaluation | None, measures: Sequence[str]) -> tuple[float, ...]:
    return () if evaluation is None else tuple(evaluation.mean(measure) for measure in measures)


def search_embeddings(setup: Setup, queries: Embeddings, gallery: Embeddings) -> Hits:
    """Return the hits of all queries without a re-ranking."""
    return Reranker(Reranking()).search(queries, gallery, setup.top_k, same_file_ids=setup.data.same_file_ids)


def complete(setup: Setup, hits: Hits) -> Submission:
    """Make a submission for every query; one that cannot be read gets the first images of the gallery."""
    data = setup.data
    submission = Submission.from_hits(hits, setup.group)
    missing = [item for item in data.query if item.id not in set(hits.query_ids)]
    if missing:
        excluded = {i: {i, *data.same_file_ids.get(i, ())} for i in (item.id for item in missing)}
        fill = {
            PurePosixPath(item.id).name: tuple(
                PurePosixPath(g.id).name for g in data.gallery if g.id not in excluded[item.id]
            )[: setup.top_k]
            for item in missing
        }
        submission = replace(submission, images={**submission.images, **fill})
        setup.progress.info(
            f"{count_noun(len(missing), 'query', 'queries')} cannot be read (first: {missing[0].id}); the submission "
            "lists the first images of the gallery for them"
        )
    submission.check([i.id for i in data.query], [i.id for i in data.gallery], setup.top_k)
    return submission
