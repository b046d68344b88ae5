"""Selection: the fastest runtime that computes what torch computes, and requests that cannot be fulfilled."""

import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from lookalike.errors import ModelError, OptionError
from lookalike.models import torch_backbone
from lookalike.models.encoder import Encoder, Ensemble
from lookalike.models.info import GraphInfo
from lookalike.models.pipeline import File
from lookalike.models.torch_backbone import TorchBackbone, has_bfloat16
from lookalike.models.trainable import build_trainable
from lookalike.progress import SILENT
from lookalike.runtimes import cache, onnx, openvino, select
from lookalike.runtimes.cache import GraphCache, RuntimeTiming, load_timings, save_timings
from lookalike.runtimes.graphs import GRAPH_RUNTIMES, write_graph
from lookalike.runtimes.select import MIN_IMAGES, AutoBackbone, TorchWeights, measure_rate, with_runtime

pytest.importorskip("openvino")

MANY = 10_000  # images
OPENVINO_FASTEST = {
    ("torch", "float32"): 10,
    ("torch", "bfloat16"): 1,
    ("openvino", "float32"): 30,
    ("openvino", "bfloat16"): 20,
}
TORCH_FASTEST = {**OPENVINO_FASTEST, ("torch", "float32"): 90}


@pytest.fixture
def set_rates(monkeypatch):
    """Let the measured rates be those of a table, without ONNX Runtime unless the table has it."""

    def set_rates(table):
        monkeypatch.setattr(select, "measure_rate", lambda runner, *_: table[runner.runtime, runner.precision])
        if ("onnxruntime", "float32") not in table:
            monkeypatch.setattr(onnx, "is_installed", lambda: False)

    return set_rates


@pytest.fixture
def no_measuring(monkeypatch):
    monkeypatch.setattr(select, "measure_rate", lambda *_: pytest.fail("a runtime was timed"))


def fail(*_):
    pytest.fail("a graph was made")


def prepare(encoder, sample, count=MANY, progress=SILENT, runtime="auto", precision="auto"):
    return with_runtime(encoder, runtime, precision).prepare(sample, count, progress)


def runtime_of(encoder):
    return encoder.runtime, encoder.precision


# ---------------------------------------------------------------- auto


@pytest.mark.usefixtures("graph_cache")
def test_the_fastest_runtime_is_selected(encoder, sample, image_files, set_rates, recording_progress):
    set_rates(OPENVINO_FASTEST)
    progress = recording_progress()
    prepared = prepare(encoder, sample, progress=progress)
    assert runtime_of(prepared) == ("openvino", "float32")
    assert prepared.fingerprint == encoder.fingerprint
    np.testing.assert_allclose(prepared.embed(image_files).vectors, encoder.embed(image_files).vectors, atol=1e-5)
    assert "test_efficientnet: running on openvino float32 30 images/s" in progress.messages
    rates = {(timing.runtime, timing.precision): timing.rate for timing in load_timings(encoder.info.backbone)}
    assert rates.items() <= OPENVINO_FASTEST.items()
    assert ("openvino", "float32") in rates


def test_onnx_runtime_is_selected_where_it_is_fastest(encoder, sample, image_files, graph_cache, set_rates):
    onnx.require_packages()
    set_rates({**OPENVINO_FASTEST, ("onnxruntime", "float32"): 99})
    prepared = prepare(encoder, sample)
    assert runtime_of(prepared) == ("onnxruntime", "float32")
    np.testing.assert_allclose(prepared.embed(image_files).vectors, encoder.embed(image_files).vectors, atol=1e-5)


def test_torch_is_selected_where_it_is_fastest(encoder, sample, graph_cache, set_rates):
    set_rates(TORCH_FASTEST)
    prepared = prepare(encoder, sample)
    assert runtime_of(prepared) == ("torch", "float32")
    assert prepared.backbone is encoder.backbone


@pytest.mark.usefixtures("graph_cache", "no_measuring")
def test_rates_are_measured_once_per_architecture_and_machine(encoder, make_trainable, sample, monkeypatch):
    save_timings(
        encoder.info.backbone, [RuntimeTiming("torch", "float32", 10), RuntimeTiming("openvino", "float32", 30)]
    )
    assert runtime_of(prepare(encoder, sample, count=1)) == ("openvino", "float32")
    other_weights = make_trainable(seed=1).freeze()
    assert load_timings(other_weights.info.backbone) == load_timings(encoder.info.backbone)
    with monkeypatch.context() as other_machine:
        other_machine.setattr(cache, "cpu_name", lambda: "another processor")
        assert runtime_of(prepare(encoder, sample, count=1)) == ("torch", "float32")
    assert runtime_of(prepare(encoder, sample, count=1)) == ("openvino", "float32")


