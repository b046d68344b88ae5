"""ONNX files as backbones: the vectors are those of the network they were made from; others are refused."""

from __future__ import annotations

import json
import pickle

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lookalike.api.embed import embed
from lookalike.api.export import export
from lookalike.errors import FingerprintMismatch, LookalikeError, ModelError, OptionError
from lookalike.models.bundle import read_bundle_info, save_bundle
from lookalike.models.encoder import Encoder, Ensemble
from lookalike.models.heads import random_head
from lookalike.models.pipeline import File
from lookalike.models.torch_backbone import _silent_exporters
from lookalike.models.trainable import build_trainable
from lookalike.progress import SILENT
from lookalike.runtimes.load import load_encoder, load_pretrained
from lookalike.runtimes.select import with_runtime
from lookalike.training.refit import refit
from lookalike.training.train import train

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.fixture(scope="module")
def network():
    return build_trainable("test_vit", "none")


@pytest.fixture(scope="module")
def onnx_files(network, tmp_path_factory):
    """A vision transformer as `pooled.onnx`, as `tokens.onnx`, and with its weights in another file."""
    import torch

    class Tokens(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = timm_network

        def forward(self, x):
            return self.network.forward_features(x)

    import timm

    timm_network = timm.create_model("test_vit", num_classes=0).eval()
    timm_network.load_state_dict(network.module.state_dict())
    folder = tmp_path_factory.mktemp("onnx")
    p = network.preprocessing
    for name, module in {"pooled": timm_network, "tokens": Tokens(), "external": timm_network}.items():
        with _silent_exporters():
            torch.onnx.export(
                module,
                (torch.zeros(2, 3, p.height, p.width),),
                str(folder / f"{name}.onnx"),
                dynamo=True,
                input_names=["images"],
                output_names=["vectors"],
                dynamic_shapes=({0: torch.export.Dim("n")},),
                external_data=name == "external",
                verbose=False,
            )
        settings = {"mean": p.mean, "std": p.std, "interpolation": p.interpolation, "crop_pct": p.crop_pct}
        (folder / f"{name}.onnx.json").write_text(json.dumps(settings))
    return folder


def features_encoder(backbone, state="frozen"):
    return Encoder.of(backbone, random_head(backbone.width), state)


@pytest.mark.parametrize("name", ["pooled.onnx", "tokens.onnx?pool=cls", "external.onnx"])
def test_its_embeddings_are_those_of_the_network(name, network, onnx_files, image_files):
    expected = features_encoder(network.torch_backbone()).embed(image_files).vectors
    encoder = load_encoder(f"onnx:{onnx_files / name}")
    assert (encoder.runtime, encoder.precision, encoder.state) == ("openvino", "float32", "frozen")
    assert (encoder.embed(image_files).vectors * expected).sum(axis=1).min() > 0.9999
    many = [File(str(n), path) for n, path in enumerate(image_files * 5)]  # it is compiled for many images
    assert (encoder.embed(many).vectors[-9:] * expected).sum(axis=1).min() > 0.9999


def test_a_bundle_holds_the_file(onnx_files, image_files, tmp_path, encoder):
    from_file = load_encoder(f"onnx:{onnx_files / 'external.onnx'}")
    for number, saved in enumerate((from_file, Ensemble((encoder, from_file), "concat"))):
        save_bundle(saved, tmp_path / str(number))
        loaded = load_encoder(tmp_path / str(number))
        assert loaded.fingerprint == saved.fingerprint
        np.testing.assert_allclose(loaded.embed(image_files).vectors, saved.embed(image_files).vectors, atol=1e-4)
    info = read_bundle_info(tmp_path / "0").members[0].backbone
    assert (info.library, info.weights) == ("onnx", "file external.onnx")
    weights = tmp_path / "0" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelError):
        load_encoder(tmp_path / "0").backbone.graph()


@pytest.mark.parametrize("format", ["openvino", "onnx"])
@pytest.mark.parametrize("name", ["pooled.onnx", "tokens.onnx?pool=cls", "tokens.onnx?pool=mean"])
def test_it_can_be_exported(name, format, onnx_files, image_files, tmp_path):
    encoder = load_encoder(f"onnx:{onnx_files / name}")
    save_bundle(encoder, tmp_path / "model")
    exported = export(tmp_path / "model", out=tmp_path / "out", format=format, precision="float32", progress=SILENT)
    assert exported.parity.min_cosine > 0.9999
    expected = encoder.embed(image_files).vectors
    assert (exported.encoder.embed(image_files).vectors * expected).sum(axis=1).min() > 0.9999


