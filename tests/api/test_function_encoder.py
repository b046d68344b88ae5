"""A Python function through every verb: embed, index, search, evaluate, submit, benchmark, train, refit."""

from __future__ import annotations

import json

import numpy as np
import pytest

import lookalike as la
from lookalike.benchmark import benchmark as benchmark_module
from lookalike.errors import ModelError, OptionError
from lookalike.models.bundle import read_bundle_info
from lookalike.progress import SILENT


def mean_colour(pixels):
    return pixels.mean(axis=(1, 2)) / 255


@pytest.fixture
def colours():
    return la.as_encoder(mean_colour, dim=3, name="colours", fingerprint="1", size=16)


def test_embed_resumes_with_the_same_function(colours, images, tmp_path, decoded):
    first = la.embed(images, colours, out=tmp_path / "emb", progress=SILENT)
    assert (first.vectors.shape, len(decoded)) == ((12, 3), 12)
    again = la.embed(images, colours, out=tmp_path / "emb", progress=SILENT)
    np.testing.assert_array_equal(again.vectors, first.vectors)
    assert len(decoded) == 12
    with pytest.raises(ModelError, match="colours"):
        other = la.as_encoder(mean_colour, dim=3, name="colours", fingerprint="2", size=16)
        la.embed(images, other, out=tmp_path / "emb", progress=SILENT)


def test_an_index_asks_for_the_function(colours, images, tmp_path):
    la.index(images, colours, out=tmp_path / "index", progress=SILENT)
    query = next(images.glob("*.jpg"))
    with pytest.raises(ModelError, match="colours") as error:
        la.search(tmp_path / "index", [query], progress=SILENT)
    assert error.value.argument == "functions"
    loaded = la.load_index(tmp_path / "index", functions=[colours])
    result = loaded.search([query], top_k=3, progress=SILENT)
    vectors = colours.embed(sorted(images.rglob("*.jpg"))).vectors
    query_vector = colours.embed([query]).vectors[0]
    expected = np.sort(vectors @ query_vector)[::-1][1:4]  # the first is the query itself
    np.testing.assert_allclose([hit.score for hit in result[0]], expected, atol=1e-6)


def test_evaluate_and_submit(colours, data_folder, tmp_path):
    evaluation = la.evaluate(data_folder, colours, progress=SILENT)
    assert evaluation.mean("hit@10") == 1  # 12 images of 4 colourful scenes
    la.submit(data_folder, colours, out=tmp_path / "submission.json", progress=SILENT)
    assert len(json.loads((tmp_path / "submission.json").read_text())["images"]) == 8


def test_a_benchmark_measures_it_frozen_and_in_ensembles(colours, data_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_module, "write_report", lambda *_, **__: None)
    backbones = [colours, la.as_encoder(mean_colour, dim=3, name="others", fingerprint="1", size=8)]
    run = la.benchmark(data_folder, backbones, out=tmp_path / "run", progress=SILENT)
    names = [trial.name for trial in run.trials]
    assert names[:2] == ["colours frozen", "others frozen"]
    assert {trial.combination for trial in run.trials[2:]} == {"aligned", "average", "concat"}
    assert run.trials[0].timing.runtime == "python in float32"
    best = read_bundle_info(tmp_path / "run" / "best")
    assert la.load_encoder(tmp_path / "run" / "best", functions=backbones).fingerprint == best.fingerprint
    again = la.benchmark(data_folder, backbones, out=tmp_path / "run", progress=SILENT)
    assert [trial.name for trial in again.trials] == names


def test_its_head_is_trained_and_refitted_with_a_crop(colours, data_folder, tmp_path):
    crop = la.Crop("left", lambda image: (0, 0, image.width / 2, image.height))
    out, again, options = tmp_path / "model", tmp_path / "again", {"frozen": True, "crop": crop, "progress": SILENT}
    encoder = la.train(data_folder, [colours], out=out, **options)
    assert (encoder.name, encoder.dim, encoder.preprocessing.crop) == ("colours", 512, "left")
    assert la.train(data_folder, colours, out=out, resume=True, **options).fingerprint == encoder.fingerprint
    functions = [colours, crop]
    la.submit(data_folder, out, functions=functions, out=tmp_path / "submission.json", progress=SILENT)
    refitted = la.refit(data_folder, out, out=tmp_path / "final", functions=functions, progress=SILENT)
    assert read_bundle_info(tmp_path / "final").refit_of == encoder.fingerprint != refitted.fingerprint
    with pytest.raises(ModelError, match="left"):
        la.evaluate(data_folder, out, functions=[colours], progress=SILENT)
    for missing, error, argument in (([crop], ModelError, "functions"), ([colours], OptionError, "crop")):
        with pytest.raises(error) as caught:
            la.refit(data_folder, out, out=again, functions=missing, progress=SILENT)
        assert caught.value.argument == argument


def test_what_a_training_refuses(colours, data_folder, encoder):
    for backbone, changes, argument in (
        (colours, {}, "frozen"),
        (encoder, {"frozen": True}, "backbone"),
        ([], {"frozen": True}, "backbone"),
        (colours, {"frozen": True, "weights": {"colours": "none"}}, "weights"),
        (colours, {"frozen": True, "side": 0.5}, "pooling"),
        (colours, {"frozen": True, "crop": "left"}, "crop"),
        (colours, {"frozen": True, "crop": len}, "crop"),
    ):
        with pytest.raises(OptionError) as error:
            la.train(data_folder, backbone, progress=SILENT, **changes)
        assert error.value.argument == argument


def test_what_a_benchmark_refuses(colours, data_folder, encoder):
    for backbones, changes, argument in (
        ([encoder], {}, "backbones"),
        ([colours, la.as_encoder(mean_colour, dim=3, name="colours", fingerprint="2")], {}, "backbones"),
        ([colours], {"finetune": ["colours"]}, "finetune"),
        ([colours], {"crop": la.Crop("all", lambda _: None)}, "crop"),
    ):
        with pytest.raises(OptionError) as error:
            la.benchmark(data_folder, backbones, progress=SILENT, **changes)
        assert error.value.argument == argument
