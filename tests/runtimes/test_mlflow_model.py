"""A bundle as a model of MLflow: embeddings of paths, in the order of the paths."""

import importlib

import numpy as np
import pytest

from lookalike.errors import OptionError
from lookalike.models.bundle import save_bundle
from lookalike.runtimes.mlflow_model import BundleModel


@pytest.fixture
def model(encoder, tmp_path):
    return BundleModel(save_bundle(encoder, tmp_path / "bundle"))


def test_paths_become_embeddings(model, encoder, image_files):
    expected = encoder.embed(image_files).vectors
    np.testing.assert_allclose(model.predict(image_files), expected, atol=1e-6)
    np.testing.assert_allclose(model.predict([str(path) for path in image_files]), expected, atol=1e-6)
    np.testing.assert_allclose(model.predict(str(image_files[0])), expected[:1], atol=1e-6)


def test_a_path_may_be_given_twice(model, encoder, image_files):
    first, second = image_files[:2]
    vectors = model.predict([first, second, first])
    np.testing.assert_array_equal(vectors[0], vectors[2])
    np.testing.assert_allclose(vectors[:2], encoder.embed([first, second]).vectors, atol=1e-6)


def test_the_first_column_of_a_table_holds_the_paths(model, image_files):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"path": map(str, image_files[:2]), "label": ["a", "b"]})
    np.testing.assert_array_equal(model.predict(table), model.predict(image_files[:2]))


def test_an_unreadable_image_is_refused(model, image_files, tmp_path):
    with pytest.raises(OptionError, match=r"1 images.*missing\.png") as raised:
        model.predict([image_files[0], tmp_path / "missing.png"])
    assert raised.value.argument == "model_input"


@pytest.mark.usefixtures("model")
def test_mlflow_loads_the_module_by_its_name(encoder, tmp_path):
    module = importlib.import_module("lookalike.runtimes.mlflow_model")
    loaded = module._load_pyfunc(str(tmp_path / "bundle"))
    assert loaded.encoder.fingerprint == encoder.fingerprint
