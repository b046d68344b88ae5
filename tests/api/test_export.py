"""Exported bundles: the embeddings of the bundle, through every door that a bundle goes through."""

import json
import subprocess
import sys

import numpy as np
import pytest
from lookalike.models.facts import read_facts
from lookalike.runtimes.bundle import load_bundle

from lookalike.api.embed import index
from lookalike.api.evaluate import evaluate
from lookalike.api.export import export
from lookalike.api.search import search
from lookalike.data.layouts import load_dataset
from lookalike.data.split import with_validation
from lookalike.errors import DataError, MissingExtra, ModelError, OptionError, StorageError
from lookalike.runtimes import openvino

pytest.importorskip("openvino")


@pytest.mark.parametrize(
    ("format", "precision", "atol"),
    [("openvino", "float32", 1e-5), ("openvino", "bfloat16", 0.02), ("onnx", "float32", 1e-5)],
)
def test_embeddings_are_the_bundles(small_bundle, pictures, tmp_path, format, precision, atol):
    if precision not in ("float32", *openvino.precisions()):
        pytest.skip(f"this processor does not compute in {precision}")
    expected = load_bundle(small_bundle).embed(pictures)
    exported = export(small_bundle, out=tmp_path / "fast", format=format, precision=precision)
    for encoder in (exported, load_bundle(tmp_path / "fast"), load_bundle(tmp_path / "fast", single=True)):
        found = encoder.embed(pictures)
        np.testing.assert_allclose(found.vectors, expected.vectors, atol=atol)
        assert found.ids == expected.ids
        assert found.fingerprint == expected.fingerprint


@pytest.mark.parametrize(
    ("format", "graphs"),
    [
        ("openvino", ["member-0.bin", "member-0.xml", "member-1.bin", "member-1.xml"]),
        ("onnx", ["member-0.onnx", "member-1.onnx"]),
    ],
)
def test_an_ensemble_keeps_its_alignment(ensemble_bundle, pictures, tmp_path, format, graphs):
    expected = load_bundle(ensemble_bundle).embed(pictures)
    export(ensemble_bundle, out=tmp_path / "fast", format=format, precision="float32")
    found = load_bundle(tmp_path / "fast").embed(pictures)
    np.testing.assert_allclose(found.vectors, expected.vectors, atol=1e-5)
    assert found.fingerprint == expected.fingerprint
    assert sorted(p.name for p in (tmp_path / "fast").iterdir()) == ["alignments.npz", "bundle.json", *graphs]


@pytest.mark.slow
@pytest.mark.parametrize(("format", "kind"), [("openvino", "small"), ("onnx", "small"), ("openvino", "ensemble")])
def test_int8_is_another_model(request, photo_folder_original, pictures, tmp_path, format, kind):
    pytest.importorskip("nncf")
    bundle = request.getfixturevalue(f"{kind}_bundle")
    exported = export(
        bundle, out=tmp_path / "fast", format=format, precision="int8", data=photo_folder_original, tolerance=50
    )
    expected = load_bundle(bundle).embed(pictures)
    found = exported.embed(pictures)
    assert found.fingerprint != expected.fingerprint
    cosines = (found.vectors * expected.vectors).sum(1)
    assert cosines.min() > 0.9
    assert cosines.max() < 0.99999
    facts = read_facts(tmp_path / "fast")
    assert facts["exported_from"] == expected.fingerprint
    assert facts["parity"]["pictures"] == "validation images"
    assert facts["parity"]["validation_images"] == 8  # 2 of each class's 6 training images
    assert set(facts["parity"]["measures"]) == {"precision@3", "hit@1", "map@r"}
    assert load_bundle(tmp_path / "fast").fingerprint == found.fingerprint


