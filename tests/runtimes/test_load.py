"""Loading encoders: bundles, exported bundles, pretrained names, and a search that imports neither torch nor timm."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lookalike._files import checked_record, with_digest, write_json
from lookalike.api.export import export
from lookalike.errors import ModelError, OptionError, WeightsUnavailable
from lookalike.models.bundle import save_bundle, write_tensors
from lookalike.models.encoder import Ensemble
from lookalike.models.trainable import build_trainable
from lookalike.progress import SILENT
from lookalike.runtimes import load
from lookalike.runtimes.cache import RuntimeTiming, save_timings
from lookalike.runtimes.load import BundleModel, load_encoder, load_pretrained, pair_weights

NAME = "test_efficientnet"


def test_the_folder_of_a_benchmark_is_refused_with_its_winner(encoder, tmp_path, monkeypatch):
    save_bundle(encoder, tmp_path / "runs" / "best")
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / "runs", Path("runs")):
        with pytest.raises(ModelError) as caught:
            load_encoder(str(folder))
        assert f"the winner of this benchmark is {folder / 'best'}" in str(caught.value)


@pytest.fixture
def bundle(encoder, tmp_path):
    return save_bundle(encoder, tmp_path / "bundle")


def run(code, *arguments):
    """Run code in a fresh process and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---------------------------------------------------------------- bundles


def test_a_bundle_or_a_folder_with_one_is_loaded(encoder, bundle, image_files, tmp_path):
    save_bundle(encoder, tmp_path / "index" / "model")
    for model in (bundle, str(bundle), tmp_path / "index"):
        loaded = load_encoder(model)
        assert (loaded.info, loaded.runtime, loaded.precision) == (encoder.info, "auto", "auto")
        np.testing.assert_allclose(loaded.embed(image_files).vectors, encoder.embed(image_files).vectors, atol=1e-6)


def test_runtime_and_precision_are_set_when_loading(bundle, image_files):
    loaded = load_encoder(bundle, runtime="torch", precision="float32")
    assert (loaded.runtime, loaded.precision) == ("torch", "float32")
    assert loaded.embed(image_files[:1]).precision == "float32"
    for options, argument in (({"runtime": "tensorrt"}, "runtime"), ({"precision": "int4"}, "precision")):
        with pytest.raises(OptionError) as raised:
            load_encoder(bundle, **options)
        assert raised.value.argument == argument


EMBED = """
import sys
from lookalike.runtimes.load import load_encoder
embeddings = load_encoder(sys.argv[1]).embed(sys.argv[2:])
print(embeddings.vectors.shape, [m for m in ("torch", "timm", "openvino.tools.ovc") if m in sys.modules])
"""


@pytest.mark.usefixtures("graph_cache")
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_embedding_on_a_selected_runtime_imports_neither_torch_nor_timm(encoder, bundle, image_files, runtime):
    save_timings(encoder.info.backbone, [RuntimeTiming(runtime, "float32", 30), RuntimeTiming("torch", "float32", 10)])
    assert run(EMBED, bundle, *image_files[:2]) == "(2, 512) []\n"


@pytest.mark.usefixtures("graph_cache")
def test_an_ensemble_on_selected_runtimes_imports_neither_torch_nor_timm(
    encoder, make_trainable, image_files, tmp_path
):
    members = (encoder, make_trainable(NAME).freeze())
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(512, 512)))[0].astype(np.float32)
    bundle = save_bundle(Ensemble(members, "aligned", (None, rotation)), tmp_path / "ensemble")
    save_timings(encoder.info.backbone, [RuntimeTiming("openvino", "float32", 30)])
    assert run(EMBED, bundle, *image_files[:2]) == "(2, 512) []\n"


