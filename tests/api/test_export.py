"""Exported bundles: the embeddings of the bundle, wherever a model is accepted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lookalike._files import checked_record, with_digest
from lookalike.api import export as export_module
from lookalike.api.embed import embed
from lookalike.api.evaluate import evaluate
from lookalike.api.export import export
from lookalike.api.index import index
from lookalike.api.search import load_index, search
from lookalike.data.layouts import load_dataset
from lookalike.data.validation import with_validation
from lookalike.errors import DataError, MissingExtra, ModelError, OptionError, StorageError
from lookalike.models import pipeline
from lookalike.models.bundle import describe_encoder, read_bundle_info, save_bundle
from lookalike.models.info import TrainingData
from lookalike.progress import SILENT
from lookalike.runtimes import openvino, select
from lookalike.runtimes.cache import RuntimeTiming
from lookalike.runtimes.load import load_encoder
from lookalike.types import Calibration, Comparison

pytest.importorskip("openvino")


@pytest.fixture(scope="session")
def exported_bundle(bundle, tmp_path_factory):
    """The bundle as OpenVINO graphs in float32, compared on generated images; never change it."""
    out = tmp_path_factory.mktemp("exported") / "fast"
    export(bundle, out=out, precision="float32")
    return out


@pytest.fixture
def exported_copy(exported_bundle, tmp_path):
    return Path(shutil.copytree(exported_bundle, tmp_path / "fast"))


@pytest.mark.parametrize(
    ("format", "precision", "atol"),
    [("openvino", "float32", 1e-5), ("openvino", "bfloat16", 0.02), ("onnx", "float32", 1e-5)],
)
def test_embeddings_equal_those_of_the_bundle(bundle, image_files, tmp_path, format, precision, atol):
    if precision not in ("float32", *openvino.float_precisions()):
        pytest.skip(f"this processor has no {precision} arithmetic")
    if format == "onnx":
        pytest.importorskip("onnxscript")
    expected = load_encoder(bundle, runtime="torch").embed(image_files)
    exported = export(bundle, out=tmp_path / "fast", format=format, precision=precision)
    for encoder in (exported.encoder, load_encoder(tmp_path / "fast")):
        embeddings = encoder.embed(image_files)
        np.testing.assert_allclose(embeddings.vectors, expected.vectors, atol=atol)
        assert (embeddings.ids, embeddings.fingerprint) == (expected.ids, expected.fingerprint)
        assert embeddings.precision == precision


def test_a_model_is_compared_in_float32_where_bfloat16_is_the_fastest(bundle, tmp_path, monkeypatch):
    def fastest(_):
        return (RuntimeTiming("torch", "bfloat16", 100.0), RuntimeTiming("torch", "float32", 50.0))

    monkeypatch.setattr(select, "load_timings", fastest)
    exported = export(bundle, out=tmp_path / "exact", precision="float32")
    assert exported.parity.min_cosine > 0.999999


@pytest.mark.parametrize(
    ("format", "graphs"),
    [
        ("openvino", ["member-0.bin", "member-0.xml", "member-1.bin", "member-1.xml"]),
        ("onnx", ["member-0.onnx", "member-1.onnx"]),
    ],
)
def test_an_ensemble_keeps_its_alignment(ensemble_bundle, image_files, tmp_path, format, graphs):
    if format == "onnx":
        pytest.importorskip("onnxscript")
    expected = load_encoder(ensemble_bundle, runtime="torch").embed(image_files)
    export(ensemble_bundle, out=tmp_path / "fast", format=format, precision="float32")
    embeddings = load_encoder(tmp_path / "fast").embed(image_files)
    np.testing.assert_allclose(embeddings.vectors, expected.vectors, atol=1e-5)
    assert embeddings.fingerprint == expected.fingerprint
    assert sorted(p.name for p in (tmp_path / "fast").iterdir()) == ["bundle.json", *graphs, "model.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "kind"), [("openvino", "bundle"), ("onnx", "bundle"), ("openvino", "ensemble_bundle")]
)
def test_int8_is_another_model(request, data_folder_original, image_files, tmp_path, format, kind):
    pytest.importorskip("nncf")
    bundle = request.getfixturevalue(kind)
    exported = export(
        bundle, out=tmp_path / "fast", format=format, precision="int8", data=data_folder_original, tolerance=50
    )
    expected = load_encoder(bundle, runtime="torch").embed(image_files)
    embeddings = exported.encoder.embed(image_files)
    assert embeddings.fingerprint != expected.fingerprint
    cosines = (embeddings.vectors * expected.vectors).sum(1)
    assert cosines.min() > 0.9
    assert cosines.max() < 0.99999
    info = read_bundle_info(tmp_path / "fast")
    assert info.exported_from == expected.fingerprint
    assert info.parity.images == "validation images"
    assert info.parity.validation_images == 8  # 2 of the 6 training images of each class
    assert set(info.parity.measures) == {"precision@3", "hit@1", "map@r"}
    assert load_encoder(tmp_path / "fast").fingerprint == embeddings.fingerprint


def test_the_record_of_the_comparison(bundle, exported_bundle, data_folder_original, tmp_path):
    export(bundle, out=tmp_path / "measured", precision="float32", data=load_dataset(data_folder_original))
    plain, measured = (read_bundle_info(path).parity for path in (exported_bundle, tmp_path / "measured"))
    assert (plain.images, plain.count, plain.measures) == ("generated images", 16, {})
    assert (measured.images, measured.count) == ("validation images", 8)
    assert measured.loss == Comparison(0.0, 0.0, 0.0)
    for before, after in measured.measures.values():
        assert before == after


def test_an_exported_bundle_is_accepted_as_a_model(bundle, exported_bundle, data_folder_original, tmp_path):
    gallery = data_folder_original / "test" / "gallery"
    expected = evaluate(data_folder_original, bundle, runtime="torch")
    assert evaluate(data_folder_original, exported_bundle).to_dict() == expected.to_dict()
    built = index(gallery, exported_bundle, out=tmp_path / "index")
    assert len(built.index) == 12
    query = next((data_folder_original / "test" / "query").iterdir())
    hits = search(tmp_path / "index", [query], top_k=3).hits
    torch_index = index(gallery, bundle, out=tmp_path / "other", runtime="torch").index
    queries = load_encoder(bundle, runtime="torch").embed([query])
    assert hits.ids.tolist() == torch_index.search(queries, 3).ids.tolist()


def test_the_precision_of_an_exported_bundle_cannot_be_changed(exported_bundle, image_files, tmp_path):
    for options in ({"precision": "bfloat16"}, {"runtime": "torch"}):
        with pytest.raises(OptionError, match="exported for openvino in float32"):
            embed(image_files[0].parent, exported_bundle, out=tmp_path / "emb", **options)
    assert load_encoder(exported_bundle, precision="float32").precision == "float32"


def test_the_model_of_an_index_can_be_exported(bundle, data_folder_original, tmp_path):
    calibration = Calibration(12.5, -4.0, 200, 0.02)
    info = replace(read_bundle_info(bundle), calibration=calibration)
    calibrated = save_bundle(load_encoder(bundle), tmp_path / "calibrated", info)
    index(data_folder_original / "test" / "gallery", calibrated, out=tmp_path / "index")
    exported = export(tmp_path / "index", out=tmp_path / "fast", precision="float32")
    assert read_bundle_info(tmp_path / "fast").exported_from == read_bundle_info(bundle).fingerprint
    assert exported.encoder.precision == "float32"
    assert read_bundle_info(tmp_path / "fast").calibration == calibration


@pytest.mark.parametrize(("format", "other"), [("openvino", "onnxruntime"), ("onnx", "openvino")])
def test_searching_with_an_exported_bundle_imports_no_torch(bundle, data_folder_original, tmp_path, format, other):
    if format == "onnx":
        pytest.importorskip("onnxscript")
    export(bundle, out=tmp_path / "fast", format=format)
    index(data_folder_original / "test" / "gallery", tmp_path / "fast", out=tmp_path / "index")
    assert load_index(tmp_path / "index").encoder.runtime == export_module.GRAPH_FORMATS[format]
    query = next((data_folder_original / "test" / "query").iterdir())
    program = (
        "import sys\nimport lookalike as la\n"
        f"assert len(la.search({str(tmp_path / 'index')!r}, [{str(query)!r}], top_k=2)[0]) == 2\n"
        f"print(sorted({{'torch', 'timm', 'torchvision', 'matplotlib', 'nncf', {other!r}}} & set(sys.modules)))"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert process.stdout.strip() == "[]", process.stderr


def refused(error, *args, **options) -> Exception:
    with pytest.raises(error) as caught:
        export(*args, **options)
    return caught.value


def test_invalid_arguments(bundle, exported_bundle, tmp_path):
    out = tmp_path / "fast"
    cases = [
        ("data", {"precision": "int8"}),
        ("format", {"format": "tflite"}),
        ("precision", {"precision": "int4"}),
        ("precision", {"format": "onnx", "precision": "bfloat16"}),
        ("tolerance", {"tolerance": -1}),
        ("tolerance", {"tolerance": float("nan")}),
    ]
    for argument, options in cases:
        assert refused(OptionError, bundle, out=out, **options).argument == argument
    error = refused(ModelError, tmp_path, out=out)
    assert ("is not a bundle" in str(error), error.argument) == (True, "bundle")
    assert refused(OptionError, exported_bundle, out=out).argument == "bundle"
    assert refused(StorageError, bundle, out=exported_bundle).argument == "out"


def test_bfloat16_only_if_it_can_be_measured(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(openvino, "float_precisions", lambda: ("float32",))
    assert refused(OptionError, bundle, out=tmp_path / "fast", precision="bfloat16").argument == "precision"

    def stop(*_, half, **__):
        raise ModelError(f"half: {half}")

    monkeypatch.setattr(export_module, "write_graph", stop)
    assert str(refused(ModelError, bundle, out=tmp_path / "fast")) == "half: False"


def test_a_graph_with_other_embeddings_is_refused(bundle, exported_copy, make_trainable, tmp_path, monkeypatch):
    before = (exported_copy / "bundle.json").read_bytes()
    other, write_graph = make_trainable(seed=9).freeze(), export_module.write_graph

    def write_another(backbone, runtime, file, head, **options):
        write_graph(other.backbone.prepare((), 1, SILENT), runtime, file, other.head, **options)

    monkeypatch.setattr(export_module, "write_graph", write_another)
    error = refused(ModelError, bundle, out=exported_copy, precision="float32", replace=True)
    assert "cosine to the bundle at least" in str(error)
    assert (exported_copy / "bundle.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["fast"]


def test_int8_is_calibrated_on_training_images(bundle, data_folder_original, tmp_path, monkeypatch):
    pytest.importorskip("nncf")
    decoded = set()
    decode = pipeline.decode

    def decode_and_record(item, *args):
        decoded.add(item.id)
        return decode(item, *args)

    def stop(*_, calibration, **__):
        raise ModelError(f"{len(calibration)} images")

    monkeypatch.setattr(pipeline, "decode", decode_and_record)
    monkeypatch.setattr(export_module, "write_graph", stop)
    error = refused(ModelError, bundle, out=tmp_path / "fast", precision="int8", data=data_folder_original)
    data = load_dataset(data_folder_original)
    training = {item.id for item in with_validation(data, seed=0).training}
    assert (decoded, str(error)) == (training, f"{len(training)} images")
    assert 0 < len(training) < len(data.training)


def test_images_that_cannot_be_read_are_listed_and_not_counted(bundle, data_folder, tmp_path):
    validation = with_validation(load_dataset(data_folder), seed=0).validation
    validation[3].path.write_text("not an image")
    exported = export(bundle, out=tmp_path / "fast", precision="float32", data=data_folder)
    assert [file.path for file in exported.skipped] == [validation[3].path]
    assert (exported.parity.count, exported.parity.validation_images) == (7, 7)
    assert read_bundle_info(tmp_path / "fast").parity.validation_images == 7


def test_other_data_than_that_of_the_training_is_refused(bundle, data_folder, tmp_path):
    data = TrainingData(fingerprint="another", images=1, validation_images=0, validation="")
    encoder = load_encoder(bundle)
    save_bundle(encoder, tmp_path / "trained", describe_encoder(encoder, training_data=data))
    index(data_folder / "test" / "gallery", tmp_path / "trained", out=tmp_path / "index")
    for model in (tmp_path / "trained", tmp_path / "index"):
        assert refused(DataError, model, out=tmp_path / "fast", data=data_folder).argument == "data"


def test_a_changed_graph_is_refused(exported_copy):
    out = exported_copy
    with (out / "member-0.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ModelError, match="changed after it was exported"):
        load_encoder(out)
    weights = bytearray((out / "member-0.bin").read_bytes()[:-1])
    weights[len(weights) // 2] ^= 0x7F  # of the right length
    (out / "member-0.bin").write_bytes(weights)
    with pytest.raises(ModelError, match="changed after it was exported"):
        load_encoder(out)
    (out / "member-0.bin").unlink()
    with pytest.raises(ModelError, match="export the model again"):
        load_encoder(out)


def test_a_changed_record_is_refused(exported_copy):
    record = exported_copy / "bundle.json"
    value = checked_record(json.loads(record.read_text()))
    value["members"][0]["backbone"]["preprocessing"]["crop_pct"] = 0.5
    record.write_text(json.dumps(with_digest(value)))
    with pytest.raises(ModelError, match="its record differs"):
        load_encoder(exported_copy)


def test_a_missing_package(bundle, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "the extra onnx" in str(refused(MissingExtra, bundle, out=tmp_path / "fast", format="onnx"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert "OpenVINO is not installed" in str(refused(ModelError, bundle, out=tmp_path / "fast"))
    assert not (tmp_path / "fast").exists()