def test_a_frozen_training_fits_its_head_and_fine_tuning_is_refused(onnx_files, data_folder, tmp_path):
    name = f"onnx:{onnx_files / 'pooled.onnx'}"
    encoder = train(data_folder, name, frozen=True, out=tmp_path / "model", progress=SILENT)
    assert load_encoder(tmp_path / "model").fingerprint == encoder.fingerprint
    again = refit(data_folder, tmp_path / "model", out=tmp_path / "final", progress=SILENT)
    assert again.info.backbone.weights_digest == encoder.info.backbone.weights_digest
    with pytest.raises(OptionError) as error:
        train(data_folder, name, out=tmp_path / "other", progress=SILENT)
    assert error.value.argument == "frozen"


def test_embeddings_by_name_know_the_content(onnx_files, data_folder, tmp_path):
    file = tmp_path / "a.onnx"
    file.write_bytes((onnx_files / "pooled.onnx").read_bytes())
    gallery, name = data_folder / "test" / "gallery", f"onnx:{file}"
    first = embed(gallery, name, out=tmp_path / "emb", progress=SILENT)
    assert embed(gallery, name, out=tmp_path / "emb", progress=SILENT).fingerprint == first.fingerprint
    (tmp_path / "a.onnx.json").write_text(json.dumps({"crop_pct": 1}))
    with pytest.raises(FingerprintMismatch):
        embed(gallery, name, out=tmp_path / "emb", progress=SILENT)


def test_it_can_be_pickled(onnx_files, image_files):
    encoder = load_encoder(f"onnx:{onnx_files / 'pooled.onnx'}")
    copied = pickle.loads(pickle.dumps(encoder))
    np.testing.assert_allclose(copied.embed(image_files).vectors, encoder.embed(image_files).vectors, atol=1e-5)


def test_runtime_and_weights_cannot_be_changed(onnx_files):
    name = f"onnx:{onnx_files / 'pooled.onnx'}"
    encoder = load_encoder(name, runtime="openvino")
    for changes, argument in (({"runtime": "torch"}, "runtime"), ({"precision": "float64"}, "precision")):
        with pytest.raises(OptionError) as error:
            with_runtime(encoder, **changes)
        assert error.value.argument == argument
    with pytest.raises(OptionError) as error:
        load_encoder(name, weights="none")
    assert error.value.argument == "weights"


def test_defaults_are_logged_once_per_file(onnx_files, tmp_path, caplog):
    file = tmp_path / "copy.onnx"
    file.write_bytes((onnx_files / "pooled.onnx").read_bytes())
    for _ in range(2):
        ((backbone, _),) = load_pretrained(f"onnx:{file}")
    (record,) = caplog.records
    assert all(word in record.getMessage() for word in ("mean, std", "ImageNet", "copy.onnx.json"))
    assert (backbone.info.preprocessing.mean, backbone.info.preprocessing.std) == (
        tuple(IMAGENET["mean"]),
        tuple(IMAGENET["std"]),
    )
    (tmp_path / "copy.onnx.json").write_text(json.dumps({**IMAGENET, "interpolation": "bicubic", "crop_pct": 1}))
    ((changed, _),) = load_pretrained(f"onnx:{file}")
    assert changed.info.preprocessing.crop_pct == 1
    assert len(caplog.records) == 1