def test_noisy_rates_are_measured_again(encoder, sample, monkeypatch, recording_progress):
    monkeypatch.setattr(select, "_available_runtimes", lambda _: [("torch", "float32")])
    monkeypatch.setattr(select, "_MAX_SPREAD", 1.5)
    progress = recording_progress()
    rates = iter([10.0, 90.0, 95.0, 100.0])
    monkeypatch.setattr(select, "measure_rate", lambda *_: next(rates))
    with_runtime(encoder).prepare(sample, MIN_IMAGES, progress)
    assert [t.rate for t in load_timings(encoder.info.backbone)] == [100.0]
    assert any("timing again" in line for line in progress.messages)


def test_the_message_says_why_a_faster_precision_is_not_used(encoder, sample, recording_progress):
    save_timings(
        encoder.info.backbone, [RuntimeTiming("torch", "float32", 149), RuntimeTiming("torch", "bfloat16", 220)]
    )
    progress = recording_progress()
    with_runtime(encoder, precision="float32").prepare(sample, MIN_IMAGES, progress)
    assert any("so that figures are comparable; torch bfloat16 220" in line for line in progress.messages)


def test_few_images_are_computed_by_torch(encoder, sample, no_measuring):
    assert runtime_of(prepare(encoder, sample, count=MIN_IMAGES - 1)) == ("torch", "float32")
    assert load_timings(encoder.info.backbone) == ()


def test_the_third_process_that_searches_times_the_runtimes(encoder, sample, set_rates, monkeypatch, graph_cache):
    """Each process waits for the import of torch, which another runtime does not need."""
    set_rates(OPENVINO_FASTEST)
    timing_counts = []
    for process in (7, 7, 8, 9):
        with monkeypatch.context() as another:
            another.setattr(cache.os, "getpid", lambda process=process: process)
            select.time_for_searches(with_runtime(encoder), SILENT)
            timing_counts.append(len(load_timings(encoder.info.backbone)))
    assert timing_counts[:3] == [0, 0, 0]
    assert timing_counts[3] >= 2
    assert runtime_of(prepare(encoder, sample, count=1)) == ("openvino", "float32")


def test_without_a_readable_image_noise_is_timed(encoder, tmp_path, graph_cache, set_rates):
    set_rates(OPENVINO_FASTEST)
    missing = [File("missing", tmp_path / "missing.jpg")]
    assert runtime_of(prepare(encoder, missing)) == ("openvino", "float32")


def test_an_image_that_takes_too_much_memory_is_not_timed(encoder, sample, monkeypatch):
    decode = select.decode

    def limited(source, min_sides):
        if source is sample[0]:
            raise MemoryError
        return decode(source, min_sides)

    monkeypatch.setattr(select, "decode", limited)
    assert len(select.sample_pixels(encoder.preprocessing, sample)) == len(sample) - 1


def test_single_images_and_many_images_have_their_own_graph(encoder, sample, graph_cache):
    backbone = with_runtime(encoder, "openvino", "float32").backbone
    single, many = backbone.prepare(sample, 1, SILENT), backbone.prepare(sample, 1000, SILENT)
    assert single is backbone.prepare(sample, 2, SILENT)
    assert many is backbone.prepare(sample, 2000, SILENT)
    assert single.in_flight < many.in_flight
    blank = np.zeros((2, 160, 160, 3), np.uint8)
    np.testing.assert_allclose(single.submit(blank)(), many.submit(blank)(), rtol=1e-4, atol=1e-4)
    assert (backbone.batch_size, backbone.in_flight) == (single.batch_size, single.in_flight)


class CountingWeights:
    """Counts how often the weights are loaded."""

    def __init__(self, backbone):
        self.backbone, self.loads = backbone, 0

    def load(self):
        self.loads += 1
        return self.backbone

    def arrays(self):
        return self.backbone.weights()


def test_torch_is_loaded_once_for_many_calls_with_few_images(encoder, image_files):
    weights = CountingWeights(encoder.backbone)
    lazy = replace(encoder, backbone=AutoBackbone(encoder.info.backbone, weights))
    for path in image_files[:3]:
        lazy.embed([path])
    lazy.encode(np.zeros((1, 160, 160, 3), np.uint8))
    assert weights.loads == 1


