from __future__ import annotations

import importlib.metadata
import io
import json
import os
import resource
import subprocess

import numpy as np
import pytest
import torch

from lookalike._system import cpu_count
from lookalike.benchmark import timing
from lookalike.benchmark.timing import (
    TimingRequest,
    machine,
    main,
    measure_timing,
    peak_memory_mb,
    time_members,
    timing_setup,
)
from lookalike.data.layouts import find_images
from lookalike.errors import LookalikeError
from lookalike.models.trainable import build_trainable
from lookalike.runtimes import machine as runtime_machine

NAMES = ("test_efficientnet", "test_resnet")


@pytest.fixture
def images(photo_folder_original):
    return find_images(photo_folder_original / "test" / "gallery")


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
    monkeypatch.setattr(timing, "SINGLE_IMAGES", 6)
    members = [build_trainable(name, "none") for name in NAMES]
    passes = []
    for member in members:
        encode = member.encode
        monkeypatch.setattr(
            member, "encode", lambda pixels, encode=encode: passes.append(len(pixels)) or encode(pixels)
        )
    timings = time_members(lambda _: members, ["aligned", "average", "concat"], images)
    # per member: five images to warm up, six timed; one batch to warm up, four timed
    assert passes.count(1) == 2 * 11
    assert passes.count(16) == 2 * (1 + 4)
    assert set(passes) == {1, 16}
    assert len({cost.single_decode_ms for cost in timings.values()}) == 1
    costs = [cost.single_p50_ms for cost in timings.values()]
    assert max(costs) - min(costs) < 0.5 * min(costs)
    assert {cost.threads for cost in timings.values()} == {cpu_count()}


def test_one_encoder(images, monkeypatch):
    monkeypatch.setattr(timing, "SINGLE_IMAGES", 3)
    calls = []
    timings = time_members(lambda single: calls.append(single) or [build_trainable(NAMES[0], "none")], [""], images[:1])
    assert calls == [True, False]
    assert list(timings) == [""]
    assert timings[""].images == 3


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


def test_the_requested_runtime_is_timed(finished, images, monkeypatch, tmp_path):
    pytest.importorskip("openvino")
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path))
    bundle = finished.out / "members" / "test-efficientnet-frozen"
    assert (
        measure_timing(TimingRequest([bundle], [""], images, runtime="auto", count=1))[""].runtime == "torch in float32"
    )
    timings = measure_timing(TimingRequest([bundle], [""], images, runtime="openvino"))
    assert timings[""].runtime == "openvino in float32"


@pytest.fixture
def listed(monkeypatch, tmp_path):
    """A file in place of /proc/cpuinfo."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(runtime_machine, "_LISTED", path)
    return path


def test_the_processor_has_the_name_that_linux_gives(listed):
    listed.write_text("processor\t: 0\nmodel name\t: Fast One @ 3 GHz\n\nprocessor\t: 1\nmodel name\t: Another\n")
    assert machine()["processor"] == timing_setup()["processor"] == "Fast One @ 3 GHz"


def test_a_processor_without_a_name_has_that_of_its_family(listed, monkeypatch):
    listed.write_text("processor\t: 0\n")
    monkeypatch.setattr(runtime_machine.platform, "processor", lambda: "")
    monkeypatch.setattr(runtime_machine.platform, "machine", lambda: "arm64")
    assert machine()["processor"] == "arm64"
    listed.unlink()
    assert timing_setup()["processor"] == "arm64"


def test_timing_setup():
    setup = timing_setup()
    assert setup.keys() == {"processor", "device", "cores", "threads", "torch", "timm", "pillow", "openvino"}
    assert setup["threads"] == torch.get_num_threads()
    assert (setup["torch"], setup["timm"]) == tuple(importlib.metadata.version(n) for n in ("torch", "timm"))


def test_machine_has_cores_and_versions():
    assert machine()["cores"] == os.cpu_count()
    assert list(machine())[3:] == ["lookalike", "torch", "timm", "openvino", "faiss-cpu", "numpy"]
