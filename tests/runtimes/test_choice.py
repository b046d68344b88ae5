"""Which runtime is taken: what was asked for, or what a measurement found, kept for the next time."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from lookalike.models.devices import computes_bfloat16
from lookalike.models.facts import read_facts
from lookalike.runtimes.bundle import is_exported, load_bundle, save_bundle
from lookalike.runtimes.choice import accelerated
from lookalike.runtimes.exported import ExportedMember
from lookalike.runtimes.kept import Way

from lookalike.errors import ModelError, OptionError
from lookalike.models import graph, lowered
from lookalike.models.encoder import Encoder
from lookalike.runtimes import choice, kept, openvino
from lookalike.runtimes.cache import cache_folder

pytest.importorskip("openvino")


@pytest.fixture
def encoder(make_trainable):
    return Encoder([make_trainable()])


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(choice, "_SECONDS", 0.05)
    monkeypatch.setattr(choice.onnx, "is_installed", lambda: False)  # converting for it takes seconds each time


@pytest.fixture
def rates(monkeypatch):
    """Let each runtime be as fast as the test says, by runtime and precision."""
    table = {("torch", "bfloat16"): 1}

    def rate(runtime, pixels):
        return table[runtime.runtime, runtime.precision]

    monkeypatch.setattr(choice, "rate_of", rate)
    return table


def test_the_fastest_engine_is_taken_and_gives_the_models_embeddings(encoder, image_files, rates, recording_progress):
    rates |= {("torch", "float32"): 10, ("openvino", "float32"): 30, ("openvino", "bfloat16"): 20}
    listener = recording_progress()
    found = accelerated(encoder, image_files, count=10_000, progress=listener)
    (member,) = found.members
    assert (member.runtime, member.precision) == ("openvino", "float32")
    np.testing.assert_allclose(found.embed(image_files).vectors, encoder.embed(image_files).vectors, atol=1e-5)
    assert found.fingerprint == encoder.fingerprint
    assert listener.said[0] == "test_efficientnet: looking for the fastest runtime of this machine, once for this model"
    assert listener.said[1].startswith(
        "test_efficientnet: by openvino in float32 (30 images/s); torch in float32 (10 image"
    )


def test_onnx_runtime_is_taken_where_it_is_fastest(encoder, image_files, rates, monkeypatch, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(choice.onnx, "is_installed", lambda: True)
    monkeypatch.setattr(choice.openvino, "is_installed", lambda: False)
    rates |= {("torch", "float32"): 10, ("onnxruntime", "float32"): 30}
    found = accelerated(encoder, image_files, count=10_000)
    (member,) = found.members
    assert (member.runtime, member.precision, found.fingerprint) == ("onnxruntime", "float32", encoder.fingerprint)
    np.testing.assert_allclose(found.embed(image_files).vectors, encoder.embed(image_files).vectors, atol=1e-5)
    save_bundle(encoder, tmp_path / "bundle")
    again = choice.remembered(tmp_path / "bundle", read_facts(tmp_path / "bundle"), precision="float32", single=True)
    assert again.members[0].runtime == "onnxruntime"
    kept.graph_of(encoder.fingerprint, "onnxruntime").write_bytes(b"damaged")
    mended = accelerated(encoder, image_files, count=10_000)
    assert mended.members[0].runtime == "onnxruntime"
    np.testing.assert_allclose(mended.embed(image_files).vectors, encoder.embed(image_files).vectors, atol=1e-5)


def test_an_onnx_runtime_that_fails_is_left_out(encoder, image_files, rates, monkeypatch, recording_progress):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(choice.onnx, "is_installed", lambda: True)
    monkeypatch.setattr(choice.openvino, "is_installed", lambda: False)
    monkeypatch.setattr(kept.onnx, "write", lambda _, file, **__: file.write_bytes(b"no graph"))
    rates |= {("torch", "float32"): 10, ("onnxruntime", "float32"): 30}
    listener = recording_progress()
    assert accelerated(encoder, image_files, count=10_000, progress=listener).members == encoder.members
    assert any("onnxruntime in float32 is left out: " in said for said in listener.said)


def test_torch_stays_where_it_is_fastest(encoder, image_files, rates):
    rates |= {("torch", "float32"): 90, ("openvino", "float32"): 30, ("openvino", "bfloat16"): 20}
    assert accelerated(encoder, image_files, count=10_000).members == encoder.members


def test_what_was_measured_is_kept(encoder, image_files, rates, monkeypatch):
    rates |= {("torch", "float32"): 10, ("openvino", "float32"): 30, ("openvino", "bfloat16"): 20}
    accelerated(encoder, image_files, count=10_000)
    measure = choice._measure
    monkeypatch.setattr(choice, "_measure", lambda *_: pytest.fail("was measured again"))
    (member,) = accelerated(encoder, image_files, count=1).members
    assert member.runtime == "openvino"
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(kept, "processor", lambda: "another")
        assert accelerated(encoder, image_files, count=1).members == encoder.members
        elsewhere.setattr(choice, "_measure", measure)
        accelerated(encoder, image_files, count=10_000)
    assert (
        accelerated(encoder, image_files, count=1).members[0].runtime == "openvino"
    )  # one machine forgets not the other


def test_a_few_pictures_are_not_worth_measuring(encoder, image_files, monkeypatch):
    monkeypatch.setattr(choice, "_measure", lambda *_: pytest.fail("was measured"))
    assert accelerated(encoder, image_files, count=choice.WORTH_IT - 1).members == encoder.members


def test_what_is_asked_for_is_taken(encoder, image_files, rates):
    rates |= {("torch", "float32"): 90, ("openvino", "float32"): 30, ("openvino", "bfloat16"): 40}
    (member,) = accelerated(encoder, image_files, count=1, runtime="openvino", precision="float32").members
    assert (member.runtime, member.precision) == ("openvino", "float32")
    assert accelerated(encoder, image_files, count=1, runtime="torch").members == encoder.members


def test_where_torch_is_asked_for_nothing_is_converted(encoder, image_files, rates, monkeypatch):
    rates |= {("torch", "float32"): 10, ("openvino", "float32"): 30, ("openvino", "bfloat16"): 20}
    monkeypatch.setattr(graph, "program_of", lambda *_, **__: pytest.fail("was converted"))
    assert accelerated(encoder, image_files, count=10_000, runtime="torch").members == encoder.members
    monkeypatch.undo()
    assert kept.known_ways(encoder.members[0].fingerprint) is None  # of the others nothing is known


def test_what_another_device_was_fastest_with_is_not_taken(encoder, image_files, rates):
    kept.keep_ways(encoder.members[0].fingerprint, [kept.Way("openvino", "float32", 9.0)], "cuda")
    assert accelerated(encoder, image_files, count=1).members == encoder.members


def test_batches_that_are_timed_are_full(make_trainable, pixels):
    class Counts:
        batch_size, in_flight = 4, 1

        def __init__(self):
            self.sizes = []

        def encode(self, pixels):
            self.sizes.append(len(pixels))

        def submit(self, pixels):
            self.encode(pixels)
            return lambda: None

    shown = pixels(make_trainable())
    for few in (shown, shown[:3]):
        runtime = Counts()
        choice.rate_of(runtime, few, seconds=0.01)
        assert set(runtime.sizes) == {4}


def test_an_engine_that_gives_other_embeddings_is_left_out(
    encoder, image_files, rates, monkeypatch, recording_progress
):
    rates |= {("torch", "float32"): 10, ("openvino", "float32"): 30, ("openvino", "bfloat16"): 99}
    monkeypatch.setattr(choice, "LEAST_COSINE", {"float32": 0.999, "bfloat16": 1.1})  # torch in bfloat16 goes too
    monkeypatch.setattr(openvino, "precisions", lambda: ("bfloat16", "float32"))
    listener = recording_progress()
    (member,) = accelerated(encoder, image_files, count=10_000, progress=listener).members
    assert member.precision == "float32"
    told = "test_efficientnet: openvino in bfloat16 is left out, a cosine to float32 is "
    assert any(text.startswith(told) for text in listener.said)


def test_rates_are_images_a_second(encoder, image_files):
    found = accelerated(encoder, image_files, count=10_000, runtime="openvino")
    assert isinstance(found.members[0], ExportedMember)
    (stored,) = cache_folder().rglob("rates-*.json")
    ways = json.loads(stored.read_text())["ways"]
    assert {w["runtime"] for w in ways} == {"torch", "openvino"}
    assert all(Way(**w).rate > 1 for w in ways)


def test_without_pictures_that_can_be_read_blank_ones_are_timed(encoder, tmp_path, rates):
    rates |= {("torch", "float32"): 10, ("openvino", "float32"): 30, ("openvino", "bfloat16"): 20}
    (member,) = accelerated(encoder, [tmp_path / "absent.jpg"], count=10_000).members
    assert member.runtime == "openvino"


def test_a_bundle_is_searched_by_the_engine_that_was_chosen_for_it(encoder, image_files, rates, tmp_path, monkeypatch):
    rates |= {("torch", "float32"): 10, ("openvino", "float32"): 30, ("openvino", "bfloat16"): 20}
    save_bundle(encoder, tmp_path / "model")
    facts = read_facts(tmp_path / "model")
    assert choice.remembered(tmp_path / "model", facts, precision="auto", single=True) is None
    accelerated(encoder, image_files, count=10_000)
    quick = load_bundle(tmp_path / "model", single=True)
    assert isinstance(quick.members[0], ExportedMember)
    np.testing.assert_allclose(quick.embed(image_files).vectors, encoder.embed(image_files).vectors, atol=1e-5)
    code = f"""