def test_what_was_compared_stands_in_the_bundle(small_bundle, photo_folder_original, tmp_path):
    export(small_bundle, out=tmp_path / "plain", precision="float32")
    export(small_bundle, out=tmp_path / "measured", precision="float32", data=load_dataset(photo_folder_original))
    plain, measured = (read_facts(tmp_path / name)["parity"] for name in ("plain", "measured"))
    assert (plain["pictures"], plain["images"], plain["measures"]) == ("generated pictures", 16, {})
    assert (measured["pictures"], measured["images"]) == ("validation images", 8)
    assert measured["loss"] == {"difference": 0.0, "low": 0.0, "high": 0.0}
    for before, after in measured["measures"].values():
        assert before == after


def test_an_exported_bundle_is_a_model_like_any_other(small_bundle, photo_folder_original, tmp_path):
    export(small_bundle, out=tmp_path / "fast", precision="float32")
    expected, _ = evaluate(photo_folder_original, small_bundle)
    found, _ = evaluate(photo_folder_original, tmp_path / "fast")
    assert found.to_dict() == expected.to_dict()
    made = index(photo_folder_original / "test" / "gallery", tmp_path / "fast", out=tmp_path / "index")
    assert len(made.index) == 12
    query = next((photo_folder_original / "test" / "query").iterdir())
    hits = search(tmp_path / "index", [query], top_k=3).hits
    with_torch = index(
        photo_folder_original / "test" / "gallery", small_bundle, out=tmp_path / "other", runtime="torch"
    )
    queries = load_bundle(small_bundle).embed([query])
    assert hits.ids.tolist() == with_torch.index.search(queries, 3).ids.tolist()


def test_the_model_of_an_index_can_be_exported(small_bundle, photo_folder_original, tmp_path):
    index(photo_folder_original / "test" / "gallery", small_bundle, out=tmp_path / "index")
    made = export(tmp_path / "index", out=tmp_path / "fast", precision="float32")
    assert read_facts(tmp_path / "fast")["exported_from"] == load_bundle(small_bundle).fingerprint
    assert made.precision == "float32"


