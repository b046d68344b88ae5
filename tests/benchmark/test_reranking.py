"""Re-ranking of candidates: chosen for the most accurate, measured like others, saved with the winner."""

import numpy as np
import pytest

from lookalike.benchmark.candidates import make_candidates, save_winner
from lookalike.benchmark.run_trials import embed_candidate, evaluate_all, rerank_candidates
from lookalike.evaluation import reranking
from lookalike.evaluation.bootstrap import Comparison
from lookalike.evaluation.evaluation import evaluate_validation
from lookalike.evaluation.reranking import RerankingChoice, choose_reranking
from lookalike.models.bundle import read_reranker
from lookalike.models.info import BenchmarkInfo
from lookalike.reranking.reranker import Reranker
from lookalike.reranking.steps import ClassSimilarity, GalleryAugmentation, Reranking

GAIN = Comparison(0.1, 0.05, 0.15)


@pytest.fixture
def calls(monkeypatch):
    """Let class similarity with gallery augmentation gain; without transductive steps, class similarity alone."""
    recorded = []

    def choose(*sides, class_means, allow_transductive, **options):
        recorded.append(class_means)
        augmentation = GalleryAugmentation(2) if allow_transductive else None
        reranker = Reranker(Reranking(ClassSimilarity(), augmentation), class_means)
        return RerankingChoice(reranker, choose_reranking(*sides, **options).evaluation, GAIN)

    monkeypatch.setattr(reranking, "choose_reranking", choose)
    return recorded


def test_candidates_with_a_re_ranking_are_measured_and_saved(calls, make_spec, finished, no_timing):
    spec = make_spec()
    candidates = make_candidates(spec)
    embeddings = {c.name: embed_candidate(spec, c) for c in candidates}
    trials = finished.trials[: len(candidates)]
    reranked = rerank_candidates(spec, trials, candidates, embeddings, "precision@3")
    assert len(reranked) == 3
    assert {means.shape for means in calls} == {(4, 512)}
    candidate, trial = reranked[0], evaluate_all(spec, reranked, embeddings)[0]
    best = max(trials, key=lambda t: t.validation.mean("precision@3"))
    assert trial.name == f"{best.name} + re-ranking"
    assert trial.members[0].name == best.name
    assert "class similarity + gallery augmentation, transductive" in trial.note
    validation = embeddings[candidate.name]["validation"]
    expected = evaluate_validation(spec.data, validation, spec.measures, reranker=candidate.reranker)
    assert list(trial.validation.values["map@r"]) == expected.values["map@r"].tolist()

    save_winner(spec, candidate, BenchmarkInfo(trial.name, "", 0), trial, embeddings, None)
    stored = read_reranker(spec.out / "best")
    assert stored.reranking == candidate.reranker.reranking
    assert np.array_equal(stored.class_means, candidate.reranker.class_means)


def test_transductive_steps_can_be_excluded(calls, make_spec, finished):
    spec = make_spec(transductive=False)
    candidates = make_candidates(spec)
    embeddings = {c.name: embed_candidate(spec, c) for c in candidates}
    reranked = rerank_candidates(spec, finished.trials[: len(candidates)], candidates, embeddings, "precision@3")
    assert not any(c.reranker.transductive for c in reranked)
    assert "transductive" not in reranked[0].note
