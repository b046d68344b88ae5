"""Choose a re-ranking on validation by forward selection; only steps that gain significantly are added."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from lookalike._arguments import checked_arguments
from lookalike.data.dataset import Dataset, Split
from lookalike.evaluation.evaluation import Evaluation, evaluate_embeddings, split_validation
from lookalike.evaluation.measures import Measure
from lookalike.progress import SILENT, Progress
from lookalike.reranking.reranker import Reranker
from lookalike.reranking.reranker import class_means as mean_by_class
from lookalike.reranking.steps import (
    ClassSimilarity,
    GalleryAugmentation,
    KReciprocal,
    QueryExpansion,
    Reranking,
    SimilarityNormalization,
    Step,
)
from lookalike.types import Comparison, Embeddings, Vectors

MIN_QUERIES = 20  # fewer do not show whether a step gains
# By field of `Reranking`, the parameters that are tried.
GRID: Mapping[str, tuple[Step, ...]] = {
    "class_similarity": tuple(ClassSimilarity(t, w) for t, w in product((10.0, 20.0, 40.0), (0.3, 0.5, 0.7))),
    "gallery_augmentation": tuple(GalleryAugmentation(k, 3.0) for k in (3, 5, 10)),
    "query_expansion": tuple(QueryExpansion(k, 3.0) for k in (1, 3, 10)),
    "similarity_normalization": tuple(SimilarityNormalization(k, 0.5) for k in (5, 10)),
    "k_reciprocal": tuple(KReciprocal(k1, k2, 0.7) for k1, k2 in ((5, 2), (10, 3), (20, 6))),
}


@dataclass(frozen=True, eq=False)
class RerankingChoice:
    """The re-ranking that validation selected, and by how much it gains.

    Attributes:
        reranker: with the steps that gain; without a step if none does.
        evaluation: of validation with these steps.
        gain: of all steps together, by the measure that was compared; None without a step.
    """

    reranker: Reranker
    evaluation: Evaluation
    gain: Comparison | None = None


@checked_arguments()
def choose_reranking(  # noqa: PLR0913 - two sides with their labels, and options by name
    queries: Embeddings,
    gallery: Embeddings,
    query_labels: Mapping[str, str],
    gallery_labels: Mapping[str, str],
    measure: str | Measure,
    *,
    class_means: Vectors | None = None,
    same_file_ids: Mapping[str, Collection[str]] | None = None,
    allow_transductive: bool = True,
    grid: Mapping[str, tuple[Step, ...]] = GRID,
    progress: Progress = SILENT,
) -> RerankingChoice:
    """Choose the steps of a re-ranking and their parameters on validation, by forward selection.

    The step that gains most is added, then the next one, as long as the gain is significant by paired bootstrap; none
    with fewer than `MIN_QUERIES` queries. The same embeddings on both sides mean leave-one-out.

    Args:
        queries: validation embeddings.
        gallery: validation embeddings.
        query_labels: labels of the queries by id.
        gallery_labels: labels of the gallery by id.
        measure: what is compared.
        class_means: from training images only; without them there is no class similarity.
        same_file_ids: as in `Reranker.search`.
        allow_transductive: whether steps may use other queries or change the gallery.
        grid: by field of `Reranking`, the steps that are tried.
        progress: receives a step per trial.
    """
    measure = str(Measure.parse(measure))

    def evaluate(reranking: Reranking) -> RerankingChoice:
        reranker = Reranker(reranking, class_means if reranking.class_similarity is not None else None)
        sides = queries, gallery, query_labels, gallery_labels
        return RerankingChoice(
            reranker, evaluate_embeddings(*sides, [measure], same_file_ids=same_file_ids, reranker=reranker)
        )

    plain = best = evaluate(Reranking())
    while len(plain.evaluation) >= MIN_QUERIES:
        reranking = best.reranker.reranking
        extensions = [
            trial
            for trial in _extensions(reranking, grid)
            if (class_means is not None or trial.class_similarity is None)
            and (allow_transductive or not trial.transductive)
        ]
        trials = []
        for number, extension in enumerate(extensions):
            progress.step("choosing a re-ranking", number, len(extensions))
            trials.append(evaluate(extension))
        trial = max(trials, key=lambda t: t.evaluation.mean(measure), default=best)
        gain = trial.evaluation.compare(best.evaluation, measure)
        if not (gain.significant and gain.difference > 0):
            break
        best = replace(trial, gain=trial.evaluation.compare(plain.evaluation, measure))
    return best


def choose_on_validation(
    data: Dataset,
    training: Embeddings,
    validation: Embeddings,
    measure: str,
    *,
    allow_transductive: bool,
    progress: Progress = SILENT,
) -> RerankingChoice:
    """Choose a re-ranking by the validation split of a data set, from the embeddings of these splits by one model."""
    labels = data.labels(Split.VALIDATION)
    return choose_reranking(
        *split_validation(data, validation),
        labels,
        labels,
        measure,
        class_means=mean_by_class(training, data.labels(Split.TRAINING)),
        same_file_ids=data.same_file_ids,
        allow_transductive=allow_transductive,
        progress=progress,
    )


def _extensions(reranking: Reranking, grid: Mapping[str, tuple[Step, ...]]) -> Iterator[Reranking]:
    """Yield the re-ranking with each further step."""
    for name, steps in grid.items():
        if getattr(reranking, name) is None:
            for step in steps:
                changes: dict[str, Any] = {name: step}
                yield replace(reranking, **changes)
