"""The reference implementation against timm, against what the images show, and against recorded numbers."""

import pytest
import timm
import torch

from reference_lite import VARIANTS, classify, package_state, pooled_features, preprocess, skimage_image

IMAGES = ("chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
CATS = {281, 282, 283, 284, 285}  # tabby, tiger cat, Persian, Siamese, Egyptian
ESPRESSO, MISSILE, PROJECTILE, MOPED, SCOOTER = 967, 657, 744, 665, 670


@pytest.fixture(scope="module", params=list(VARIANTS))
def variant(request):
    return request.param


@pytest.fixture(scope="module")
def state(variant):
    return package_state(variant)


@pytest.fixture(scope="module")
def images(variant):
    return torch.cat([preprocess(skimage_image(name), VARIANTS[variant].side) for name in IMAGES])


@pytest.fixture(scope="module")
def features(variant, state, images):
    with torch.inference_mode():
        return pooled_features(state, images, variant)


@pytest.fixture(scope="module")
def ranked(state, features):
    """Class numbers, best first, by image."""
    best = classify(state, features).argsort(dim=1, descending=True)
    return dict(zip(IMAGES, best.tolist(), strict=True))


def test_timms_model_with_the_weights_assigned_by_position_computes_the_same(variant, state, images, features):
    model = timm.create_model(f"tf_efficientnet_{variant}", pretrained=False).eval()
    expected = model.state_dict()
    assert [v.shape for v in expected.values()] == [v.shape for v in state.values()]
    model.load_state_dict(dict(zip(expected, state.values(), strict=True)))
    with torch.inference_mode():
        values = model.forward_head(model.forward_features(images), pre_logits=True)
        logits = model(images)
    assert features.shape == (len(IMAGES), 1280)
    assert features.abs().max() > 1  # the numbers compared are not all near zero
    assert (values - features).abs().max() < 1e-4
    assert (logits - classify(state, features)).abs().max() < 1e-4


def test_the_tolerance_notices_two_swapped_weights(variant, state, images, features):
    """Weights in a wrong place change the features far beyond the tolerance of the comparison above."""
    swapped = dict(state)
    first, second = "_blocks.1._bn0.weight", "_blocks.1._bn0.bias"
    swapped[first], swapped[second] = state[second], state[first]
    with torch.inference_mode():
        values = pooled_features(swapped, images, variant)
    assert (values - features).abs().max() > 0.1


def test_the_images_are_recognised(ranked):
    assert ranked["chelsea.png"][0] in CATS
    assert set(ranked["chelsea.png"][:3]) <= CATS
    assert ranked["coffee.png"][0] == ESPRESSO
    assert {MISSILE, PROJECTILE} <= set(ranked["rocket.jpg"][:3])
    assert set(ranked["motorcycle_left.png"][:2]) == {MOPED, SCOOTER}


# First eight pooled features of the coffee image, and the length of all 1280, as `reference_lite` computed them.
GOLDEN = {
    "lite0": ([0.05994, 0.09236, 1.33297, 0.0, 0.04974, 0.0, 0.08965, 0.08399], 13.8278),
    "lite2": ([0.13021, 0.0, 0.25564, 0.01305, 0.0, 0.01262, 0.0, 0.0], 10.4898),
}


def test_golden_vector(variant, features):
    values = features[IMAGES.index("coffee.png")]
    expected, length = GOLDEN[variant]
    assert values[:8].tolist() == pytest.approx(expected, abs=2e-3)
    assert values.norm().item() == pytest.approx(length, abs=1e-2)