def test_the_weights_of_a_bundle_are_read_without_torch(bundle):
    code = """
import sys
from pathlib import Path
from lookalike.models.bundle import save_bundle
from lookalike.runtimes.load import load_encoder
save_bundle(load_encoder(sys.argv[1]), Path(sys.argv[2]))
print("torch" in sys.modules)
"""
    copy = bundle.with_name("copy")
    assert run(code, bundle, copy) == "False\n"
    assert (copy / "model.safetensors").read_bytes() == (bundle / "model.safetensors").read_bytes()


# ---------------------------------------------------------------- exported bundles


@pytest.fixture(scope="module")
def exported_bundle(tmp_path_factory):
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("exported")
    save_bundle(build_trainable(NAME, "none").freeze(), folder / "bundle")
    export(folder / "bundle", out=folder / "exported", precision="float32", progress=SILENT)
    return folder / "exported"


def test_an_exported_bundle_imports_neither_torch_nor_timm(exported_bundle, image_files):
    assert run(EMBED, exported_bundle, *image_files[:2]) == "(2, 512) []\n"


def test_an_exported_bundle_keeps_its_runtime(exported_bundle):
    loaded = load_encoder(exported_bundle)
    assert (loaded.runtime, loaded.precision) == ("openvino", "float32")
    assert load_encoder(exported_bundle, runtime="openvino", precision="float32").runtime == "openvino"
    for options in ({"runtime": "torch"}, {"precision": "bfloat16"}):
        with pytest.raises(OptionError, match="was exported for openvino in float32"):
            load_encoder(exported_bundle, **options)


@pytest.mark.parametrize("kind", ["exported", "bundle", "name"])
def test_a_pickled_encoder_computes_the_same(kind, exported_bundle, bundle, image_files):
    encoder = {
        "exported": lambda: load_encoder(exported_bundle),
        "bundle": lambda: load_encoder(bundle, runtime="openvino", precision="float32"),
        "name": lambda: load_encoder(NAME, weights="none", runtime="torch"),
    }[kind]()
    expected = encoder.embed(image_files).vectors  # which also compiles the graph
    copy = pickle.loads(pickle.dumps(encoder))
    np.testing.assert_allclose(copy.embed(image_files).vectors, expected, atol=1e-6)


def test_an_exported_bundle_is_saved_with_its_graph(exported_bundle, encoder, image_files, tmp_path):
    copy = save_bundle(load_encoder(exported_bundle), tmp_path / "copy")
    assert sorted(path.name for path in copy.iterdir()) == ["bundle.json", "member-0.bin", "member-0.xml"]
    expected = encoder.embed(image_files).vectors
    np.testing.assert_allclose(load_encoder(copy).embed(image_files).vectors, expected, atol=1e-5)
    mixed = Ensemble((load_encoder(exported_bundle), encoder), "average")
    with pytest.raises(ModelError, match="some members were exported"):
        save_bundle(mixed, tmp_path / "mixed")


@pytest.mark.parametrize("damage", ["missing", "changed", "../", "/", "x:"])
def test_a_damaged_graph_is_refused(exported_bundle, tmp_path, damage):
    copy = save_bundle(load_encoder(exported_bundle), tmp_path / "copy")
    graph = copy / "member-0.bin"
    if damage == "missing":
        graph.unlink()
    elif damage == "changed":
        graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    else:
        record = copy / "bundle.json"
        text = json.dumps(checked_record(json.loads(record.read_text())))
        write_json(record, with_digest(json.loads(text.replace('"member-0.bin"', f'"{damage}member-0.bin"'))))
    with pytest.raises(ModelError, match=r"member-0\.bin.*again"):
        load_encoder(copy)


# ---------------------------------------------------------------- names


def test_a_name_gets_a_random_head(image_files):
    loaded = load_encoder(NAME, weights="none", seed=1)
    assert loaded.fingerprint == build_trainable(NAME, "none", seed=1).fingerprint
    assert (loaded.state, loaded.info.head) == ("untrained", "random orthonormal")
    assert loaded.fingerprint != load_encoder(NAME, weights="none").fingerprint


