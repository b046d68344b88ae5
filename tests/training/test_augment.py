"""Random views: decided by seed, epoch and item alone, always the right size, always inside the picture."""

import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lookalike.models.preprocessing import Preprocessing
from lookalike.models.pretrained import build_trainable
from lookalike.training.augment import _CHANGES, _crop_box, augmented, resolution_at, training_view
from lookalike.training.recipe import Recipe

P = Preprocessing(48, 64)


def view(image, seed=0, epoch=0, item="a", recipe=None):
    return augmented(image, P, recipe or Recipe(), seed=seed, epoch=epoch, item_id=item, turn=0)


def test_the_same_seed_epoch_and_item_give_the_same_view_and_any_other_another(photos):
    cat = photos["cat"]
    first = view(cat)
    assert first.shape == (48, 64, 3)
    assert first.dtype == np.uint8
    random.seed(99)
    np.random.default_rng(1).random()
    assert np.array_equal(view(cat), first)
    for other in (view(cat, seed=1), view(cat, epoch=1), view(cat, item="b")):
        assert not np.array_equal(other, first)


def test_the_picture_itself_is_not_changed(photos):
    cat = photos["cat"].copy()
    view(cat)
    assert cat.tobytes() == photos["cat"].tobytes()


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (7, 5), (1000, 3), (3, 1000), (64, 48), (317, 211)])
def test_any_shape_gives_a_view(size, photos):
    image = photos["coffee"].resize(size)
    for item in range(20):
        assert view(image, item=str(item)).shape == (48, 64, 3)


@pytest.mark.parametrize("size", [(160, 120), (100, 100), (31, 300)])
def test_boxes_lie_inside_and_cover_30_to_100_percent(size):
    width, height = size
    shares = []
    for number in range(400):
        left, top, right, bottom = _crop_box(size, 0.3, random.Random(number))
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        shares.append((right - left) * (bottom - top) / (width * height))
    if max(size) < 2 * min(size):
        assert 0.3 <= min(shares) < 0.35
        assert 0.9 < max(shares) <= 1.0


def test_a_box_whose_sum_is_rounded_up_past_the_edge_is_cut_there():
    """Pillow refuses a box that ends outside of the picture, be it by one unit in the last place."""

    class Chance:
        """Gives the full area and then the far corner, one rounding too far."""

        def __init__(self):
            self.values = iter([0.49, 0.0, 30.0 + 2e-14, 30.0 + 2e-14])

        def uniform(self, _low, _high):
            return next(self.values)

    left, top, right, bottom = _crop_box((100, 100), 0.3, Chance())
    assert (right, bottom) == (100, 100)
    assert left + 70 > 100
    assert top + 70 > 100


def test_half_of_the_views_are_mirrored(photos):
    """A picture that is dark at the left and light at the right tells which way round it is."""
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
def test_training_views_are_smaller_where_the_network_takes_any_size(name, resolution, side):
    found = training_view(build_trainable(name, "none"), resolution)
    assert (found.height, found.width) == (side, side)


def test_the_resolution_rises_evenly_to_the_recipes():
    recipe = Recipe(resolution=1.0, first_resolution=0.5)
    assert [resolution_at(recipe, epoch, 5) for epoch in range(5)] == [0.5, 0.625, 0.75, 0.875, 1.0]
    assert resolution_at(recipe, 0, 1) == 1.0
    assert resolution_at(Recipe(resolution=0.75), 0, 5) == 0.75


def test_erasing_puts_noise_over_a_rectangle_of_up_to_a_third(photos):
    plain = Recipe(jitter=0.0)
    shares = []
    for number in range(60):
        whole = view(photos["cat"], item=str(number), recipe=plain)
        erased = view(photos["cat"], item=str(number), recipe=replace(plain, erase=1.0))
        changed = (whole != erased).any(axis=2)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        assert changed.sum() > 0.95 * box  # a pixel of noise may be the picture's by chance
        shares.append(box / changed.size)
    assert min(shares) > 0.01 and 0.25 < max(shares) < 0.36
    half = [np.array_equal(view(photos["cat"], item=str(n), recipe=replace(plain, erase=0.5)),
                           view(photos["cat"], item=str(n), recipe=plain)) for n in range(200)]  # fmt: skip
    assert 70 < sum(half) < 130


def test_random_changes_grow_with_their_strength_and_leave_the_crop_alone(photos):
    plain = Recipe(jitter=0.0)

    def difference(strength):
        recipe = replace(plain, rand_augment=strength)
        return np.mean([
            np.abs(view(photos["cat"], item=str(n), recipe=recipe).astype(int)
                   - view(photos["cat"], item=str(n), recipe=plain)).mean() for n in range(40)
        ])  # fmt: skip

    assert 0 < difference(1.0) < difference(10.0)


def test_every_random_change_gives_a_picture_of_the_same_size(photos):
    cat = photos["cat"].resize((64, 48))
    for change in _CHANGES:
        for strength in (-1.0, 0.0, 1.0):
            assert change(cat, strength, P).size == (64, 48)
    turned = np.array(_CHANGES[0](cat, 0.0, P))
    assert np.abs(turned.astype(int) - np.array(cat)).max() <= 1  # a turn by no angle


@pytest.mark.parametrize("size", [(160, 120), (100, 300)])
def test_boxes_of_the_pictures_own_shape_may_be_all_of_it(size):
    """Width over height is at most 4/3 away from the picture's own."""
    width, height = size
    shares = []
    for number in range(400):
        left, top, right, bottom = _crop_box(size, 0.5, random.Random(number), own_shape=True)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert 0.74 < (right - left) / (bottom - top) * height / width < 1.34
        shares.append((right - left) * (bottom - top) / (width * height))
    assert 0.5 <= min(shares) < 0.55
    assert max(shares) > 0.97