import sys
from lookalike.engines import load_bundle
load_bundle({str(tmp_path / "model")!r}, single=True)
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr
    exact = load_bundle(tmp_path / "model", single=True, precision="bfloat16")
    assert exact.precision == ("bfloat16" if "bfloat16" in openvino.precisions() else "float32")
    kept.graph_of(encoder.fingerprint).with_suffix(".bin").unlink()
    assert not isinstance(load_bundle(tmp_path / "model", single=True).members[0], ExportedMember)


def test_a_cache_that_cannot_be_written_is_done_without(
    encoder, image_files, rates, tmp_path, monkeypatch, recording_progress
):
    rates |= {("torch", "float32"): 10, ("openvino", "float32"): 30, ("openvino", "bfloat16"): 20}
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "file" / "cache"))
    listener = recording_progress()
    assert accelerated(encoder, image_files, count=10_000, progress=listener).members == encoder.members
    assert any(" is left out: " in text and "cannot be written" in text for text in listener.said)
    with pytest.raises(OptionError, match=r"cannot be computed by openvino in auto here, .* there is: torch"):
        accelerated(encoder, image_files, count=10_000, runtime="openvino")


def test_without_openvino_torch_computes(encoder, image_files, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert accelerated(encoder, image_files, count=10_000).members[0].runtime == "torch"
    with pytest.raises(ModelError, match="OpenVINO is not installed; install it with"):
        accelerated(encoder, image_files, count=10_000, runtime="openvino", precision="bfloat16")


def test_a_model_that_cannot_be_converted_stays_with_torch(encoder, image_files, monkeypatch, recording_progress):
    def refuse(_, *, head):
        raise RuntimeError("no rule for\nthis operation")

    monkeypatch.setattr(graph, "program_of", refuse)
    listener = recording_progress()
    assert accelerated(encoder, image_files, count=10_000, progress=listener).members[0].runtime == "torch"
    assert (
        "test_efficientnet: openvino in float32 is left out: test_efficientnet cannot be converted to OpenVINO "
        "(no rule for); use it with torch."
    ) in listener.said
    monkeypatch.setattr(choice, "_measure", lambda *_: pytest.fail("was tried again"))
    assert accelerated(encoder, image_files, count=10_000).members[0].runtime == "torch"


def test_a_precision_that_is_asked_for_is_kept_or_refused(encoder, image_files, rates, monkeypatch):
    rates |= {("torch", "float32"): 10, ("openvino", "float32"): 30, ("openvino", "bfloat16"): 20}
    if computes_bfloat16(torch.device("cpu")):
        found = accelerated(encoder, image_files, count=10_000, runtime="torch", precision="bfloat16")
        assert (found.members[0].runtime, found.precision) == ("torch", "bfloat16")
    monkeypatch.setattr(lowered, "computes_bfloat16", lambda _: False)
    with pytest.raises(ModelError, match="cpu does not compute in bfloat16 here; leave out precision"):
        accelerated(encoder, image_files, count=10_000, runtime="torch", precision="bfloat16")
    if "bfloat16" in openvino.precisions():
        assert accelerated(encoder, image_files, count=1, precision="bfloat16").precision == "bfloat16"
    assert accelerated(encoder, image_files, count=1, precision="float32").precision == "float32"


def test_each_member_may_have_its_own_precision(make_trainable, image_files, rates):
    rates |= {("torch", "float32"): 10, ("openvino", "float32"): 30, ("openvino", "bfloat16"): 20}
    if "bfloat16" not in openvino.precisions():
        pytest.skip("this processor does not compute in bfloat16")
    both = Encoder([make_trainable(), make_trainable("test_resnet")], "average")
    found = accelerated(both, image_files, count=10_000, precision="float32+bfloat16")
    assert found.precision == "float32+bfloat16"
    with pytest.raises(OptionError, match="is of 2 members, the model has 1"):
        accelerated(Encoder(both.members[:1]), image_files, count=1, precision="float32+bfloat16")


def test_an_aligned_ensemble_is_searched_without_torch_too(make_trainable, image_files, rates, tmp_path):
    rates |= {("torch", "float32"): 10, ("openvino", "float32"): 30, ("openvino", "bfloat16"): 20}
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(512, 512)))[0].astype(np.float32)
    both = Encoder([make_trainable(), make_trainable("test_resnet")], "aligned", [None, turn])
    save_bundle(both, tmp_path / "model")
    accelerated(both, image_files, count=10_000)
    quick = load_bundle(tmp_path / "model", single=True)
    assert all(isinstance(m, ExportedMember) for m in quick.members)
    np.testing.assert_allclose(quick.embed(image_files).vectors, both.embed(image_files).vectors, atol=1e-5)
    assert quick.fingerprint == both.fingerprint