def test_a_cached_graph_needs_no_weights(encoder, image_files, graph_cache):
    weights = CountingWeights(encoder.backbone)
    lazy = replace(encoder, backbone=AutoBackbone(encoder.info.backbone, weights, "openvino", "float32"))
    lazy.embed(image_files)
    assert weights.loads == 0


# ---------------------------------------------------------------- skipped runtimes


class ScaledModule(torch.nn.Module):
    """Multiplies the features of a module."""

    def __init__(self, module, factor):
        super().__init__()
        self.module, self.factor = module, factor

    def forward(self, x):
        return self.module(x) * self.factor


@pytest.mark.parametrize("difference", ["weights", "length"])
def test_a_runtime_with_other_features_is_skipped(
    encoder, sample, set_rates, recording_progress, monkeypatch, difference
):
    set_rates(OPENVINO_FASTEST)
    module = build_trainable(encoder.name, "none", seed=1).module
    if difference == "length":
        module = ScaledModule(encoder.backbone.module, 1.01)
    backbone = TorchBackbone(encoder.info.backbone, module)
    monkeypatch.setattr(select, "write_graph", lambda _, runtime, file: write_graph(backbone, runtime, file))
    monkeypatch.setattr(openvino, "float_precisions", lambda: ("float32",))
    progress = recording_progress()
    assert prepare(encoder, sample, progress=progress).runtime == "torch"
    assert any("openvino in float32 is skipped" in text and "cosine" in text for text in progress.messages)
    # the rate holds for other weights of the architecture
    assert "openvino" in {timing.runtime for timing in load_timings(encoder.info.backbone)}
    with pytest.raises(OptionError, match="cosine") as raised:
        prepare(encoder, sample, runtime="openvino", precision="float32")
    assert raised.value.argument == "runtime"


def test_an_unsupported_operation_is_skipped_and_not_tried_again(
    encoder, sample, set_rates, recording_progress, monkeypatch
):
    set_rates(OPENVINO_FASTEST)

    def refuse(*_):
        raise RuntimeError("no rule for\nthis operation")

    monkeypatch.setattr("lookalike.models.torch_backbone.trace", refuse)
    progress = recording_progress()
    assert prepare(encoder, sample, progress=progress).runtime == "torch"
    assert any("openvino in float32 is skipped" in t and "no rule for" in t for t in progress.messages)
    monkeypatch.setattr(select, "write_graph", fail)
    assert prepare(encoder, sample).runtime == "torch"


def test_a_damaged_graph_of_onnx_runtime_is_skipped(encoder, sample, set_rates, recording_progress, monkeypatch):
    set_rates({**OPENVINO_FASTEST, ("onnxruntime", "float32"): 99})
    monkeypatch.setattr(openvino, "is_installed", lambda: False)
    monkeypatch.setattr(select, "write_graph", lambda *args: args[-1].write_bytes(b"not a graph"))
    progress = recording_progress()
    assert prepare(encoder, sample, progress=progress).runtime == "torch"
    assert any("onnxruntime in float32 is skipped" in text for text in progress.messages)


def test_a_read_only_cache_leaves_torch(encoder, sample, tmp_path, set_rates, recording_progress, monkeypatch):
    set_rates(OPENVINO_FASTEST)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "file" / "cache"))
    progress = recording_progress()
    assert prepare(encoder, sample, progress=progress).runtime == "torch"
    assert any("is skipped" in text and "cannot be written" in text for text in progress.messages)
    with pytest.raises(OptionError) as raised:
        prepare(encoder, sample, runtime="openvino", precision="float32")
    assert raised.value.argument == "runtime"


# ---------------------------------------------------------------- requests


def test_a_requested_runtime_is_used_even_if_it_is_slower(encoder, sample, graph_cache, no_measuring):
    save_timings(
        encoder.info.backbone, [RuntimeTiming("torch", "float32", 90), RuntimeTiming("openvino", "float32", 30)]
    )
    assert runtime_of(prepare(encoder, sample, runtime="openvino")) == ("openvino", "float32")
    assert runtime_of(prepare(encoder, sample, precision="float32")) == ("torch", "float32")


def test_where_torch_is_requested_nothing_is_converted_or_timed(encoder, sample, no_measuring, monkeypatch):
    monkeypatch.setattr(select, "write_graph", fail)
    assert runtime_of(prepare(encoder, sample, runtime="torch")) == ("torch", "float32")
    assert load_timings(encoder.info.backbone) == ()


