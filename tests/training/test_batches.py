"""Batches: order and views depend on seed, epoch and item alone; views have the right size and lie inside the image."""

import random

import numpy as np
import pytest
from PIL import Image

from lookalike.data.dataset import Item, Split
from lookalike.models.preprocessing import Crop, Preprocessing
from lookalike.models.trainable import build_trainable
from lookalike.training.batches import (
    _random_crop,
    epoch_order,
    iterate_batches,
    random_view,
    repetitions,
    training_preprocessing,
)
from lookalike.training.config import Recipe
from lookalike.training.distributed import SINGLE_PROCESS

P = Preprocessing(48, 64)


def view(image, seed=0, epoch=0, item="a", recipe=None):
    return random_view(image, P, recipe or Recipe(), seed=seed, epoch=epoch, item_id=item, turn=0)


def test_view_depends_on_seed_epoch_and_item(sample_images):
    cat = sample_images["cat"]
    first = view(cat)
    assert first.shape == (48, 64, 3)
    assert first.dtype == np.uint8
    random.seed(99)
    np.random.default_rng(1).random()
    assert np.array_equal(view(cat), first)
    for other in (view(cat, seed=1), view(cat, epoch=1), view(cat, item="b")):
        assert not np.array_equal(other, first)


def test_view_does_not_change_the_image(sample_images):
    cat = sample_images["cat"].copy()
    view(cat)
    assert cat.tobytes() == sample_images["cat"].tobytes()


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (7, 5), (1000, 3), (3, 1000), (64, 48), (317, 211)])
def test_view_of_any_image_shape(size, sample_images):
    image = sample_images["coffee"].resize(size)
    for item in range(20):
        assert view(image, item=str(item)).shape == (48, 64, 3)


@pytest.mark.parametrize("size", [(160, 120), (100, 100), (31, 300)])
def test_crops_lie_inside_and_cover_the_allowed_area(size):
    width, height = size
    shares = []
    for number in range(400):
        left, top, right, bottom = _random_crop(size, 0.3, random.Random(number))
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        shares.append((right - left) * (bottom - top) / (width * height))
    if max(size) < 2 * min(size):
        assert 0.3 <= min(shares) < 0.35
        assert 0.9 < max(shares) <= 1.0


def test_crop_is_clipped_at_the_edge():
    """Pillow rejects a box that exceeds the image, even by one unit in the last place."""

    class Chance:
        """Returns the full area, then the far corner plus a rounding error."""

        def __init__(self):
            self.values = iter([0.49, 0.0, 30.0 + 2e-14, 30.0 + 2e-14])

        def uniform(self, _low, _high):
            return next(self.values)

    left, top, right, bottom = _random_crop((100, 100), 0.3, Chance())
    assert (right, bottom) == (100, 100)
    assert left + 70 > 100
    assert top + 70 > 100


def test_half_of_the_views_are_flipped(sample_images):
    """An image that is dark on the left and light on the right shows its orientation."""
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], (64, 1, 3)))
    mirrored = [view(ramp, item=str(n))[:, 0].mean() > view(ramp, item=str(n))[:, -1].mean() for n in range(200)]
    assert 70 < sum(mirrored) < 130


@pytest.mark.parametrize(
    ("name", "resolution", "side"),
    [
        ("test_efficientnet", 0.75, 128),  # 160 · 0.75 = 120, to the next 32
        ("test_efficientnet", 0.6, 96),
        ("test_efficientnet", 0.25, 32),
        ("test_efficientnet", 1.0, 160),
        ("test_vit", 0.5, 160),  # takes one size only
    ],
)
def test_training_resolution(name, resolution, side):
    preprocessing = training_preprocessing(build_trainable(name, "none"), resolution)
    assert (preprocessing.height, preprocessing.width) == (side, side)


@pytest.mark.parametrize("size", [(160, 120), (100, 300)])
def test_crops_that_keep_the_aspect_ratio(size):
    """The aspect ratio differs from the image's own by at most 4/3."""
    width, height = size
    shares = []
    for number in range(400):
        left, top, right, bottom = _random_crop(size, 0.5, random.Random(number), keep_aspect=True)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert 0.74 < (right - left) / (bottom - top) * height / width < 1.34
        shares.append((right - left) * (bottom - top) / (width * height))
    assert 0.5 <= min(shares) < 0.55
    assert max(shares) > 0.97


def test_views_show_only_what_a_crop_cuts_out(tmp_path):
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    image.paste((0, 0, 255), (20, 0, 40, 20))
    image.save(tmp_path / "a.png")
    crop = Crop("left", lambda image: (0, 0, image.width / 2, image.height))
    items = [Item(name, tmp_path / "a.png", "a", Split.TRAINING) for name in "ab"]
    (batch,) = iterate_batches(
        *(items, np.arange(2), Preprocessing(8, 8, crop=crop), Recipe(jitter=0), SINGLE_PROCESS), seed=0, epoch=0
    )
    assert batch.pixels.tolist() == np.full((2, 8, 8, 3), (255, 0, 0)).tolist()


# ---------------------------------------------------------------- order

LONG_TAIL = np.repeat([0, 1, 2], [80, 16, 4])


@pytest.mark.parametrize("sampler", ["shuffled", "pk"])
def test_order_depends_on_seed_and_epoch(sampler):
    recipe = Recipe(sampler=sampler, batch_size=8)
    first = epoch_order(LONG_TAIL, recipe, seed=1, epoch=2)
    assert len(first) == 100
    assert np.array_equal(first, epoch_order(LONG_TAIL, recipe, seed=1, epoch=2))
    assert not np.array_equal(first, epoch_order(LONG_TAIL, recipe, seed=2, epoch=2))
    assert not np.array_equal(first, epoch_order(LONG_TAIL, recipe, seed=1, epoch=3))


def test_shuffled_order_contains_every_image_once():
    assert sorted(epoch_order(LONG_TAIL, Recipe(sampler="shuffled"), seed=0, epoch=0)) == list(range(100))


def test_repetitions_count_earlier_occurrences():
    assert repetitions(np.array([4, 2, 4, 4, 0, 2])).tolist() == [0, 0, 1, 2, 0, 1]


def test_pk_batches_have_p_classes_with_k_images():
    targets = np.repeat(np.arange(10), 20)
    order = epoch_order(targets, Recipe(sampler="pk", batch_size=32, per_class=4), seed=0, epoch=0)
    for batch in order[:192].reshape(6, 32):
        classes, counts = np.unique(targets[batch], return_counts=True)
        assert len(classes) == 8
        assert set(counts) == {4}
        assert len(set(batch)) == 32


def test_pk_with_few_classes_uses_more_images_per_class():
    order = epoch_order(np.repeat([0, 1, 2], 40), Recipe(sampler="pk", batch_size=32), seed=0, epoch=0)
    assert np.bincount(np.repeat([0, 1, 2], 40)[order[:32]]).tolist() in ([11, 11, 10], [11, 10, 11], [10, 11, 11])