@pytest.mark.parametrize("damage", ["missing .bin", "cut .xml", "no .xml"])
def test_a_graph_that_went_bad_is_made_again(encoder, image_files, rates, tmp_path, damage):
    rates |= {("torch", "float32"): 10, ("openvino", "float32"): 30, ("openvino", "bfloat16"): 20}
    save_bundle(encoder, tmp_path / "model")
    accelerated(encoder, image_files, count=10_000)
    place = kept.graph_of(encoder.fingerprint)
    if damage == "cut .xml":
        place.write_bytes(place.read_bytes()[:200])
    else:
        place.with_suffix(damage[-4:]).unlink()
    assert not isinstance(load_bundle(tmp_path / "model", single=True).members[0], ExportedMember)
    assert accelerated(encoder, image_files, count=10_000).members[0].runtime == "openvino"
    assert isinstance(load_bundle(tmp_path / "model", single=True).members[0], ExportedMember)


@pytest.mark.parametrize("facts", [{}, {"members": None}, {"members": ["x"]}, {"members": [{"fingerprint": 3}]}])
def test_a_description_that_does_not_fit_remembers_nothing(tmp_path, facts):
    assert choice.remembered(tmp_path, facts, precision="auto", single=True) is None
    assert not is_exported(facts)


@pytest.mark.parametrize(("runtime", "precision"), [("tensorrt", "auto"), ("auto", "int8")])
def test_what_there_is_not_is_refused(encoder, image_files, runtime, precision):
    with pytest.raises(OptionError, match=f"got '{runtime if runtime != 'auto' else precision}'"):
        accelerated(encoder, image_files, count=1, runtime=runtime, precision=precision)