def test_a_requested_runtime_and_precision_are_not_timed(encoder, sample, graph_cache, no_measuring):
    assert runtime_of(prepare(encoder, sample, runtime="openvino", precision="float32")) == ("openvino", "float32")
    assert runtime_of(prepare(encoder, sample, runtime="onnxruntime", precision="float32")) == (
        "onnxruntime",
        "float32",
    )


def test_bfloat16_is_used_where_it_is_requested(encoder, sample, graph_cache):
    if not has_bfloat16(torch.device("cpu")):
        pytest.skip("this processor has no bfloat16 arithmetic")
    for runtime in ("torch", "openvino"):
        assert runtime_of(prepare(encoder, sample, runtime=runtime, precision="bfloat16")) == (runtime, "bfloat16")
    save_timings(
        encoder.info.backbone, [RuntimeTiming("torch", "float32", 90), RuntimeTiming("openvino", "bfloat16", 30)]
    )
    assert runtime_of(prepare(encoder, sample, precision="bfloat16")) == ("openvino", "bfloat16")


@pytest.mark.usefixtures("graph_cache")
@pytest.mark.parametrize(
    ("runtime", "precision", "argument"),
    [
        ("torch", "bfloat16", "precision"),
        ("openvino", "bfloat16", "runtime"),
        ("onnxruntime", "bfloat16", "runtime"),
        ("auto", "bfloat16", "precision"),
    ],
)
def test_a_precision_without_hardware_is_refused(encoder, sample, monkeypatch, runtime, precision, argument):
    monkeypatch.setattr(torch_backbone, "has_bfloat16", lambda _: False)
    monkeypatch.setattr(openvino, "float_precisions", lambda: ("float32",))
    save_timings(encoder.info.backbone, [RuntimeTiming("torch", "float32", 90)])
    with pytest.raises(OptionError, match="bfloat16") as raised:
        prepare(encoder, sample, runtime=runtime, precision=precision)
    assert raised.value.argument == argument


def test_a_runtime_that_is_not_installed_is_refused(encoder, sample, monkeypatch, set_rates):
    set_rates(OPENVINO_FASTEST)
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert prepare(encoder, sample).runtime == "torch"
    with pytest.raises(OptionError, match="pip install openvino") as raised:
        prepare(encoder, sample, runtime="openvino", precision="float32")
    assert raised.value.argument == "runtime"
    with pytest.raises(OptionError, match="pip install openvino"):
        prepare(encoder, sample, runtime="openvino")


@pytest.mark.parametrize(
    ("runtime", "precision", "argument"),
    [("tensorrt", "auto", "runtime"), ("auto", "int8", "precision"), ("auto", "float32+half", "precision")],
)
def test_unknown_runtimes_and_precisions_are_refused(encoder, runtime, precision, argument):
    with pytest.raises(OptionError) as raised:
        with_runtime(encoder, runtime, precision)
    assert raised.value.argument == argument


def test_each_member_may_have_its_own_precision(make_ensemble, encoder):
    ensemble = make_ensemble("average")
    mixed = with_runtime(ensemble, precision="float32+bfloat16")
    assert isinstance(mixed, Ensemble)
    assert mixed.precision == "float32+bfloat16"
    assert (mixed.fingerprint, mixed.combination) == (ensemble.fingerprint, "average")
    assert with_runtime(ensemble, precision="float32").precision == "float32"
    with pytest.raises(OptionError, match="2 encoders, got 1") as raised:
        with_runtime(encoder, precision="float32+bfloat16")
    assert raised.value.argument == "precision"


def test_another_runtime_keeps_the_weights(encoder):
    lazy = with_runtime(encoder)
    assert runtime_of(lazy) == ("auto", "auto")
    assert with_runtime(lazy) is lazy
    other = with_runtime(lazy, "torch", "float32")
    assert other.backbone.source == lazy.backbone.source == TorchWeights(encoder.backbone)
    np.testing.assert_array_equal(
        other.backbone.weights()["conv_stem.weight"], encoder.backbone.weights()["conv_stem.weight"]
    )


def test_an_exported_encoder_keeps_its_runtime(encoder):
    info = replace(encoder.info, graph=GraphInfo("openvino", "int8", {}, ""))
    exported = Encoder(info, encoder.backbone, None)
    assert with_runtime(exported, "openvino", "int8") is with_runtime(exported) is exported
    for runtime, precision in (("torch", "auto"), ("openvino", "float32")):
        with pytest.raises(OptionError, match="was exported for openvino in int8"):
            with_runtime(exported, runtime, precision)