@pytest.mark.parametrize(("format", "other"), [("openvino", "onnxruntime"), ("onnx", "openvino")])
def test_searching_by_an_exported_bundle_imports_no_torch(small_bundle, photo_folder_original, tmp_path, format, other):
    export(small_bundle, out=tmp_path / "fast", format=format)
    index(photo_folder_original / "test" / "gallery", tmp_path / "fast", out=tmp_path / "index")
    query = next((photo_folder_original / "test" / "query").iterdir())
    program = (
        "import sys\nfrom lookalike.cli.main import run\n"
        f"code = run(['search', {str(tmp_path / 'index')!r}, {str(query)!r}, '-k', '2', '--json'])\n"
        f"heavy = {{'torch', 'timm', 'torchvision', 'matplotlib', 'nncf', {other!r}}} & set(sys.modules)\n"
        "sys.exit(code or (f'imported: {heavy}' if heavy else 0))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["queries"][0]["hits"]) == 2


def refused(kind, sentence, *args, **given):
    with pytest.raises(kind) as raised:
        export(*args, **given)
    assert str(raised.value).startswith(sentence)


def test_what_is_refused(small_bundle, photo_folder_original, tmp_path):
    out = tmp_path / "fast"
    refused(OptionError, "int8 needs the data that the bundle", small_bundle, out=out, precision="int8")
    refused(OptionError, "format must be one of openvino, onnx, got 'tflite'", small_bundle, out=out, format="tflite")
    refused(OptionError, "precision must be one of auto, float32", small_bundle, out=out, precision="int4")
    refused(
        OptionError,
        "precision must be float32 or int8 with onnx",
        small_bundle,
        out=out,
        format="onnx",
        precision="bfloat16",
    )
    refused(OptionError, "tolerance must be at least 0", small_bundle, out=out, tolerance=-1)
    refused(ModelError, f"{tmp_path} is not a bundle", tmp_path, out=out)
    export(small_bundle, out=out, precision="float32")
    refused(OptionError, f"{out} is an exported model", out, out=tmp_path / "again")
    refused(StorageError, f"{out} already exists", small_bundle, out=out)


def test_bfloat16_only_where_it_can_be_measured(small_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(openvino, "precisions", lambda: ("float32",))
    sentence = "this processor does not compute in bfloat16, so what an export loses by it cannot be measured here"
    refused(OptionError, sentence, small_bundle, out=tmp_path / "fast", precision="bfloat16")
    assert export(small_bundle, out=tmp_path / "fast").precision == "float32"


def test_a_graph_that_gives_other_embeddings_is_not_put_in_place(small_bundle, make_trainable, tmp_path, monkeypatch):
    out = tmp_path / "fast"
    export(small_bundle, out=out, precision="float32")
    before = (out / "bundle.json").read_bytes()
    module = sys.modules["lookalike.api.export"]
    plain = module._write_graph
    monkeypatch.setattr(module, "_write_graph", lambda _, *rest: plain(make_trainable(seed=9), *rest))
    sentence = "float32 moves embeddings too far: cosine to the bundle at least "
    refused(ModelError, sentence, small_bundle, out=out, precision="float32", replace=True)
    assert (out / "bundle.json").read_bytes() == before
    refused(ModelError, sentence, small_bundle, out=tmp_path / "new", precision="float32")
    assert [p.name for p in tmp_path.iterdir()] == ["fast"]


def test_int8_is_calibrated_on_training_images_alone(small_bundle, photo_folder_original, tmp_path, monkeypatch):
    module = sys.modules["lookalike.api.export"]
    plain, seen = module._pixels, {}

    def noted(member, items, progress, task):
        seen[task] = {item.id for item in items}
        return plain(member, items, progress, task)

    def stop(*_, **__):
        raise ModelError("calibrated")

    monkeypatch.setattr(module, "_pixels", noted)
    monkeypatch.setattr(module, "_write_graph", stop)
    pytest.importorskip("nncf")
    refused(ModelError, "calibrated", small_bundle, out=tmp_path / "f", precision="int8", data=photo_folder_original)
    data = load_dataset(photo_folder_original)
    trained = {item.id for item in with_validation(data, seed=0).training}
    assert seen == {"calibration": trained}
    assert 0 < len(trained) < len(data.training)


def test_other_data_than_the_bundles_is_refused(small_bundle, photo_folder, tmp_path):
    facts = read_facts(small_bundle)
    trained = tmp_path / "trained"
    encoder = load_bundle(small_bundle)
    from lookalike.runtimes.bundle import save_bundle

    save_bundle(encoder, trained, facts={**facts, "training_data": {"fingerprint": "another"}})
    index(photo_folder / "test" / "gallery", trained, out=tmp_path / "index")
    for model in (trained, tmp_path / "index"):
        refused(
            DataError, "the bundle was not trained on the images in", model, out=tmp_path / "fast", data=photo_folder
        )


def test_a_changed_graph_is_refused(small_bundle, tmp_path):
    out = tmp_path / "fast"
    export(small_bundle, out=out, precision="float32")
    with (out / "member-0.bin").open("ab") as handle:
        handle.write(b"x")
    with pytest.raises(ModelError, match="was changed after it was exported"):
        load_bundle(out)
    weights = bytearray((out / "member-0.bin").read_bytes()[:-1])
    weights[len(weights) // 2] ^= 0x7F  # of the right length
    (out / "member-0.bin").write_bytes(weights)
    with pytest.raises(ModelError, match="was changed after it was exported"):
        load_bundle(out)
    (out / "member-0.bin").unlink()
    with pytest.raises(ModelError, match="export the model again"):
        load_bundle(out)


def test_a_missing_runtime_names_its_extra(small_bundle, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtra, match=r"needs the package onnxscript.* run: pip install 'lookalike\[onnx\]'"):
        export(small_bundle, out=tmp_path / "fast", format="onnx")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ModelError, match="OpenVINO is not installed; install it with"):
        export(small_bundle, out=tmp_path / "fast")
    assert not (tmp_path / "fast").exists()
