"""The records of a re-ranking: checks, names, JSON."""

import json
from dataclasses import asdict

import pytest

from lookalike._records import read_record
from lookalike.errors import OptionError
from lookalike.reranking.steps import (
    ClassSimilarity,
    GalleryAugmentation,
    KReciprocal,
    QueryExpansion,
    Reranking,
    SimilarityNormalization,
)


@pytest.mark.parametrize(
    ("step", "argument", "value"),
    [
        (ClassSimilarity, "weight", 1.5),
        (ClassSimilarity, "temperature", -1.0),
        (ClassSimilarity, "temperature", float("nan")),
        (GalleryAugmentation, "k", 0),
        (GalleryAugmentation, "alpha", -1.0),
        (QueryExpansion, "k", 2.5),
        (QueryExpansion, "k", 10_000),
        (SimilarityNormalization, "weight", -0.1),
        (KReciprocal, "k1", 0),
        (KReciprocal, "k2", True),
        (KReciprocal, "weight", 2.0),
    ],
)
def test_parameters_outside_their_range_are_refused(step, argument, value):
    with pytest.raises(OptionError) as caught:
        step(**{argument: value})
    assert caught.value.argument == argument


def test_name_and_order_of_steps():
    reranking = Reranking(k_reciprocal=KReciprocal(), class_similarity=ClassSimilarity())
    assert str(reranking) == "class similarity + k-reciprocal"
    assert reranking.steps == (ClassSimilarity(), KReciprocal())
    assert str(Reranking()) == "none"


def test_transductive_steps():
    transductive = {
        name: Reranking(**{name: step}).transductive
        for name, step in {
            "class_similarity": ClassSimilarity(),
            "gallery_augmentation": GalleryAugmentation(),
            "query_expansion": QueryExpansion(),
            "similarity_normalization": SimilarityNormalization(),
            "k_reciprocal": KReciprocal(),
        }.items()
    }
    assert [name for name, value in transductive.items() if not value] == ["class_similarity", "query_expansion"]


def test_json_round_trip():
    reranking = Reranking(ClassSimilarity(10.0, 0.3), None, QueryExpansion(1), SimilarityNormalization(5))
    assert read_record(Reranking, json.loads(json.dumps(asdict(reranking)))) == reranking
    with pytest.raises((ValueError, OptionError)):
        read_record(Reranking, {"query_expansion": {"k": -1}})