def write_graph(path, *, input_shape=("n", 3, 8, 8), output_shape=("n", 3), element=TensorProto.FLOAT, nodes=None):
    """Write a graph that returns the mean colour unless `nodes` say otherwise."""
    mean = [helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Flatten", ["p"], ["y"])]
    inputs = [helper.make_tensor_value_info("x", element, input_shape)]
    outputs = [helper.make_tensor_value_info("y", element, output_shape)]
    graph = helper.make_graph(mean if nodes is None else nodes, "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
    return model


def test_a_graph_for_any_size_gets_the_size_of_its_settings(tmp_path, image_files):
    write_graph(tmp_path / "any.onnx", input_shape=("n", 3, "h", "w"))
    ((backbone, _),) = load_pretrained(f"onnx:{tmp_path / 'any.onnx'}?size=16x24&mean=0&std=1")
    assert (backbone.info.preprocessing.height, backbone.info.preprocessing.width, backbone.width) == (16, 24, 3)
    pixels = np.full((1, 16, 24, 3), [255, 51, 0], np.uint8)
    np.testing.assert_allclose(backbone.submit(pixels)(), [[1, 0.2, 0]], atol=1e-6)


def test_one_of_several_outputs_is_chosen(tmp_path):
    model = write_graph(tmp_path / "two.onnx")
    model.graph.output.append(helper.make_tensor_value_info("p", TensorProto.FLOAT, ("n", 3, 1, 1)))
    onnx.save(model, str(tmp_path / "two.onnx"))
    with pytest.raises(ModelError, match="y, p"):
        load_pretrained(f"onnx:{tmp_path / 'two.onnx'}")
    ((backbone, _),) = load_pretrained(f"onnx:{tmp_path / 'two.onnx'}?output=y")
    assert backbone.width == 3
    with pytest.raises(ModelError, match="per image"):
        load_pretrained(f"onnx:{tmp_path / 'two.onnx'}?output=p")


def mean_over(axes, source="x", result="y", *, keepdims=0):
    return helper.make_node("ReduceMean", [source], [result], axes=axes, keepdims=keepdims)


ZERO = helper.make_node("Constant", [], ["zero"], value=helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0]))
BAD_GRAPHS = {
    "channels last": {"input_shape": ("n", 8, 8, 3), "nodes": [mean_over([1, 2])]},
    "one channel": {"input_shape": ("n", 1, 8, 8), "output_shape": ("n", 1)},
    "three axes": {"input_shape": ("n", 3, 8), "nodes": [mean_over([2])]},
    "double": {"element": TensorProto.DOUBLE},
    "a map": {"output_shape": ("n", 3, 8, 8), "nodes": [helper.make_node("Identity", ["x"], ["y"])]},
    "tokens": {"output_shape": ("n", 3, 8), "nodes": [mean_over([3])]},
    "not finite": {
        "nodes": [
            mean_over([2, 3], result="p"),
            ZERO,
            helper.make_node("Mul", ["p", "zero"], ["z"]),
            helper.make_node("Div", ["z", "z"], ["y"]),
        ]
    },
    "mixed batch": {
        "nodes": [
            mean_over([0], result="p", keepdims=1),
            helper.make_node("Sub", ["x", "p"], ["q"]),
            mean_over([2, 3], source="q"),
        ]
    },
}


@pytest.mark.parametrize("name", BAD_GRAPHS)
def test_other_graphs_are_refused(name, tmp_path):
    write_graph(tmp_path / "bad.onnx", **BAD_GRAPHS[name])
    with pytest.raises(ModelError, match=r"bad\.onnx") as error:
        load_pretrained(f"onnx:{tmp_path / 'bad.onnx'}")
    assert error.value.argument == "model"
    assert "\n" not in str(error.value)


def test_two_inputs_are_refused(tmp_path):
    model = write_graph(tmp_path / "bad.onnx")
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ("n",)))
    model.graph.node.append(helper.make_node("Identity", ["mask"], ["unused"]))
    model.graph.output.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, ("n",)))
    onnx.save(model, str(tmp_path / "bad.onnx"))
    with pytest.raises(ModelError, match="2 inputs"):
        load_pretrained(f"onnx:{tmp_path / 'bad.onnx'}")


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps({"a": 1})])
def test_other_files_are_refused(content, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"bad\.onnx"):
        load_pretrained(f"onnx:{tmp_path / 'bad.onnx'}")


def test_weights_elsewhere_must_be_next_to_the_file(onnx_files, tmp_path):
    (tmp_path / "external.onnx").write_bytes((onnx_files / "external.onnx").read_bytes())
    with pytest.raises(ModelError, match="another file"):
        load_pretrained(f"onnx:{tmp_path / 'external.onnx'}")


@pytest.mark.parametrize(
    "settings",
    [
        *("size=0", "size=1x2x3", "size=99999", "size=a", "mean=1,2", "std=0", "std=nan", "crop_pct=2"),
        *("pool=max", "interpolation=best", "crop_mode=zoom", "sise=8", "size"),
    ],
)
def test_wrong_settings_are_refused(settings, tmp_path):
    write_graph(tmp_path / "any.onnx", input_shape=("n", 3, "h", "w"))
    with pytest.raises(LookalikeError) as error:
        load_pretrained(f"onnx:{tmp_path / 'any.onnx'}?{settings}")
    assert error.value.argument == "model"
