"""The choice of a re-ranking on validation."""

import numpy as np
import pytest

from lookalike.evaluation.evaluation import evaluate_embeddings
from lookalike.evaluation.reranking import MIN_QUERIES, choose_reranking
from lookalike.reranking.reranker import Reranker
from lookalike.reranking.steps import ClassSimilarity, GalleryAugmentation, Reranking
from lookalike.types import Embeddings, l2_normalize

CLASSES, PER_CLASS, DIM = 8, 12, 32


@pytest.fixture(scope="module")
def validation():
    """Noisy embeddings of classes with known means."""
    random = np.random.default_rng(0)
    means = l2_normalize(random.standard_normal((CLASSES, DIM)))
    targets = np.arange(CLASSES * PER_CLASS) % CLASSES
    vectors = means[targets] + 0.28 * random.standard_normal((len(targets), DIM))
    ids = tuple(f"{n:03d}" for n in range(len(targets)))
    labels = {item: str(target) for item, target in zip(ids, targets, strict=True)}
    return Embeddings(ids, l2_normalize(vectors), "model"), labels, means


def test_steps_that_gain_are_chosen(validation):
    items, labels, means = validation
    choice = choose_reranking(items, items, labels, labels, "map@r", class_means=means)
    assert choice.reranker.reranking.class_similarity is not None
    assert choice.gain.significant
    plain = evaluate_embeddings(items, items, labels, labels, ["map@r"])
    assert choice.evaluation.mean("map@r") - plain.mean("map@r") == pytest.approx(choice.gain.difference)
    assert choice.gain.difference > 0


def test_steps_that_do_not_gain_are_not_chosen(validation):
    items, _, means = validation
    random = np.random.default_rng(1).permutation(len(items))
    labels = {item: str(number % CLASSES) for item, number in zip(items.ids, random, strict=True)}
    choice = choose_reranking(items, items, labels, labels, "precision@3", class_means=means)
    assert choice.reranker.reranking == Reranking()
    assert choice.gain is None


def test_transductive_steps_and_class_similarity_are_excluded(validation):
    items, labels, means = validation
    choice = choose_reranking(items, items, labels, labels, "map@r", class_means=means, allow_transductive=False)
    assert not choice.reranker.transductive
    choice = choose_reranking(items, items, labels, labels, "map@r")
    assert choice.reranker.reranking.class_similarity is None


def test_nothing_is_chosen_on_few_queries(validation):
    items, labels, means = validation
    queries = items.take(items.ids[: MIN_QUERIES - 1])
    assert choose_reranking(queries, items, labels, labels, "map@r", class_means=means).gain is None


def test_an_evaluation_with_a_reranker_measures_its_order(validation):
    items, labels, means = validation
    queries, gallery = items.take(items.ids[:20]), items.take(items.ids[20:])
    reranker = Reranker(Reranking(ClassSimilarity(), GalleryAugmentation(3)), means)
    evaluation = evaluate_embeddings(queries, gallery, labels, labels, ["hit@1", "map@r"], reranker=reranker)
    hits = reranker.search(queries, gallery, 10)
    assert evaluation.hits.ids.tolist() == hits.ids.tolist()
    first = [labels[item] == labels[query] for query, item in zip(hits.query_ids, hits.ids[:, 0], strict=True)]
    assert evaluation.per_query("hit@1").tolist() == [float(hit) for hit in first]
