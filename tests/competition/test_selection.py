"""Selection of models and their weights on embeddings whose neighbours are worked out by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from lookalike.competition.candidates import SubmissionModel
from lookalike.competition.clock import Clock, ClockProgress
from lookalike.competition.selection import evaluate_selection, join_embeddings, select_models
from lookalike.data.dataset import Dataset, Item, Split
from lookalike.evaluation.evaluation import evaluate_validation
from lookalike.progress import SILENT
from lookalike.types import Embeddings, l2_normalize

MEASURES = ("hit@1", "map@r")
CLASSES = "aabbccdd"


@pytest.fixture
def data(tmp_path):
    items = [
        Item(f"{split}/{n}", tmp_path / f"{split}{n}", label, split)
        for split in (Split.TRAINING, Split.VALIDATION)
        for n, label in enumerate(CLASSES)
    ]
    return Dataset(tmp_path, "by hand", tuple(items))


def make_candidate(data, name, vectors):
    """Return a candidate with these embeddings of validation, and of training, whose classes are the same."""
    rows = l2_normalize(np.array(vectors, dtype=np.float32))
    embeddings = {
        split: Embeddings([i.id for i in data.split(split)], rows, name) for split in (Split.TRAINING, Split.VALIDATION)
    }
    evaluation = evaluate_validation(data, embeddings[Split.VALIDATION], MEASURES)
    return SubmissionModel(name, name, "frozen", data.root, embeddings, evaluation)


def make_setup(data):
    clock = Clock(0.0, 100.0, now=lambda: 0.0)
    progress = ClockProgress(SILENT, clock)
    return SimpleNamespace(data=data, measures=MEASURES, transductive=False, clock=clock, progress=progress)


def one_hot(numbers, width=4):
    return np.eye(width)[list(numbers)]


def test_two_models_that_see_different_classes_are_joined(data):
    """Each model finds two classes with a cosine of 1, and mixes up the other two with one of .9."""
    e = np.eye(6)
    near_2, near_3 = 0.9 * e[2] + np.sqrt(0.19) * e[4], 0.9 * e[3] + np.sqrt(0.19) * e[5]
    mixed_up = [e[2], e[3], near_2, near_3]
    first = make_candidate(data, "first", [e[0], e[0], e[1], e[1], *mixed_up])
    second = make_candidate(data, "second", [*mixed_up, e[0], e[0], e[1], e[1]])
    setup = make_setup(data)
    assert first.evaluation.mean("hit@1") == second.evaluation.mean("hit@1") == 0.5

    selection = select_models(setup, [first, second])

    # joined, images of one class have .5, others .45
    assert selection.weights == {"first": 0.5, "second": 0.5}
    assert selection.evaluation.mean("hit@1") == 1.0
    again = evaluate_selection(setup, selection.weights, selection.reranking, [first, second])
    assert again.evaluation.measures == selection.evaluation.measures
    assert select_models(setup, [first, second], before=again) is again  # the same models: nothing is selected again


def test_a_useless_model_gets_no_weight(data):
    good = make_candidate(data, "good", one_hot([0, 0, 1, 1, 2, 2, 3, 3]))
    bad = make_candidate(data, "bad", one_hot([0, 1, 2, 3, 0, 1, 2, 3]))
    setup = make_setup(data)

    selection = select_models(setup, [bad, good])

    assert dict(selection.weights) == {"good": 1.0}
    assert selection.evaluation.mean("hit@1") == 1.0


def test_the_cosine_of_joined_models_is_the_weighted_mean(data):
    random = np.random.default_rng(0)
    first, second = (make_candidate(data, name, random.standard_normal((8, 6))) for name in ("first", "second"))

    joined = join_embeddings([first, second], [0.75, 0.25], Split.VALIDATION).vectors

    a, b = (e.embeddings[Split.VALIDATION].vectors for e in (first, second))
    np.testing.assert_allclose(joined @ joined.T, 0.75 * a @ a.T + 0.25 * b @ b.T, atol=1e-6)