# ---------------------------------------------------------------- damaged caches


@pytest.fixture
def graphs(encoder, graph_cache):
    return GraphCache(encoder.info.backbone.fingerprint)


@pytest.fixture
def conversions(graphs, graph_cache_original, graph_cache, monkeypatch):
    """Let a conversion copy the graph that was made before, and list the runtimes that were converted for."""
    originals = graph_cache_original / graphs.folder.relative_to(graph_cache)
    runtimes = []

    def copy_graph(_, runtime, file):
        runtimes.append(runtime)
        for suffix in GRAPH_RUNTIMES[runtime].SUFFIXES:
            shutil.copyfile(originals / f"graph{suffix}", file.with_suffix(suffix))

    monkeypatch.setattr(select, "write_graph", copy_graph)
    return runtimes


def test_a_damaged_compiled_graph_is_compiled_again(encoder, sample, image_files, graphs, monkeypatch):
    monkeypatch.setattr(select, "write_graph", fail)
    (blob,) = graphs.folder.glob("float32-latency-*.blob")
    content = blob.read_bytes()
    for damaged in (content[:-100], b"", content[:50] + b"\xff" * 8 + content[58:]):
        blob.write_bytes(damaged)
        prepared = prepare(encoder, sample, 1, runtime="openvino", precision="float32")
        np.testing.assert_allclose(prepared.embed(image_files).vectors, encoder.embed(image_files).vectors, atol=1e-5)
        assert blob.read_bytes() not in (damaged, b"")
        assert graphs.read_blob("float32-latency") is not None


@pytest.mark.parametrize("damage", ["missing .bin", "truncated .xml", "flipped bit", "missing record"])
def test_a_damaged_graph_is_made_again(encoder, sample, image_files, graphs, conversions, damage):
    for blob in graphs.folder.glob("*.blob"):
        blob.unlink()
    xml, weights = graphs.folder / "graph.xml", graphs.folder / "graph.bin"
    content = bytearray(weights.read_bytes())
    if damage == "missing .bin":
        weights.unlink()
    elif damage == "truncated .xml":
        xml.write_bytes(xml.read_bytes()[:200])
    elif damage == "flipped bit":
        content[100] ^= 64
        weights.write_bytes(content)
    else:
        (graphs.folder / "graphs.json").write_text("{")
    assert not GraphCache(encoder.info.backbone.fingerprint).has("graph.xml", "graph.bin")
    prepared = prepare(encoder, sample, 1, runtime="openvino", precision="float32")
    np.testing.assert_allclose(prepared.embed(image_files).vectors, encoder.embed(image_files).vectors, atol=1e-5)
    assert GraphCache(encoder.info.backbone.fingerprint).has("graph.xml", "graph.bin")
    assert conversions == ["openvino"]


def test_a_damaged_onnx_file_is_made_again(encoder, sample, image_files, graphs, conversions):
    (graphs.folder / "graph.onnx").write_bytes(b"damaged")
    prepared = prepare(encoder, sample, 1, runtime="onnxruntime", precision="float32")
    np.testing.assert_allclose(prepared.embed(image_files).vectors, encoder.embed(image_files).vectors, atol=1e-5)
    assert GraphCache(encoder.info.backbone.fingerprint).has("graph.onnx")
    assert conversions == ["onnxruntime"]


# ---------------------------------------------------------------- rates


@pytest.mark.parametrize("count", [9, 3])
def test_full_batches_are_timed(count):
    class Runner:
        batch_size, in_flight = 4, 2
        sizes: list[int] = []  # noqa: RUF012

        def submit(self, pixels):
            self.sizes.append(len(pixels))
            return lambda: None

    rate = measure_rate(Runner(), np.zeros((count, 2, 2, 3), np.uint8), seconds=0.01)
    assert set(Runner.sizes) == {4}
    assert rate > 0


def test_a_graph_for_an_unsupported_operation_is_a_model_error(encoder, tmp_path):
    class Unsupported(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            if float(x.sum()) > 0:  # depends on the data
                return x.mean((2, 3))
            return x.amax((2, 3))

    with pytest.raises(ModelError, match="test_efficientnet cannot be converted for openvino"):
        write_graph(TorchBackbone(encoder.info.backbone, Unsupported()), "openvino", tmp_path / "graph.xml")
