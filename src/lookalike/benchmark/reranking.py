"""Re-ranking of the most accurate candidates, chosen on validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lookalike.benchmark.candidates import AnyCandidate, SplitEmbeddings
from lookalike.benchmark.spec import BenchmarkSpec
from lookalike.benchmark.trial import Trial
from lookalike.evaluation.reranking import choose_on_validation

_CANDIDATES = 3  # for which a re-ranking is chosen


def rerank_candidates(
    spec: BenchmarkSpec,
    trials: Sequence[Trial],
    candidates: Sequence[AnyCandidate],
    embeddings: SplitEmbeddings,
    measure: str,
) -> list[AnyCandidate]:
    """Return those of the most accurate candidates for which a re-ranking gains on validation, with it."""
    pairs = [(t, c) for t, c in zip(trials, candidates, strict=True) if t.is_candidate]
    pairs = sorted(pairs, key=lambda pair: pair[0].validation.mean(measure), reverse=True)[:_CANDIDATES]
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
