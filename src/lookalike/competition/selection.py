"""What a submission is made from: one model or an ensemble, and a re-ranking, selected on validation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from lookalike._files import digest
from lookalike.competition.candidates import SubmissionModel
from lookalike.competition.clock import OutOfTimeError
from lookalike.competition.setup import Setup
from lookalike.data.dataset import Split
from lookalike.evaluation.evaluation import Evaluation, evaluate_validation
from lookalike.evaluation.measures import Measure
from lookalike.evaluation.reranking import choose_on_validation
from lookalike.evaluation.submission import Submission
from lookalike.models.encoder import combine
from lookalike.progress import count_noun
from lookalike.reranking.reranker import Reranker, class_means
from lookalike.reranking.steps import Reranking
from lookalike.types import Embeddings, Hits, take_shared

MAX_MODELS = 4  # of an ensemble; more make its embeddings long and hardly gain
_ROUNDS = 8  # of forward selection; the weights are multiples of one over the number of rounds
_RERANKING_MEASURE = "map@r"  # it judges more of the ranking than the first hits, which are often perfect on validation
_RERANKING_SHARE = 0.05  # of the time, for choosing a re-ranking
_MIN_GAIN = 0.002  # share of the best possible score; less is chance


@dataclass(frozen=True, eq=False)
class SelectedModels:
    """The models of a submission and their re-ranking."""

    weights: Mapping[str, float]  # by name of the candidate, in descending order; their sum is 1
    reranking: Reranking  # without a step if none gains
    evaluation: Evaluation  # on validation, re-ranked

    def __str__(self) -> str:
        names = [f"{weight:.0%} {name}" if len(self.weights) > 1 else name for name, weight in self.weights.items()]
        text = " + ".join(names)
        return f"{text}, {self.reranking}" if self.reranking.steps else text


def means_of(evaluation: Evaluation, measures: Sequence[str]) -> tuple[float, ...]:
    """Return the means by which models are compared: the score, then those that break ties."""
    return tuple(evaluation.mean(measure) for measure in measures)


def select_models(
    setup: Setup, candidates: Sequence[SubmissionModel], before: SelectedModels | None = None
) -> SelectedModels:
    """Select models by forward selection with replacement (Caruana et al. 2004), then a re-ranking.

    Both use validation. A further model is added only if the score rises by more than 0.2 % of its best value. If the
    models are those selected `before`, so is the re-ranking.
    """
    measure = setup.measures[0]
    measured = {c.name: (c, c.evaluation) for c in candidates if c.evaluation is not None}
    best_single, best = max(measured.values(), key=lambda pair: means_of(pair[1], setup.measures))
    counts = Counter({best_single.name: 1})
    for number in range(_ROUNDS - 1):
        trials = {}
        setup.progress.step("selecting models", number, _ROUNDS - 1)
        for name in measured if len(counts) < MAX_MODELS else counts:
            weights = _shares(counts + Counter({name: 1}))
            models = [measured[n][0] for n in weights]
            joined = join_embeddings(models, tuple(weights.values()), Split.VALIDATION)
            trials[name] = evaluate_validation(setup.data, joined, setup.measures)
        name = max(trials, key=lambda n: means_of(trials[n], setup.measures))
        if trials[name].mean(measure) - best.mean(measure) <= _MIN_GAIN * Measure.parse(measure).max_value:
            break
        counts, best = counts + Counter({name: 1}), trials[name]
    weights = _shares(counts)
    if before is not None and weights == before.weights:
        return before
    models = [measured[name][0] for name in weights]
    training, validation = (
        join_embeddings(models, tuple(weights.values()), split) for split in (Split.TRAINING, Split.VALIDATION)
    )
    reranking, evaluation = _select_reranking(setup, training, validation, best)
    return SelectedModels(weights, reranking, evaluation)


def _select_reranking(
    setup: Setup, training: Embeddings, validation: Embeddings, plain: Evaluation
) -> tuple[Reranking, Evaluation]:
    """Select by the score, or, if no step raises it significantly, by map@r as long as the score does not fall.

    `plain` is the evaluation of the embeddings without a re-ranking.
    """
    score, progress = setup.measures[0], setup.progress
    ends = progress.until
    progress.until = min(ends, setup.clock.now() + _RERANKING_SHARE * setup.clock.total)
    try:
        for measure in dict.fromkeys((score, _RERANKING_MEASURE)):
            reranker = choose_on_validation(
                setup.data,
                training,
                validation,
                measure,
                allow_transductive=setup.transductive,
                progress=progress,
            ).reranker
            if reranker.reranking.steps:
                reranked = evaluate_validation(setup.data, validation, setup.measures, reranker=reranker)
                if reranked.mean(score) >= plain.mean(score):
                    return reranker.reranking, reranked
    except OutOfTimeError:
        progress.info("choosing a re-ranking takes too long; the submission is without one")
    finally:
        progress.until = ends
    return Reranking(), plain


def evaluate_selection(
    setup: Setup, weights: Mapping[str, float], reranking: Reranking, candidates: Sequence[SubmissionModel]
) -> SelectedModels:
    """Return the selection of models, in the order of their weights, and a re-ranking, measured on validation."""
    joined = join_embeddings(candidates, tuple(weights.values()), Split.VALIDATION)
    selection = SelectedModels(weights, reranking, evaluate_validation(setup.data, joined, setup.measures))
    if reranking.steps:
        reranker = make_reranker(setup, selection, candidates)
        evaluation = evaluate_validation(setup.data, joined, setup.measures, reranker=reranker)
        selection = replace(selection, evaluation=evaluation)
    return selection


def search_queries(setup: Setup, selection: SelectedModels, candidates: Sequence[SubmissionModel]) -> Hits:
    """Return the re-ranked hits of all queries.

    `candidates` are the selected models in the order of their weights, or their refits.
    """
    weights = tuple(selection.weights.values())
    queries, gallery = (join_embeddings(candidates, weights, split) for split in (Split.QUERY, Split.GALLERY))
    reranker = make_reranker(setup, selection, candidates)
    return reranker.search(queries, gallery, setup.top_k, same_file_ids=setup.data.same_file_ids)


def make_reranker(setup: Setup, selection: SelectedModels, candidates: Sequence[SubmissionModel]) -> Reranker:
    """Return the selected re-ranking with the class means of these models."""
    means = None
    if selection.reranking.class_similarity is not None:
        training = join_embeddings(candidates, tuple(selection.weights.values()), Split.TRAINING)
        # a refitted model has the validation images in training
        means = class_means(training, {**setup.data.labels("training"), **setup.data.labels("validation")})
    return Reranker(selection.reranking, means)


def join_embeddings(candidates: Sequence[SubmissionModel], weights: Sequence[float], split: Split) -> Embeddings:
    """Return embeddings of a split whose cosines are the weighted means of the models' cosines; weights sum to 1."""
    if len(candidates) == 1:
        return candidates[0].embeddings[split]
    shared = take_shared([candidate.embeddings[split] for candidate in candidates])
    vectors = combine([e.vectors for e in shared], "concat", (), weights)
    fingerprint = digest(*(f"{c.name} {w:.6f}" for c, w in zip(candidates, weights, strict=True)))
    return Embeddings(shared[0].ids, vectors, fingerprint, shared[0].skipped)


def _shares(counts: Counter[str]) -> dict[str, float]:
    return {name: count / counts.total() for name, count in counts.most_common()}


def make_submission(setup: Setup, hits: Hits) -> Submission:
    """Return the submission; a query that cannot be read gets the first images of the gallery.

    Raises:
        DataError: the hits do not make a valid submission.
    """
    data = setup.data
    submission = Submission.from_hits(hits, setup.group)
    answered = set(hits.query_ids)
    missing = [item for item in data.query if item.id not in answered]
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
