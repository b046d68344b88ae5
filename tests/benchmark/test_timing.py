from __future__ import annotations

import importlib.metadata
import io
import json
import os
import resource
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from lookalike._system import cpu_count
from lookalike.benchmark import timing
from lookalike.benchmark.timing import (
    TimingRequest,
    machine,
    main,
    measure_timing,
    peak_memory_mb,
    time_here,
    time_members,
    timing_setup,
)
from lookalike.errors import LookalikeError, UnreadableImage
from lookalike.models.trainable import build_trainable
from lookalike.progress import SILENT

NAMES = ("test_efficientnet", "test_resnet")


@pytest.fixture
def images(data_folder_original):
    return sorted((data_folder_original / "test" / "gallery").rglob("*.jpg"))


def test_all_combinations_are_timed_in_a_process_with_its_own_memory(finished, images):
    """On Linux a child process starts with the peak of its parent, which must not count."""
    assert np.ones(125_000_000).all()  # 1 GB, the peak of this process from now on
    bundles = [finished.out / "members" / f"{name.replace('_', '-')}-frozen" for name in NAMES]
    timings = measure_timing(TimingRequest(bundles, ["aligned", "average", "concat"], images))
    mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    assert list(timings) == ["aligned", "average", "concat"]
    for cost in timings.values():
        assert 0 < cost.single_decode_ms < cost.single_p50_ms <= cost.single_p95_ms
        assert cost.single_model_p50_ms < cost.single_p50_ms
        assert cost.batched_ms > 0
        assert (cost.images, cost.batch_size, cost.device) == (40, 16, "cpu")
        assert cost.threads >= 1
        assert 100 < cost.peak_memory_mb < mine - 300


def test_combinations_share_every_pass(images, monkeypatch):
    monkeypatch.setattr(timing, "_SINGLE_IMAGES", 6)
    passes = []

    class Counted:
        """A backbone that records the sizes of its batches."""

        def __init__(self, backbone):
            self._backbone = backbone

        def __getattr__(self, name):
            return getattr(self._backbone, name)

        def submit(self, pixels):
            passes.append(len(pixels))
            return self._backbone.submit(pixels)

    encoders = [build_trainable(name, "none").freeze() for name in NAMES]
    members = [replace(e, backbone=Counted(e.backbone.prepare([], 1, SILENT))) for e in encoders]
    timings = time_members(lambda _: members, ["aligned", "average", "concat"], images, count=20)
    # per member: five images to warm up, six timed; one batch to warm up, four timed
    assert passes.count(1) == 2 * 11
    assert passes.count(16) == 2 * (1 + 4)
    assert set(passes) == {1, 16}
    assert len({cost.single_decode_ms for cost in timings.values()}) == 1
    costs = [cost.single_p50_ms for cost in timings.values()]
    assert max(costs) - min(costs) < 0.5 * min(costs)
    assert {cost.threads for cost in timings.values()} == {cpu_count()}


def test_one_encoder(images, monkeypatch):
    monkeypatch.setattr(timing, "_SINGLE_IMAGES", 3)
    counts = []
    encoder = build_trainable(NAMES[0], "none").freeze()
    timings = time_members(lambda count: counts.append(count) or [encoder], [""], images[:1], count=20)
    assert counts == [1, 20]
    assert list(timings) == [""]
    assert timings[""].images == 3


def test_an_image_that_takes_too_much_memory_is_named(images, monkeypatch):
    def fail(path, min_sides):
        raise MemoryError

    monkeypatch.setattr(timing, "read_scaled", fail)
    encoder = build_trainable(NAMES[0], "none").freeze()
    with pytest.raises(UnreadableImage, match="memory") as caught:
        time_members(lambda _: [encoder], [""], images[:1], count=20)
    assert caught.value.path == images[0]


def test_peak_memory_on_linux(monkeypatch, tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmPeak:\t 9000 kB\nVmHWM:\t    2000 kB\nVmRSS:\t 1000 kB\n")
    monkeypatch.setattr(timing, "_STATUS", status)
    assert peak_memory_mb() == 2.048


def test_peak_memory_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr(timing, "_STATUS", tmp_path / "none")
    monkeypatch.setattr(timing.sys, "platform", "darwin")  # counts bytes
    assert peak_memory_mb() == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


@pytest.mark.parametrize(
    ("status", "stderr", "message"),
    [
        (-9, "", "failed with status -9: no output"),
        (1, "Traceback\nRuntimeError: no room.\n", "failed with status 1: RuntimeError: no room;"),
    ],
)
def test_the_error_of_a_failed_process_has_status_and_last_line(finished, images, monkeypatch, status, stderr, message):
    process = subprocess.CompletedProcess([], status, "", stderr)
    monkeypatch.setattr(timing.subprocess, "run", lambda *_, **__: process)
    with pytest.raises(LookalikeError, match=message):
        measure_timing(TimingRequest([finished.out / "best"], [""], images))


def test_the_process_reports_an_unusable_bundle(monkeypatch, tmp_path):
    request = {"bundles": [str(tmp_path)], "combinations": [""], "images": []}
    monkeypatch.setattr(timing.sys, "stdin", io.StringIO(json.dumps(request)))
    with pytest.raises(SystemExit, match="is not a bundle"):
        main()


@pytest.mark.parametrize(("runtime", "timed"), [("auto", "torch in float32"), ("openvino", "openvino in float32")])
def test_the_requested_runtime_is_timed(finished, images, runtime, timed):
    pytest.importorskip("openvino")
    bundle = finished.out / "members" / "test-efficientnet-frozen"
    assert time_here(TimingRequest([bundle], [""], images, runtime=runtime, count=1))[""].runtime == timed


def test_timing_setup():
    setup = timing_setup()
    assert setup.keys() == {"processor", "device", "threads", "torch", "timm", "pillow", "openvino"}
    assert setup["threads"] == cpu_count()
    assert (setup["torch"], setup["timm"]) == tuple(importlib.metadata.version(n) for n in ("torch", "timm"))


def test_machine_has_cores_and_versions():
    assert machine()["cores"] == os.cpu_count()
    assert list(machine())[3:] == ["lookalike", "torch", "timm", "openvino", "faiss-cpu", "numpy"]
