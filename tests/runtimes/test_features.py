"""Features without a head: torch's, by another runtime where there are many images, if equal."""

import numpy as np
import pytest
from lookalike.embeddings.fit import compute_features
from lookalike.models.stream import File
from lookalike.runtimes.features import quick_features

from lookalike.runtimes import features, openvino

pytest.importorskip("openvino")


@pytest.fixture(params=["test_efficientnet", "test_resnet", "test_vit"])
def member(request, make_trainable):
    return make_trainable(request.param)


def test_they_are_torchs(member, pixels):
    given = pixels(member)
    quick = quick_features(member, 10_000, lambda: given[:3])
    expected = member.features(given)
    found = quick.submit(given)()
    assert found.shape == expected.shape == (9, member.features_width)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_for_a_few_pictures_torch_computes(make_trainable):
    assert quick_features(make_trainable(), features.WORTH_IT - 1, lambda: pytest.fail("were looked at")) is None


def test_where_nothing_can_be_read_torch_computes(make_trainable):
    assert quick_features(make_trainable(), 10_000, lambda: None) is None


def test_what_is_not_the_same_is_not_taken(make_trainable, pixels, monkeypatch):
    member = make_trainable()
    real = member.features
    monkeypatch.setattr(member, "features", lambda given: 1.01 * real(given))
    assert quick_features(member, 10_000, lambda: pixels(member)) is None
    monkeypatch.setattr(member, "features", lambda given: real(given)[:, ::-1])
    assert quick_features(member, 10_000, lambda: pixels(member)) is None


def test_without_openvino_torch_computes(make_trainable, monkeypatch):
    monkeypatch.setattr(openvino, "is_installed", lambda: False)
    assert quick_features(make_trainable(), 10_000, lambda: pytest.fail("were looked at")) is None


def test_a_head_is_fitted_to_the_same_features(make_trainable, image_files, tmp_path, monkeypatch):
    member = make_trainable()
    files = [File(p.name, p) for p in image_files]
    by_torch = compute_features(member, [*files, File("none", tmp_path / "none.jpg")], task="looking")
    monkeypatch.setattr(features, "WORTH_IT", 5)
    monkeypatch.setattr(member, "features", lambda given, real=member.features: real(given) if len(given) < 5 else None)
    quick = compute_features(member, [*files, File("none", tmp_path / "none.jpg")], task="looking")
    assert quick.ids == by_torch.ids
    assert [s.path for s in quick.skipped] == [tmp_path / "none.jpg"]
    np.testing.assert_allclose(quick.rows, by_torch.rows, rtol=1e-3, atol=1e-4 * np.abs(by_torch.rows).max())
