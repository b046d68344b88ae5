"""The order of an epoch: its length, its batches, and what decides it."""

import numpy as np
import pytest

from lookalike.errors import OptionError
from lookalike.training.options import TrainingOptions
from lookalike.training.recipe import Recipe
from lookalike.training.sampling import epoch_order, sampler_of, turns

LONG_TAIL = np.repeat([0, 1, 2], [80, 16, 4])


@pytest.mark.parametrize("sampler", ["shuffled", "pk", "class-aware"])
def test_seed_and_epoch_decide_and_the_length_is_that_of_the_data(sampler):
    recipe = Recipe(sampler=sampler, batch_size=8)
    first = epoch_order(LONG_TAIL, recipe, seed=1, epoch=2)
    assert len(first) == 100
    assert np.array_equal(first, epoch_order(LONG_TAIL, recipe, seed=1, epoch=2))
    assert not np.array_equal(first, epoch_order(LONG_TAIL, recipe, seed=2, epoch=2))
    assert not np.array_equal(first, epoch_order(LONG_TAIL, recipe, seed=1, epoch=3))


def test_shuffled_shows_every_image_once():
    assert sorted(epoch_order(LONG_TAIL, Recipe(sampler="shuffled"), seed=0, epoch=0)) == list(range(100))


def test_class_aware_shows_every_class_as_often_and_its_images_in_turn():
    order = epoch_order(LONG_TAIL, Recipe(sampler="class-aware"), seed=0, epoch=0)
    counts = np.bincount(LONG_TAIL[order])
    assert counts.max() - counts.min() <= 1
    rare = np.bincount(order, minlength=100)[96:]
    assert rare.max() - rare.min() <= 1


def test_turns_count_how_often_a_row_stood_before():
    assert turns(np.array([4, 2, 4, 4, 0, 2])).tolist() == [0, 0, 1, 2, 0, 1]


def test_pk_fills_a_batch_with_p_classes_of_k_images():
    targets = np.repeat(np.arange(10), 20)
    order = epoch_order(targets, Recipe(sampler="pk", batch_size=32, per_class=4), seed=0, epoch=0)
    for batch in order[:192].reshape(6, 32):
        classes, counts = np.unique(targets[batch], return_counts=True)
        assert len(classes) == 8
        assert set(counts) == {4}
        assert len(set(batch)) == 32


def test_pk_with_fewer_classes_than_a_batch_holds_gives_more_of_each():
    order = epoch_order(np.repeat([0, 1, 2], 40), Recipe(sampler="pk", batch_size=32), seed=0, epoch=0)
    assert np.bincount(np.repeat([0, 1, 2], 40)[order[:32]]).tolist() in ([11, 11, 10], [11, 10, 11], [10, 11, 11])


def test_auto_takes_pk_where_images_are_compared():
    assert sampler_of(Recipe()) == "shuffled"
    assert sampler_of(Recipe(loss="arcface")) == "shuffled"
    assert sampler_of(Recipe(loss="cross-entropy+0.5*triplet")) == "pk"
    assert sampler_of(Recipe(loss="triplet", sampler="class-aware")) == "class-aware"


def test_a_batch_too_small_for_two_classes_is_refused_before_any_work():
    with pytest.raises(
        OptionError, match=r"at least two classes a batch, but a batch_size of 7 holds 1 of per_class 4"
    ):
        TrainingOptions(loss="triplet", batch_size=7).recipe_for("cnn")