def test_several_names_are_concatenated():
    loaded = load_encoder(f"{NAME}+test_resnet", weights={NAME: "none", "test_resnet": "none"}, precision="float32")
    assert isinstance(loaded, Ensemble)
    assert (loaded.combination, loaded.dim, loaded.name) == ("concat", 1024, f"{NAME}+test_resnet")


def test_a_name_is_cached_with_its_weights(image_files, monkeypatch):
    first = load_encoder(NAME, weights="none")
    monkeypatch.setattr("lookalike.models.trainable.build_trainable", lambda *_, **__: pytest.fail("was built again"))
    cached = load_encoder(NAME, weights="none")
    assert cached.info == first.info
    np.testing.assert_array_equal(cached.embed(image_files).vectors, first.embed(image_files).vectors)


@pytest.mark.parametrize("damage", ["flipped bit", "truncated"])
def test_damaged_weights_in_the_cache_are_replaced(own_cache, image_files, damage):
    first = load_encoder(NAME, weights="none")
    (file,) = (own_cache / "pretrained").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    intact = bytes(content)
    content[-5] ^= 64
    file.write_bytes(content if damage == "flipped bit" else content[: len(content) // 2])
    damaged = load_encoder(NAME, weights="none")
    np.testing.assert_array_equal(damaged.embed(image_files).vectors, first.embed(image_files).vectors)
    assert file.read_bytes() == intact


def test_a_cached_name_is_loaded_without_torch():
    load_encoder("efficientnet_lite0")
    code = """
import sys
from lookalike.runtimes.load import load_encoder
encoder = load_encoder("efficientnet_lite0")
print(encoder.state, [m for m in ("torch", "timm") if m in sys.modules])
"""
    assert run(code) == "frozen []\n"


def test_a_file_of_weights_is_cached_by_its_content(tmp_path, make_trainable):
    file = tmp_path / "weights.safetensors"
    digests = []
    for seed in (1, 2):
        write_tensors(file, make_trainable(seed=seed).torch_backbone().weights())
        (loaded,) = load_pretrained(NAME, file)
        digests.append(loaded[0].info.weights_digest)
        assert loaded[1] == "frozen"
    assert len(set(digests)) == 2


def test_weights_by_name():
    assert pair_weights(["a", "b"], "none") == [("a", "none"), ("b", "none")]
    assert pair_weights(["a", "b"], {"a": "none"}) == [("a", "none"), ("b", "pretrained")]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("resnt50", "neither a bundle nor the name of a backbone"),
        ("./models/best", "does not exist"),
        ("~/best", "does not exist"),
        ("{tmp_path}", "is not a bundle"),
    ],
)
def test_what_is_neither_a_bundle_nor_a_name_is_refused(model, words, tmp_path):
    with pytest.raises(ModelError, match=words) as raised:
        load_encoder(model.format(tmp_path=tmp_path))
    assert raised.value.argument == "model"


def test_every_name_is_checked_before_weights_are_loaded(monkeypatch):
    monkeypatch.setattr(
        "lookalike.models.trainable.build_trainable", lambda *_, **__: pytest.fail("weights were loaded")
    )
    with pytest.raises(ModelError, match="resnt50") as raised:
        load_encoder(f"{NAME}+resnt50", weights="none")
    assert raised.value.argument == "model"


def test_weights_of_another_backbone_are_refused():
    with pytest.raises(OptionError, match="resnet50") as raised:
        load_encoder(NAME, weights={"resnet50": "none"})
    assert raised.value.argument == "weights"


def test_weights_that_are_not_available_are_reported():
    with pytest.raises(WeightsUnavailable) as raised:
        load_encoder("vit_small_patch16_18x2_224")
    assert raised.value.argument == "weights"


# ---------------------------------------------------------------- MLflow


@pytest.fixture
def model(bundle):
    return BundleModel(bundle)


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


def test_mlflow_loads_a_model_with_this_function(bundle, encoder):
    assert load._load_pyfunc(str(bundle)).encoder.fingerprint == encoder.fingerprint
